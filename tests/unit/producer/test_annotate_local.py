"""transformers' Qwen2.5-VL, tiny and random: what it is shown, and that its garbage is a counted failure."""

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from producer.annotate.config import AnnotateConfig, AnnotateError
from producer.annotate.local import Local
from producer.annotate.model import Said, Talk
from producer.annotate.prompt import ANNOTATE
from producer.annotate.run import Progress, annotate
from producer.annotate.store import Shelf
from producer.source.reader import SourceConfig
from tests.unit.producer.photos import BROKEN, ROWS, make_photos

DRAW = np.random.default_rng(0)
PICTURES = [Image.fromarray(DRAW.integers(0, 255, (56 + 28 * k, 84, 3), dtype=np.uint8)) for k in range(3)]


@pytest.fixture(scope="module")
def captioner(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text encoder, which is a whole Qwen2.5-VL, with tokenizer and image processor in one folder."""
    folder = tmp_path_factory.mktemp("captioner")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(encoders / name, folder, dirs_exist_ok=True)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 1 << 18}).save_pretrained(folder)
    return folder


def config(folder: Path, **changes: Any) -> AnnotateConfig:
    local = {"model": folder, "dtype": "float32", "batch": 3}
    return AnnotateConfig.model_validate({"local": local, "max_tokens": 16} | changes)


def test_the_model_sees_pictures_and_words_as_its_own_generation_does(captioner: Path) -> None:
    """Answers to a batch are those of each alone, and depend on the picture."""
    local = Local(config(captioner))
    talks = [Talk((ANNOTATE["en"],), picture) for picture in PICTURES]
    together = local.ask(talks)
    assert together == [*local.ask(talks[:1]), *local.ask(talks[1:2]), *local.ask(talks[2:])]
    assert all(isinstance(said, Said) and said.text and said.answer_tokens <= 16 for said in together)
    lengths = [said.prompt_tokens for said in together if isinstance(said, Said)]
    assert [after - before for before, after in itertools.pairwise(lengths)] == [3, 3]
    assert local.ask([Talk(("Write.",))]) == local.ask([Talk(("Write.",))])


def test_a_picture_changes_what_the_first_token_is_drawn_from(captioner: Path) -> None:
    local = Local(config(captioner))
    net: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32).eval()
    with torch.inference_mode():
        first, other = (net(**local._inputs([Talk(("?",), one)])).logits[0, -1] for one in (PICTURES[0], PICTURES[0]))
        flipped = PICTURES[0].transpose(Image.Transpose.ROTATE_180)
        turned = net(**local._inputs([Talk(("?",), flipped)])).logits[0, -1]
    assert torch.equal(first, other) and not torch.allclose(first, turned, atol=1e-4)


def test_garbage_is_counted_and_kept_with_its_reason_also_where_an_actor_is_killed(
    captioner: Path, tmp_path: Path
) -> None:
    """On a real local Ray; the broken picture is left out, and another actor takes the place of the one killed."""
    make_photos(tmp_path)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.asked and not killed:
            (process,) = (one for one in psutil.Process().children(recursive=True) if "ray::Host" in one.name())
            process.kill()
            killed.append(process.pid)

    config_ = config(captioner)
    funnel = annotate(SourceConfig(path=tmp_path / "raw"), config_, tmp_path / "index", progress=kill)
    assert killed and funnel.seen == ROWS == funnel.failed.total() and funnel.annotated == 0
    assert funnel.failed["picture"] == 1 and funnel.example["picture"].startswith(f"{BROKEN}: ")
    assert set(funnel.failed) <= {"picture", "cut", "no json", "empty"} and funnel.calls >= ROWS - 1
    kept = Shelf(tmp_path / "annotations" / funnel.annotator).read("photos", "photos.tar")
    assert len(kept) == ROWS - 1 and all(entry.reason and entry.raw for entry in kept.values())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "holds no readable config.json"),
        ("config.json", "[]", "holds no readable config.json"),
        ("config.json", '{"architectures": ["ViTForImageClassification"]}', "not Qwen2_5_VLForConditionalGeneration"),
        ("preprocessor_config.json", None, "lacks preprocessor_config.json"),
        ("model.safetensors", None, "lacks .safetensors weights"),
        ("model.safetensors", "not weights", "does not load"),
        ("tokenizer.json", "not a tokenizer", "does not load"),
    ],
)
def test_a_folder_that_holds_no_such_model_is_named(
    captioner: Path, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    folder = shutil.copytree(captioner, tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(AnnotateError, match=rf"annotate\.local\.model: {re.escape(str(folder))} .*{said}"):
        Local(config(folder))
