"""What the operators have in common that sort samples into classes by a file of rules."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from producer.operator.judgement import batches
from producer.operator.rule_file import Ruler, Rules
from producer.scratch import MEMORY, Space


class Ruled:
    """Tag: the class of the first rule that holds, the rules' `otherwise` where none does."""

    name: str
    version = 1
    needs: tuple[str, ...] = ("captions",)

    def __init__(self, path: Path) -> None:
        """Read the rules; RuleError if they are none."""
        rules = Rules.read(path, f"operators.{self.name}.rules")
        self.may = rules.columns
        self._ruler = Ruler(rules)

    def tag_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[list[str]]:
        return map(self._ruler.classes, batches(table))
