"""Writers of the cache killed anywhere, and full disks: nothing half-written is seen, and all goes on with space."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.producer.cut_off import kills
from tests.unit.producer.damage import apart


def killed(count: int) -> None:
    seen = apart(kills, count, slice_=50)
    assert seen["killed"] == seen["trials"] == count
    wrong = ("partial", "other values", "damaged", "left over", "twice")
    assert all(seen[what] == 0 for what in wrong), seen


def test_a_writer_killed_anywhere_leaves_nothing_half_written_and_nothing_twice() -> None:
    killed(15)


@pytest.mark.long
def test_writers_killed_at_200_points_leave_nothing_half_written_and_nothing_twice() -> None:
    killed(200)


def test_a_full_disk_holds_up_what_must_be_on_it_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("full_disk.py")), str(tmp_path)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=200, check=True)
    seen = json.loads(ended.stdout)
    if isinstance(seen, str):
        pytest.skip(f"no disk of its own: {seen}")
    assert seen["why"] == "No space left on device" and seen["partial"] == 0 and not seen["still full"]
    assert seen["kept while full"] < 20 < seen["kept after"] == seen["written"] and seen["damaged"] == 0
    assert seen["written"] + seen["unwritten"] == 200
    full, room = (sum(text in said for said in seen["said"]) for text in ("is not kept until", "there is room again"))
    assert full == room == 1, seen["said"]
    (reason,) = seen["troubles"].values()
    assert "JournalFullError" in reason and "/" not in reason
    assert "train step 0 unit 1" not in seen["held"] and seen["journaled while full"] == {}
    assert seen["served"] == 2 and seen["journaled"] == ["sample"] and seen["from before"] == {"a": "b"}
