"""A unit encodes to what the models give, to the same bits every time, and bad samples leave the others alone."""

import io
import shutil
import time
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
from producer.encode import Encoder, EncoderConfig, EncoderError, Raw
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
    return replace(Raw(f"shard-0/{k}", "photos", "shard-0.tar", png(k), caption, "raw", "t2i"), **over)  # type: ignore[arg-type]


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
    assert tiled.fingerprint != encoder.fingerprint
    cut: list[tuple[int, ...]] = []
    monkeypatch.setattr("model.vae.in_tiles", lambda x, *rest: cut.append(tuple(x.shape)) or in_tiles(x, *rest))
    for bucket in (Bucket(320, 272), Bucket(256, 208)):
        (got,), (whole,) = (one.latents(bucket, [image.getvalue()]) for one in (tiled, encoder))
        assert not isinstance(got, str) and not isinstance(whole, str)
        # The tiny VAE sees so little around a pixel that its tiles meet without a trace.
        assert np.allclose(got.mean, whole.mean, atol=5e-2)
    assert cut == [(2, 3, 320, 272)]


def test_a_unit_holds_what_the_models_give(encoder: Encoder, encoders: Path) -> None:
    samples = [raw(k) for k in range(5)]
    encoded, rejected = encoder.encode_unit(plan(5), samples)
    assert not rejected
    vae, prompts = ImageVae(encoders / "vae"), PromptEncoder(encoders)
    for sample, got in zip(samples, encoded, strict=True):
        assert (got.key, got.source, got.shard) == (sample.key, sample.source, sample.shard)
        assert (got.task, got.split, got.caption) == ("t2i", "raw", sample.caption)
        picture = torch.from_numpy(fit(decode(sample.image), BUCKET).copy()).permute(2, 0, 1)[None]
        mean, logvar = vae.encode(picture)
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
    encoded, _ = encoder.encode_unit(plan(2), [raw(0), raw(1)])
    samples = [*encoded, encoder.empty()]
    _, back = unpack(pack(Header("plan", UnitId("train", 3, 1), encoder.fingerprint), samples))
    assert all(same(one, other) for one, other in zip(samples, back, strict=True))


def test_another_encoder_gives_the_same_bits(encoder: Encoder, encoders: Path) -> None:
    samples = [raw(k) for k in range(5)]
    first, _ = encoder.encode_unit(plan(5), samples)
    torch.set_num_threads(2)
    again = Encoder(config(encoders))
    second, _ = again.encode_unit(plan(5), samples)
    assert torch.get_num_threads() == 2
    assert again.fingerprint == encoder.fingerprint
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_rejected_samples_are_named_and_change_no_bit_of_the_others(encoder: Encoder) -> None:
    samples = [raw(k) for k in range(7)]
    whole, _ = encoder.encode_unit(plan(7), samples)
    samples[0] = raw(0, image=b"")
    samples[2] = raw(2, image=png(2)[:700])
    samples[5] = raw(5, image=b"<html>not found</html>")
    short, rejected = encoder.encode_unit(plan(7), samples)
    assert dict(rejected).keys() == {"shard-0/0", "shard-0/2", "shard-0/5"}
    assert dict(rejected)["shard-0/0"] == "picture: empty file"
    assert [sample.key for sample in short] == ["shard-0/1", "shard-0/3", "shard-0/4", "shard-0/6"]
    assert all(same(sample, whole[k]) for sample, k in zip(short, (1, 3, 4, 6), strict=True))


def test_a_caption_beyond_the_limit_is_rejected_with_both_numbers(encoders: Path) -> None:
    encoder = Encoder(config(encoders, max_text_tokens=40))
    encoded, rejected = encoder.encode_unit(plan(2), [raw(0), raw(1, caption="moon " * 60)])
    assert [sample.key for sample in encoded] == ["shard-0/0"]
    (key, reason), *rest = rejected
    assert (key, rest) == ("shard-0/1", [])
    assert "66 tokens" in reason
    assert "the limit is 40" in reason


def test_a_latents_bits_do_not_depend_on_its_batch(encoder: Encoder, encoders: Path) -> None:
    images = [png(k) for k in range(5)]
    wide = Encoder(config(encoders, picture_batch=4))
    together = wide.latents(BUCKET, images)
    alone = [wide.latents(BUCKET, [image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert not isinstance(one, str)
        assert not isinstance(other, str)
        assert np.array_equal(one.mean, other.mean)


def test_known_latents_are_taken_as_they_are(encoder: Encoder) -> None:
    whole, _ = encoder.encode_unit(plan(3), [raw(k) for k in range(3)])
    known = {sample.key: sample.latent for sample in whole[1:]}
    samples = [raw(0), raw(1, image=b""), raw(2, image=b"")]
    encoded, rejected = encoder.encode_unit(plan(3), samples, known)
    assert not rejected
    assert encoded[1].latent is known["shard-0/1"]
    assert all(same(one, other) for one, other in zip(encoded, whole, strict=True))


def test_the_empty_unit_holds_the_templates_end(encoder: Encoder) -> None:
    (empty,), rejected = encoder.encode_unit(plan(0, "empty"), [])
    assert not rejected
    assert (empty.key, empty.caption) == ("", "")
    assert empty.latent.mean.shape == empty.latent.logvar.shape == (16, 0, 0)
    assert empty.text.shape == (5, 64)
    assert same(empty, encoder.empty())


def test_the_fingerprint_follows_weights_and_settings(encoder: Encoder, encoders: Path, tmp_path: Path) -> None:
    assert Encoder(config(encoders, picture_batch=3)).fingerprint != encoder.fingerprint
    assert Encoder(config(encoders, dtype="bfloat16")).fingerprint != encoder.fingerprint
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
    exact, _ = encoder.encode_unit(plan(2), samples)
    half, _ = Encoder(config(encoders, dtype="bfloat16")).encode_unit(plan(2), samples)
    for one, other in zip(exact, half, strict=True):
        assert np.abs(one.latent.mean - other.latent.mean).mean() < 0.05
        assert one.text.shape == other.text.shape


@pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer"])
def test_a_missing_folder_is_named_at_once_with_the_cure(name: str, encoders: Path, tmp_path: Path) -> None:
    root = tmp_path / "encoders"
    shutil.copytree(encoders, root)
    shutil.rmtree(root / name)
    start = time.monotonic()
    with pytest.raises(EncoderError, match=rf"{root / name}.*launch/make_encoders\.py"):
        Encoder(config(root))
    assert time.monotonic() - start < 1


def test_weights_that_do_not_load_are_an_encoder_error(encoders: Path, tmp_path: Path) -> None:
    root = tmp_path / "encoders"
    shutil.copytree(encoders, root)
    (root / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EncoderError, match=str(root)):
        Encoder(config(root))
