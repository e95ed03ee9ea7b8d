"""Operators that run a model: on a GPU they judge in bfloat16, near what a CPU says in float32."""

from pathlib import Path

import pytest
import torch

from producer.operator import encoder as encoders
from producer.operator.siglip import Siglip
from tests.unit.producer import tiny_encoders
from tests.unit.producer.test_model_operators import batch


@pytest.mark.gpu
def test_scores_on_a_gpu_are_near_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_encoders.siglip(tmp_path / "siglip")
    there = Siglip(model, ("raw",), 0.0).score_captions(batch())
    assert encoders._loaded("SiglipModel", model.resolve())[2].device.type == "cuda"
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        encoders._loaded.cache_clear()
        here = Siglip(model, ("raw",), 0.0).score_captions(batch())
    encoders._loaded.cache_clear()
    assert there == Siglip(model, ("raw",), 0.0).score_captions(batch()), "the same bits again"
    assert [row[0].value for row in there[:-1]] == pytest.approx([row[0].value for row in here[:-1]], abs=0.03)
