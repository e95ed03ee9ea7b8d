"""Where a line may end: at spaces and hyphens in Latin text, between characters in Chinese and Japanese.

Closing marks do not begin a line and opening marks do not end one (kinsoku: GB/T 15834-2011 section 5.1, JIS X 4051).
"""

import unicodedata
from collections.abc import Callable

_NO_START = frozenset("，。、；：？！）〕］｝」』】〗》〉”’…—～·・％‰℃々ー,.;:?!)]}%")
_NO_END = frozenset("（〔［｛「『【〖《〈“‘([{￥＄")


def pieces(text: str) -> list[str]:
    """`text` cut wherever a line may end; a piece keeps the space that follows it."""
    cut: list[str] = []
    for char in text:
        if cut and not _may_break(cut[-1][-1], char):
            cut[-1] += char
        else:
            cut.append(char)
    return cut


def break_lines(text: str, width: float, measure: Callable[[str], float]) -> list[str] | None:
    """`text` in lines of at most `width`, each as long as it can be; None where one piece alone is wider."""
    lines: list[str] = []
    for piece in pieces(text):
        if lines and measure(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
        elif measure(piece.rstrip()) <= width:
            lines.append(piece)
        else:
            return None
    return [line.strip() for line in lines]


def is_wide(char: str) -> bool:
    """True for characters that are set without spaces: Han, kana and full-width marks."""
    return unicodedata.east_asian_width(char) in "WF" and not "\uac00" <= char <= "\ud7a3"


def _may_break(before: str, after: str) -> bool:
    if after == " ":
        return False
    if before == " ":
        return True
    if after in _NO_START or before in _NO_END:
        return False
    return is_wide(before) or is_wide(after) or (before == "-" and after.isalpha())
