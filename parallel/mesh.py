"""The ranks of a job and the groups they form: tensor parallel inside data parallel."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from parallel import cpu_stand_in
from parallel.config import MeshConfig
from parallel.megatron import parallel_state
from parallel.store import torchrun_store


class MeshError(ValueError):
    """The layout does not fit the model or the number of ranks."""


def check(config: MeshConfig, *, num_heads: int, world: int) -> None:
    """Refuse a layout that does not fit `num_heads` attention heads or `world` ranks; MeshError says what would."""
    if num_heads % config.tp:
        *most, last = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        fits = f"{', '.join(map(str, most))} or {last}" if most else str(last)
        raise MeshError(f"mesh.tp: {config.tp} does not divide num_heads {num_heads}; use {fits}")
    _even(config, world)


@dataclass(frozen=True, eq=False)
class Mesh:
    """This rank's place among all. Tensor-parallel ranks are neighbours, so that they share a machine."""

    rank: int
    world: int
    tp_rank: int
    tp: int
    dp_rank: int
    dp: int
    sp: bool
    device: torch.device
    tp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    # Bytes travel on gloo and apart from the step's collectives: a thread may share while another trains.
    byte_group: dist.ProcessGroup

    @classmethod
    def start(cls, config: MeshConfig) -> "Mesh":
        """Join the job that torchrun's environment describes; without one, be a job of one rank.

        NCCL on CUDA, gloo elsewhere. Raises MeshError when the ranks cannot form the layout.
        """
        alone = "RANK" not in os.environ
        rank, world = (0, 1) if alone else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        _even(config, world)
        # Orders tensor-parallel communication before the compute it overlaps with (megatron's layers ask for it).
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        device, timeout = _device(), timedelta(seconds=config.timeout_s)
        if alone or int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == world:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = HashStore() if alone else torchrun_store(rank, world, timeout)
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            store=store,
            rank=rank if store else -1,
            world_size=world if store else -1,
            timeout=timeout,
            device_id=None if device.type == "cpu" else device,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tp,
            distributed_timeout_minutes=config.timeout_s / 60,
            create_gloo_process_groups=False,
        )
        byte_groups = [
            dist.new_group(list(range(first, first + config.tp)), backend="gloo", timeout=timeout)
            for first in range(0, world, config.tp)
        ]
        return cls(
            rank=rank,
            world=world,
            tp_rank=rank % config.tp,
            tp=config.tp,
            dp_rank=rank // config.tp,
            dp=world // config.tp,
            sp=config.sp,
            device=device,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_group=parallel_state.get_data_parallel_group(),
            byte_group=byte_groups[rank // config.tp],
        )

    def share(self, data: bytes | None) -> bytes:
        """What the first rank of the tensor-parallel group gives as `data`, on every rank of the group; no pickle."""
        if self.tp == 1:
            assert data is not None
            return data
        first = self.rank - self.tp_rank
        length = torch.tensor([len(data) if data is not None else 0])
        dist.broadcast(length, first, group=self.byte_group)
        if not length:
            return b""
        if self.tp_rank == 0:
            raw = torch.frombuffer(bytearray(data or b""), dtype=torch.uint8)
        else:
            raw = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(raw, first, group=self.byte_group)
        return raw.numpy().tobytes()

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over the data-parallel ranks, in place."""
        dist.all_reduce(tensor, group=self.dp_group)
        return tensor

    def sent(self, values: Sequence[float]) -> Tensor:
        """`values` in fp64 on the mesh's device; on CUDA on their way there, nothing waits for them."""
        host = torch.tensor(values, dtype=torch.float64)
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host

    def alike(self, tensor: Tensor) -> Tensor:
        """`tensor` as the first rank of the tensor-parallel group has it, in place: the same bits on all of them."""
        if self.tp > 1:
            dist.broadcast(tensor, self.rank - self.tp_rank, group=self.tp_group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The largest of each element of `tensor` over all ranks, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def every(self, fine: bool) -> bool:
        """True on every rank if `fine` on every rank; also a barrier."""
        flag = torch.tensor([int(fine)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def barrier(self) -> None:
        """Wait until every rank of the job is here."""
        self.every(True)

    def close(self) -> None:
        """Leave the job; a rank may then start another."""
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _even(config: MeshConfig, world: int) -> None:
    if world % config.tp:
        raise MeshError(
            f"mesh.tp: {config.tp} does not divide the {world} ranks of this job; start a multiple of {config.tp} ranks"
        )


def _device() -> torch.device:
    if cpu_stand_in.needed():
        cpu_stand_in.install()
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
