"""One training step measured beside its estimate: `python tests/bench/planner_case.py CASE` prints both as JSON.

Under torchrun's variables (RANK, WORLD_SIZE, ...) it is one of several ranks.
"""

import gc
import json
import os
import sys
from dataclasses import dataclass

import torch

from consumer.config import EmaConfig
from consumer.ema import Ema
from consumer.objective.flow import FlowObjective
from launch.dry import Sample, dry_mesh, dry_pass, dry_shapes, unit_batch
from launch.memory import Memory, States
from model.config import FlowConfig, MMDiTConfig
from model.init import fill
from model.layout import Layout
from model.mmdit import MMDiT
from parallel.config import MeshConfig, OptimConfig
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.place import place
from parallel.provider import MegatronProvider
from tests.bench.report import peak_growth

# 33 million parameters.
CONFIG = MMDiTConfig(
    num_layers=6,
    attention_head_dim=48,
    num_attention_heads=8,
    joint_attention_dim=512,
    axes_dims_rope=(8, 20, 20),
    blocks_per_gather=3,
)


@dataclass(frozen=True)
class Case:
    samples: tuple[Sample, ...]
    precision: str = "fp32"
    tp: int = 1
    sp: bool = False
    world: int = 1


CASES = {
    "256p x 4, fp32": Case((((16, 16), 128),) * 4),
    "256p x 16, fp32": Case((((16, 16), 128),) * 16),
    "256p x 16, bf16": Case((((16, 16), 128),) * 16, "bf16"),
    "640p x 2, fp32": Case((((40, 40), 200),) * 2),
    "640p x 3, bf16": Case((((40, 40), 200),) * 3, "bf16"),
    "mixed, fp32": Case((((16, 16), 300), ((20, 13), 40), ((9, 28), 77), ((16, 16), 128))),
    "256p x 16, bf16, TP 2": Case((((16, 16), 128),) * 16, "bf16", tp=2, world=2),
    "256p x 16, fp32, TP 2 with SP": Case((((16, 16), 128),) * 16, tp=2, sp=True, world=2),
    "256p x 8, fp32, DP 2": Case((((16, 16), 128),) * 8, world=2),
}


def optim(case: Case) -> OptimConfig:
    return OptimConfig(precision=case.precision, overlap_grads=False, overlap_params=False)  # type: ignore[arg-type]


def estimate(case: Case) -> dict[str, int]:
    """The planner's parts for `case`, in the CPU's form."""
    config = optim(case)
    with dry_mesh(case.tp, case.sp) as mesh:
        states = States.of(dry_shapes(CONFIG, mesh, config.dtype), config, case.world // case.tp)
        step = dry_pass(CONFIG, mesh, config.dtype, case.samples, "cpu")
    return Memory.of(states, step, "cpu", 0).parts


def measure(case: Case) -> int:
    """Bytes by which this process grows at most over building a trainer and two steps."""
    mesh = Mesh.start(MeshConfig(tp=case.tp, sp=case.sp, timeout_s=60))
    config = optim(case)
    layout = Layout.build([[(0, *size)] for size, _ in case.samples], [n for _, n in case.samples], (8, 20, 20))
    objective = FlowObjective(
        FlowConfig(), seed=0, mean=torch.zeros(1), std=torch.ones(1), empty=torch.zeros(1, 1), axes=()
    )

    def run() -> None:
        model = MMDiT(CONFIG, MegatronProvider(mesh, config.dtype))
        fill(model, 0, lambda parameter: place(parameter, mesh))
        engine = Engine(model, config, mesh)
        ema = Ema(EmaConfig(), engine)
        gc.collect()
        for step in range(2):
            engine.zero_grad()
            loss, _ = objective.loss(engine.module, unit_batch(CONFIG, layout, config.dtype, mesh.device))
            loss.backward()
            engine.finish(len(case.samples))
            engine.step(1e-4)
            ema.update(engine, step)

    try:
        return peak_growth(run)
    finally:
        mesh.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = CASES[sys.argv[1]]
    parts = estimate(chosen)
    print(json.dumps({"rank": os.environ.get("RANK", "0"), "parts": parts, "measured": measure(chosen)}))
