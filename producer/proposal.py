"""Another recipe for a running training: compiled and checked here, then proposed to its coordinator.

Nothing of the running fleet is touched until the coordinator has taken the entry.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from producer.api.deal import divisors
from producer.api.protocol import Propose, Proposed, Question, Recipes
from producer.cost import CostModel
from producer.index import Index, latest
from producer.journal import JournalError, Line, from_text, read, successor, to_text
from producer.plan import Plan, PlanError, Terms
from producer.recipe import RecipeConfig

log = logging.getLogger(__name__)

# A trainer may be given the next step between the question and the proposal: then the next one is proposed.
_TRIES = 50
T = TypeVar("T")


class Ask(Protocol):
    """Puts a message of producer/api/protocol.py to the coordinator."""

    def __call__(self, kind: str, message: object, answer: type[T], /) -> T:
        """The answer."""


class ProposalError(ValueError):
    """The recipe cannot be applied; the message says why, with numbers, and what could be."""


@dataclass(frozen=True)
class Applied:
    """An entry of the journal that is in force from its step on."""

    line: Line
    imbalance: dict[int, float]  # data-parallel ranks -> what the costliest does beyond the mean
    counts: dict[str, dict[str, int]]  # caption split -> outcome -> rows
    waiting: int  # samples that were seen in the open pass and wait for the next


def plan_of(lines: Sequence[Line], *, seed: int, cost: CostModel) -> Plan:
    """The plan over a journal, linear in each of its generations.

    PlanError if the seed, the model's cost or a dataset is another than the journal's; IndexFormatError if a
    generation is missing or damaged.
    """
    first = Terms.of(lines[0].body)
    plan = Plan(first.index_id, _table(first), first.recipe, seed=seed, cost=cost)
    if plan.id != lines[0].id:
        raise PlanError(
            f"the journal begins with plan {lines[0].id}, these settings give {plan.id}: run.seed, the model's sizes "
            "or this release are others than the producers'; use the settings they were started with"
        )
    for line in lines[1:]:
        terms = Terms.of(line.body)
        plan.extend(line.id, line.from_step, terms, terms.index_id, _table(terms))
    return plan


def _table(terms: Terms) -> pa.Table:
    index = Index.open(terms.index, terms.generation)
    if index.id != terms.index_id:
        raise PlanError(
            f"{terms.index / terms.generation}: is index {index.id[:16]}, the journal was made for "
            f"{terms.index_id[:16]}: the dataset was swapped. Restore the generation"
        )
    return index.table


def apply(
    ask: Ask,
    recipe: RecipeConfig,
    index: Index,
    *,
    seed: int,
    cost: CostModel,
    from_step: int | None = None,
    restart: bool = False,
    ranks: int = 0,
) -> Applied:
    """Put `recipe` over the generation `index` in force from `from_step` on; None: the first step not handed out yet.

    `ranks` data-parallel ranks are to share a step, 0: as many as the coordinator says; the imbalance predicted for
    them must be within the recipe's limit. `restart` begins another pass instead of going on with the open one.
    """
    said = ask("recipes", Question(), Recipes)
    lines = [from_text(text) for text in said.lines]
    plan = plan_of(lines, seed=seed, cost=cost)
    where = index.path.parent.absolute(), index.path.name
    base = Terms(recipe=recipe, index=where[0], generation=where[1], index_id=index.id)
    base = base.model_copy(update={"passes": "restart" if restart else "continue"})
    if restart is False and Terms.of(lines[-1].body).model_copy(update={"cursors": "", "passes": "continue"}) == base:
        raise ProposalError("this recipe over this generation is in force already; nothing was changed")
    step = said.least if from_step is None else from_step
    if step < said.least:
        raise ProposalError(_past(step, said.least))

    def line_at(step: int) -> tuple[Line, Terms]:
        terms = base.model_copy(update={"cursors": plan.cursors(step)})
        return successor(lines[-1], step, recipe.units, terms.body()), terms

    trial = copy.copy(plan)
    line, terms = line_at(step)
    part = trial.extend(line.id, step, terms, index.id, index.table)
    checked = ranks or said.ranks
    imbalance = {
        count: trial.imbalance(count, first=step) for count in ([checked] if checked else divisors(recipe.units))
    }
    if checked:
        trial.check(checked, first=step)
    line = _proposed(ask, line_at, step, movable=from_step is None)
    waiting = sum(len(rows) for rows in part.waiting.values())
    return Applied(line, imbalance, part.selection.counts, waiting)


def _proposed(ask: Ask, line_at: Callable[[int], tuple[Line, Terms]], step: int, *, movable: bool) -> Line:
    for _ in range(_TRIES):
        line, _ = line_at(step)
        answer = ask("propose", Propose(to_text(line)), Proposed)
        if answer.accepted:
            return line
        if answer.wait_s > 0:
            time.sleep(min(answer.wait_s, 5.0))
        elif answer.least > step and movable:
            step = answer.least
        else:
            raise ProposalError(f"{answer.reason}; nothing was changed")
    raise ProposalError(f"not taken in {_TRIES} tries, last: {answer.reason}; nothing was changed")


def _past(step: int, least: int) -> str:
    return (
        f"step {step} is past: trainers were given units through step {least - 1}, or an entry begins later; the least "
        f"step possible is {least}. Nothing was changed"
    )


def opening(path: Path, recipe: RecipeConfig, index: Path) -> tuple[RecipeConfig, str]:
    """The recipe and the index generation that a fleet with the journal at `path` begins with.

    Without a journal these are `recipe` and the latest generation. With one they are its first entry's, and `recipe`
    must be one of the journal's: whoever changed it in the config wants something that the journal does not say.
    JournalError if it is not, or if the index is another one.
    """
    lines = read(path)
    if not lines or not lines[0].body:
        return recipe, "latest"
    known = [Terms.of(line.body) for line in lines]
    if recipe not in [terms.recipe for terms in known]:
        last, ours = known[-1].recipe.model_dump(), recipe.model_dump()
        names = [name for name in ours if ours[name] != last[name]]
        changed = [f"recipe.{name}: {ours[name]} here, {last[name]} in force" for name in names]
        raise JournalError(
            f"{path}: {'; '.join(changed)}. Change the recipe of a running training with launch/recipe.py apply, or "
            "move the journal away to begin anew"
        )
    if index.absolute() != known[0].index:
        raise JournalError(
            f"{path}: begins over the index at {known[0].index}, curate.index is {index.absolute()}; set it back, or "
            "move the journal away to begin anew"
        )
    newest = latest(index)
    if newest not in (None, known[-1].generation):
        log.warning("%s is newer than %s in force: launch/recipe.py apply", newest, known[-1].generation)
    return known[0].recipe, known[0].generation
