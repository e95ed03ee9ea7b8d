"""Change the recipe of a running training, or look at what it was and is.

    python launch/recipe.py apply NEW.toml --from-step 12000|next [--restart] [--ranks N] [key.path=value ...]
    python launch/recipe.py show CONFIG [key.path=value ...]
    python launch/recipe.py check CONFIG --ranks N [key.path=value ...]

NEW.toml is the config that the producers were started with, but for [recipe] and a newer index generation (curate
again, then apply). Takes effect at the step named, on all ranks; `next` is the first step that no trainer was given
units of. Refused, with nothing changed, if that step is past, the recipe does not fit, or ranks would wait too much
for each other. `check` predicts that wait before anything runs, and needs no producers.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from consumer.source.producers import Producers
from launch.config import ConfigError, load
from launch.settings import Settings, guarded
from producer.api.protocol import Question, Recipes
from producer.balance import said
from producer.cost import CostModel
from producer.index import Index
from producer.journal import Line, from_text, read
from producer.plan import Plan, Terms
from producer.proposal import Applied, apply


def main() -> int:
    arguments = _parsed()
    settings = load(Settings, arguments.config, arguments.overrides)
    if arguments.command == "show":
        show(settings)
    elif arguments.command == "check":
        check(settings, arguments.ranks)
    else:
        report(change(settings, arguments.from_step, restart=arguments.restart, ranks=arguments.ranks))
    return 0


def change(settings: Settings, from_step: int | None, *, restart: bool, ranks: int) -> Applied:
    """Apply the settings' recipe over the index's latest generation."""
    index = Index.open(settings.curate.index)
    producers = Producers(settings.pull, trainer="", incarnation=0)
    try:
        return apply(
            lambda kind, message, answer: producers.answered(lambda to: to.ask(kind, message, answer)),
            settings.recipe,
            index,
            seed=settings.run.seed,
            cost=CostModel.of(settings.model),
            from_step=from_step,
            restart=restart,
            ranks=ranks,
        )
    finally:
        producers.close()


def report(applied: Applied) -> None:
    """Say what was done."""
    line, terms = applied.line, Terms.of(applied.line.body)
    print(f"entry {line.number}: plan {line.id} over {terms.generation}, in force from step {line.from_step}")
    for split, counts in applied.counts.items():
        print(f"  {split}: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items()))
    if applied.waiting:
        print(f"  {applied.waiting:,} samples were seen in the open pass and wait for the next")
    for ranks, imbalance in applied.imbalance.items():
        print(f"  {said(ranks, imbalance)}")


def check(settings: Settings, ranks: int) -> None:
    """Say how equal the work of `ranks` ranks would be by the settings' recipe; PlanError above its limit."""
    index = Index.open(settings.curate.index)
    cost = CostModel.of(settings.model)
    plan = Plan(index.id, index.table, settings.recipe, seed=settings.run.seed, cost=cost)
    print(said(ranks, plan.check(ranks)))
    for name, share in plan.entry(0).shares().items():
        print(f"  {share:6.1%} {name}")


def show(settings: Settings) -> None:
    """Print the journal: from the coordinator, or from its file while there is none."""
    table = Table("entry", "plan", "from step", "generation", "open pass", "what changed")
    lines, note = _lines(settings)
    before: Line | None = None
    for line in lines:
        terms = Terms.of(line.body) if line.body else None
        row = (terms.generation, terms.passes if before else "begins") if terms else ("", "")
        table.add_row(str(line.number), line.id, str(line.from_step), *row, _difference(before, line))
        before = line
    Console().print(table)
    print(note)


def _lines(settings: Settings) -> tuple[list[Line], str]:
    producers = Producers(settings.pull.model_copy(update={"start_s": 2.0}), trainer="", incarnation=0)
    try:
        said = producers.answered(lambda to: to.ask("recipes", Question(), Recipes))
        return [
            from_text(text) for text in said.lines
        ], f"the next entry may begin at step {said.least} at the earliest"
    except ValueError as error:
        lines = list(read(settings.fleet.journal_file))
        if not lines:
            raise ConfigError(f"{settings.fleet.journal_file}: there is no journal yet, and {error}") from None
        return lines, "no coordinator answers: this is what the journal's file says"
    finally:
        producers.close()


def _difference(before: Line | None, line: Line) -> str:
    if before is None or not line.body:
        return ""
    old, new = (one.body.get("recipe", {}) for one in (before, line))
    return "\n".join(f"{name}: {old.get(name)} -> {value}" for name, value in new.items() if value != old.get(name))


def _step(text: str) -> int | None:
    if text == "next":
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no step: give a number, or next")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("apply", "show", "check"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
        command.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's")
        if name == "apply":
            command.add_argument(
                "--from-step", type=_step, required=True, metavar="N|next", help="when it takes effect"
            )
            command.add_argument("--restart", action="store_true", help="begin another pass of the data")
        if name != "show":
            said = "data-parallel ranks" + ("; without: as trainers say" if name == "apply" else "")
            command.add_argument("--ranks", type=int, default=0, required=name == "check", help=said)
    # Settings may also come after options, which argparse does not know of subcommands.
    arguments, rest = parser.parse_known_args()
    if any(word.startswith("-") for word in rest):
        parser.error(f"unknown: {' '.join(rest)}")
    arguments.overrides += rest
    return arguments


if __name__ == "__main__":
    guarded(main)
