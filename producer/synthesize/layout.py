"""A block of text set into a box: the size and the breaks that fit it, and where each line's ink lies."""

from typing import Literal, NamedTuple

from PIL import Image, ImageDraw

from producer.synthesize.breaking import break_lines
from producer.synthesize.colour import Colour, Rgb
from producer.synthesize.fonts import Face
from producer.synthesize.sample import LineTruth, TextTruth

Align = Literal["left", "center", "right"]


class Line(NamedTuple):
    """A line with the start of its baseline, in pixels from the block's top left."""

    text: str
    x: float
    y: float


class Block(NamedTuple):
    """Lines of one face and size."""

    face: Face
    size: int  # pixels an em
    width: int
    height: int
    align: Align
    lines: tuple[Line, ...]

    def draw(self, mask: Image.Image, left: int, top: int) -> None:
        """Add its ink to `mask`, an image of mode L."""
        canvas, font = ImageDraw.Draw(mask), self.face.at(self.size)
        for line in self.lines:
            canvas.text((left + line.x, top + line.y), line.text, fill=255, font=font, anchor="ls")

    def truth(self, left: int, top: int) -> tuple[LineTruth, ...]:
        """Each line with the rectangle around its ink."""
        font = self.face.at(self.size)
        found = []
        for line in self.lines:
            x0, y0, x1, y1 = font.getbbox(line.text, anchor="ls")
            x, y = left + line.x, top + line.y
            corners = ((x + x0, y + y0), (x + x1, y + y0), (x + x1, y + y1), (x + x0, y + y1))
            found.append(LineTruth(text=line.text, outline=tuple((float(a), float(b)) for a, b in corners)))
        return tuple(found)


def written(
    text: str,
    block: Block,
    lines: tuple[LineTruth, ...],
    ink: Colour,
    ground: tuple[str, Rgb],
    *,
    role: str = "text",
    finer: int = 1,
) -> TextTruth:
    """The truth of `text` set as `block`, `finer` pixels of which are one of the picture's."""
    return TextTruth(
        text=text,
        role=role,
        lines=lines,
        font=block.face.name,
        handwritten=block.face.handwritten,
        font_size=block.size / finer,
        ink=ink.name,
        ink_rgb=ink.rgb,
        ground=ground[0],
        ground_rgb=ground[1],
        align=block.align,
    )


def fit(
    text: str, face: Face, width: int, height: int, *, sizes: tuple[int, int], leading: float, align: Align = "left"
) -> Block | None:
    """`text` at the largest size of `sizes` (least, most; pixels) at which it fits `width` x `height`.

    `leading` is the distance of baselines in ems. None where even the least size is too large.
    """
    low, high = sizes
    best: Block | None = None
    while low <= high:
        size = (low + high) // 2
        block = _set(text, face, size, width, leading, align)
        if block is None or block.height > height:
            high = size - 1
        else:
            best, low = block, size + 1
    return best


def _set(text: str, face: Face, size: int, width: int, leading: float, align: Align) -> Block | None:
    font = face.at(size)
    lines = break_lines(text, width, font.getlength)
    if lines is None:
        return None
    lengths = [font.getlength(line) for line in lines]
    # The ink's own extent, not the font's: the ascents that CJK fonts state leave a third of an em of air.
    boxes = [font.getbbox(line, anchor="ls") for line in lines]
    rise = -min(box[1] for box in boxes[:1])
    step = size * leading
    placed = []
    for number, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        x = {"left": 0.0, "center": (width - length) / 2, "right": width - length}[align]
        placed.append(Line(line, float(round(x)), float(round(rise + number * step))))
    height = max(line.y + box[3] for line, box in zip(placed, boxes, strict=True))
    return Block(face, size, width, round(height), align, tuple(placed))
