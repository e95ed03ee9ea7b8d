"""One chaos run from the command line, as tests start it: python -m tests.chaos.run FOLDER --seed 7 --faults 36

Prints what happened as JSON and ends with 0 if everything held. The same seed draws the same faults. The producers'
disk is a tmpfs of a few MB in a user namespace of the run's own; where there is none, their files are limited instead.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.child import HORIZON_BYTES, Place
from tests.chaos.faults import KINDS, schedule
from tests.chaos.maker import Job, write_index
from tests.chaos.proof import prove, read_ledger
from tests.chaos.supervisor import Seen, Supervisor

DISK_BYTES = 6 << 20
MEMORY_BYTES = 400 << 20  # of any one process
DESCRIPTORS = 200
PLAIN = [kind for kind in KINDS if kind != "switch recipe"]  # after that passes cannot be told from the ledger
_INSIDE = "INKSTONE_CHAOS_INSIDE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for everything the run writes; must not exist")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--faults", type=int, default=36)
    parser.add_argument("--rows", type=int, default=768, help="samples of a pass, a multiple of 64")
    parser.add_argument("--kinds", nargs="+", default=PLAIN, choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--deadly", type=int, default=0, help="one sample in so many ends the worker that encodes it")
    parser.add_argument("--far", action="store_true", help="resume from any checkpoint there ever was")
    parser.add_argument("--quiet", action="store_true", help="run it without faults too, and compare")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    if _INSIDE not in os.environ and _has_namespaces():
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-Urm", sys.executable, "-m", "tests.chaos.run", *sys.argv[1:]])
    try:
        said = chaos(given, tmpfs=_INSIDE in os.environ)
    except AssertionError as error:
        print(json.dumps({"seed": given.seed, "failed": str(error) or traceback.format_exc()}, indent=2))
        return 1
    print(json.dumps(said, indent=2))
    return 0


def _has_namespaces() -> bool:
    """Whether this user may mount a tmpfs for itself."""
    if not shutil.which("unshare"):
        return False
    tried = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    return subprocess.run(tried, capture_output=True, timeout=10).returncode == 0


def chaos(given: argparse.Namespace, *, tmpfs: bool) -> dict[str, Any]:
    """A run and its proof. AssertionError if something does not hold."""
    faults = schedule(given.seed, given.faults, steps=given.steps, kinds=given.kinds)
    began = time.monotonic()
    place, job = _prepare(given.folder / "struck", given, tmpfs)
    running = Supervisor(
        place.folder, job, faults, seed=given.seed, steps=given.steps, tmpfs=tmpfs, any_checkpoint=given.far
    )
    seen = running.run()
    said = {"seed": given.seed, "disk": "tmpfs" if tmpfs else "RLIMIT_FSIZE", "faults": dict(Counter(seen.struck))}
    said |= {"seconds": round(time.monotonic() - began, 1), **prove(place, job, given.steps), **_limits(seen, job)}
    if given.quiet:
        quiet, same = _prepare(given.folder / "quiet", given, tmpfs)
        Supervisor(quiet.folder, same, [], seed=given.seed, steps=given.steps, tmpfs=tmpfs).run()
        assert read_ledger(quiet)[0] == read_ledger(place)[0], "not what the undisturbed run trained on"
        said["equal to the undisturbed run"] = True
    _nothing_left(given.folder)
    return said


def _prepare(folder: Path, given: argparse.Namespace, tmpfs: bool) -> tuple[Place, Job]:
    job = Job(index=folder / "index", disk=folder / "disk", seconds=0.005, deadly=given.deadly)
    job.disk.mkdir(parents=True)
    if tmpfs:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(job.disk)], check=True, timeout=10
        )
    write_index(job.index, given.rows)
    return Place(folder), job


def _limits(seen: Seen, job: Job) -> dict[str, Any]:
    """What was used at most, after it was found within bounds."""
    over = {role: size for role, size in seen.rss.items() if size > MEMORY_BYTES}
    assert not over, f"memory beyond {MEMORY_BYTES}: {over}"
    many = {role: count for role, count in seen.descriptors.items() if count > DESCRIPTORS}
    assert not many, f"more than {DESCRIPTORS} descriptors: {many}"
    # Each writer adds a file before it looks at the total.
    assert seen.cache <= 2 * job.cache_bytes, f"the cache took {seen.cache} bytes of {job.cache_bytes}"
    assert seen.ahead <= HORIZON_BYTES * 1.25, f"{seen.ahead} bytes ahead, the horizon is {HORIZON_BYTES}"
    return {
        "starts": dict(seen.starts),
        "trainer (step, groups)": seen.courses,
        "peak MB": {role: round(size / 1e6) for role, size in seen.rss.items()},
        "peak descriptors": seen.descriptors,
        "peak kB ahead": seen.ahead // 1000,
        "peak kB of cache": seen.cache // 1000,
        "looks that found the disk full": seen.full,
        "workers that a sample ended": seen.own,
    }


def _nothing_left(folder: Path) -> None:
    """No process of ours but Python's own two, no file but what a run is to leave."""
    own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in own]
    assert not left, f"still running: {left}"
    parts = {"index", "disk", "fleet", "trainer", "logs"}
    for run in folder.iterdir():
        strange = {path.name for path in run.iterdir()} - parts
        strange |= {path.name for path in (run / "disk").iterdir()} - {"cache", "rejects.jsonl"}
        strange |= {path.name for path in (run / "fleet").iterdir()} - {
            "token",
            "journal.jsonl",
            "journal.jsonl.handed",
        }
        kept = (".arrow", ".damaged", ".part", ".lock")
        cache = [path for path in (run / "disk" / "cache").rglob("*") if path.is_file()]
        strange |= {path.name for path in cache if not path.name.endswith(kept)}
        assert not strange, f"{run}: left {strange}"


if __name__ == "__main__":
    sys.exit(main())
