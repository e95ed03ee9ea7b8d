"""The malformed corpus as files, and a process that reads it all as curation does, measuring each input."""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import look
from producer.source.reader import SourceConfig, open_source
from tests.unit.producer.malformed_files import SOUND, captions, member, parquets, tars
from tests.unit.producer.malformed_files import info as header
from tests.unit.producer.malformed_pictures import pictures

_TOGETHER = 20  # pictures in a tar, each between sound neighbours


def write(root: Path) -> None:
    """The corpus below `root`: a source of each kind."""
    for kind in ("pictures", "tars", "parquet", "captions", "folder"):
        (root / kind).mkdir(parents=True)
    cases = pictures()
    for first in range(0, len(cases), _TOGETHER):
        raw = b""
        for number, case in enumerate(cases[first : first + _TOGETHER], first):
            for stem, image in ((f"{number:04d}-case", case.raw), (f"{number:04d}-good", SOUND)):
                raw += member(header(f"{stem}.jpg", len(image)), image) + member(header(f"{stem}.txt", 5), b"words")
        (root / "pictures" / f"{first:04d}.tar").write_bytes(raw + bytes(1024))
    for kind, files in (("tars", tars()), ("parquet", parquets())):
        ending = "tar" if kind == "tars" else kind
        for number, file in enumerate(files):
            (root / kind / f"{number:04d}.{ending}").write_bytes(file.raw)
    raw = b""
    for number, (ending, content, _) in enumerate(captions().values()):
        for stem, body in ((f"{number:04d}-case", content), (f"{number:04d}-good", b"words")):
            kind = ending if stem.endswith("case") else "txt"
            raw += member(header(f"{stem}.jpg"), SOUND) + member(header(f"{stem}.{kind}", len(body)), body)
            (root / "folder" / f"{stem}.jpg").write_bytes(SOUND)
            (root / "folder" / f"{stem}.{kind}").write_bytes(body)
    (root / "captions" / "a.tar").write_bytes(raw + bytes(1024))
    _odd_files(root / "folder" / "odd")


# What is odd in the folder, and why it is dropped.
ODD = {
    "dangling.jpg": "cannot be read",
    "loop.jpg": "cannot be read",
    "pipe.jpg": "not a plain file",
    "empty.jpg": "empty file",
    "page.jpg": "not an image of a known format",
    "图片.jpg": "",
    "line\nbreak.jpg": "",
    "two.dots.jpg": "",
    "pipe caption.jpg": "",
    "folder caption.jpg": "",
    "dangling caption.jpg": "",
}


def _odd_files(folder: Path) -> None:
    folder.mkdir()
    for name in (name for name, reason in ODD.items() if not reason):
        (folder / name).write_bytes(SOUND)
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_bytes(b"<html>" * 99)
    (folder / "directory.jpg").mkdir()
    os.mkfifo(folder / "pipe caption.txt")
    (folder / "folder caption.txt").mkdir()
    (folder / "dangling caption.txt").symlink_to(folder / "nothing")
    assert stat.S_ISFIFO((folder / "pipe.jpg").stat().st_mode)


def _memory() -> dict[str, int]:
    """Kilobytes by name, of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm"))
    return {name.rstrip(":"): int(size) for name, size, *_ in lines}


def _measured(steps: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each step says, with the CPU seconds and the MiB that it took at most."""
    while True:
        Path("/proc/self/clear_refs").write_text("5")
        resident, began = _memory()["VmRSS"], time.process_time()
        said = next(steps, None)
        if said is None:
            return
        took = {"seconds": time.process_time() - began, "mib": (_memory()["VmHWM"] - resident) / 1024}
        yield said | took


def _read(root: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Every sample of a source as curation looks at it."""
    reader = open_source(SourceConfig.model_validate({"kind": kind, "path": root}))
    stage = build_stage(OperatorsConfig())
    for shard in reader.shards():
        for raw in reader.samples(shard):
            row, sample = look(reader, raw, stage)
            if raw.offset >= 0 and not raw.fault and raw.size <= stage.broken.limits.bytes:
                # As a worker has it later, from the index alone.
                again = hashlib.sha256(reader.read(raw.shard, raw.member, raw.offset, raw.size)).hexdigest()
                assert again == row["sha256"], raw.key
            pixels = hashlib.sha256(sample.picture.pixels.tobytes()).hexdigest() if sample.picture else ""
            said = {"shard": raw.shard, "key": raw.key, "fault": sample.fault, "pixels": pixels}
            yield said | {"captions": len(raw.captions), "caption_faults": raw.caption_faults}


def main() -> None:
    """Read the corpus below the folder given, and write what became of each input as JSON lines."""
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    with out.open("w") as file:
        for folder in ("pictures", "tars", "captions", "parquet", "folder"):
            kind = folder if folder in ("parquet", "folder") else "tars"
            for said in _measured(_read(root / folder, kind)):
                file.write(json.dumps(said | {"source": folder}) + "\n")
                file.flush()
