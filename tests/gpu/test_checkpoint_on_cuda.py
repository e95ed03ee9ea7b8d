"""A save beside training on a CUDA device has the bytes of one waited for, through pinned memory and a stream apart."""

import threading
from pathlib import Path

import pytest
import torch

from consumer.config import CheckpointConfig, EmaConfig
from consumer.ema import Ema
from consumer.saver import Saver
from model.mmdit import MMDiT
from parallel.engine import Engine
from tests.distributed import tiny
from tests.distributed.saving import names

pytestmark = pytest.mark.gpu


def test_a_save_beside_training_has_the_bytes_of_one_waited_for(tmp_path: Path) -> None:
    here = tiny.mesh(1, False)
    try:
        model = MMDiT(tiny.CONFIG.model_copy(update={"num_attention_heads": 32}))
        engine = Engine(model, tiny.optim("bf16", overlap=False), here)
        ema = Ema(EmaConfig(), engine)
        waiting, beside = (
            Saver(CheckpointConfig(path=tmp_path / name, every=1, keep=9), engine, ema, here, {})
            for name in ("sync", "async")
        )
        assert beside._snapshot._pinned and beside._snapshot._buffer.is_pinned()
        for step in (1, 2, 3):
            waiting.save(step, {}, wait=True)
            beside.save(step, {})
            busy = torch.randn(4096, 4096, device=here.device)
            for _ in range(50):  # what training has queued before the weights change
                busy = busy @ busy / 64
            engine.zero_grad()
            engine.finish(1)
            beside.taken()
            engine.step(1e-2)
            ema.update(engine, step)
            report = beside.settle()
            assert report and report.published
        waiting.close()
        beside.close()
    finally:
        here.close()
    assert "checkpoint" not in [thread.name for thread in threading.enumerate()]
    for folder in names(tmp_path / "sync"):
        one, other = tmp_path / "async" / folder, tmp_path / "sync" / folder
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names(other))
