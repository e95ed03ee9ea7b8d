"""A real browser without a window, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# The most that a page may take to load, or a script to answer: machines are shared.
_PATIENCE_S = 120
_END_S = 20


def needed(*programs: str) -> str:
    """The path of the first of `programs` that is installed; without one the test fails with what to do."""
    found = next((path for path in map(shutil.which, programs) if path), None)
    assert found, (
        f"{programs[0]} is not installed: run make debian (as root), or apt-get install chromium chromium-driver"
    )
    return found


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A Chromium with its profile in `folder`. Nothing of it is left behind, whatever happens inside."""
    options = webdriver.ChromeOptions()
    options.binary_location = needed("chromium", "chromium-browser")
    # Its sandbox refuses root, and shared memory is small in containers.
    switches = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]
    for switch in [*switches, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(needed("chromedriver"))
    before = set(psutil.Process().children(recursive=True))
    try:
        driver = webdriver.Chrome(options=options, service=service)
        try:
            driver.set_page_load_timeout(_PATIENCE_S)
            driver.set_script_timeout(_PATIENCE_S)
            yield driver
        finally:
            driver.quit()
    finally:
        end(set(psutil.Process().children(recursive=True)) - before)


def end(processes: set[psutil.Process]) -> None:
    """Wait for `processes` to end, then see to it."""
    _, alive = psutil.wait_procs(processes, timeout=_END_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=_END_S)


def size(driver: Any, width: int, height: int) -> None:
    """Make the page's view so large, in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def scheme(driver: Any, name: str) -> None:
    """Prefer the colour scheme `name`: light or dark."""
    said = {"features": [{"name": "prefers-color-scheme", "value": name}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", said)
