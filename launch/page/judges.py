"""What the page says of an operator: its definition, its stage, and the bounds that its verdicts follow from."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from producer.operator.stage import OPT_IN

# Settings that are bounds on a score, and one that says up to where samples are alike.
MIN, MAX = "min", "max"
_RADIUS = "radius"


@dataclass(frozen=True)
class Judge:
    """An operator as an index generation names it."""

    name: str
    kind: str  # "sample", "captions", "tag"; "whole" where it compares samples with each other
    stage: int | None  # of arXiv 2508.02324 section 3.2; None: not of this release
    off: str  # why it does not judge; "" if it does
    about: str  # the definition of its score
    bounds: dict[str, float]  # the settings "min" and "max" that it has
    mark: float | None  # up to where samples are alike
    settings: dict[str, Any]

    @property
    def scores(self) -> bool:
        """Whether there are numbers to show."""
        return self.kind != "tag" and not self.off


def judges(operators: Mapping[str, Any]) -> list[Judge]:
    """Every operator of a generation's `operators`, in the order of asking."""
    return [_judge(name, said) for name, said in operators.items()]


def _judge(name: str, said: Mapping[str, Any]) -> Judge:
    module, definition = _definition(name)
    kind = said.get("of", "sample")
    if kind == "sample" and any(hasattr(definition, method) for method in ("cluster", "judge_table")):
        kind = "whole"
    settings = {key: value for key, value in said.items() if key not in ("of", "off")}
    numbers = {key: float(value) for key, value in settings.items() if _is_number(value)}
    return Judge(
        name=name,
        kind=kind,
        stage=OPT_IN[name].stage if name in OPT_IN else 1 if module else None,
        off=str(said.get("off", "")),
        about=" ".join(((definition or module).__doc__ or "").split()) if module else "",
        bounds={key: numbers[key] for key in (MIN, MAX) if key in numbers},
        mark=numbers.get(_RADIUS) if kind == "whole" else None,
        settings=settings,
    )


def _definition(name: str) -> tuple[Any, Any]:
    """The file called `name`, and the class of that name in it, which defines the score; None where there is none."""
    place = f"producer.operator.{name}"
    # The index is data: its words name a file of that folder, or nothing.
    if not name.isidentifier() or importlib.util.find_spec(place) is None:
        return None, None
    module = importlib.import_module(place)
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    return module, next((kind for kind in kinds if vars(kind).get("name") == name), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
