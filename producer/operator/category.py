"""Category: General, Portrait or Text Rendering, by a file of rules: launch/configs/curation/category.toml.

The report balances its mixture by these after looking at what the model gets wrong (stage 6). What is known by then
decides: tags of other operators and of annotation, and the words of the captions.
"""

from pathlib import Path
from typing import Any, ClassVar

from producer.digest import hash_file
from producer.operator.judgement import OptIn
from producer.operator.ruled import Ruled


class CategoryConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 6
    of = "tag"
    rules: Path | None = None  # a file of rules, see producer/operator/rule_file.py

    def operator(self) -> "Category":
        assert self.rules is not None
        return Category(self.rules)

    def off_reason(self) -> str:
        return (
            ""
            if self.rules
            else "no rules: set operators.category.rules to a file, see launch/configs/curation/category.toml"
        )

    def content(self) -> dict[str, Any]:
        return {"rules": hash_file(self.rules)} if self.rules else {}


class Category(Ruled):
    """Tag: the sample's category, as the rules call it."""

    name = "category"
