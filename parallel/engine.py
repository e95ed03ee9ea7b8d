"""A model in training: Megatron's DDP and DistributedOptimizer behind the few calls that a training loop makes.

Parameters in bf16 (or fp32), gradients accumulated and reduced in fp32, fp32 main parameters and Adam moments sharded
over the data-parallel ranks. Gradients are SUMMED over samples and ranks and divided once, by the step's global count.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import decay
from parallel.config import OptimConfig
from parallel.cpu_stand_in import stand_in
from parallel.megatron import (
    Adam,
    DistributedDataParallel,
    DistributedDataParallelConfig,
    DistributedOptimizer,
    ModelParallelConfig,
    OptimizerConfig,
)
from parallel.mesh import Mesh
from parallel.place import whole_shape
from parallel.provider import is_partial
from parallel.shard import Shard, held, never_trained, trained


@dataclass
class _WrapConfig(ModelParallelConfig):  # type: ignore[misc]
    """What DDP reads of a transformer's config."""

    calculate_per_token_loss: bool = True  # sum over ranks, not mean


class Engine:
    """`module` is the model: call it, and backward the SUM of its losses.

    A step: `zero_grad`, a backward a unit (all but the last under `no_sync`), `finish`, `norm` and `apply` (or `step`);
    the same calls on every rank. Buckets of gradients fill from the end of `model.named_parameters()` and parameters
    are gathered from its start, so that order must be the order of first use.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, mesh: Mesh) -> None:
        self.module = model.to(mesh.device, config.dtype)
        self.config, self.mesh = config, mesh
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._ddp = DistributedDataParallel(
            _WrapConfig(tensor_model_parallel_size=mesh.tp, params_dtype=config.dtype, bf16=config.precision == "bf16"),
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=config.overlap_grads,
                overlap_param_gather=config.overlap_params,
                use_distributed_optimizer=True,
                bucket_size=config.bucket_elements,
            ),
            model,
        )
        with stand_in(), torch.no_grad():
            self._optimizer = _optimizer(self._ddp, config, mesh)
            # A step of nothing, which makes the moments; the checkpoint then has them from the first step on.
            self._set_lr(0.0)
            self._optimizer._init_optimizer_states_with_dummy_values()
        self._set_updates(0)
        self._partial = [item.gradient for item in held(self._optimizer) if is_partial(item.parameter)]
        self._decayed_by_hand = decay.by_hand(self._optimizer, mesh)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every parameter, by name."""
        return {name: whole_shape(parameter, self.mesh) for parameter, name in self._names.items()}

    @property
    def updates(self) -> int:
        """Optimizer updates behind these weights: the steps less those not applied."""
        return self._updates

    def zero_grad(self) -> None:
        """Start a step."""
        self._ddp.zero_grad_buffer()

    def no_sync(self) -> AbstractContextManager[None]:
        """Around every backward of a step but the last: accumulate, reduce nothing yet."""
        return self._ddp.no_sync()

    def gradients(self) -> list[Tensor]:
        """The flat fp32 buffers that this rank's gradients add up in; its own until they are reduced."""
        return [buffer.grad_data.view(-1) for buffer in self._ddp.buffers]

    def reduce(self) -> None:
        """Start reducing gradients where every backward was under `no_sync`."""
        if self.config.overlap_grads:
            self._ddp.start_grad_sync()

    def finish(self, count: float = 1.0) -> None:
        """End a step's backward passes: gradients become the sum over all ranks divided by `count`.

        `count` is what the step's summed loss is divided by: the global number of samples (or tokens). Where it is not
        known yet, leave it to `apply`.
        """
        self._ddp.finish_grad_sync()
        self._sum_partial()
        if count != 1.0:
            self._ddp.scale_gradients(1.0 / count)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The global norm of the finished gradients, 0-d on the device and the same on every rank; waits for nothing.

        Every weight counts once, wherever it is split or held whole.
        """
        with stand_in():
            self._optimizer.prepare_grads()
            gradients = self._optimizer.get_main_grads_for_grad_norm()
        total = torch.zeros((), device=self.mesh.device)
        if gradients:
            total += torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(total)
        return total.sqrt()

    @torch.no_grad()
    def apply(self, lr: float, norm: float, count: float = 1.0) -> None:
        """Divide the finished gradients by `count`, clip them by `norm`, their global norm after that, and update."""
        clipped = min(1.0, self.config.clip / (norm + 1e-6)) if self.config.clip else 1.0
        gradients = [weight.grad for weight in self._optimizer.get_parameters() if weight.grad is not None]
        if gradients and clipped != count:
            torch._foreach_mul_(gradients, clipped / count)
        with stand_in():
            self._set_lr(lr)
            for run in self._decayed_by_hand:
                run.mul_(1 - lr * self.config.weight_decay)  # AdamW's own first line
            self._optimizer.step_with_ready_grads()
        self._updates += 1

    def step(self, lr: float) -> tuple[float, bool]:
        """`norm` and `apply` in one: the norm, and whether the update was applied.

        Gradients that are not finite anywhere leave every weight and moment on every rank as it was.
        """
        norm = float(self.norm())
        if not math.isfinite(norm):
            return norm, False
        self.apply(lr, norm)
        return norm, True

    def shards(self) -> Iterator[Shard]:
        """Everything this rank holds of the weights and the optimizer's state, in the same order on every call."""
        yield from trained(self._optimizer, self._names, self.mesh)
        yield from never_trained(self._names, self.mesh)

    def replica(self) -> list[Tensor]:
        """The flat buffers that the model computes with; once a forward gathered them, alike on data-parallel ranks."""
        return [buffer.param_data.view(-1) for buffer in self._ddp.buffers]

    @torch.no_grad()
    def loaded(self, updates: int) -> None:
        """After the shards were overwritten: bring the model's parameters up to them. `updates` is Adam's step."""
        self._set_updates(updates)
        self.gather_parameters()

    @torch.no_grad()
    def gather_parameters(self) -> None:
        """Make the model's parameters what the main ones are, on every rank at once, between steps.

        Until the next update no forward gathers any more: ranks may then run forwards that others do not.
        """
        with stand_in():
            self._optimizer._copy_main_params_to_model_params()
            self._ddp.start_param_sync(force_sync=True)

    def _sum_partial(self) -> None:
        if self.mesh.tp == 1 or not self._partial:
            return
        # Ranks of a tensor-parallel group hold the same ranges, so owned elements alone can be summed.
        flat = torch.cat(self._partial)
        dist.all_reduce(flat, group=self.mesh.tp_group)
        for own, summed in zip(self._partial, flat.split([own.numel() for own in self._partial]), strict=True):
            own.copy_(summed)

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def _set_updates(self, updates: int) -> None:
        self._updates = updates
        inner = self._optimizer.optimizer
        for state in inner.state.values():
            if "step" in state:  # torch's AdamW counts for each weight
                state["step"].fill_(updates)
        for group in inner.param_groups:
            if "step" in group:  # Transformer Engine's for each group
                group["step"] = updates


def _optimizer(ddp: DistributedDataParallel, config: OptimConfig, mesh: Mesh) -> DistributedOptimizer:
    """Megatron's optimizer over the gradients that `ddp` gathers.

    Built directly and not by get_megatron_optimizer: that one pickles the parameter groups from rank to rank, and
    leaves their weight decay to a scheduler of its own.
    """
    optimizer = DistributedOptimizer(
        Adam(decay.groups(ddp.module, config.weight_decay), lr=config.lr, betas=config.betas, eps=config.eps),
        OptimizerConfig(
            lr=config.lr,
            bf16=config.precision == "bf16",
            params_dtype=config.dtype,
            use_distributed_optimizer=True,
            overlap_param_gather=config.overlap_params,
            clip_grad=config.clip,
        ),
        None,
        None,
        model_chunks=[ddp],
        per_model_buffers={0: ddp.buffers},
        data_parallel_group=mesh.dp_group,
        data_parallel_group_gloo=None,
        data_parallel_group_idx=mesh.tp_rank,
        distributed_optimizer_instance_id=0,
    )
    optimizer.grad_stats_parallel_group = dist.group.WORLD
    optimizer.tp_group = mesh.tp_group
    return optimizer
