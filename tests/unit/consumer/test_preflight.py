"""What the ranks' notes say together, where hosts and devices are many."""

from dataclasses import replace
from typing import Any

import pytest

from consumer.preflight.judge import Finding, Wanted, judge, named
from consumer.preflight.note import Device, Folder, Note
from parallel.probe import Reach

GB = 10**9
READ_ONLY = Folder("/checkpoints", 0, 0, "", "Read-only file system")
WANTED = Wanted(memory_bytes=30 * GB, disk_bytes={"checkpoint.path": 500 * GB}, shared=("checkpoint.path",), clock_s=5)


def notes(hosts: int = 2, devices: int = 2) -> list[Note | None]:
    """Two ranks on each of two hosts, a device each, with nothing wrong."""
    return [
        Note(
            rank=rank,
            host=f"node{rank // devices}",
            code="c0de",
            settings={"optim.lr": "0.1"},
            versions={"python": "3.12.1", "torch": "2.13.0"},
            lacking=[],
            device=Device("NVIDIA H200", "9.0", devices, f"GPU-{rank}", 140 * GB),
            folders={"checkpoint.path": Folder("/checkpoints", 900 * GB, 7, f".preflight-{rank}")},
            groups=[Reach("world", (0, 1, 2, 3), 0.01, "", 1000.0 + rank)],
            checks={"encoders": (True, "fine")},
        )
        for rank in range(hosts * devices)
    ]


def failed(ranks: list[Note | None]) -> list[str]:
    return [f"{f.check}: {f.result}; {f.fix}" for f in judge(ranks, WANTED, lambda *_: True) if f.fix]


def change(rank: int, **values: Any) -> list[Note | None]:
    """`notes`, with one rank's replaced in part; what a device has is set by name, the rest of a note too."""
    changed = notes()
    note = changed[rank]
    assert note is not None
    device = {name: values.pop(name) for name in list(values) if name in Device.__dataclass_fields__}
    changed[rank] = replace(note, device=replace(note.device, **device), **values)
    return changed


def test_sound_ranks_have_a_line_for_each_check_and_none_fails() -> None:
    findings = judge(notes(), WANTED, lambda *_: True)
    assert [finding.check for finding in findings] == [
        *("ranks", "versions", "code", "settings", "devices", "memory", "folders", "disk", "clocks", "collectives"),
        "encoders",
    ]
    assert not failed(notes())
    assert findings[0] == Finding("ranks", "4 on 2 hosts")


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (change(3, id="GPU-2"), "devices: ranks 2-3 on node1 share the device GPU-2; start at most one rank a device"),
        (
            change(2, kind="NVIDIA A100", capability="8.0"),
            "devices: NVIDIA H200 (9.0) on ranks 0-1, 3 on 2 hosts, NVID",
        ),
        (change(1, count=8), "devices: 2 devices on ranks 0, 2-3 on 2 hosts, 8 devices on rank 1 on node0; start on"),
        (change(1, free_bytes=29 * GB), "memory: rank 1 on node0: 29.0 GB free of the 30.0 GB that each needs; end"),
        (
            change(2, versions={"python": "3.12.1"}),
            "versions: torch: 2.13.0 on ranks 0-1, 3 on 2 hosts, none on rank 2",
        ),
        (
            change(2, folders={"checkpoint.path": READ_ONLY}),
            "folders: checkpoint.path: /checkpoints: Read-only file system (ran",
        ),
        (change(0, groups=[Reach("world", (0, 1, 2, 3), 0.1, "", 9.0)]), "clocks: rank 0 on node0: 993 s from the"),
        (
            change(1, groups=[Reach("dp", (1, 3), 9.0, "timed out", 0.0)]),
            "collectives: dp group of ranks 1, 3: timed o",
        ),
        (change(1, checks={"encoders": (False, "a; b (c; d); mend")}), "encoders: a; b (c; d) (rank 1 on node0); mend"),
        (change(1, checks={"encoders": (False, "none; make some")}), "encoders: none (rank 1 on node0); make some"),
        (change(1, checks={"encoders": (False, "broken")}), "encoders: broken (rank 1 on node0); change what it names"),
    ],
)
def test_what_is_wrong_on_one_rank_is_one_line_that_names_it(ranks: list[Note | None], said: str) -> None:
    (line,) = failed(ranks)
    assert line.startswith(said)


def test_a_disk_too_small_for_the_checkpoints_is_named_with_both_numbers() -> None:
    (line,) = failed(small_disk())
    assert line.startswith("disk: checkpoint.path (/checkpoints): 100.0 GB free of the 500.0 GB that will be written")


def small_disk() -> list[Note | None]:
    return [
        note and replace(note, folders={name: replace(at, free_bytes=100 * GB) for name, at in note.folders.items()})
        for note in notes()
    ]


def test_ranks_that_share_a_host_without_devices_share_its_memory() -> None:
    plain = [note and replace(note, device=Device("CPU", "AVX2", 8, "", 50 * GB)) for note in notes()]
    assert [line.partition(";")[0] for line in failed(plain)] == [
        "memory: ranks 0-1 on node0: 25.0 GB free of the 30.0 GB that each needs",
        "memory: ranks 2-3 on node1: 25.0 GB free of the 30.0 GB that each needs",
    ]


def test_a_folder_that_hosts_do_not_share_is_named() -> None:
    judged = judge(notes(), WANTED, lambda path, name: name != ".preflight-3")
    (finding,) = [finding for finding in judged if finding.fix]
    assert finding.result == (
        "checkpoint.path: /checkpoints: rank 0 on node0 does not see what rank 3 on node1 wrote there"
    )
    assert finding.fix == "set checkpoint.path to a folder that all hosts mount"


def test_silent_ranks_are_named_and_the_others_still_judged() -> None:
    ranks: list[Note | None] = change(3, code="other")
    ranks[1] = ranks[2] = None
    assert [line.partition(";")[0] for line in failed(ranks)] == [
        "ranks: nothing heard from ranks 1-2 of 4",
        "code: c0de on rank 0 on node0, other on rank 3 on node1",
    ]


def test_a_note_comes_back_from_json_as_it_was() -> None:
    for note in notes():
        assert note is not None and Note.of(note.to_json()) == note


@pytest.mark.parametrize(
    ("ranks", "said"),
    [([3], "rank 3"), ([0, 1, 2, 5], "ranks 0-2, 5"), ([7, 3, 7], "ranks 3, 7"), (range(1024), "ranks 0-1023")],
)
def test_ranks_are_named_in_runs(ranks: list[int], said: str) -> None:
    assert named(ranks) == said
