"""Pictures of text, read back: agreement of what a recogniser reads with what was drawn, by way and script."""

from pathlib import Path

import pytest

from tests.bench.report import record
from tests.unit.producer.agreement import agreements, ways

PICTURES = {"pure": 60, "compositional": 60, "template": 40}
TARGET = 0.98


@pytest.mark.timeout(1800)
def test_common_text_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    low = []
    for way in ways(tmp_path, 1):
        found = agreements(way.make(index) for index in range(PICTURES[way.name]))
        for script, one in sorted(found.items()):
            case = {
                "ours": round(one.share, 4),
                "peer": TARGET,
                "ratio": round(one.share / TARGET, 4),
                "target": 1.0,
                "unit": f"share of {one.drawn} characters read as drawn, against what is asked for",
            }
            record("curate.json", {f"agreement, {way.name}, {script}": case})
            print(f"{way.name:14} {script:8} {one.share:.4f} of {one.drawn} characters")
            low += [f"{way.name} {script}: {one.share:.4f}"] if one.share < TARGET else []
    assert not low
