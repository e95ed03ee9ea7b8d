"""Take the README's picture of a page: python -m tests.unit.launch.screenshot PAGE OUT

Chinese is drawn with the font of the `smoke` extra, whatever fonts the machine has.
"""

import base64
import importlib.util
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.unit.launch.browser import browser, size

_WIDTH, _HEAD, _SCORES, _GAP = 1280, 760, 850, 28
# The head and the funnel as they are; then a slider is moved, with its card in view.
_OPEN = "document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 0)"
_MOVE = """
const slider = document.querySelector('#score-clarity input.min');
slider.value = 190;
slider.dispatchEvent(new Event('input'));
scrollTo(0, document.querySelector('#score-clarity').getBoundingClientRect().top + scrollY - 20);
"""
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include><dir>{folder}</dir></fontconfig>"""


def shoot(page: Path, out: Path) -> None:
    """Write the picture to `out`: two views of the page, one above the other."""
    with tempfile.TemporaryDirectory() as folder:
        found = importlib.util.find_spec("mplfonts")
        assert found and found.submodule_search_locations, "mplfonts is not installed: run make setup"
        fonts = Path(folder) / "fonts.conf"
        fonts.write_text(_FONTS.format(folder=Path(found.submodule_search_locations[0]) / "fonts"))
        os.environ["FONTCONFIG_FILE"] = str(fonts)
        with browser(Path(folder)) as driver:
            driver.get(page.resolve().as_uri())
            views = [view(driver, _OPEN, _HEAD), view(driver, _MOVE, _SCORES)]
    picture = Image.new("RGB", (_WIDTH, _HEAD + _GAP + _SCORES), (222, 217, 205))
    picture.paste(views[0], (0, 0))
    picture.paste(views[1], (0, _HEAD + _GAP))
    # A palette: flat areas and small pictures, a third of the bytes.
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)


def view(driver: Any, script: str, height: int) -> Image.Image:
    """What is seen once `script` has run."""
    size(driver, _WIDTH, height)
    driver.execute_script(script)
    driver.execute_async_script("setTimeout(arguments[0], 1500)")
    raw = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    return Image.open(io.BytesIO(raw)).convert("RGB")


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
