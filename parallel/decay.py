"""Which weights decay: matrices, and of a matrix that also has never-trained rows only the others.

Adam leaves a row without gradients where it is, decay would not. A model names such rows on the parameter, as
`idle_rows = (start, stop)` of the whole matrix; a weight of which nothing is trained has requires_grad False instead.
"""

from typing import Any

from torch import Tensor, nn

from parallel.megatron import DistributedOptimizer
from parallel.mesh import Mesh
from parallel.place import place
from parallel.shard import held


def idle_rows(parameter: nn.Parameter) -> tuple[int, int] | None:
    """The never-trained rows of the whole parameter, or None."""
    return getattr(parameter, "idle_rows", None)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Adam's parameter groups: with decay, and without (vectors, and matrices whose decay is applied by hand)."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [weight for weight in weights if weight.dim() > 1 and idle_rows(weight) is None]
    chosen = set(decayed)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight not in chosen], "weight_decay": 0.0},
    ]


def by_hand(optimizer: DistributedOptimizer, mesh: Mesh) -> list[Tensor]:
    """Live runs of this rank's main parameters that decay but share a matrix with rows that do not."""
    runs = []
    for item in held(optimizer):
        idle = idle_rows(item.parameter)
        if idle is None or item.parameter.dim() < 2:
            continue
        part = place(item.parameter, mesh)
        assert part is None or part.dim == 0, "idle rows of a matrix that is split by columns"
        columns = item.parameter.numel() // item.parameter.shape[0]
        first = part.start if part else 0
        main = optimizer._get_main_param_and_optimizer_states(item.parameter)["param"].detach()
        # Flat bounds of the idle rows, counted from this rank's run.
        low, high = (min(max((row - first) * columns - item.start, 0), main.numel()) for row in idle)
        runs += [run for run in (main[:low], main[high:]) if run.numel()]
    return runs
