"""Layouts out of decks of slides: where their text stands, its size, alignment and colour, and the shapes around it.

Of a slide each paragraph becomes a placeholder for about as much text; a deck without slides gives its slide layouts.
What a deck leaves to its layout, master and theme is looked up there. Pictures, charts and tables become plain panels.
Left out: text that is turned or vertical, effects, outlines, footers.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from producer.synthesize.blueprint import Anchor, Box, Layout, Placeholder, Shape
from producer.synthesize.corpus import extent
from producer.synthesize.deck_file import open_deck
from producer.synthesize.deck_theme import Theme, find, mixed
from producer.synthesize.layout import Align
from producer.synthesize.sample import SynthesisError

_POINT = 12_700  # EMU, English metric units: 914,400 an inch
_INSET = 91_440, 45_720  # of text in its shape, across and down, where none is said (ECMA-376 21.1.2.1.1)
_DEEPEST = 8  # groups in groups
_MOST_SHAPES = 500  # of a slide; more is a drawing, no layout
_ROW = 2.6  # ems of height that a paragraph beside others gets at most: two lines
_POINTS = 3  # paragraphs of a layout's empty body
_SHRUNK = 0.55  # least size of text over what the deck says: longer text is set smaller, as autofit does
_TITLES, _BODIES = ("title", "ctrTitle"), ("body", "subTitle", "obj", "")
_FURNITURE = ("dt", "ftr", "sldNum", "hdr")
_ALIGN: dict[str, Align] = {"l": "left", "ctr": "center", "r": "right", "just": "left"}
_ANCHOR: dict[str, Anchor] = {"t": "top", "ctr": "middle", "b": "bottom"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


class _Place(NamedTuple):
    """From the coordinates of a group to shares of the canvas."""

    left: float
    top: float
    across: float  # shares a unit
    down: float

    def box(self, left: float, top: float, width: float, height: float) -> Box:
        x, y = self.left + left * self.across, self.top + top * self.down
        return x, y, x + width * self.across, y + height * self.down


class _Styles(NamedTuple):
    """Where the text of a shape is told how it looks, nearest first."""

    bodies: list[Any]  # txBody elements: its own, the layout's and the master's of its placeholder
    lists: list[Any]  # lstStyle elements, those of the master and the deck behind them


def read_deck(path: Path) -> list[tuple[str, Layout]]:
    """Every slide of the deck at `path` that has text, or every slide layout where there is no slide, with its name."""
    deck = open_deck(path)
    try:
        pages = [(f"{path.stem}#{number}", slide, slide.slide_layout) for number, slide in enumerate(deck.slides, 1)]
        if not pages:
            layouts = [layout for master in deck.slide_masters for layout in master.slide_layouts]
            pages = [(f"{path.stem}#{layout.name}", layout, None) for layout in layouts]
        made = [(name, _Page(deck, page, behind).layout()) for name, page, behind in pages]
    except SynthesisError:
        raise
    except Exception as error:  # python-pptx raises whatever a broken part leads it to
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise SynthesisError(f"template.folder: {path}: not a deck that can be read: {said}; save it again") from None
    found = [(name, layout) for name, layout in made if layout is not None]
    if not found:
        raise SynthesisError(f"template.folder: {path}: none of its {len(pages)} slides has text to replace; remove it")
    return found


class _Page:
    """One slide with the layout behind it, or a layout itself (`behind` is None), and the master behind both."""

    def __init__(self, deck: Any, page: Any, behind: Any) -> None:
        self._page, self._behind = page, behind
        self._master = (page if behind is None else behind).slide_master
        self._deck = deck.part._element
        self._width, self._height = float(deck.slide_width), float(deck.slide_height)
        self._theme = Theme(self._master)
        pages = [page, *([behind] if behind is not None else []), self._master]
        self._ground = next((colour for one in pages if (colour := self._theme.background(one._element))), "#ffffff")
        self._points = 0

    def layout(self) -> Layout | None:
        """None where there is no text to replace, or so many shapes that it is a drawing."""
        whole = _Place(0, 0, 1 / self._width, 1 / self._height)
        elements: list[Shape | Placeholder] = []
        for one in (self._master, self._behind):
            if one is not None:
                elements += self._elements(one._element.cSld.spTree, whole, furniture=True)
        elements += self._elements(self._page._element.cSld.spTree, whole, furniture=False)
        if len(elements) > _MOST_SHAPES or not any(isinstance(one, Placeholder) for one in elements):
            return None
        ratio = Fraction(self._width / self._height).limit_denominator(32)
        try:
            return Layout(
                kind="presentation slide",
                aspect=f"{ratio.numerator}:{ratio.denominator}",
                ground=self._ground,
                elements=tuple(_titled(elements)),
            )
        except ValidationError:
            return None  # a strip of paper, or a slide of no size

    def _elements(self, tree: Any, place: _Place, *, furniture: bool, deep: int = 0) -> Iterator[Shape | Placeholder]:
        """What `tree` shows, from back to front; of what lies behind (`furniture`) no placeholders and no text."""
        if deep > _DEEPEST:
            return
        for shape in tree:
            kind = shape.tag.rpartition("}")[2]
            if kind == "grpSp":
                yield from self._elements(shape, _inside(shape, place), furniture=furniture, deep=deep + 1)
            elif kind in ("sp", "pic", "graphicFrame", "cxnSp"):
                slot = find(shape, "nvSpPr/p:nvPr/p:ph", "nvPicPr/p:nvPr/p:ph", "nvGraphicFramePr/p:nvPr/p:ph")
                if slot is None or not furniture:
                    yield from self._shape(shape, kind, slot, place, furniture=furniture)

    def _shape(
        self, shape: Any, kind: str, slot: Any, place: _Place, *, furniture: bool
    ) -> Iterator[Shape | Placeholder]:
        role = "" if slot is None else slot.get("type", "")
        inherited = [] if slot is None else self._bases(slot)
        box = next((found for one in (shape, *inherited) if (found := _box(one, place))), None)
        if box is None or role in _FURNITURE:
            return
        yield from self._painted(shape, kind, role, inherited, box)
        body = find(shape, "txBody")
        turned = find(shape, "spPr/a:xfrm")
        if body is not None and not furniture and (turned is None or turned.get("rot", "0") == "0"):
            style = "titleStyle" if role in _TITLES else "bodyStyle" if slot is not None else "otherStyle"
            bodies = [found for one in (shape, *inherited) if (found := find(one, "txBody")) is not None]
            lists = [found for one in bodies if (found := find(one, "a:lstStyle")) is not None]
            master = find(self._master._element, f"txStyles/p:{style}")
            lists += [one for one in (master, find(self._deck, "defaultTextStyle")) if one is not None]
            yield from self._text(body, _Styles(bodies, lists), box, slot, role)

    def _painted(self, shape: Any, kind: str, role: str, inherited: list[Any], box: Box) -> Iterator[Shape]:
        colours = (self._theme.fill(one) for one in (shape, *inherited))
        colour = next((found for found in colours if found is not None), "")
        emptied = kind in ("pic", "graphicFrame") or role in ("pic", "chart", "tbl", "dgm", "media", "clipArt")
        if emptied:
            colour = mixed(self._ground, self._theme.named("tx1") or "#000000", 0.14)
        if kind == "cxnSp":
            colour, box = self._theme.stroke(shape), _thick(box)
        if colour and box[0] < box[2] and box[1] < box[3]:
            geometry = find(shape, "spPr/a:prstGeom")
            form = "" if geometry is None else geometry.get("prst", "")
            radius = 0.16 * min((box[2] - box[0]), (box[3] - box[1]) * self._height / self._width)
            round_by = min(0.5, radius) if form.startswith("round") and not emptied else 0.0
            yield Shape(type="ellipse" if form == "ellipse" else "rect", box=box, fill=colour, radius=round_by)

    def _bases(self, slot: Any) -> list[Any]:
        """The placeholders that `slot` takes after: the layout's, by number, and the master's, by kind."""
        kind, number = slot.get("type", ""), slot.get("idx", "0")
        found = []
        if self._behind is not None:
            same = (one for one in self._behind.placeholders if str(one.placeholder_format.idx) == number)
            base = next(same, None)
            if base is not None:
                found.append(base._element)
                kind = find(base._element, "nvSpPr/p:nvPr/p:ph").get("type", kind)
        wanted = "title" if kind in _TITLES else "body" if kind in _BODIES else kind
        for one in self._master.placeholders:
            slot_of = find(one._element, "nvSpPr/p:nvPr/p:ph")
            if slot_of is not None and slot_of.get("type", "") == wanted:
                found.append(one._element)
                break
        return found

    def _text(self, body: Any, styles: _Styles, box: Box, slot: Any, role: str) -> Iterator[Placeholder]:
        properties = [found for one in styles.bodies if (found := find(one, "a:bodyPr")) is not None]
        if _first(properties, "vert", "horz") != "horz":
            return
        said = [(one, "".join(run.text or "" for run in one.iter("{*}t")).strip()) for one in body.findall("{*}p")]
        said = [(one, text) for one, text in said if text]
        inner = self._inner(box, properties)
        if not said or not (inner[0] < inner[2] and inner[1] < inner[3]):
            return
        if self._behind is None and slot is not None:  # a layout's own words are advice on what to write
            rows = int((inner[3] - inner[1]) * self._height / (_ROW * _POINT * _size(said[0][0], styles)))
            said = said[:1] * (min(max(rows, 1), _POINTS) if role in ("body", "obj", "") else 1)
        anchor = _ANCHOR.get(_first(properties, "anchor", "t"), "top")
        for number, ((paragraph, text), row) in enumerate(
            zip(said, self._rows(inner, said, styles, anchor), strict=True)
        ):
            called = _called(role, slot, number, len(said))
            if called.endswith("point"):
                self._points += 1
                called = _ORDINALS[self._points - 1] + " point" if self._points <= len(_ORDINALS) else "point"
            made = self._paragraph(paragraph, text, styles, row, called, anchor if len(said) == 1 else "top")
            if made:
                yield made

    def _rows(self, inner: Box, said: list[tuple[Any, str]], styles: _Styles, anchor: Anchor) -> list[Box]:
        """`inner` divided among the paragraphs, which stand close to each other."""
        left, top, right, bottom = inner
        if len(said) == 1:
            return [inner]
        largest = max(_size(paragraph, styles) for paragraph, _ in said) * _POINT
        row = min((bottom - top) / len(said), _ROW * largest / self._height)
        spare = (bottom - top) - row * len(said)
        start = top + {"top": 0.0, "auto": 0.0, "middle": spare / 2, "bottom": spare}[anchor]
        return [(left, start + n * row, right, start + (n + 1) * row) for n in range(len(said))]

    def _inner(self, box: Box, properties: list[Any]) -> Box:
        left, top, right, bottom = box
        inset = [
            int(_first(properties, name, str(_INSET[name[0] in "tb"]))) for name in ("lIns", "tIns", "rIns", "bIns")
        ]
        left, right = left + inset[0] / self._width, right - inset[2] / self._width
        top, bottom = top + inset[1] / self._height, bottom - inset[3] / self._height
        return max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom)

    def _paragraph(
        self, paragraph: Any, text: str, styles: _Styles, box: Box, role: str, anchor: Anchor
    ) -> Placeholder | None:
        told = _told(paragraph, styles)
        points = _size(paragraph, styles)
        em, bullet = points * _POINT, _bulleted(told)
        # Text begins at the margin, its bullet an em before.
        margin = max(0.0, int(_first(told, "marL", "0")) - (em if bullet else 0))
        left, top, right, bottom = box
        left = min(left + margin / self._width, right)
        width, height = (right - left) * self._width, (bottom - top) * self._height
        room = int(width / em) * max(1, int(height / (1.35 * em)))
        if min(room, width / em) < 2:
            return None
        meant = room if self._behind is None else max(2, round(1.2 * extent(text)))
        share = em / min(self._width, self._height)
        return Placeholder(
            type="text",
            role=role,
            box=(left, top, right, bottom),
            placeholder=text[:200],
            ink=self._ink(paragraph, told),
            size=(share * _SHRUNK, share),
            most=max(2, min(round(room * 0.8), meant, 60)),
            align=_ALIGN.get(_first(told, "algn", "l"), "left"),
            anchor=anchor,
            bullet=bullet,
            font=_font(paragraph, told),
            optional=True,
        )

    def _ink(self, paragraph: Any, told: list[Any]) -> str:
        runs = [found for run in paragraph.findall("{*}r") if (found := run.find("{*}rPr")) is not None]
        runs += [found for one in told if (found := one.find("{*}defRPr")) is not None]
        colours = (self._theme.solid(one) for one in runs)
        return next((colour for colour in colours if colour), self._theme.named("tx1") or "#000000")


def _titled(elements: list[Shape | Placeholder]) -> list[Shape | Placeholder]:
    """The same with the largest text called the title, where no placeholder of a title is there."""
    texts = [one for one in elements if isinstance(one, Placeholder)]
    largest = max(texts, key=lambda one: one.size[1])
    if any(one.role == "title" for one in texts) or sum(one.size == largest.size for one in texts) > 1:
        return elements
    return [one.model_copy(update={"role": "title"}) if one is largest else one for one in elements]


def _called(role: str, slot: Any, number: int, many: int) -> str:
    if role in _TITLES:
        return "title"
    if role == "subTitle":
        return "subtitle"
    if slot is not None:
        return "point" if many > 1 else "text"
    return "text" if many == 1 or number >= len(_ORDINALS) else f"{_ORDINALS[number]} line"


def _inside(group: Any, place: _Place) -> _Place:
    frame = find(group, "grpSpPr/a:xfrm")
    if frame is None:
        return place
    (x, y), (width, height) = _pair(frame, "off", "x", "y"), _pair(frame, "ext", "cx", "cy")
    (from_x, from_y), (wide, high) = _pair(frame, "chOff", "x", "y"), _pair(frame, "chExt", "cx", "cy")
    across, down = (width / wide if wide else 1.0), (height / high if high else 1.0)
    left, top, _, _ = place.box(x, y, 0, 0)
    return _Place(
        left - from_x * across * place.across,
        top - from_y * down * place.down,
        across * place.across,
        down * place.down,
    )


def _box(shape: Any, place: _Place) -> Box | None:
    frame = find(shape, "spPr/a:xfrm", "xfrm")
    if frame is None or frame.find("{*}off") is None or frame.find("{*}ext") is None:
        return None
    return place.box(*_pair(frame, "off", "x", "y"), *_pair(frame, "ext", "cx", "cy"))


def _pair(frame: Any, name: str, one: str, other: str) -> tuple[float, float]:
    found = frame.find(f"{{*}}{name}")
    return (0.0, 0.0) if found is None else (float(found.get(one, 0)), float(found.get(other, 0)))


def _thick(box: Box) -> Box:
    """A line as a rectangle that can be seen."""
    left, top, right, bottom = box
    return left, top, max(right, left + 0.003), max(bottom, top + 0.004)


def _told(paragraph: Any, styles: _Styles) -> list[Any]:
    """The paragraph properties that hold for `paragraph`, nearest first."""
    own = paragraph.find("{*}pPr")
    level = int(own.get("lvl", "0")) + 1 if own is not None else 1
    found = [one.find(f"{{*}}lvl{level}pPr") for one in styles.lists]
    return [one for one in (own, *found) if one is not None]


def _size(paragraph: Any, styles: _Styles) -> float:
    """Points an em."""
    runs = [found for run in paragraph.findall("{*}r") if (found := run.find("{*}rPr")) is not None]
    runs += [found for one in _told(paragraph, styles) if (found := one.find("{*}defRPr")) is not None]
    return min(400.0, max(1.0, int(_first(runs, "sz", "1800")) / 100))


def _font(paragraph: Any, told: list[Any]) -> str:
    """The family that is asked for by name, "" where it is the theme's."""
    runs = [found for run in paragraph.findall("{*}r") if (found := run.find("{*}rPr")) is not None]
    runs += [found for one in told if (found := one.find("{*}defRPr")) is not None]
    named = (found.get("typeface", "") for one in runs if (found := one.find("{*}latin")) is not None)
    return next((name for name in named if name and not name.startswith("+")), "")


def _bulleted(told: list[Any]) -> bool:
    kinds = ("buNone", "buChar", "buAutoNum")
    said = (kind for one in told for kind in kinds if one.find(f"{{*}}{kind}") is not None)
    return next(said, "buNone") != "buNone"


def _first(elements: list[Any], name: str, otherwise: str) -> str:
    return next((value for one in elements if (value := one.get(name)) is not None), otherwise)
