"""Stage-1 operators: pictures on both sides of every threshold, and scores that stay when thresholds move."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from producer.operator.broken import Broken, BrokenConfig
from producer.operator.caption import Caption
from producer.operator.file_size import FileSize, FileSizeConfig
from producer.operator.judgement import Judgement, Operator, Picture, Sample, Score
from producer.operator.nsfw import Nsfw, NsfwConfig
from producer.operator.pretrained import ModelError
from producer.operator.resolution import Resolution, ResolutionConfig
from producer.operator.stage import OperatorsConfig, build_stage, describe, scoring
from producer.source.shard import RawSample
from tests.unit.producer.test_scoring import judge, write


def sample(
    picture: np.ndarray | None = None,
    size: int = 50_000,
    captions: dict[str, str] | None = None,
    faults: tuple[str, ...] = (),
    member: str = "x.jpg",
    fault: str = "",
) -> Sample:
    raw = RawSample("a/x", "a.tar", member, 512, size, {} if captions is None else captions, fault, faults)
    seen = None if picture is None else Picture(picture.shape[1], picture.shape[0], picture)
    return Sample(raw, seen, fault)


def judged(one: Operator, of: Sample) -> Judgement:
    (score,) = one.score([of])
    return one.judge(score)


def photograph(width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))


def test_a_picture_that_decoded_is_not_broken_and_one_that_did_not_says_why() -> None:
    broken = Broken(BrokenConfig())
    assert judged(broken, sample(photograph(64, 64))) == Judgement(1.0, True, "")
    assert judged(broken, sample(fault="half a JPEG")) == Judgement(0.0, False, "half a JPEG")


@pytest.mark.parametrize(("size", "kept"), [(2048, True), (2047, False), (0, False)])
def test_a_file_of_few_bytes_is_dropped(size: int, kept: bool) -> None:
    judgement = judged(FileSize(FileSizeConfig()), sample(size=size))
    assert judgement == Judgement(float(size), kept, "" if kept else f"{size} bytes, below 2048")


def test_real_photographs_and_real_text_are_above_the_least_file_size_and_a_flat_picture_is_below() -> None:
    def encoded(pixels: np.ndarray, kind: str, **options: Any) -> int:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind, **options)
        return len(out.getvalue())

    least = FileSizeConfig().min
    for name in ("astronaut", "chelsea", "coffee", "moon", "page"):
        pixels = np.asarray(Image.fromarray(getattr(data, name)()).resize((256, 256)))
        assert encoded(pixels, "JPEG", quality=30) >= least, name
    assert encoded(np.full((320, 320, 3), 127, np.uint8), "PNG") < least


@pytest.mark.parametrize(
    ("width", "height", "kept"),
    [(256, 256, True), (256, 255, False), (192, 342, True), (150, 450, True), (148, 440, False), (1000, 60, False)],
)
def test_the_resolution_counts_both_sides(width: int, height: int, kept: bool) -> None:
    judgement = judged(Resolution(ResolutionConfig()), sample(np.zeros((height, width, 3), np.uint8)))
    assert judgement.verdict is kept
    assert judgement.score == pytest.approx((width * height) ** 0.5)
    assert bool(judgement.reason) is not kept


@pytest.mark.parametrize(
    ("captions", "faults", "judgement"),
    [
        ({"raw": "A cat."}, (), Judgement(1.0, True, "")),
        ({"raw": "A cat.", "recaption": "A grey cat."}, (), Judgement(2.0, True, "")),
        ({}, (), Judgement(0.0, False, "no caption")),
        ({}, ("raw caption is empty",), Judgement(0.0, False, "raw caption is empty")),
        ({"recaption": "A cat."}, ("raw caption is not UTF-8",), Judgement(1.0, True, "raw caption is not UTF-8")),
    ],
)
def test_a_sample_needs_one_usable_caption(
    captions: dict[str, str], faults: tuple[str, ...], judgement: Judgement
) -> None:
    assert judged(Caption(), sample(captions=captions, faults=faults)) == judgement


def test_what_cannot_be_measured_is_not_judged() -> None:
    assert judged(Resolution(ResolutionConfig()), sample(fault="broken")) == Judgement(None, None, "")
    assert judged(FileSize(FileSizeConfig()), sample(member="", size=0)) == Judgement(None, None, "")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ViT whose head says "nsfw" the more, the redder the picture is."""
    folder = tmp_path_factory.mktemp("models") / "red"
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        id2label={0: "normal", 1: "nsfw", 2: "violent"},
        label2id={"normal": 0, "nsfw": 1, "violent": 2},
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        # Residual stream: class token + attention's mean over patches of (red - blue) in channel 0.
        embeddings, layer = model.vit.embeddings, _first_layer(model)
        embeddings.patch_embeddings.projection.weight[0, 0] = 1 / 256
        embeddings.patch_embeddings.projection.weight[0, 2] = -1 / 256
        for norm in (layer.layernorm_before, layer.layernorm_after, model.vit.layernorm):
            norm.weight.fill_(1)
        value, output = _value_and_output(layer)
        value.weight.copy_(torch.eye(8))
        output.weight.copy_(torch.eye(8))
        model.classifier.weight[1, 0] = 4
        model.classifier.weight[0, 0] = -4
        model.classifier.bias[2] = -20
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _first_layer(model: Any) -> Any:
    return next(module for module in model.modules() if hasattr(module, "layernorm_before"))


def _value_and_output(layer: Any) -> tuple[Any, Any]:
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    value = next(module for name, module in linears.items() if name.split(".")[-1] in ("value", "v_proj"))
    output = next(
        module for name, module in linears.items() if "attention" in name and name.split(".")[-1] in ("dense", "o_proj")
    )
    return value, output


def flat(red: int, blue: int) -> np.ndarray:
    return np.full((40, 60, 3), (red, 90, blue), np.uint8)


def test_the_classifier_drops_what_it_calls_unsafe_and_keeps_the_rest(classifier: Path) -> None:
    nsfw = Nsfw(NsfwConfig(model=classifier))
    scores = nsfw.score([sample(flat(250, 5)), sample(fault="broken"), sample(flat(5, 250))])
    judgements = [nsfw.judge(score) for score in scores]
    assert [one.verdict for one in judgements] == [False, None, True]
    assert judgements[0].reason == f"{scores[0].value:.2f}, above 0.5"
    assert nsfw.score([sample(fault="broken")]) == [Score(None)]


def test_the_unsafe_labels_and_the_bound_are_settings(classifier: Path) -> None:
    red = [sample(flat(250, 5))]
    (one,) = Nsfw(NsfwConfig(model=classifier, unsafe=("violent",))).score(red)
    (both,) = Nsfw(NsfwConfig(model=classifier, unsafe=("nsfw", "normal"))).score(red)
    assert one.value is not None and one.value < 1e-3
    assert both.value == pytest.approx(1, abs=1e-3)
    assert Nsfw(NsfwConfig(model=classifier, max=1.0)).judge(both).verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nowhere"}, "operators.nsfw.model: .*nowhere does not exist"),
        ({"model": "other"}, r"holds \['BertModel'\], not a ForImageClassification"),
        ({"model": "listed"}, "operators.nsfw.model: .* names no labels by number in id2label"),
        ({"unsafe": ("porn",)}, r"operators.nsfw.unsafe: \['porn'\]; .* knows \['normal', 'nsfw', 'violent'\]"),
        ({"unsafe": ()}, "operators.nsfw.unsafe"),
    ],
)
def test_a_wrong_classifier_is_named_before_anything_runs(
    classifier: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"architectures": ["BertModel"]}')
    listed = shutil.copytree(classifier, tmp_path / "listed") / "config.json"
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"id2label": ["normal", "nsfw"]}))
    settings = {"model": classifier} | change
    if isinstance(settings["model"], str):
        settings["model"] = tmp_path / settings["model"]
    with pytest.raises(ModelError, match=message):
        build_stage(OperatorsConfig(nsfw=NsfwConfig(**settings)))


def test_without_a_classifier_the_operator_is_off_and_says_so(classifier: Path) -> None:
    off, on = OperatorsConfig(), OperatorsConfig(nsfw=NsfwConfig(model=classifier))
    assert build_stage(off).off == {"nsfw": "no classifier: set operators.nsfw.model to a folder"}
    assert describe(off, build_stage(off))["nsfw"] == {"off": "no classifier: set operators.nsfw.model to a folder"}
    assert build_stage(on).off == {}
    assert build_stage(on).names == build_stage(off).names
    assert str(classifier) not in str(describe(on, build_stage(on)))


def test_moving_a_threshold_scores_nothing_again_and_what_scores_depend_on_does(classifier: Path) -> None:
    def scored(**settings: Any) -> dict[str, Any]:
        config = OperatorsConfig.model_validate(settings)
        return scoring(config, build_stage(config))

    same = scored()
    assert scored(file_size={"min": 9}, resolution={"min": 640.0}, near_duplicate={"radius": 3}) == same
    assert scored(broken={"max_pixels": 1000}) != same
    with_model = scored(nsfw={"model": classifier})
    assert with_model != same
    assert scored(nsfw={"model": classifier, "max": 0.9}) == with_model
    assert scored(nsfw={"model": classifier, "unsafe": ("violent",)}) != with_model


def test_with_a_classifier_a_shard_is_judged_by_it_in_fixed_batches(classifier: Path, tmp_path: Path) -> None:
    """Among pictures that do not decode; without it the same pictures are kept."""
    pictures = {"red": (250, 5), "blue": (5, 250), "rose": (240, 20), "sky": (20, 240)}
    samples = {name: (noisy_jpeg(*colours), name) for name, colours in pictures.items()} | {"cut": (b"x" * 3000, "cut")}
    folder = write(tmp_path, dict(sorted(samples.items())))
    on = judge(folder, OperatorsConfig(nsfw=NsfwConfig(model=classifier)))
    off = judge(folder)
    dropped = {key.removeprefix("a/"): row["dropped_by"] for key, row in on.items()}
    assert dropped == {"blue": "", "cut": "broken", "red": "nsfw", "rose": "nsfw", "sky": ""}
    assert [key for key, row in off.items() if not row["kept"]] == ["a/cut"]
    assert on["a/cut"]["verdict.nsfw"] is None and on["a/sky"]["score.nsfw"] < 0.5 < on["a/red"]["score.nsfw"]


def noisy_jpeg(red: int, blue: int) -> bytes:
    noise = np.random.default_rng(red).integers(0, 160, (300, 300, 3), np.uint8) // 8
    out = io.BytesIO()
    Image.fromarray(np.clip(noise + np.asarray((red, 90, blue)), 0, 255).astype(np.uint8)).save(out, "JPEG")
    return out.getvalue()
