"""One layout judged, and all that could be: memory, time, and what stands against it."""

from dataclasses import dataclass, replace
from functools import cached_property

from launch.dry import Form, Pass, Sample, dry_mesh, dry_pass, dry_shapes
from launch.memory import Memory, States
from launch.traffic import Rates, StepTime, step_time
from launch.workload import Unit, Workload, workload
from model.config import MMDiTConfig, Part, RecomputeConfig
from model.count import utilisation
from parallel.config import MeshConfig, OptimConfig
from parallel.mesh import Mesh, MeshError, check
from producer.api.deal import DealError, deal
from producer.recipe import RecipeConfig

# From keeping everything to keeping a block's input; model/recompute.py says what each part is.
LADDER: tuple[tuple[Part, ...], ...] = (
    (),
    ("norm", "gelu"),
    ("norm", "gelu", "core"),
    ("attention", "mlp"),
    ("block",),
)

# Models this deep stand in for the whole one where many layouts are tried: every further block adds the same.
_SHALLOW = (3, 5)


# Of a GPU's memory: with less left than this, units of other shapes may be what does not fit any more.
_CLOSE = 0.05


class PlannerError(ValueError):
    """The settings cannot be planned with."""


@dataclass(frozen=True)
class Job:
    """What is to be trained and on what; a layout is not in it."""

    sizes: MMDiTConfig
    recipe: RecipeConfig
    optim: OptimConfig
    gpus: int
    memory: int  # bytes of one GPU
    text: int  # mean tokens of a caption
    reserve: int  # bytes that CUDA, cuBLAS and NCCL take
    rates: Rates
    form: Form = "cuda"


@dataclass(frozen=True)
class Choice:
    """A layout of a job."""

    tp: int
    sp: bool
    recompute: RecomputeConfig
    samples: int  # a unit of the smallest resolution


@dataclass(frozen=True)
class Estimate:
    """A choice's memory and time."""

    job: Job
    choice: Choice
    work: Workload
    states: States
    memory: Memory
    time: StepTime
    executed: float  # FLOPs of all ranks a step, recomputed ones too

    @property
    def dp(self) -> int:
        return self.job.gpus // self.choice.tp

    @property
    def margin(self) -> int:
        """Bytes left on each GPU; below 0 it does not fit."""
        return self.job.memory - self.memory.total

    @property
    def tight(self) -> bool:
        """Whether less is left than the estimate may be off by."""
        return self.margin < _CLOSE * self.job.memory

    @cached_property
    def flops(self) -> float:
        """The model's FLOPs a step."""
        return self.work.flops(self.job.sizes)

    @property
    def mfu(self) -> float:
        return utilisation(self.flops, self.time.total, self.job.gpus * self.job.rates.tflops * 1e12)

    @property
    def images_per_s(self) -> float:
        return self.work.samples / self.time.total


@dataclass(frozen=True)
class Refused:
    """A choice that does not do, and why."""

    choice: Choice
    reason: str


def refusal(job: Job, tp: int, units: int) -> str:
    """Why `tp` ranks cannot split the model or share the job's GPUs and `units` units a step; empty where they can."""
    try:
        check(MeshConfig(tp=tp), num_heads=job.sizes.num_attention_heads, world=job.gpus)
        deal(units, job.gpus // tp, 0)
    except (MeshError, DealError) as error:
        return str(error)
    return "" if tp <= job.rates.node else f"mesh.tp: {tp} ranks do not share a machine of {job.rates.node} GPUs"


def estimate(job: Job, choice: Choice) -> Estimate:
    """The choice judged by a dry pass of the whole model. Raises PlannerError where it cannot run at all."""
    reason = refusal(job, choice.tp, job.recipe.units)
    if reason:
        raise PlannerError(reason)
    work = workload(_with(job.recipe, choice.samples, job.recipe.units), job.sizes, job.text)
    with dry_mesh(choice.tp, choice.sp) as mesh:
        states = States.of(dry_shapes(job.sizes, mesh, job.optim.dtype), job.optim, job.gpus // choice.tp)
        step = dry_pass(job.sizes, mesh, job.optim.dtype, work.worst.samples, job.form, recompute=choice.recompute)
    return _judged(job, choice, work, states, step)


def suggest(job: Job) -> tuple[list[Estimate], list[Refused]]:
    """For every tp, sp and recompute the best unit that fits, fastest first, tight ones last; and those without one.

    The step's pictures stay as the recipe has them; units a step follow from the samples in each.
    """
    fitting: list[Estimate] = []
    refused: list[Refused] = []
    for tp in (1, 2, 4, 8):
        for sp in (False, True)[: 1 + (tp > 1)]:
            for parts in LADDER:
                found = _best(job, Choice(tp, sp, RecomputeConfig(parts=parts), job.recipe.samples))
                if isinstance(found, Estimate):
                    fitting.append(found)
                else:
                    refused.append(found)
    fitting.sort(key=_rank)
    return fitting, refused


def _best(job: Job, choice: Choice) -> Estimate | Refused:
    if reason := refusal(job, choice.tp, job.gpus // choice.tp):
        return Refused(choice, reason)
    pictures = job.recipe.units * job.recipe.samples
    sizes = [n for n in range(1, pictures + 1) if pictures % n == 0 and not refusal(job, choice.tp, pictures // n)]
    if not sizes:
        dp = job.gpus // choice.tp
        return Refused(
            choice, f"recipe.units * recipe.samples: {pictures} pictures cannot be dealt to {dp} ranks evenly"
        )
    judged: list[Estimate] = []
    with dry_mesh(choice.tp, choice.sp) as mesh:
        states = States.of(dry_shapes(job.sizes, mesh, job.optim.dtype), job.optim, job.gpus // choice.tp)
        if states.device + job.reserve > job.memory:
            room = (job.memory - job.reserve) / 1e9
            return Refused(
                choice,
                f"weights, gradients, optimizer and EMA need {states.device / 1e9:.1f} GB, and {room:.1f} GB are there",
            )
        grown = _Grown(job, choice, mesh)
        for samples in sizes:
            work = workload(_with(job.recipe, samples, pictures // samples), job.sizes, job.text)
            judged.append(_judged(job, replace(choice, samples=samples), work, states, grown.at(work.worst)))
            if judged[-1].margin < 0:
                break
    if judged[0].margin < 0:
        least = judged[0]
        return Refused(
            least.choice,
            f"needs {least.memory.total / 1e9:.1f} GB of {job.memory / 1e9:.1f} with {_count(least.choice.samples)} a "
            f"unit, {states.device / 1e9:.1f} of them for weights, gradients, optimizer and EMA",
        )
    return min((one for one in judged if one.margin >= 0), key=_rank)


def _rank(one: Estimate) -> tuple[bool, float]:
    # Not by seconds: with several resolutions units round to somewhat other pictures.
    return one.tight, -one.mfu


class _Grown:
    """Passes of a choice's units without running each: a pass grows by the same for every sample and every block."""

    def __init__(self, job: Job, choice: Choice, mesh: Mesh) -> None:
        self._job, self._choice, self._mesh = job, choice, mesh
        self._known: dict[Sample, tuple[Pass, Pass]] = {}

    def at(self, unit: Unit) -> Pass:
        """The pass of `unit`, whose first sample has the longest caption and whose others are alike."""
        first = unit.samples[0]
        other = (first[0], self._job.text)
        if first not in self._known:
            self._known[first] = self._deep((first,)), self._deep((first, other, other))
        one, three = self._known[first]
        return between(one, three, (len(unit.samples) - 1) / 2)

    def _deep(self, samples: tuple[Sample, ...]) -> Pass:
        layers = self._job.sizes.num_layers
        if layers <= _SHALLOW[1]:
            return self._pass(layers, samples)
        low, high = (self._pass(depth, samples) for depth in _SHALLOW)
        return between(low, high, (layers - _SHALLOW[0]) / (_SHALLOW[1] - _SHALLOW[0]))

    def _pass(self, layers: int, samples: tuple[Sample, ...]) -> Pass:
        job, sizes = self._job, self._job.sizes.model_copy(update={"num_layers": layers})
        return dry_pass(sizes, self._mesh, job.optim.dtype, samples, job.form, recompute=self._choice.recompute)


def between(one: Pass, other: Pass, share: float) -> Pass:
    """The pass `share` of the way from `one` to `other`, or beyond."""

    def mixed(a: float, b: float) -> int:
        return round(a + (b - a) * share)

    def each(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {name: mixed(a.get(name, 0), b.get(name, 0)) for name in a | b}

    return Pass(
        each(one.kept, other.kept),
        mixed(one.peak, other.peak),
        mixed(one.flops, other.flops),
        each(one.traffic, other.traffic),
    )


def _judged(job: Job, choice: Choice, work: Workload, states: States, step: Pass) -> Estimate:
    dp = job.gpus // choice.tp
    memory = Memory.of(states, step, job.form, job.reserve)
    time = step_time(job.sizes, work, step, states, job.optim, choice.tp, dp, job.rates)
    executed = work.flops(job.sizes) * step.flops * choice.tp / work.worst.flops(job.sizes)
    return Estimate(job, choice, work, states, memory, time, executed)


def _with(recipe: RecipeConfig, samples: int, units: int) -> RecipeConfig:
    return recipe.model_copy(update={"samples": samples, "units": units})


def _count(samples: int) -> str:
    return f"{samples} sample{'s' * (samples > 1)}"
