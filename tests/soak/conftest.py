"""What the long tests share: jobs as in tests/faults, and their result in runs/soak/report.json."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import facts, launchers, producers, start

__all__ = ["facts", "launchers", "producers", "start"]

REPORT = Path(__file__).parents[2] / "runs" / "soak" / "report.json"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps a test's numbers under its name, and prints them."""
    began = time.monotonic()

    def record(**numbers: object) -> None:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(REPORT.read_text()) if REPORT.exists() else {}
        said = numbers | {"seconds": round(time.monotonic() - began, 1), "time": time.strftime("%F %T %Z")}
        aside = REPORT.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known | {request.node.name: said}, indent=2, sort_keys=True))
        os.replace(aside, REPORT)
        print(f"\n{request.node.name}: {said}", flush=True)

    return record
