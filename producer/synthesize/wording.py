"""How captions say it, in English and in Chinese: the report's two templates (figure 13), places and quotations."""

from typing import Literal

from producer.synthesize.colour import Colour

Language = Literal["en", "zh"]

# Marks to quote with, the first pair that the text does not hold itself: else nobody could say where it ends.
_MARKS: dict[Language, tuple[str, ...]] = {"en": ('""', "“”", "「」", "《》"), "zh": ("“”", "「」", "『』", '""')}

_ACROSS = {"": "", "left": "左", "right": "右"}
_DOWN = {"": "", "top": "上", "bottom": "下"}


def displayed(ground: Colour, ink: Colour, text: str, language: Language, *, handwritten: bool) -> str:
    """A passage on a plain ground."""
    quoted = quote(text, language)
    if language == "zh" and handwritten:
        return f"背景为{ground.chinese}，{ink.chinese}的手写文字是{quoted}。"
    if language == "zh":
        return f"在{ground.chinese}的背景上，展示着{ink.chinese}的文字{quoted}。"
    if handwritten:
        return f"The background is {ground.name}, and the {ink.name} handwritten text is {quoted}."
    return f"On {article(ground.name)} background, displaying {ink.name} text {quoted}."


def quote(text: str, language: Language = "en") -> str:
    """`text` in quotation marks."""
    marks = _MARKS[language]
    pair = next((pair for pair in marks if not set(pair) & set(text)), marks[0])
    return f"{pair[0]}{text}{pair[1]}"


def article(name: str) -> str:
    """`name` after "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def region(x: float, y: float, language: Language = "en") -> str:
    """Where a point of the unit square lies."""
    across = "left" if x < 0.42 else "right" if x > 0.58 else ""
    down = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    if language == "zh":
        return f"{_ACROSS[across]}{_DOWN[down]}方" if down else f"中央偏{_ACROSS[across]}处" if across else "中央"
    return "-".join(word for word in (down or ("center" if across else ""), across) if word) or "center"
