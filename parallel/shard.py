"""What a rank holds of a model's weights and optimizer state, named so that any layout can read what another wrote."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from parallel.megatron import DistributedOptimizer
from parallel.mesh import Mesh
from parallel.place import Place, place, whole_shape

# Kinds of tensors a trained weight has; a never-trained one has "param" alone.
KINDS = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Shard:
    """A run of a parameter's elements on this rank.

    `tensors` are live views, flat, one element for each of `start` to `stop` of the rank's slice: fp32, but a
    never-trained weight in its own precision. Over the job every element is in exactly one shard that is `owned`;
    the others are copies that a load must fill as well.
    """

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    place: Place | None  # the rank's slice of the whole
    local: tuple[int, ...]  # shape of that slice
    start: int
    stop: int
    owned: bool
    tensors: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Held:
    """A parameter and the flat range of it whose optimizer state this rank holds."""

    parameter: nn.Parameter
    start: int
    stop: int

    @property
    def gradient(self) -> Tensor:
        """Live fp32 gradient of the range, flat."""
        whole: Tensor = self.parameter.main_grad  # type: ignore[attr-defined]
        return whole.view(-1)[self.start : self.stop]


def held(optimizer: DistributedOptimizer) -> Iterator[Held]:
    """What the data-parallel sharding gives this rank, in the order of its buffers."""
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield Held(parameter, ranges["param"].start, ranges["param"].end)


def trained(optimizer: DistributedOptimizer, names: dict[nn.Parameter, str], mesh: Mesh) -> Iterator[Shard]:
    """The shards of every weight that `optimizer` updates."""
    for item in held(optimizer):
        parameter = item.parameter
        state = optimizer._get_main_param_and_optimizer_states(parameter)
        part = place(parameter, mesh)
        yield Shard(
            names[parameter],
            whole_shape(parameter, mesh),
            part,
            tuple(parameter.shape),
            item.start,
            item.stop,
            part is not None or mesh.tp_rank == 0,
            {kind: state[kind].detach() for kind in KINDS},
        )


def never_trained(names: dict[nn.Parameter, str], mesh: Mesh) -> Iterator[Shard]:
    """The shards of the weights without gradients; every rank holds its whole slice."""
    for parameter, name in names.items():
        if parameter.requires_grad:
            continue
        part = place(parameter, mesh)
        yield Shard(
            name,
            whole_shape(parameter, mesh),
            part,
            tuple(parameter.shape),
            0,
            parameter.numel(),
            mesh.dp_rank == 0 and (part is not None or mesh.tp_rank == 0),
            {"param": parameter.detach().view(-1)},
        )
