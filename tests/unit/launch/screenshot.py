"""Take the README's picture of a page: python -m tests.unit.launch.screenshot PAGE OUT [PX_HIGH]

Chinese is drawn with the font of the `smoke` extra, whatever fonts the machine has.
"""

import base64
import importlib.util
import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.unit.launch.browser import browser, size

_WIDTH, _HEIGHT = 1280, 1500
# Moves a slider and brings its card into view, so that the picture shows what the page is for.
_MOVE = """
const slider = document.querySelector('[data-name="clarity"] input.min');
slider.value = 190;
slider.dispatchEvent(new Event('input'));
scrollTo(0, document.querySelector('[data-name="clarity"]').getBoundingClientRect().top + scrollY - 24);
"""
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include><dir>{folder}</dir></fontconfig>"""


def shoot(page: Path, out: Path, height: int = _HEIGHT) -> None:
    """Write the picture to `out`: the page's head and funnel, and its scores below them, as one would scroll."""
    with tempfile.TemporaryDirectory() as folder:
        found = importlib.util.find_spec("mplfonts")
        assert found and found.submodule_search_locations, "mplfonts is not installed: run make setup"
        fonts = Path(folder) / "fonts.conf"
        fonts.write_text(_FONTS.format(folder=Path(found.submodule_search_locations[0]) / "fonts"))
        os.environ["FONTCONFIG_FILE"] = str(fonts)
        with browser(Path(folder)) as driver:
            size(driver, _WIDTH, height)
            driver.get(page.resolve().as_uri())
            driver.execute_script(_MOVE)
            driver.execute_async_script("setTimeout(arguments[0], 1500)")
            raw = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    # A palette: flat areas and small thumbnails, a third of the bytes.
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
