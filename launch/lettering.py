"""Plainly rendered text in English and Chinese, with captions that quote it.

The font is Noto Sans CJK SC, Copyright 2014-2021 Adobe, SIL Open Font License 1.1, as the mplfonts package carries it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

# Colour -> RGB, its name in English and in Chinese.
_COLOURS = {
    "white": ((255, 255, 255), "white", "白"),
    "black": ((16, 16, 16), "black", "黑"),
    "navy": ((20, 36, 92), "dark blue", "深蓝"),
    "red": ((190, 30, 36), "red", "红"),
    "green": ((24, 96, 56), "dark green", "深绿"),
    "yellow": ((250, 212, 60), "yellow", "黄"),
    "grey": ((208, 208, 204), "light grey", "浅灰"),
    "orange": ((236, 130, 40), "orange", "橙"),
    "brown": ((92, 58, 34), "brown", "棕"),
}

# Share of the picture that the block of text may fill, across and down.
_FILL = 0.86


class Sign(NamedTuple):
    """A picture of text alone: lines from top to bottom, in one ink on one ground."""

    width: int
    height: int
    ground: str
    ink: str
    lines: tuple[str, ...]
    align: str = "center"

    @property
    def caption(self) -> str:
        """What it shows, the text quoted; in Chinese for two of three Chinese signs."""
        text = " ".join(self.lines)
        _, ground, ground_zh = _COLOURS[self.ground]
        _, ink, ink_zh = _COLOURS[self.ink]
        if text.isascii():
            return f'{ink.capitalize()} letters on a plain {ground} ground: "{text}"'
        joined = "".join(self.lines)
        if len(joined) % 3 == 0:
            return f'{ink.capitalize()} Chinese characters on a plain {ground} ground: "{joined}"'
        return f"{ground_zh}色背景上写着{ink_zh}色的字：“{joined}”"

    @property
    def recaption(self) -> str:
        """A longer description, in English."""
        _, ground, _ = _COLOURS[self.ground]
        _, ink, _ = _COLOURS[self.ink]
        number = f"{len(self.lines)} lines" if len(self.lines) > 1 else "one line"
        quoted = "; ".join(f'"{line}"' for line in self.lines)
        placed = {"center": "centred", "left": "aligned at the left", "right": "aligned at the right"}[self.align]
        return (
            f"A flat {ground} picture with {number} of {ink} text in a plain sans-serif typeface, {placed}: {quoted}."
        )


SIGNS = (
    Sign(288, 288, "navy", "white", ("OPEN", "UNTIL", "NINE")),
    Sign(448, 160, "yellow", "black", ("MIND THE STEP",)),
    Sign(320, 224, "white", "red", ("Fresh bread", "every morning")),
    Sign(224, 320, "green", "white", ("Reading", "room", "Please", "be quiet")),
    Sign(352, 208, "black", "yellow", ("PLATFORM 7",)),
    Sign(208, 352, "grey", "navy", ("A", "B", "C", "D", "E")),
    Sign(288, 288, "white", "black", ("The quick", "brown fox", "jumps over", "the lazy dog")),
    Sign(352, 208, "red", "white", ("SALE 50%", "ends Sunday")),
    Sign(320, 240, "orange", "black", ("No. 42", "Harbour Street")),
    Sign(448, 160, "white", "green", ("botanical garden",), "left"),
    Sign(160, 448, "navy", "yellow", ("L", "I", "B", "R", "A", "R", "Y")),
    Sign(288, 288, "brown", "white", ("Coffee 3.20", "Tea 2.80", "Cocoa 3.50"), "left"),
    Sign(240, 320, "white", "navy", ("Lost cat", "Answers to", "the name", "of Chelsea")),
    Sign(320, 224, "grey", "red", ("DANGER", "High voltage")),
    Sign(352, 208, "white", "black", ("To be, or not to be,", "that is the question"), "left"),
    Sign(288, 288, "yellow", "red", ("25",)),
    Sign(224, 320, "white", "brown", ("Monday 9-17", "Tuesday 9-17", "Friday 9-13", "Closed on", "weekends"), "right"),
    Sign(448, 160, "black", "white", ("Gate 12 is now boarding",)),
    Sign(320, 224, "navy", "orange", ("Good night,", "moon"), "right"),
    Sign(288, 288, "green", "yellow", ("EXIT", "<<<")),
    Sign(288, 288, "red", "yellow", ("春节", "快乐")),
    Sign(448, 160, "white", "black", ("床前明月光",)),
    Sign(224, 320, "grey", "black", ("白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼")),
    Sign(320, 224, "navy", "white", ("图书馆", "请保持安静")),
    Sign(352, 208, "green", "white", ("出口在左边",)),
    Sign(160, 448, "red", "white", ("福", "如", "东", "海")),
    Sign(288, 288, "white", "red", ("禁止", "吸烟")),
    Sign(352, 208, "yellow", "black", ("小心台阶", "注意安全"), "left"),
    Sign(320, 240, "orange", "white", ("牛肉面", "十八元一碗")),
    Sign(240, 320, "white", "navy", ("春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少")),
    Sign(448, 160, "brown", "yellow", ("欢迎光临本店",)),
    Sign(288, 288, "black", "white", ("永",)),
    Sign(208, 352, "white", "green", ("茶", "叶", "店")),
    Sign(352, 208, "grey", "navy", ("第七站台", "开往北京"), "right"),
    Sign(288, 288, "navy", "yellow", ("星期一", "上午九点", "开会"), "left"),
    Sign(320, 224, "white", "brown", ("学而时习之", "不亦说乎")),
    Sign(224, 320, "yellow", "red", ("新书", "上架", "八折")),
    Sign(448, 160, "green", "white", ("山高月小 水落石出",), "left"),
    Sign(288, 288, "grey", "red", ("停车场", "已满")),
    Sign(352, 208, "white", "black", ("千里之行", "始于足下")),
)


def draw(sign: Sign, font: Path) -> Image.Image:
    """The picture of `sign`, its text as large as fits."""
    picture = Image.new("RGB", (sign.width, sign.height), _COLOURS[sign.ground][0])
    canvas = ImageDraw.Draw(picture)
    text = "\n".join(sign.lines)
    face, box = next(
        (face, box) for face, box in _faces(canvas, text, font) if _fits(box, sign.width * _FILL, sign.height * _FILL)
    )
    left = {
        "center": (sign.width - (box[2] - box[0])) / 2,
        "left": sign.width * (1 - _FILL) / 2,
        "right": sign.width * (1 + _FILL) / 2 - (box[2] - box[0]),
    }[sign.align]
    top = (sign.height - (box[3] - box[1])) / 2
    place = round(left - box[0]), round(top - box[1])
    canvas.multiline_text(place, text, fill=_COLOURS[sign.ink][0], font=face, align=sign.align)
    return picture


_Box = tuple[float, float, float, float]


def _faces(canvas: ImageDraw.ImageDraw, text: str, font: Path) -> Iterator[tuple[ImageFont.FreeTypeFont, _Box]]:
    """The font from large to small, with the box that `text` takes in it."""
    for size in range(160, 8, -4):
        face = ImageFont.truetype(font, size)
        yield face, canvas.multiline_textbbox((0, 0), text, font=face)


def _fits(box: _Box, width: float, height: float) -> bool:
    return box[2] - box[0] <= width and box[3] - box[1] <= height
