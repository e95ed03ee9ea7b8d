"""What captions quote against what is read in the picture: comparison of texts, whatever their spacing and case."""

import json
import re
import unicodedata
from collections.abc import Iterator

# Opening and closing marks of quotations, in English, Chinese, German and French.
_QUOTED = re.compile(
    r"“([^”]{1,2000})”|\"([^\"]{1,2000})\"|「([^」]{1,2000})」|『([^』]{1,2000})』|„([^“]{1,2000})“|«([^»]{1,2000})»"
)
_MOST = 64  # quotations of a caption that are looked at
_READ = 20_000  # characters of a caption, and of what is read in a picture


def quotations(caption: str) -> list[str]:
    """The letters and digits of each thing that `caption` quotes; what has none, or is in a script that the recogniser
    does not know, is left out.
    """
    found = (next(filter(None, match.groups())) for match in _first(_QUOTED.finditer(caption[:_READ])))
    return [text for quoted in found if (text := letters(quoted)) and all(map(_known, text))]


def _known(char: str) -> bool:
    return char.isdigit() or unicodedata.name(char, "").startswith(("LATIN ", "CJK "))


def _first(matches: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    for number, match in enumerate(matches):
        if number == _MOST:
            return
        yield match


def letters(text: str) -> str:
    """`text` without what readers and writers differ in: case, width, spaces, marks."""
    folded = unicodedata.normalize("NFKC", text[:_READ]).casefold()
    return "".join(char for char in folded if unicodedata.category(char)[0] in "LN")


def read_lines(tag: str) -> str | None:
    """The letters and digits that OCR read, of its tag `[{"text": ..., ...}, ...]`, "" where it read nothing; None
    where this is no such tag.
    """
    try:
        lines = json.loads(tag or "[]")
        return letters(" ".join(line["text"] for line in lines))
    except (ValueError, TypeError, KeyError):
        return None


def agreement(quoted: list[str], there: str) -> float:
    """The share, 0 to 1, of the characters of all `quoted` that stand in `there` in order, each anywhere in it."""
    wrong = sum(edits(text, there) for text in quoted)
    return 1 - wrong / sum(map(len, quoted))


def edits(pattern: str, text: str) -> int:
    """The fewest characters to insert, delete or replace so that `pattern` stands somewhere in `text`.

    Myers, "A fast bit-vector algorithm for approximate string matching", J. ACM 1999: a bit a character of `pattern`.
    """
    places: dict[str, int] = {}
    for at, char in enumerate(pattern):
        places[char] = places.get(char, 0) | 1 << at
    whole, high = (1 << len(pattern)) - 1, 1 << len(pattern) - 1
    up, down, cost = whole, 0, len(pattern)
    best = cost
    for char in text:
        same = places.get(char, 0)
        across = (((same & up) + up) ^ up) | same
        rises, falls = down | (whole & ~(across | up)), up & across
        cost += bool(rises & high) - bool(falls & high)
        best = min(best, cost)
        rises, falls, along = rises << 1 & whole, falls << 1 & whole, same | down
        up, down = falls | (whole & ~(along | rises)), rises & along
    return best
