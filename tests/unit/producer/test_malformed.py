"""Several hundred malformed inputs through the real readers and decoders: each is counted with its reason."""

import functools
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producer.picture import decode
from tests.unit.producer.malformed import ODD, write
from tests.unit.producer.malformed_files import SOUND, captions, parquets, tars
from tests.unit.producer.malformed_pictures import ANY, pictures

ROOT = Path(__file__).parents[3]

Said = dict[str, dict[str, list[dict[str, Any]]]]  # source -> shard -> its samples


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What a process of its own made of the corpus: one that crashes or hangs is seen."""
    folder = tmp_path_factory.mktemp("malformed")
    write(folder / "corpus")
    command = [sys.executable, "-c", "from tests.unit.producer.malformed import main; main()"]
    subprocess.run([*command, str(folder / "corpus"), str(folder / "said")], cwd=ROOT, check=True, timeout=240)
    found: Said = defaultdict(lambda: defaultdict(list))
    for line in (folder / "said").read_text().splitlines():
        one = json.loads(line)
        found[one["source"]][one["shard"]].append(one)
    return found


def every(said: Said) -> list[dict[str, Any]]:
    return [one for shards in said.values() for samples in shards.values() for one in samples]


@functools.cache
def pixels(raw: bytes) -> str:
    return hashlib.sha256(np.asarray(decode(raw)).tobytes()).hexdigest()


def test_there_are_more_than_three_hundred_inputs() -> None:
    assert len(pictures()) + len(tars()) + len(parquets()) + len(captions()) + len(ODD) >= 300


def test_no_input_takes_two_seconds_or_half_a_gigabyte(said: Said) -> None:
    """CPU seconds and the peak of resident memory over what was there before, for each sample and its listing."""
    dear = [one for one in every(said) if one["seconds"] > 2 or one["mib"] > 512]
    assert not dear
    assert len({(one["source"], one["key"]) for one in every(said)}) == len(every(said)) >= 900


def test_malformed_pictures_are_dropped_for_their_reason_and_odd_ones_come_through(said: Said) -> None:
    found = {one["key"].rpartition("/")[2]: one for samples in said["pictures"].values() for one in samples}
    cases = pictures()
    assert len(found) == 2 * len(cases)
    good = pixels(SOUND)
    for number, case in enumerate(cases):
        one = found[f"{number:04d}-case"]
        assert found[f"{number:04d}-good"]["pixels"] == good, case.name
        if case.reason is not None:
            assert bool(one["fault"]) == bool(case.reason), (case.name, one["fault"])
            assert case.reason in ("", ANY) or case.reason in one["fault"], (case.name, one["fault"])
        if case.whole and not one["fault"]:
            assert one["pixels"] == pixels(case.whole), case.name
        assert "MemoryError" not in one["fault"], case.name


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_malformed_files_are_counted_and_what_is_sound_in_them_is_delivered(said: Said, kind: str) -> None:
    good = pixels(SOUND)
    files = tars() if kind == "tars" else parquets()
    assert len(said[kind]) >= len(files) - 1  # an archive of nothing but a header holds nothing to count
    for number, file in enumerate(files):
        samples = said[kind][f"{number:04d}.{'tar' if kind == 'tars' else kind}"]
        delivered = [one for one in samples if one["pixels"] == good]
        faults = [one["fault"] for one in samples if one["fault"]]
        if file.good < 0:
            # A bit that fell anywhere: some may be lost, and then that is said.
            assert len(delivered) == 6 or faults, file.name
            continue
        assert len(delivered) == file.good, (file.name, faults)
        assert bool(faults) == bool(file.reason), (file.name, faults)
        assert file.reason in ("", ANY) or any(file.reason in fault for fault in faults), (file.name, faults)


@pytest.mark.parametrize("source", ["captions", "folder"])
def test_malformed_captions_cost_the_caption_alone(said: Said, source: str) -> None:
    found = {one["key"].rpartition("/")[2].partition(".")[0]: one for shard in said[source].values() for one in shard}
    for number, (name, (_, _, expected)) in enumerate(captions().items()):
        one, neighbour = found[f"{number:04d}-case"], found[f"{number:04d}-good"]
        assert (one["captions"], one["fault"]) == (expected, ""), (name, one)
        # JSON that speaks of something else says nothing of captions.
        assert bool(one["caption_faults"]) or expected or name == "json a number", name
        assert (neighbour["captions"], neighbour["fault"], neighbour["caption_faults"]) == (1, "", []), name


def test_odd_files_of_a_folder_are_counted_and_never_waited_for(said: Said) -> None:
    found = {one["key"].removeprefix("odd/"): one["fault"] for one in said["folder"]["odd"]}
    assert found.keys() == ODD.keys()
    for name, reason in ODD.items():
        assert bool(found[name]) == bool(reason) and reason in found[name], name
