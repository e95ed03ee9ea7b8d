"""Operators that run a model: scores are transformers' own, the embedding is made once, and folders are checked."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from skimage import data

from producer.curate import CurateConfig, CurateError, curate, gpu_share
from producer.index import Index, schema, write_generation
from producer.operator import encoder as encoders
from producer.operator import pretrained
from producer.operator.aesthetic import Aesthetic, AestheticConfig
from producer.operator.chinese_clip import ChineseClip, ChineseClipConfig
from producer.operator.embedding import Embedding, EmbeddingConfig, pack, stored
from producer.operator.encoder import Encoder
from producer.operator.head import Head
from producer.operator.judgement import Picture, Sample, Score
from producer.operator.pretrained import ModelError, content_hash
from producer.operator.siglip import Siglip, SiglipConfig
from producer.operator.stage import OperatorsConfig, build_stage, describe, runs_models, scoring
from producer.operator.watermark import Watermark, WatermarkConfig
from producer.recipe import RecipeConfig, RecipeError, select
from producer.source.reader import SourceConfig
from producer.source.shard import RawSample
from tests.unit.producer import tiny_encoders
from tests.unit.producer.test_scoring import jpeg, judge, score, write
from tests.unit.producer.test_sources import write_tar

CAPTIONS = ["a red cat", "A Photo of Two Dogs", "一只红色的猫", "picture " * 90, "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each class, in a folder of its name."""
    folder = tmp_path_factory.mktemp("models")
    for make in (tiny_encoders.siglip, tiny_encoders.naflex, tiny_encoders.chinese_clip, tiny_encoders.clip):
        make(folder / make.__name__)
    return folder


def sample(number: int, **captions: str) -> Sample:
    """A crop of a photograph, of a size of its own."""
    whole = data.astronaut()[number * 40 :, number * 90 :]
    pixels = np.ascontiguousarray(whole[: 200 - 20 * number, : 90 + 30 * number])
    raw = RawSample(f"a/{number}", "a.tar", "x.jpg", 0, 50_000, captions, "", ())
    return Sample(raw, Picture(pixels.shape[1], pixels.shape[0], pixels))


def blind(**captions: str) -> Sample:
    return Sample(RawSample("a/z", "a.tar", "x.jpg", 0, 50_000, captions, "", ()), None, "broken")


def batch() -> list[Sample]:
    return [*(sample(number, raw=text) for number, text in enumerate(CAPTIONS)), blind(raw="a cat")]


def plainly(model: Path, pictures: list[np.ndarray], texts: list[str], length: int) -> list[float]:
    """Cosines by one forward of transformers' model a pair: from its logits, back through scale and bias."""
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    whole = transformers.AutoModel.from_pretrained(model).eval()
    found = []
    for pixels, text in zip(pictures, texts, strict=True):
        words = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        kept = {"input_ids"} if "Siglip" in type(whole).__name__ else {"input_ids", "attention_mask"}
        inputs = {name: words[name] for name in kept} | dict(processor(images=[pixels], return_tensors="pt"))
        with torch.inference_mode():
            logit = whole(**inputs).logits_per_image.double()
        bias = getattr(whole, "logit_bias", torch.zeros(1)).double()
        found.append(((logit - bias) / whole.logit_scale.double().exp()).item())
    return found


@pytest.mark.parametrize(
    ("name", "make", "length", "small"),
    [
        ("siglip", lambda path: Siglip(path, ("raw",), 0.0), 64, True),
        ("naflex", lambda path: Siglip(path, ("raw",), 0.0), 64, True),
        ("chinese_clip", lambda path: ChineseClip(path, ("raw",), 0.0), 52, False),
    ],
)
def test_scores_of_a_batch_are_the_cosines_of_transformers_own_forward_one_by_one(
    folder: Path, name: str, make: Callable[[Path], Any], length: int, small: bool
) -> None:
    operator, samples = make(folder / name), batch()
    scores = operator.score_captions(samples)
    pictures = [one.picture.pixels for one in samples if one.picture]
    expected = plainly(folder / name, pictures, [text.lower() if small else text for text in CAPTIONS], length)
    assert [[value for value, _ in row] for row in scores[:-1]] == [[pytest.approx(one, abs=1e-5)] for one in expected]
    assert scores[-1] == [Score(None)]
    assert np.std(expected) > 0.01, "the tiny model tells nothing apart"
    assert all(-1 <= one <= 1 for one in expected)
    again = make(folder / name).score_captions(batch())
    assert again == scores, "the same batch gives the same bits"


def test_the_threshold_is_on_the_cosine_and_the_reason_says_it(folder: Path) -> None:
    operator = Siglip(folder / "siglip", ("raw",), 0.05)
    assert operator.judge(Score(0.05)).verdict is True
    assert operator.judge(Score(0.0489)) == (0.0489, False, "0.049, below 0.05")
    assert operator.judge(Score(None)).verdict is None
    assert [SiglipConfig().min, ChineseClipConfig().min] == [0.05, 0.3]


def test_captions_of_other_splits_are_not_judged_unless_asked_for(folder: Path) -> None:
    mixed = [sample(0, raw="a cat", recaption="a dog", fused="two"), sample(1, recaption="a red dog"), blind(raw="x")]
    raw = Siglip(folder / "siglip", ("raw",), 0.0).score_captions(mixed)
    every = Siglip(folder / "siglip", (), 0.0).score_captions(mixed)
    assert [[one.value is not None for one in row] for row in raw] == [[False, True, False], [False], [False]]
    assert [[one.value is not None for one in row] for row in every] == [[True] * 3, [True], [False]]
    assert every[0][1].value == pytest.approx(raw[0][1].value, abs=1e-6)
    assert Siglip(folder / "siglip", ("raw",), 0.0).score_captions([blind(), sample(1)]) == [[], []]


def test_a_picture_three_pixels_high_is_not_taken_for_its_colours(folder: Path) -> None:
    narrow = np.zeros((3, 100, 3), np.uint8)
    narrow[:, :, 0] = 255
    square = np.broadcast_to(narrow[:1, :1], (64, 64, 3)).copy()
    for name in ("siglip", "chinese_clip", "clip"):
        one, other = Encoder("x", folder / name).pictures([narrow, square])
        assert one == pytest.approx(other, abs=1e-4)


def test_one_embedding_of_one_copy_of_the_model_serves_all_operators(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    loads: list[str] = []
    inner, pictures = transformers.SiglipModel.from_pretrained, Encoder.pictures
    monkeypatch.setattr(
        transformers.SiglipModel, "from_pretrained", lambda *of, **how: loads.append(str(of[0])) or inner(*of, **how)
    )
    monkeypatch.setattr(Encoder, "pictures", lambda self, pixels: seen.append(len(pixels)) or pictures(self, pixels))
    encoders._loaded.cache_clear()
    path, head = folder / "siglip", linear(tmp_path / "head", 32)
    asked = OperatorsConfig.model_validate(
        {
            "siglip": {"model": path},
            "embedding": {"model": path},
            "aesthetic": {"model": path, "head": head},
            "watermark": {"model": path, "head": head},
        }
    )
    stage, samples = build_stage(asked), batch()
    assert not loads, "nothing is loaded before there is something to judge"
    heads = {one.name: one.score(samples) for one in stage.single if one.name in ("aesthetic", "watermark")}
    (aligned,) = (one.score_captions(samples) for one in stage.captions)
    (tags,) = (one.tag(samples) for one in stage.tags)
    assert (loads, seen) == ([str(path)], [5])
    assert len(heads) == 2 and aligned[0][0].value is not None and tags[-1] == "" and tags[0]
    more = [*samples, sample(2, raw="a dog")]
    stage.tags[0].tag(more)
    assert seen == [5, 1], "only what is new is embedded"


def linear(folder: Path, width: int, layers: int = 1, **config: Any) -> Path:
    """A head of random linear layers, in the names of LAION's predictor where there are several."""
    draw = np.random.default_rng(width)
    sizes = [width, *([8] * (layers - 1)), 1]
    tensors = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        ahead = f"layers.{2 * number}." if layers > 1 else ""
        tensors[f"{ahead}weight"] = draw.normal(size=(outputs, inputs)).astype(np.float32)
        tensors[f"{ahead}bias"] = draw.normal(size=outputs).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_head_of_layers_is_torchs_own_stack(folder: Path, tmp_path: Path, activation: str) -> None:
    made = linear(tmp_path / "head", 24, layers=4, activation=activation)
    head = Head("x", made, Encoder("x", folder / "clip"))
    tensors = {name: torch.from_numpy(one).double() for name, one in load_file(made / "model.safetensors").items()}
    between = {"none": torch.nn.Identity(), "relu": torch.nn.ReLU(), "gelu": torch.nn.GELU()}[activation]
    embeddings = np.random.default_rng(1).normal(size=(6, 24)).astype(np.float32)
    expected = torch.from_numpy(embeddings).double()
    for number in range(4):
        expected = between(expected) if number else expected
        expected = expected @ tensors[f"layers.{2 * number}.weight"].T + tensors[f"layers.{2 * number}.bias"]
    assert head(embeddings) == pytest.approx(expected[:, 0].numpy(), abs=1e-9)


def test_laions_predictor_loads_as_it_is_and_rates_the_unit_embedding_of_clip(folder: Path, tmp_path: Path) -> None:
    """Its five layers, at the width of the tiny model, against the published module's forward."""
    sizes = (24, 1024, 128, 64, 16, 1)
    stack = torch.nn.Sequential(
        *(
            part
            for inputs, outputs in pairwise(sizes)
            for part in ((torch.nn.Linear(inputs, outputs), torch.nn.Dropout(0.2)))
        )
    )[:-1]
    kept = {0: 0, 2: 2, 4: 4, 6: 6, 8: 7}  # the published one has no dropout before its last layer
    (tmp_path / "head").mkdir()
    state = {
        f"layers.{kept[int(name.split('.')[0])]}.{name.split('.')[1]}": x for name, x in stack.state_dict().items()
    }
    save_file({name: one.numpy() for name, one in state.items()}, tmp_path / "head" / "model.safetensors")
    (tmp_path / "head" / "config.json").write_text("{}")
    operator, samples = Aesthetic(folder / "clip", tmp_path / "head", 4.5), batch()
    clip = transformers.CLIPModel.from_pretrained(folder / "clip").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "clip")
    for one, rating in zip(samples, operator.score(samples), strict=True):
        if one.picture is None:
            assert rating == Score(None)
            continue
        with torch.inference_mode():
            seen = clip.get_image_features(**processor(images=[one.picture.pixels], return_tensors="pt")).pooler_output
            expected = stack.eval()(seen / seen.norm(dim=-1, keepdim=True))
        assert rating.value == pytest.approx(expected.item(), abs=1e-5)


def test_heads_are_kept_on_their_side_of_the_threshold(folder: Path, tmp_path: Path) -> None:
    head = linear(tmp_path / "head", 32)
    aesthetic = AestheticConfig(model=folder / "siglip", head=head).operator()
    assert [aesthetic.judge(Score(value)).verdict for value in (4.5, 4.49, None)] == [True, False, None]
    assert aesthetic.judge(Score(3.2)).reason == "3.20, below 4.5"
    watermark = WatermarkConfig(model=folder / "siglip", head=head).operator()
    assert [watermark.judge(Score(value)).verdict for value in (0.5, 0.51, None)] == [True, False, None]
    assert watermark.judge(Score(0.9)).reason == "0.90, above 0.5"
    numbers = Aesthetic(folder / "siglip", head, 0.0).score(batch())
    shares = Watermark(folder / "siglip", head, 0.5).score(batch())
    for number, share in zip(numbers[:-1], shares[:-1], strict=True):
        assert number.value is not None
        assert share.value == pytest.approx(1 / (1 + np.exp(-number.value)), abs=1e-9)
    assert watermark.read(-1000.0) == 0.0 and watermark.read(1000.0) == 1.0


def test_stored_embeddings_come_back_as_a_matrix_of_unit_rows(folder: Path) -> None:
    samples = batch()
    tags = Embedding(folder / "clip").tag(samples)
    assert tags[-1] == "" and len(tags[0]) == 24 * 2 * 4 / 3
    rows, found = stored(pa.chunked_array([["", *tags], tags[:2]]))
    assert rows.tolist() == [1, 2, 3, 4, 5, 7, 8] and found.dtype == np.float32
    exact = np.stack([one for one in Encoder("x", folder / "clip").embed(samples) if one is not None])
    assert found[:5] == pytest.approx(exact, abs=1e-3) and found[5:] == pytest.approx(found[:2])
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert (found[:5] @ found[:5].T) == pytest.approx(exact @ exact.T, abs=1e-3)
    assert stored(pa.chunked_array([["", ""]]))[1].shape == (0, 0)
    assert pack(np.asarray([1.0, 0.0])) == "ADwAAA=="


def test_without_their_models_the_operators_are_off_and_say_what_to_set(folder: Path) -> None:
    names = ("siglip", "chinese_clip", "embedding", "aesthetic", "watermark")
    off = OperatorsConfig.model_validate({name: {} for name in names} | {"aesthetic": {"head": folder}})
    stage = build_stage(off)
    assert stage.off == {
        "nsfw": "no classifier: set operators.nsfw.model to a folder",
        "chinese_clip": "no model: set operators.chinese_clip.model to a folder with a Chinese CLIP",
        "embedding": "no model: set operators.embedding.model to a folder with a SigLIP or CLIP",
        "siglip": "no model: set operators.siglip.model to a folder with a SigLIP 2",
        "aesthetic": "no encoder: set operators.aesthetic.model to the folder of the encoder that the head was trained "
        "with",
        "watermark": "no head and no encoder: set operators.watermark.head to a folder and operators.watermark.model "
        "to the folder of the encoder that the head was trained with",
    }
    seen = OperatorsConfig.model_validate({"aesthetic": {"model": folder}})
    assert build_stage(seen).off["aesthetic"] == "no head: set operators.aesthetic.head to a folder"
    assert describe(off, stage)["siglip"] == {"off": stage.off["siglip"], "of": "captions"}
    assert not runs_models(off)
    assert runs_models(OperatorsConfig.model_validate({"siglip": {"model": folder / "siglip"}}))


def test_the_content_of_models_and_the_splits_count_for_scores_and_thresholds_and_paths_do_not(
    folder: Path, tmp_path: Path
) -> None:
    def scored(**settings: Any) -> dict[str, Any]:
        config = OperatorsConfig.model_validate({"siglip": {"model": folder / "siglip"} | settings})
        assert str(tmp_path) not in str(describe(config, build_stage(config)))
        return scoring(config, build_stage(config))

    copied = shutil.copytree(folder / "siglip", tmp_path / "copied")
    assert scored(model=copied, min=0.3) == scored()
    assert scored(splits=("raw", "fused")) != scored()
    assert scored(model=folder / "naflex") != scored()
    before = scored(model=copied)
    weights = load_file(copied / "model.safetensors")
    save_file({**weights, "logit_bias": weights["logit_bias"] + 1}, copied / "model.safetensors")
    assert scored(model=copied) != before, "a model that changed where it lies is another one"


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)] and None


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _index(folder: Path) -> None:
    named = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(named))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "model does not exist; give the folder"),
        (lambda folder: shutil.rmtree(folder) or folder.write_text("?"), "model is no folder; give the folder"),
        (lambda folder: (folder / "config.json").unlink(), r"holds no readable config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"holds no readable config\.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json that is no object"),
        (
            lambda folder: (folder / "config.json").write_text('{"architectures": ["BertModel"]}'),
            r"holds \['BertModel'\], not a SiglipModel or a Siglip2Model",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"architectures": ["FooSiglipModel"]}'),
            r"holds \['FooSiglipModel'\], not a SiglipModel or a Siglip2Model",
        ),
        (lambda folder: (folder / "config.json").write_text('{"architectures": 5}'), "holds 5, not a SiglipModel"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            r"index\.json is no index of weights; fetch it again",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}'),
            r"index\.json is no index of weights",
        ),
        (_without("*.safetensors"), r"lacks \.safetensors weights; others are not read"),
        (_without("preprocessor_config.json", "processor_config.json"), "lacks how pictures are prepared"),
        (_without("tokenizer*"), "lacks a tokenizer"),
        (_truncate, r"model\.safetensors is damaged"),
        (_index, r"lacks \['model-00002-of-00002\.safetensors'\], which model\.safetensors\.index\.json names"),
    ],
)
def test_a_model_that_will_not_load_is_named_before_anything_is_scored(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    model = shutil.copytree(folder / "siglip", tmp_path / "model")
    spoil(model)
    with pytest.raises(ModelError, match=rf"operators\.siglip\.model: .*{message}"):
        build_stage(OperatorsConfig(siglip=SiglipConfig(model=model)))


def test_weights_that_a_class_has_and_its_files_lack_are_never_drawn_by_chance(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder / "siglip", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights of SiglipModel: \['vision_model\.post_layernorm\.weight'\]"):
        Siglip(model, ("raw",), 0.0).score_captions(batch())


def test_an_encoder_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"chinese_clip\.model: .*holds \['SiglipModel'\], not a ChineseCLIPModel"):
        build_stage(OperatorsConfig(chinese_clip=ChineseClipConfig(model=folder / "siglip")))
    with pytest.raises(ModelError, match=r"embedding\.model: .*nowhere does not exist"):
        build_stage(OperatorsConfig(embedding=EmbeddingConfig(model=folder / "nowhere")))


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"weight": (1, 24), "bias": (1,)}, {}, "maps 24 numbers to 1; the embeddings of .*siglip have 32"),
        ({"weight": (2, 32), "bias": (2,)}, {}, "maps 32 numbers to 2; .* one number is wanted"),
        ({"0.weight": (8, 32), "1.weight": (1, 9)}, {}, "8 outputs meet 9 inputs"),
        ({"weight": (1, 32), "bias": (2,)}, {}, "a bias of another length"),
        ({"bias": (1,)}, {}, "no linear layers, or a bias without its weight"),
        ({"weight": (1, 32), "norm": (32,)}, {}, r"holds norm \[32\], no part of a linear layer"),
        ({"a.0.weight": (1, 32), "b.0.weight": (1, 32)}, {}, "another weight of the same layer"),
        ({"weight": (32,)}, {}, r"holds weight \[32\], no part of a linear layer"),
        ({"weight": (1, 32)}, {"activation": "tanh"}, "config.json: activation: Input should be 'none'"),
        ({"weight": (1, 32)}, {"kind": 1}, "config.json: kind: Extra inputs are not permitted"),
        ({"weight": (1, 32)}, {"encoder": "0" * 64}, "was trained with the encoder 000000000000"),
        ({}, {}, "no linear layers"),
    ],
)
def test_a_head_that_does_not_fit_is_named_before_anything_is_scored(
    folder: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], config: dict[str, Any], message: str
) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"operators\.aesthetic\.head: .*{message}"):
        build_stage(OperatorsConfig(aesthetic=AestheticConfig(model=folder / "siglip", head=tmp_path)))


def test_a_head_in_half_precision_loads(folder: Path, tmp_path: Path) -> None:
    made = linear(tmp_path / "head", 32)
    whole = Head("x", made, Encoder("x", folder / "siglip"))
    tensors = {name: torch.from_numpy(one) for name, one in load_file(made / "model.safetensors").items()}
    save_torch({name: one.bfloat16() for name, one in tensors.items()}, made / "model.safetensors")
    seen = np.eye(32, dtype=np.float32)[:4]
    assert Head("x", made, Encoder("x", folder / "siglip"))(seen) == pytest.approx(whole(seen), abs=0.03)


def test_a_head_that_names_its_encoder_is_taken_with_it(folder: Path, tmp_path: Path) -> None:
    head = linear(tmp_path / "head", 32, encoder=content_hash(folder / "siglip"))
    assert Aesthetic(folder / "siglip", head, 0.0).score([sample(0)])[0].value is not None


def test_raw_recaption_and_fused_are_judged_apart_and_a_recipe_mixes_what_is_left(folder: Path, tmp_path: Path) -> None:
    """SigLIP drops raw captions, an invalid recaption goes, fused ones stay: each split is counted by itself."""
    members: list[tuple[str, bytes]] = []
    more = {"coffee": ("A cup of coffee.", "A cup."), "moon": ("Sorry, I cannot describe this image.", "The moon.")}
    for name, (recaption, fused) in more.items():
        captions = {"captions": {"recaption": recaption, "fused": fused}}
        said = ((".jpg", jpeg(name)), (".txt", b"a cat"), (".json", json.dumps(captions).encode()))
        members += [(f"{name}{ending}", content) for ending, content in said]
    write_tar(tmp_path / "set" / "a.tar", members)
    asked = OperatorsConfig.model_validate(
        {"siglip": {"model": folder / "siglip", "min": 1.0}, "invalid_caption": {}, "token_length": {}}
    )
    rows = judge(tmp_path / "set", asked)
    assert all(row["kept"] for row in rows.values())
    kept = {key: {one["split"]: one["kept"] for one in row["captions"]} for key, row in rows.items()}
    assert kept == {
        "a/coffee": {"fused": True, "raw": False, "recaption": True},
        "a/moon": {"fused": True, "raw": False, "recaption": False},
    }
    scores = [[value is None for value in row["score.siglip"]] for row in rows.values()]
    assert scores == [[True, False, True]] * 2, "captions are in the order of their splits"
    (words,) = [one for one in rows["a/moon"]["captions"] if one["split"] == "recaption"]
    assert words["reason"] == "invalid_caption: refusal: sorry, i cannot describe"
    write_generation(
        tmp_path / "index",
        pa.Table.from_pylist(list(rows.values()), schema=schema(describe(asked, build_stage(asked)))),
        tokenizer="t",
        operators=describe(asked, build_stage(asked)),
    )
    table = Index.open(tmp_path / "index").table
    found = select(table, RecipeConfig(splits={"recaption": 1, "fused": 3}))
    assert {split: counts["used"] for split, counts in found.counts.items()} == {"recaption": 1, "fused": 2}
    with pytest.raises(RecipeError, match=r"recipe\.splits\.raw: leaves nothing to train on"):
        select(table, RecipeConfig(splits={"raw": 1, "fused": 1}))


def test_a_worker_loads_a_model_once_for_all_its_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    inner = transformers.SiglipModel.from_pretrained
    monkeypatch.setattr(
        transformers.SiglipModel, "from_pretrained", lambda *of, **how: loads.append(str(of[0])) or inner(*of, **how)
    )
    encoders._loaded.cache_clear()
    for name, photograph in {"a.tar": "coffee", "b.tar": "rocket", "c.tar": "chelsea"}.items():
        write(tmp_path / "set", {"x": (jpeg(photograph), "a cat")}, name)
    asked = OperatorsConfig.model_validate({"siglip": {"model": folder / "siglip"}})
    assert score(tmp_path / "set", asked).num_rows == 3
    assert loads == [str(folder / "siglip")]


@pytest.mark.timeout(900)  # each actor imports torch; on a busy machine that takes minutes
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_actors_score_shards_with_models_as_one_process_does(folder: Path, tmp_path: Path) -> None:
    from launch.make_encoders import make_tokenizer

    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for name, photograph in {"a.tar": "coffee", "b.tar": "rocket", "c.tar": "chelsea"}.items():
        write(tmp_path / "set", {"x": (jpeg(photograph), "a cat"), "y": (jpeg("moon"), "一只猫")}, name)
    asked = OperatorsConfig.model_validate(
        {
            "siglip": {"model": folder / "siglip", "min": -1.0},
            "chinese_clip": {"model": folder / "chinese_clip", "min": -1.0},
            "embedding": {"model": folder / "siglip"},
        }
    )
    config = CurateConfig(index=tmp_path / "index", batch=3, cpus=1.0)
    where: dict[str, Any] = {"tokenizer": tmp_path / "tokenizer", "resolutions": (256,), "aspects": ("1:1",)}
    funnel = curate(SourceConfig(path=tmp_path / "set"), config, asked, **where)
    assert (funnel.seen, funnel.scored, funnel.kept) == (6, 3, 4)
    rows, alone = Index.open(tmp_path / "index").table.to_pylist(), judge(tmp_path / "set", asked)
    columns = ("score.siglip", "score.chinese_clip", "tag.embedding", "dropped_by")
    assert [[row[name] for name in columns] for row in rows] == [
        [row[name] for name in columns] for row in alone.values()
    ]


@pytest.mark.parametrize(
    ("gpus", "there", "share"), [(None, 0, 0), (None, 2, 0.25), (0.0, 2, 0), (0.5, 2, 0.5), (1.0, 0, None)]
)
def test_a_share_of_a_gpu_is_asked_for_where_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float | None, there: int, share: float | None
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0} | ({"GPU": float(there)} if there else {}))
    config = CurateConfig(index=tmp_path, gpus=gpus)
    if share is None:
        with pytest.raises(CurateError, match=r"curate\.gpus: 1, and this machine has no GPU; set 0, or join"):
            gpu_share(config)
    else:
        assert gpu_share(config) == share


def test_in_the_precision_of_a_gpu_scores_move_by_less_than_a_few_hundredths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind in {"siglip": Siglip, "naflex": Siglip, "chinese_clip": ChineseClip}.items():
        encoders._loaded.cache_clear()
        whole = kind(folder / name, (), 0.0).score_captions(batch())[:-1]
        with monkeypatch.context() as patch:
            patch.setattr(pretrained, "placed", lambda model: model.eval().bfloat16())
            encoders._loaded.cache_clear()
            half = kind(folder / name, (), 0.0).score_captions(batch())[:-1]
        encoders._loaded.cache_clear()
        assert half != whole
        assert [row[0].value for row in half] == pytest.approx([row[0].value for row in whole], abs=0.03)


def test_a_shard_is_scored_with_models_and_the_same_bits_again(folder: Path, tmp_path: Path) -> None:
    """Through score files and verdicts, with a caption that fails beside one that stays."""
    pictures = {
        "a": (jpeg(), "a cat"),
        "b": (jpeg("coffee"), "一只猫"),
        "c": (b"x" * 3000, "cut"),
        "d": (jpeg("moon"), "x"),
    }
    source, head = write(tmp_path / "set", pictures), linear(tmp_path / "head", 32)
    path = folder / "siglip"
    settings = {
        "siglip": {"model": path, "min": -1.0},
        "embedding": {"model": path},
        "aesthetic": {"model": path, "head": head, "min": -100.0},
        "invalid_caption": {},
    }
    first = score(source, OperatorsConfig.model_validate(settings))
    for made in (source / ".scores").glob("*/*"):
        made.unlink()
    assert score(source, OperatorsConfig.model_validate(settings)).equals(first)
    rows = judge(source, OperatorsConfig.model_validate(settings))
    assert {key: row["dropped_by"] for key, row in rows.items()} == {"a/a": "", "a/b": "", "a/c": "broken", "a/d": ""}
    assert rows["a/c"]["score.siglip"] == [None] and rows["a/c"]["tag.embedding"] == ""
    values = {key: row["score.siglip"][0] for key, row in rows.items() if key != "a/c"}
    worst = min(values, key=lambda key: values[key])
    bound = sorted(values.values())[1]
    settings["siglip"] = {"model": path, "min": bound}
    assert {key for key, row in judge(source, OperatorsConfig.model_validate(settings)).items() if row["kept"]} == (
        set(values) - {worst}
    )
