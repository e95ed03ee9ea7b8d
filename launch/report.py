"""A command's report: one JSON file, written aside and renamed, so that nobody reads half of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report` to `path`, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(aside, path)
