"""Which part of a whole parameter a rank holds: the one place that knows, for initial weights and checkpoints."""

from typing import NamedTuple

from torch import Tensor, nn

from parallel.mesh import Mesh


class Place(NamedTuple):
    """Rows `start` to `stop` of a whole parameter along `dim`."""

    dim: int
    start: int
    stop: int

    def of(self, whole: Tensor) -> Tensor:
        """This part of `whole`, as a view."""
        return whole.narrow(self.dim, self.start, self.stop - self.start)


def place(parameter: nn.Parameter, mesh: Mesh) -> Place | None:
    """The slice of its whole that `parameter` is on this rank; None where every tensor-parallel rank holds it whole."""
    dim: int = getattr(parameter, "partition_dim", -1)  # megatron's mark
    if mesh.tp == 1 or dim < 0:
        return None
    rows = parameter.shape[dim]
    return Place(dim, mesh.tp_rank * rows, (mesh.tp_rank + 1) * rows)


def whole_shape(parameter: nn.Parameter, mesh: Mesh) -> tuple[int, ...]:
    """The shape of the whole parameter that `parameter` is a slice of."""
    shape = list(parameter.shape)
    part = place(parameter, mesh)
    if part is not None:
        shape[part.dim] *= mesh.tp
    return tuple(shape)
