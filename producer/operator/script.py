"""Script: which writing is in the picture. Stage S4's split into English, Chinese, other and none."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from fontTools import unicodedata

from producer.operator.judgement import OptIn, Sample
from producer.operator.reading import Line, read_samples, reader_identity, require_reader

_WORD = re.compile(r"[^\W\d_]+")
_KANA = {"Hira", "Kana"}
# Share of kana among kana and Chinese characters from which a text is Japanese: prose has half, headlines a fifth.
_JAPANESE = 0.1
_ORDER = ("chinese", "english", "other")


class ScriptConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 4
    of: ClassVar[Literal["tag"]] = "tag"

    def operator(self) -> "Script":
        require_reader("operators.script")
        return Script()

    def content(self) -> dict[str, Any]:
        return reader_identity()


class Script:
    """Tag: "english", "chinese" or "other", whichever has the largest share of what was read, or "none" without text;
    "" without a picture.

    By Unicode script, since telling languages apart fails on short texts: a word of Latin letters counts one for
    English, a Chinese character one for Chinese, a word of any other script one for other; with a tenth of kana,
    Chinese characters count for other as well. Ties go to Chinese, then to English. Digits and punctuation count for
    nothing; text of nothing else is other, and a line that the recogniser has no letters for is one word of other.
    """

    name = "script"
    version = 1
    fine = True

    def tag(self, samples: Sequence[Sample]) -> list[str]:
        return ["" if lines is None else script_of(lines) for lines in read_samples(samples)]


def script_of(lines: Sequence[Line]) -> str:
    """The tag of a picture with these lines."""
    if not lines:
        return "none"
    counts = Counter({"other": sum(not line.text for line in lines)})
    for line in lines:
        counts.update(_counts(line.text))
    return max(_ORDER, key=lambda kind: counts[kind]) if counts.total() else "other"


def _counts(text: str) -> Counter[str]:
    """How much of `text` is of each kind."""
    scripts: Counter[str] = Counter()
    for word in _WORD.findall(text):
        before = ""
        for character in word:
            script = unicodedata.script(character)
            # Chinese and kana have no spaces: a character is about a word.
            if script in _KANA or script == "Hani" or script != before:
                scripts[script] += 1
            before = script
    kana = sum(scripts[script] for script in _KANA)
    japanese = kana > _JAPANESE * (kana + scripts["Hani"])
    chinese = 0 if japanese else scripts["Hani"]
    return Counter(
        {"chinese": chinese, "english": scripts["Latn"], "other": scripts.total() - chinese - scripts["Latn"]}
    )
