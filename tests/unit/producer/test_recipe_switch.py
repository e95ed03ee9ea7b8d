"""A fleet that changes its recipe while it serves: real Flight, plans, journal and index; only the encoding is made up.

The short form of check C16: every group switches at the declared step, also while a worker is dead.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig, SourceError
from producer.api.channel import Channel, RefusedError, read_registry, write_registry
from producer.api.deal import deal
from producer.api.protocol import Hello, Propose, Proposed, Question, Recipes, Welcome
from producer.api.unit import Encoded, Header, Latent, UnitId, pack, unpack
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.cost import CostModel
from producer.index import Index, write_generation
from producer.journal import Line, from_text, read, successor, to_text
from producer.plan import Plan, PlanError, Terms
from producer.proposal import Applied, ProposalError, apply, plan_of
from producer.recipe import RecipeConfig, Threshold
from producer.worker import Worker, WorkerSetup
from tests.unit.producer.farm import TOKEN, until
from tests.unit.producer.rows import table

T = TypeVar("T")
COST = CostModel(40, 2)
SEED = 7
RECIPE = RecipeConfig(units=4, samples=2, min_fill=0.05, aspects=("1:1",), validation_samples=3)
STRICT = RECIPE.model_copy(update={"thresholds": {"aesthetic": Threshold(min=5.0)}})
LIMITS = Limits(horizon_bytes=40_000, heartbeat_s=0.05, lease_s=2.5)


class Maker:
    """Samples of the plan, with no picture in them. `hold` keeps it from compiling."""

    def __init__(self, index: Path, generation: str = "gen-00001", hold: threading.Event | None = None) -> None:
        opened = Index.open(index, generation)
        self.plan = Plan(opened.id, opened.table, RECIPE, seed=SEED, cost=COST)
        terms = Terms(recipe=RECIPE, index=index, generation=generation, index_id=opened.id)
        self.offer = Welcome(self.plan.id, RECIPE.units, len(self.plan.validation), "e", terms=json.dumps(terms.body()))
        self.hold = hold

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        part = self.plan.part(unit.step) if unit.stream == "train" else self.plan.parts[0]
        rows = [-1] if unit.stream == "empty" else self.units(unit)[unit.unit].rows.tolist()
        keys = ["" if row < 0 else part.keys[row].as_py() for row in rows]
        plane, text = np.zeros((1, 2, 2), np.float16), np.zeros((1, 2), np.uint16)
        latent = Latent(16, 16, plane, plane)
        samples = [Encoded(key, "s", "shard", "t2i", "raw", "", latent, text) for key in keys]
        return pack(Header(part.id, unit, "e"), samples), 0

    def units(self, unit: UnitId) -> Any:
        return self.plan.validation if unit.stream == "validation" else self.plan.step(unit.step)

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        return self(unit)

    def expect(self, units: object) -> None:
        """Nothing is begun ahead."""

    def adopt(self, line: Line) -> None:
        if self.hold:
            self.hold.wait(60)
        terms = Terms.of(line.body)
        opened = Index.open(terms.index, terms.generation)
        self.plan.extend(line.id, line.from_step, terms, opened.id, opened.table)

    def numbers(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing is kept."""


class Fleet:
    """Coordinator and workers over one index; two groups of one trainer that pull at their own pace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / "index"
        whole = table(900, side=(300, 900))
        self.generations = [whole.take(pa.array(np.flatnonzero(np.arange(900) % 3 > 0))), whole]
        write_generation(self.index, self.generations[0], tokenizer="t", operators={"aesthetic": {}})
        (folder / "token").write_text(TOKEN)
        self.registry, self.journal = folder / "coordinator.json", folder / "journal.jsonl"
        self.offer = Maker(self.index).offer
        self.workers: list[Worker] = []
        self.sources: list[FlightSource] = []
        self.start_coordinator()

    def start_coordinator(self, **more: Any) -> None:
        arguments = {"host": "127.0.0.1", "port": 0, "access": TOKEN, "journal": self.journal} | more
        self.coordinator = CoordinatorServer(self.offer, LIMITS, **arguments)
        write_registry(self.registry, self.coordinator.address)

    def worker(self, name: str, maker: Maker | None = None) -> Worker:
        setup = WorkerSetup(name, lambda: read_registry(self.registry), TOKEN)
        self.workers.append(Worker(setup, maker or Maker(self.index)))
        return self.workers[-1]

    def ask(self, kind: str, message: object, answer: type[T]) -> T:
        channel = Channel(self.coordinator.address, TOKEN)
        try:
            return channel.ask(kind, message, answer, 10.0)
        finally:
            channel.close()

    def apply(self, recipe: RecipeConfig, from_step: int | None = None, **more: Any) -> Applied:
        index = Index.open(self.index)
        return apply(self.ask, recipe, index, seed=SEED, cost=COST, from_step=from_step, **more)

    def group(self, rank: int, start: int = 0, stop: int = 60, *, incarnation: int = 1, plan: str = "") -> FlightSource:
        source = FlightSource(PullConfig(registry=self.registry, prefetch=3, wait_s=60.0), "t", incarnation)
        self.sources.append(source)
        source.hello(start, plan, 2)
        source.follow(lambda step: self.units(step, rank), start, stop)
        return source

    def units(self, step: int, rank: int) -> list[UnitId]:
        return [UnitId("train", step, unit) for unit in deal(RECIPE.units, 2, rank)]

    def train(self, sources: list[FlightSource], steps: range) -> dict[UnitId, tuple[str, list[str]]]:
        """Plan and keys of each unit of `steps`, pulled by both groups in turn."""
        got = {}
        for step in steps:
            for rank, source in enumerate(sources):
                for unit in self.units(step, rank):
                    arrived = source.take(unit)
                    got[unit] = arrived.plan, [sample.key for sample in arrived.samples]
                    assert source._producers.plans.at(step) == (arrived.plan, arrived.entry)  # type: ignore[union-attr]
        return got

    def replayed(self) -> Callable[[range], dict[UnitId, tuple[str, list[str]]]]:
        """What the journal's file alone says of any steps."""
        plan = plan_of(read(self.journal), seed=SEED, cost=COST)

        def steps(wanted: range) -> dict[UnitId, tuple[str, list[str]]]:
            return {
                unit.unit: (unit.plan, [plan.part(step).keys[row].as_py() for row in unit.rows.tolist()])
                for step in wanted
                for unit in plan.step(step)
            }

        return steps

    def close(self) -> None:
        for source in self.sources:
            source.close()
        for worker in self.workers:
            worker.stop()
        self.coordinator.stop()


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    running = Fleet(folder)
    try:
        yield running
    finally:
        running.close()


def keys(got: dict[UnitId, tuple[str, list[str]]]) -> list[str]:
    return [key for _, names in got.values() for key in names]


def test_a_fleet_switches_at_the_declared_step_for_all_groups_and_the_journal_gives_it_again(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        running.worker("w1")
        groups = [running.group(0), running.group(1)]
        got = running.train(groups, range(5))
        applied = running.apply(STRICT)
        step = applied.line.from_step
        # The groups have pulled ahead by three units: what they have is past.
        assert 5 < step <= 5 + 3 and applied.imbalance.keys() == {2}
        got |= running.train(groups, range(5, step + 6))
        write_generation(running.index, running.generations[1], tokenizer="t", operators={"aesthetic": {}})
        grown = running.apply(STRICT, step + 12)
        got |= running.train(groups, range(step + 6, step + 18))
        plans = [line.id for line in read(running.journal)]
        assert plans[1:] == [applied.line.id, grown.line.id]
        for unit, (plan, _) in got.items():
            assert plan == plans[(unit.step >= step) + (unit.step >= step + 12)]
        assert got == running.replayed()(range(step + 18))
        every = keys(got)
        assert len(every) == len(set(every)), "a sample twice in a pass that goes on"
        assert read_status(running)["entry"] == 2


def read_status(running: Fleet) -> dict[str, Any]:
    return running.coordinator.status()


def test_a_switch_while_a_worker_is_dead_and_another_compiles_for_long_loses_nothing(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        dead, hold = running.worker("w0"), threading.Event()
        running.worker("w1", Maker(running.index, hold=hold))
        groups = [running.group(0), running.group(1)]
        got = running.train(groups, range(3))
        dead.stop()
        step = running.apply(STRICT, 10).line.from_step
        # Units before the switch are made while the one worker left still compiles.
        got |= running.train(groups, range(3, step))
        hold.set()
        got |= running.train(groups, range(step, step + 2))
        running.worker("w2")  # knows only the beginning, and is told the rest
        got |= running.train(groups, range(step + 2, step + 6))
        assert got == running.replayed()(range(step + 6))


def test_units_made_ahead_by_the_old_recipe_never_reach_a_trainer(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        groups = [running.group(0), running.group(1)]
        running.train(groups, range(1))
        until(lambda: read_status(running)["units_ahead"] > 20)
        step = running.apply(STRICT).line.from_step
        got = running.train(groups, range(1, step + 4))
        assert {plan for unit, (plan, _) in got.items() if unit.step >= step} == {read(running.journal)[1].id}
        assert read_status(running)["lost"] == 0


def test_a_coordinator_that_restarts_reads_the_journal_and_still_knows_what_was_handed_out(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        groups = [running.group(0), running.group(1)]
        got = running.train(groups, range(4))
        first = running.apply(STRICT, 12).line
        until(lambda: all(len(source._ready) == 3 for source in groups))
        least = running.ask("recipes", Question(), Recipes).least
        running.coordinator.stop()
        running.start_coordinator()
        said = running.ask("recipes", Question(), Recipes)
        assert (said.least, said.wait_s) == (least, 0.0) and from_text(said.lines[1]) == first
        with pytest.raises(ProposalError, match=r"step 5 is past: .* the least step possible is 12. Nothing"):
            running.apply(RECIPE, 5)
        got |= running.train(groups, range(4, 16))
        assert got == running.replayed()(range(16))


def test_the_past_and_what_cannot_change_are_refused_with_nothing_changed(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        groups = [running.group(0), running.group(1)]
        running.train(groups, range(3))
        for recipe, step, reason in (
            (STRICT, 1, r"step 1 is past: trainers were given units through step \d"),
            (RECIPE, None, "is in force already"),
            (RECIPE.model_copy(update={"units": 8}), None, r"recipe\.units: 8, this training began with 4"),
            (RECIPE.model_copy(update={"splits": {"fused": 1.0}}), None, "leaves nothing to train on"),
            (
                RECIPE.model_copy(update={"samples": 1, "max_imbalance": 0.001}),
                None,
                r"the costliest of 2 ranks is predicted .* the limit is 0\.1%",
            ),
        ):
            with pytest.raises(ValueError, match=reason):
                running.apply(recipe, step)
        last = read(running.journal)[-1]
        for line, reason in (
            (successor(replace(last, number=4), 20, 4, {}), "was added meanwhile"),
            (successor(last, 0, 4, {}), "is past"),
        ):
            answer = running.ask("propose", Propose(to_text(line)), Proposed)
            assert not answer.accepted and reason in answer.reason
        for text, reason in (("{}", "not a journal's line"), (to_text(successor(last, 50, 8, {})), "recipe.units: 8")):
            with pytest.raises(RefusedError, match=reason):
                running.ask("propose", Propose(text), Proposed)
        assert len(read(running.journal)) == 1


def test_a_trainer_whose_past_is_not_the_journals_is_refused_by_name(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        groups = [running.group(0), running.group(1)]
        got = running.train(groups, range(3))
        line = running.apply(STRICT, 8).line
        old, new = running.offer.plan, line.id
        got |= running.train(groups, range(3, 12))
        # It resumes from checkpoints on either side of the switch.
        for step, plan in ((8, old), (9, new), (12, new)):
            assert running.ask("hello", Hello("t", 2, step, plan), Welcome).plan == new
        for step, plan in ((8, new), (9, old), (4, "another")):
            with pytest.raises(
                RefusedError, match=rf"trainer t: it trained step {step - 1} by plan {plan}; the journal"
            ):
                running.ask("hello", Hello("t", 2, step, plan), Welcome)
        with pytest.raises(SourceError, match="start 1 was replaced by 2"):
            running.train(groups, range(12, 60))
        again = [running.group(rank, 6, incarnation=3, plan=old) for rank in range(2)]
        assert running.train(again, range(6, 12)) == {unit: made for unit, made in got.items() if unit.step >= 6}


def test_a_swapped_dataset_is_refused(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.apply(STRICT, 3)
        folder = running.index / "gen-00001"
        folder.rename(tmp_path / "aside")
        write_generation(running.index, running.generations[1], tokenizer="t", operators={"aesthetic": {}})
        with pytest.raises(PlanError, match=r"gen-00001: is index .* the dataset was swapped"):
            running.replayed()


def test_validation_stays_what_it_was_and_goodbye_frees_the_horizon(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        running.worker("w0")
        groups = [running.group(0, stop=6), running.group(1, stop=6)]
        before = unpack(groups[0].fetch(UnitId("validation", 0, 0)))
        running.train(groups, range(2))
        running.apply(STRICT)
        running.train(groups, range(2, 6))
        after = unpack(groups[1].fetch(UnitId("validation", 0, 0)))
        assert [sample.key for sample in before[1]] == [sample.key for sample in after[1]]
        assert before[0].plan == after[0].plan == running.offer.plan
        for source in groups:
            until(lambda source=source: source._whole)  # type: ignore[misc]
            source.close()
        status = read_status(running)
        assert status["trainers"] == {} and status["units_ahead"] == status["bytes_ahead"] == 0
