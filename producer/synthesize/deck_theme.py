"""Colours of a deck: fixed ones, and those that its theme names, as #rrggbb."""

import colorsys
from typing import Any

from producer.synthesize.blueprint import rgb

_PART = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_THEME = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/theme"
# What masters call their colours where they do not say it themselves (ECMA-376 20.1.6.2).
_CALLED = {"bg1": "lt1", "tx1": "dk1", "bg2": "lt2", "tx2": "dk2"}
_PRESET = {"black": "#000000", "white": "#ffffff", "red": "#ff0000", "green": "#008000", "blue": "#0000ff"}


def find(element: Any, *paths: str) -> Any:
    """The first element at one of `paths` below `element`; parts without a prefix are the presentation's own (p:)."""
    for path in paths:
        steps = [
            (_DRAWING if step.startswith("a:") else _PART) + step[step.find(":") + 1 :] for step in path.split("/")
        ]
        found = element.find("/".join(steps))
        if found is not None:
            return found
    return None


def mixed(one: str, other: str, share: float) -> str:
    """`one` with `share` of `other` in it."""
    pairs = zip(rgb(one), rgb(other), strict=True)
    return _hex(tuple((a * (1 - share) + b * share) / 255 for a, b in pairs))


class Theme:
    """The colours behind a slide master."""

    def __init__(self, master: Any) -> None:
        from pptx.oxml import parse_xml

        scheme = parse_xml(master.part.part_related_by(_THEME).blob).find(
            f"{_DRAWING}themeElements/{_DRAWING}clrScheme"
        )
        self._colours: dict[str, str] = {}
        for named in () if scheme is None else scheme:
            colour = next((found for value in named if (found := self._colour(value))), "")
            if colour:
                self._colours[named.tag.rpartition("}")[2]] = colour
        said = find(master._element, "clrMap")
        self._called = _CALLED | ({} if said is None else dict(said.attrib))

    def named(self, name: str) -> str:
        """The colour called `name`, such as tx1 or accent1; "" if there is none."""
        return self._colours.get(self._called.get(name, name), "")

    def solid(self, element: Any) -> str:
        """The one colour that fills `element`, of a gradient the first; "" if it has none of its own."""
        for kind in ("solidFill", "gradFill/a:gsLst/a:gs"):
            held = find(element, f"a:{kind}")
            colour = next((found for value in held if (found := self._colour(value))), "") if held is not None else ""
            if colour:
                return colour
        return ""

    def fill(self, shape: Any) -> str | None:
        """What fills a shape: "" for nothing, None where it does not say."""
        told = find(shape, "spPr")
        if told is not None and find(told, "a:noFill") is not None:
            return ""
        own = self.solid(told) if told is not None else ""
        return own or self._styled(shape, "fillRef")

    def stroke(self, shape: Any) -> str:
        """What a line is drawn in, "" for none."""
        line = find(shape, "spPr/a:ln")
        return (self.solid(line) if line is not None else "") or self._styled(shape, "lnRef") or ""

    def background(self, page: Any) -> str:
        """What a slide, a layout or a master has behind all, "" if it does not say or it is a picture."""
        own, named = find(page, "cSld/bg/bgPr"), find(page, "cSld/bg/bgRef")
        if own is not None:
            return self.solid(own)
        return next((found for value in named if (found := self._colour(value))), "") if named is not None else ""

    def _styled(self, shape: Any, name: str) -> str | None:
        style = find(shape, f"style/a:{name}")
        if style is None or style.get("idx", "0") == "0":
            return None
        return next((found for value in style if (found := self._colour(value))), None)

    def _colour(self, value: Any) -> str:
        kind, said = value.tag.rpartition("}")[2], value.get("val", "")
        if kind == "srgbClr" and len(said) == 6:
            colour = f"#{said.lower()}"
        elif kind == "sysClr":
            colour = f"#{value.get('lastClr', '000000').lower()}"
        elif kind == "schemeClr":
            colour = self.named(said)
        else:
            colour = _PRESET.get(said, "") if kind == "prstClr" else ""
        return _changed(colour, value) if colour else ""


def _changed(colour: str, value: Any) -> str:
    """`colour` lighter or darker, as the children of its element say in thousandths of a percent."""
    change = {child.tag.rpartition("}")[2]: int(child.get("val", "0")) / 100_000 for child in value}
    red, green, blue = (part / 255 for part in rgb(colour))
    hue, light, strong = colorsys.rgb_to_hls(red, green, blue)
    light = light * change.get("lumMod", 1.0) + change.get("lumOff", 0.0)
    light = light * change["shade"] if "shade" in change else light
    light = 1 - (1 - light) * change["tint"] if "tint" in change else light
    return _hex(colorsys.hls_to_rgb(hue, min(1.0, max(0.0, light)), strong))


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{min(255, max(0, round(part * 255))):02x}" for part in colour)
