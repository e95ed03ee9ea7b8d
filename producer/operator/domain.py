"""Domain: Nature, Design, People or Synthetic, by a file of rules: launch/configs/curation/domain.toml.

The four domains of which the report states the shares (section 3.1). What no rule is about is Nature, as there.
"""

from pathlib import Path
from typing import Any, ClassVar

from producer.digest import hash_file
from producer.operator.judgement import OptIn
from producer.operator.ruled import Ruled


class DomainConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 6
    of = "tag"
    rules: Path | None = None  # a file of rules, see producer/operator/rule_file.py

    def operator(self) -> "Domain":
        assert self.rules is not None
        return Domain(self.rules)

    def off_reason(self) -> str:
        return (
            ""
            if self.rules
            else "no rules: set operators.domain.rules to a file, see launch/configs/curation/domain.toml"
        )

    def content(self) -> dict[str, Any]:
        return {"rules": hash_file(self.rules)} if self.rules else {}


class Domain(Ruled):
    """Tag: the sample's domain, as the rules call it."""

    name = "domain"
