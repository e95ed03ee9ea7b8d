"""What it takes to be asked: a list of conversations in, an answer or the want of one for each out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from PIL import Image

from producer.annotate.prompt import harmless


@dataclass(frozen=True)
class Talk:
    """A conversation: the user speaks first and last. The picture belongs to the first turn."""

    turns: tuple[str, ...]
    picture: Image.Image | None = None

    def again(self, answer: str, reply: str) -> "Talk":
        """The same, after `answer` and what the user says to it."""
        return replace(self, turns=(*self.turns, harmless(answer), reply))


@dataclass(frozen=True)
class Said:
    """An answer."""

    text: str
    finish: Literal["stop", "length", "filter"] = "stop"  # length: max_tokens ran out
    thought: int = 0  # characters of reasoning that the server keeps apart from the answer
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Unanswered:
    """No fault of the sample as far as is known: it may be asked about again."""

    reason: str
    detail: str


class Model(Protocol):
    """Somebody who can be asked."""

    def ask(self, talks: Sequence[Talk]) -> list[Said | Unanswered]:
        """An answer for each. AnnotateError where no further question can be answered either."""

    def close(self) -> None:
        """End what is being asked, and let go of everything."""
