"""Every rank takes part in drawing pictures, whoever has work, and training goes on as if none had been drawn."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from consumer.config import EmaConfig, PicturesConfig
from consumer.ema import Ema
from consumer.evaluate.averaged import ema_weights
from consumer.evaluate.pictures import Pictures
from consumer.objective.flow import FlowObjective, text_of
from consumer.source.group import GroupSource
from consumer.source.streams import Arrived
from model.config import FlowConfig
from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from producer.api.protocol import Welcome
from producer.api.unit import UnitId, unpack
from producer.synthetic import SyntheticJob, SyntheticMaker
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.test_engine import bits

UNITS, CHANNELS = 3, 16
SIZES = tiny.CONFIG.model_copy(update={"in_channels": 64, "out_channels": CHANNELS})
CONFIG = PicturesConfig(every=2, count=5, steps=3, guidance=3.0, batch=2)


class Maker:
    """Validation units of two samples, the buckets by turns, the last unit without a second sample."""

    def __init__(self) -> None:
        sizes = ("32x48", "64x32", "32x32")
        jobs = [
            SyntheticJob(bucket=b, samples=2 - (b == "32x32"), channels=CHANNELS, tokens=5, width=24) for b in sizes
        ]
        self.makers = [SyntheticMaker(job) for job in jobs]
        self.asked: list[int] = []

    def take(self, unit: UnitId) -> Arrived:
        batch = self.fetch(unit)
        return Arrived(batch, unpack(batch)[1], "plan", 0)

    def fetch(self, unit: UnitId) -> Any:
        self.asked.append(unit.unit)
        return self.makers[unit.unit % 3](unit)[0]

    def ack(self, through: int) -> None:
        """Nothing is kept."""


def train(engine: Engine, ema: Ema, flow: FlowObjective, maker: Maker, step: int) -> None:
    """One optimizer step on two units of two samples each."""
    here, units = engine.mesh, range(engine.mesh.dp_rank, 2, engine.mesh.dp)
    engine.zero_grad()
    for unit in units:
        with nullcontext() if unit == units[-1] else engine.no_sync():
            samples = unpack(maker.fetch(UnitId("train", step, unit)))[1]
            loss, _ = flow.loss(engine.module, flow.batch(samples, step, here.device, engine.config.dtype))
            loss.backward()
    engine.finish(4)
    engine.step(3e-2)
    ema.update(engine, step)


def averages(engine: Engine, ema: Ema) -> list[Any]:
    return [[shard.name, shard.start, ema.of(shard).tolist()] for shard in engine.shards()]


def draw_on_rank(folder: str, tp: int, precision: str, encoders: str, draws: bool) -> dict[str, Any]:
    """Two training steps, with pictures drawn between them if `draws`: what they showed, and the last weights."""
    path, here, maker = Path(folder), tiny.mesh(tp, False), Maker()
    engine = tiny.build(path / "weights.safetensors", here, tiny.optim(precision, eps=1e-3), SIZES)
    ema = Ema(EmaConfig(decay=0.5), engine)
    source = GroupSource(maker if here.tp_rank == 0 else None, Welcome("plan", 4, UNITS, "random"), here)
    flow = FlowObjective(
        FlowConfig(),
        seed=3,
        mean=torch.linspace(-0.3, 0.3, CHANNELS),
        std=torch.full((CHANNELS,), 1.5),
        empty=text_of(unpack(maker.fetch(UnitId("empty", 0, 0)))[1][0]),
        axes=SIZES.axes_dims_rope,
    )
    maker.asked.clear()
    pictures = Pictures(CONFIG, engine, ema, flow, source, vae=Path(encoders) / "vae", folder=path / f"tp{tp}")
    said: dict[str, Any] = {"asked": list(maker.asked), "due": [step for step in range(1, 6) if pictures.due(step)]}
    train(engine, ema, flow, maker, 0)
    if draws:
        # What ranks hold of others' shares arrives with the next forward, or now.
        engine.gather_parameters()
        parameters = [parameter.detach().clone() for parameter in engine.module.parameters()]
        before, average = bits(list(engine.shards())), averages(engine, ema)
        with ema_weights(engine, ema):
            drawn = pictures.latents()
            said["moved"] = len(parameters) - sum(map(torch.equal, parameters, engine.module.parameters()))
        report = pictures.draw(2)
        assert (bits(list(engine.shards())), averages(engine, ema)) == (before, average)
        assert all(map(torch.equal, parameters, engine.module.parameters()))
        said["report"] = report and [report.path, report.captions]
        said["latents"] = {k: [list(latent.shape), latent.flatten().tolist()] for k, latent in drawn.items()}
    train(engine, ema, flow, maker, 1)
    here.close()
    return said | {"after": bits(list(engine.shards()))}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the initial weights."""
    folder = tmp_path_factory.mktemp("pictures")
    model = MMDiT(SIZES)
    fill(model, 3)
    save_file({name: p.detach() for name, p in model.named_parameters()}, folder / "weights.safetensors")
    return folder


def test_pictures_of_many_ranks_are_those_of_one(ranks: Ranks, start: Path, encoders: Path) -> None:
    given = {"folder": start, "precision": "fp32", "encoders": encoders, "draws": True}
    (alone,) = ranks.run(1, draw_on_rank, tp=1, **given)
    many = ranks.run(4, draw_on_rank, tp=2, **given)
    assert alone["due"] == [2, 4]
    # Two groups: the first draws those of units 0 and 2 and has the captions of all, the second those of unit 1.
    assert [rank["asked"] for rank in many] == [[0, 1, 2], [], [1], []]
    assert [sorted(rank["latents"]) for rank in many] == [["0", "1", "2", "3", "4"]] * 2 + [["1", "4"]] * 2
    for rank in many:
        for k, (shape, values) in rank["latents"].items():
            assert shape == alone["latents"][k][0]
            wanted = torch.tensor(alone["latents"][k][1])
            assert (torch.tensor(values) - wanted).norm() < 1e-4 * wanted.norm()
    assert [rank["report"] is None for rank in many] == [False, True, True, True]
    sheets = []
    for path, captions in (alone["report"], many[0]["report"]):
        assert captions == [f"sample {k // 3} of validation step 0 unit {k % 3}" for k in range(5)]
        assert [file.name for file in Path(path).parent.iterdir()] == ["step-00000002.png"]
        with Image.open(path) as sheet:
            sheets.append(np.asarray(sheet).astype(int))
    assert sheets[0].shape == sheets[1].shape and np.abs(sheets[0] - sheets[1]).max() <= 2
    assert len(np.unique(sheets[0])) > 50


def test_training_does_not_notice_that_pictures_are_drawn(ranks: Ranks, start: Path, encoders: Path) -> None:
    given = {"folder": start, "tp": 2, "precision": "bf16", "encoders": encoders}
    drew = ranks.run(4, draw_on_rank, draws=True, **given)
    quiet = ranks.run(4, draw_on_rank, draws=False, **given)
    assert all(rank["moved"] > 20 for rank in drew)
    assert [rank["after"] for rank in drew] == [rank["after"] for rank in quiet]
