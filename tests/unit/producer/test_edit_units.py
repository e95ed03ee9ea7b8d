"""Units of edits: references go through both encoders, are kept, and train; bad ones cost their own sample alone."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from consumer.objective.flow import FlowObjective
from model.config import FlowConfig, MMDiTConfig
from model.mmdit import MMDiT
from model.prompt import PromptEncoder
from model.template import EDIT_PLUS
from model.vae import ImageVae
from producer import reference_reader
from producer.api.bucket import bucket
from producer.api.unit import Encoded, UnitId, unpack
from producer.cache import CacheConfig
from producer.encode import EncoderError
from producer.encoder_config import EncoderConfig
from producer.index import write_generation
from producer.operator.stage import OperatorsConfig, build_stage, describe
from producer.picture import decode
from producer.produce import EncodeJob, UnitMaker
from producer.recipe import RecipeConfig
from producer.source.reader import SourceConfig
from tests.unit.producer.test_scoring import lengths, score
from tests.unit.producer.test_sources import Members, write_tar
from tests.unit.producer.whole import decide

EDITS = 6
UNIT = UnitId("train", 0, 0)


def png(number: int, width: int = 120) -> bytes:
    out = io.BytesIO()
    Image.fromarray(data.astronaut()[30 * number : 30 * number + 100, 60 : 60 + width]).save(out, "PNG")
    return out.getvalue()


def references(number: int) -> list[bytes]:
    """One or two, of their own shapes."""
    return [png(number + 6, 150), png(number + 3, 90)][: 1 + number % 2]


def caption(number: int) -> str:
    return "turn the astronaut " * (1 + number % 3) + str(number)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of edits and a generation of them, as curation makes it."""
    folder = tmp_path_factory.mktemp("edits")
    members: Members = []
    for number in range(EDITS):
        members += [(f"{number}.png", png(number)), (f"{number}.txt", caption(number).encode())]
        members += [(f"{number}.ref{n}.png", content) for n, content in enumerate(references(number), 1)]
    write_tar(folder / "raw" / "edits.tar", members)
    operators = OperatorsConfig.model_validate({"resolution": {"min": 1.0}})
    stage = build_stage(operators)
    rows = decide(
        score(folder / "raw", operators), stage, source=SourceConfig(path="nowhere", name="edits"), count_tokens=lengths
    )
    assert rows["kept"].to_pylist() == [True] * EDITS, rows["reason"]
    write_generation(folder / "index", rows, tokenizer="t", operators=describe(operators, stage))
    shutil.rmtree(folder / "raw" / ".scores")
    return folder


@pytest.fixture(scope="module")
def editors(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoders with the edit pipelines' image processor."""
    folder = tmp_path_factory.mktemp("editors")
    for name in ("vae", "text_encoder", "tokenizer"):
        (folder / name).symlink_to(encoders / name)
    sides = {"shortest_edge": 3136, "longest_edge": 12845056}
    Qwen2VLImageProcessorPil(size=sides).save_pretrained(folder / "processor")
    return folder


def job(raw: Path, encoders: Path, own: Path) -> EncodeJob:
    return EncodeJob(
        index=raw / "index",
        rejects=own / "rejects.jsonl",
        seed=3,
        cost=(100, 1),
        source=SourceConfig(path=raw / "raw"),
        recipe=RecipeConfig(
            resolutions=(64,), aspects=("1:1",), units=1, samples=40, tasks={"ti2i": 1.0}, reference_resolution=96
        ),
        encoder=EncoderConfig(root=encoders, dtype="float32", picture_batch=2, max_text_tokens=64),
        cache=CacheConfig(path=own / "cache"),
    )


def made(maker: UnitMaker, unit: UnitId = UNIT) -> bytes:
    raw = maker(unit)[0].serialize().to_pybytes()
    maker.close()
    return bytes(raw)


@pytest.fixture(scope="module")
def first(raw: Path, editors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Encoded], bytes]:
    """What a maker with an empty cache makes, and the folder of its cache and journal."""
    own = tmp_path_factory.mktemp("first")
    maker = UnitMaker(job(raw, editors, own))
    batch, missing = maker(UNIT)
    maker.close()
    assert not missing
    return own, unpack(batch)[1], batch.serialize().to_pybytes()


First = tuple[Path, list[Encoded], bytes]


def test_an_edit_holds_what_the_models_give_for_it_and_its_references(editors: Path, first: First) -> None:
    vae, prompts = ImageVae(editors / "vae"), PromptEncoder(editors)
    assert len(first[1]) > 1
    for sample in first[1]:
        number = int(sample.key.rpartition("/")[2])
        pictures = [decode(content) for content in references(number)]
        assert (sample.task, sample.caption, len(sample.references)) == ("ti2i", caption(number), len(pictures))
        for picture, latent in zip(pictures, sample.references, strict=True):
            # The area of 96 x 96 in its own ratio, sides multiples of 32.
            assert (latent.height, latent.width) == ((96, 96) if picture.width == 90 else (64, 128))
            pixels = torch.from_numpy(np.asarray(picture.resize((latent.width, latent.height), Image.LANCZOS)).copy())
            mean, _ = vae.encode(pixels.permute(2, 0, 1)[None])
            assert np.allclose(latent.mean, mean[0], atol=5e-3)
        (wanted,) = prompts.encode([sample.caption], EDIT_PLUS, [pictures])
        text = torch.from_numpy(sample.text.copy()).view(torch.bfloat16)
        assert text.shape == wanted.shape and torch.allclose(text.float(), wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("keep", ["cache", "neither"])
def test_a_later_try_gives_the_same_bytes_and_decodes_no_reference_that_is_kept(
    raw: Path, editors: Path, first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    own = tmp_path
    if keep == "cache":
        shutil.copytree(first[0], tmp_path / "own")
        own = tmp_path / "own"
    decoded: list[bytes] = []
    monkeypatch.setattr(reference_reader, "decode", lambda content: decoded.append(content) or decode(content))
    assert made(UnitMaker(job(raw, editors, own))) == first[2]
    held = [content for sample in first[1] for content in references(int(sample.key[-1]))]
    assert len(decoded) == (0 if keep == "cache" else len(held))


def test_a_unit_made_sample_by_sample_is_the_same_unit(raw: Path, editors: Path, first: First, tmp_path: Path) -> None:
    maker = UnitMaker(job(raw, editors, tmp_path))
    assert maker.narrow(UNIT)[0].serialize().to_pybytes() == first[2]
    maker.close()


def test_a_reference_that_changed_leaves_out_its_sample_and_no_bit_of_the_others(
    raw: Path, editors: Path, first: First, tmp_path: Path
) -> None:
    shutil.copytree(raw, tmp_path / "changed")
    tar = tmp_path / "changed" / "raw" / "edits.tar"
    gone = first[1][0].key
    content, picture = tar.read_bytes(), references(int(gone[-1]))[0]
    at = content.index(picture) + len(picture) // 2
    tar.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    maker = UnitMaker(job(tmp_path / "changed", editors, tmp_path))
    batch, missing = maker(UNIT)
    maker.close()
    (line,) = [json.loads(text) for text in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert missing == 1 and line["key"] == gone
    assert line["reason"] == "reference 1: picture: its bytes are not those that were curated"
    others = {sample.key: sample for sample in unpack(batch)[1]}
    assert others.keys() == {sample.key for sample in first[1]} - {gone}
    for sample in first[1][1:]:
        assert np.array_equal(sample.text, others[sample.key].text)
        assert np.array_equal(sample.references[0].mean, others[sample.key].references[0].mean)


def test_encoders_without_an_image_processor_refuse_edits_at_their_start(
    raw: Path, encoders: Path, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=r"recipe\.tasks\.ti2i: .*processor: no such folder"):
        UnitMaker(job(raw, encoders, tmp_path))


def test_a_unit_of_edits_makes_a_training_step(first: First) -> None:
    torch.manual_seed(0)
    samples = first[1]
    width = samples[0].text.shape[1]
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (8, 4, 4)}
    model = MMDiT(MMDiTConfig.model_validate({**sizes, "joint_attention_dim": width}))
    channels = samples[0].latent.mean.shape[0]
    flow = FlowObjective(
        FlowConfig(posterior="mean"),
        seed=1,
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        empty=torch.zeros(2, width),
        axes=(8, 4, 4),
        buckets=frozenset({bucket(64, "1:1")}),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(units: list[Encoded]) -> float:
        loss, _ = flow.loss(model, flow.batch(units, 0, torch.device("cpu"), torch.float32))
        optimizer.zero_grad()
        loss.backward()
        return loss.item()

    alone = step([replace(sample, references=()) for sample in samples])
    shown = step(samples)
    assert shown != alone
    optimizer.step()
    assert step(samples) < shown
