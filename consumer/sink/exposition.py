"""Metrics as Prometheus reads them: the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Metric:
    """A gauge or a counter, whose name ends in its unit, a counter's in _total. `values` are by label's value."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    label: str = ""  # "" has the one value under ""
    values: dict[str, float] = field(default_factory=dict)

    def set(self, value: float | Mapping[str, float]) -> None:
        """The only value, or those of labels, of which the others stay as they were."""
        self.values |= value if isinstance(value, Mapping) else {"": value}

    def add(self, value: float) -> None:
        """Count `value` more."""
        self.values[""] = self.values.get("", 0.0) + value

    def text(self) -> str:
        """The metric's lines; none while it has no value."""
        if not self.values:
            return ""
        lines = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        for value, number in self.values.items():
            where = f'{{{self.label}="{_escaped(value)}"}}' if self.label else ""
            lines.append(f"{self.name}{where} {_number(number)}")
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(float(value)), repr(float(value)))
