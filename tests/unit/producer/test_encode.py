"""A unit encodes to what the models give, to the same bits every time, and bad samples leave the others alone."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from model.prompt import PromptEncoder
from model.vae import ImageVae
from model.vae_tiles import in_tiles
from producer.api.bucket import Bucket
from producer.api.unit import Encoded, Header, UnitId, pack, unpack
from producer.encode import Encoder, EncoderError, Raw, picture
from producer.encoder_config import EncoderConfig
from producer.picture import decode, fit
from producer.plan import UnitPlan

BUCKET = Bucket(48, 64)


def png(k: int) -> bytes:
    """A crop of a photograph, another for each k."""
    out = io.BytesIO()
    Image.fromarray(data.astronaut()[40 * k : 40 * k + 90, 60 : 60 + 100 + k]).save(out, "PNG")
    return out.getvalue()


def raw(k: int, **over: object) -> Raw:
    caption = "an astronaut, part of a portrait. " * (1 + 3 * (k % 3)) + str(k)
    return replace(Raw(f"shard-0/{k}", "photos", "shard-0.tar", caption, "raw", "t2i"), **over)  # type: ignore[arg-type]


def shown(count: int) -> list[np.ndarray | str]:
    """The pictures of the first samples."""
    return [picture(png(k), BUCKET) for k in range(count)]


def plan(count: int, stream: str = "train") -> UnitPlan:
    return UnitPlan(UnitId(stream, 3, 1), BUCKET, "raw", "t2i", np.arange(count))


def config(encoders: Path, **over: object) -> EncoderConfig:
    settings = {"dtype": "float32", "picture_batch": 2, "text_batch": 3} | over
    return EncoderConfig(root=encoders, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder(encoders: Path) -> Encoder:
    return Encoder(config(encoders))


def same(one: Encoded, other: Encoded) -> bool:
    planes = (one.latent.mean, other.latent.mean), (one.latent.logvar, other.latent.logvar), (one.text, other.text)
    return one.key == other.key and all(np.array_equal(a, b) for a, b in planes)


def test_pictures_above_a_size_are_encoded_in_the_vaes_tiles_and_smaller_ones_whole(
    encoder: Encoder, encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = io.BytesIO()
    Image.fromarray(data.astronaut()[:320, :272]).save(image, "PNG")
    tiled = Encoder(config(encoders, tile_above=256))
    assert tiled.latent_fingerprint != encoder.latent_fingerprint
    cut: list[tuple[int, ...]] = []
    monkeypatch.setattr("model.vae.in_tiles", lambda x, *rest: cut.append(tuple(x.shape)) or in_tiles(x, *rest))
    for bucket in (Bucket(320, 272), Bucket(256, 208)):
        (got,), (whole,) = (one.latents(bucket, [picture(image.getvalue(), bucket)]) for one in (tiled, encoder))
        assert not isinstance(got, str) and not isinstance(whole, str)
        # The tiny VAE sees so little around a pixel that its tiles meet without a trace.
        assert np.allclose(got.mean, whole.mean, atol=5e-2)
    assert cut == [(2, 3, 320, 272)]


def test_a_unit_holds_what_the_models_give(encoder: Encoder, encoders: Path) -> None:
    samples = [raw(k) for k in range(5)]
    encoded, rejected = encoder.encode_unit(plan(5), samples, shown(5))
    assert not rejected
    vae, prompts = ImageVae(encoders / "vae"), PromptEncoder(encoders)
    for sample, got in zip(samples, encoded, strict=True):
        assert (got.key, got.source, got.shard) == (sample.key, sample.source, sample.shard)
        assert (got.task, got.split, got.caption) == ("t2i", "raw", sample.caption)
        pixels = torch.from_numpy(fit(decode(png(int(sample.key[-1]))), BUCKET).copy()).permute(2, 0, 1)[None]
        mean, logvar = vae.encode(pixels)
        assert (got.latent.height, got.latent.width) == BUCKET
        assert got.latent.mean.shape == (16, 6, 8)
        assert got.latent.mean.dtype == got.latent.logvar.dtype == np.float16
        assert np.allclose(got.latent.mean, mean[0], atol=5e-3)
        assert np.array_equal(got.latent.logvar, logvar[0].half())
        wanted = prompts.encode([sample.caption])[0]
        text = torch.from_numpy(got.text).view(torch.bfloat16)
        assert text.shape == wanted.shape
        assert torch.allclose(text.float(), wanted, atol=1e-2, rtol=1e-2)


def test_a_unit_survives_packing(encoder: Encoder) -> None:
    encoded, _ = encoder.encode_unit(plan(2), [raw(0), raw(1)], shown(2))
    samples = [*encoded, encoder.empty()]
    _, back = unpack(pack(Header("plan", UnitId("train", 3, 1), encoder.fingerprint), samples))
    assert all(same(one, other) for one, other in zip(samples, back, strict=True))


def test_another_encoder_gives_the_same_bits(encoder: Encoder, encoders: Path) -> None:
    samples = [raw(k) for k in range(5)]
    first, _ = encoder.encode_unit(plan(5), samples, shown(5))
    torch.set_num_threads(2)
    again = Encoder(config(encoders))
    second, _ = again.encode_unit(plan(5), samples, iter(shown(5)))
    assert torch.get_num_threads() == 2
    assert again.fingerprint == encoder.fingerprint
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_rejected_samples_are_named_and_change_no_bit_of_the_others(encoder: Encoder) -> None:
    samples = [raw(k) for k in range(7)]
    pictures = shown(7)
    whole, _ = encoder.encode_unit(plan(7), samples, pictures)
    for k, image in ((0, b""), (2, png(2)[:700]), (5, b"<html>not found</html>")):
        pictures[k] = picture(image, BUCKET)
    short, rejected = encoder.encode_unit(plan(7), samples, pictures)
    assert dict(rejected).keys() == {"shard-0/0", "shard-0/2", "shard-0/5"}
    assert dict(rejected)["shard-0/0"] == "picture: empty file"
    assert [sample.key for sample in short] == ["shard-0/1", "shard-0/3", "shard-0/4", "shard-0/6"]
    assert all(same(sample, whole[k]) for sample, k in zip(short, (1, 3, 4, 6), strict=True))


def test_a_caption_beyond_the_limit_is_rejected_with_both_numbers(encoders: Path) -> None:
    encoder = Encoder(config(encoders, max_text_tokens=40))
    encoded, rejected = encoder.encode_unit(plan(2), [raw(0), raw(1, caption="moon " * 60)], shown(2))
    assert [sample.key for sample in encoded] == ["shard-0/0"]
    (key, reason), *rest = rejected
    assert (key, rest) == ("shard-0/1", [])
    assert "66 tokens" in reason
    assert "the limit is 40" in reason


def test_a_latents_bits_do_not_depend_on_its_batch(encoder: Encoder, encoders: Path) -> None:
    pictures = shown(5)
    wide = Encoder(config(encoders, picture_batch=4))
    together = wide.latents(BUCKET, pictures)
    alone = [wide.latents(BUCKET, [one])[0] for one in pictures]
    for one, other in zip(together, alone, strict=True):
        assert not isinstance(one, str)
        assert not isinstance(other, str)
        assert np.array_equal(one.mean, other.mean)


def test_known_latents_are_taken_as_they_are(encoder: Encoder) -> None:
    whole, _ = encoder.encode_unit(plan(3), [raw(k) for k in range(3)], shown(3))
    known = {sample.key: sample.latent for sample in whole[1:]}
    encoded, rejected = encoder.encode_unit(plan(3), [raw(k) for k in range(3)], shown(1), known)
    assert not rejected
    assert encoded[1].latent is known["shard-0/1"]
    assert all(same(one, other) for one, other in zip(encoded, whole, strict=True))


def test_the_empty_unit_holds_the_templates_end(encoder: Encoder) -> None:
    empty = encoder.empty()
    assert (empty.key, empty.caption) == ("", "")
    assert empty.latent.mean.shape == empty.latent.logvar.shape == (16, 0, 0)
    assert empty.text.shape == (5, 64)
    assert same(empty, encoder.empty())


def test_the_fingerprint_follows_weights_and_settings(encoder: Encoder, encoders: Path, tmp_path: Path) -> None:
    assert Encoder(config(encoders, dtype="bfloat16")).fingerprint != encoder.fingerprint
    assert Encoder(config(encoders, decode_threads=7)).fingerprint == encoder.fingerprint
    for name, latents in (("picture_batch", True), ("picture_pixels", True), ("text_batch", False)):
        other = Encoder(config(encoders, **{name: 7}))
        assert other.fingerprint != encoder.fingerprint
        # Latents are kept by their own: another text setting leaves them valid.
        assert (other.latent_fingerprint != encoder.latent_fingerprint) == latents
    moved = tmp_path / "moved"
    shutil.copytree(encoders, moved)
    assert Encoder(config(moved)).fingerprint == encoder.fingerprint
    weights = moved / "vae" / "diffusion_pytorch_model.safetensors"
    raw_bytes = bytearray(weights.read_bytes())
    raw_bytes[-3] ^= 1
    weights.write_bytes(raw_bytes)
    assert Encoder(config(moved)).fingerprint != encoder.fingerprint


def test_bfloat16_is_near_to_float32(encoder: Encoder, encoders: Path) -> None:
    samples = [raw(0), raw(1)]
    exact, _ = encoder.encode_unit(plan(2), samples, shown(2))
    half, _ = Encoder(config(encoders, dtype="bfloat16")).encode_unit(plan(2), samples, shown(2))
    for one, other in zip(exact, half, strict=True):
        assert np.abs(one.latent.mean - other.latent.mean).mean() < 0.05
        assert one.text.shape == other.text.shape


@pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer"])
def test_a_missing_folder_is_named_at_once_with_the_cure(name: str, encoders: Path, tmp_path: Path) -> None:
    root = tmp_path / "encoders"
    shutil.copytree(encoders, root)
    shutil.rmtree(root / name)
    with pytest.raises(EncoderError, match=rf"{root / name}.*launch/make_encoders\.py"):
        Encoder(config(root))


def test_weights_that_do_not_load_are_an_encoder_error(encoders: Path, tmp_path: Path) -> None:
    root = tmp_path / "encoders"
    shutil.copytree(encoders, root)
    (root / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EncoderError, match=str(root)):
        Encoder(config(root))


def short_of_memory(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, pixels: int, tokens: int) -> None:
    """Let `encoder` compute, but run out of memory above so many at once."""
    encode, run = encoder._vae.encode, encoder._prompts._run

    def limited(pictures: torch.Tensor) -> object:
        if pictures.shape[0] * pictures.shape[2] * pictures.shape[3] > pixels:
            raise torch.OutOfMemoryError("out of memory")
        return encode(pictures)

    def limited_text(rows: list[object], *rest: object) -> object:
        if sum(len(row.ids) for row in rows) > tokens:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("out of memory")
        return run(rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder._vae, "encode", limited)
    monkeypatch.setattr(encoder._prompts, "_run", limited_text)


BUCKETS = (Bucket(32, 32), Bucket(64, 48), BUCKET)


@pytest.mark.parametrize(
    ("pixels", "tokens", "said"),
    [
        (5 * 3072, 200, r"^encoder\.picture_pixels: 8 pictures of .* at once .* memory of cpu; 4 do: set it to 12288$"),
        (3071, 200, r"^encoder\.picture_pixels: .*; nor does one: set encoder\.tile_above$"),
        (
            8 * 3072,
            63,
            r"^encoder\.text_tokens: 3 captions of 64 tokens at once .* of cpu; nor does one: lower .*max_text",
        ),
        (8 * 3072, 100, r"^encoder\.text_tokens: 3 captions of 64 tokens at once .* of cpu; 1 do: set it to 64$"),
    ],
)
def test_sizes_beyond_the_memory_fail_the_start_with_the_size_that_fits(
    encoders: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, tokens: int, said: str
) -> None:
    wide = config(encoders, picture_batch=8, text_batch=3, max_text_tokens=60)
    encoder = Encoder(wide)
    encoder.probe(BUCKETS)
    short_of_memory(encoder, monkeypatch, pixels, tokens)
    with pytest.raises(EncoderError, match=said) as error:
        encoder.probe(BUCKETS)
    name, _, value = re.search(r"encoder\.(\w+):.*?(set it to (\d+))?$", str(error.value)).groups()  # type: ignore[union-attr]
    if value:
        fixed = Encoder(wide.model_copy(update={name: int(value)}))
        short_of_memory(fixed, monkeypatch, pixels, 200)
        fixed.probe(BUCKETS)


def test_a_batch_holds_as_many_as_its_pixels_and_tokens_allow(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Encoder(config(encoders, picture_batch=4, picture_pixels=2 * 48 * 64, text_batch=9, text_tokens=80))
    assert [small.config.pictures(bucket) for bucket in (Bucket(32, 32), BUCKET, Bucket(128, 128))] == [4, 2, 1]
    seen: list[tuple[int, int]] = []
    run = small._prompts._run
    monkeypatch.setattr(
        small._prompts, "_run", lambda rows, t: seen.append((len(rows), max(len(r.ids) for r in rows))) or run(rows, t)
    )
    encoded, _ = small.encode_unit(plan(6), [raw(k) for k in range(6)], shown(6))
    assert len(encoded) == 6
    assert max(count for count, _ in seen) > 1 and all(count == 1 or count * width <= 80 for count, width in seen)
