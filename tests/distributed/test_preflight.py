"""Pre-flight on real ranks, with real producers: every planted fault is named with what mends it, all at once."""

import contextlib
import io
import json
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import parallel.probe
from parallel.probe import Reach
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.synthetic import SyntheticJob, SyntheticMaker
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests"

# Fault: overrides of the settings on the ranks named, all if none.
STUCK = "rank 3 is stuck, among other faults"
SETTINGS: dict[str, tuple[list[str], list[int]]] = {
    "none": ([], []),
    "another rate on rank 2": (["optim.lr=0.5"], [2]),
    "no encoders on rank 1": (["encoder.root=/nowhere"], [1]),
    "no weights": (["train.start_from=/nowhere"], []),
    "layers that are not there": (["mesh.provider=transformer_engine"], []),
    "producers of another plan": (["recipe.units=8"], []),
    "no producers": (['pull={address="127.0.0.1:9", start_s=0.5, wait_s=9}'], []),
    "a file in the way": (["checkpoint.path=/dev/null/checkpoints"], []),
    "too many checkpoints": (["checkpoint.keep=1000000000"], []),
    "units that two groups cannot share": (["recipe.units=3"], []),
    "a group without rank 1": (["preflight.collective_s=2"], []),
    STUCK: (
        [
            "preflight.collective_s=2",
            "checkpoint.path=/dev/null/x",
            'pull={address="127.0.0.1:9", start_s=0.5, call_s=1, wait_s=9}',
        ],
        [],
    ),
    "another token": (["pull.token=${run.dir}/../wrong"], []),
}


@contextlib.contextmanager
def planted(fault: str, rank: int) -> Iterator[None]:
    """What a rank would see where its surroundings are at `fault`."""
    patch = pytest.MonkeyPatch()
    version = metadata.version
    if (fault, rank) == ("an older Python on rank 1", 1):
        patch.setattr("platform.python_version", lambda: "3.10.2")
    if (fault, rank) == ("another torch on rank 3", 3):
        patch.setattr(metadata, "version", lambda name: "2.99.0" if name == "torch" else version(name))
    if fault == "a Ray with known holes":
        patch.setattr(metadata, "version", lambda name: "2.40.0" if name == "ray" else version(name))
    if (fault, rank) == ("another CPU on rank 2", 2):
        patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "SSE2")
    if (fault, rank) == ("other code on rank 1", 1):
        patch.setattr("consumer.preflight.exchange.code_hash", lambda: "0123456789ab")
    if (fault, rank) == ("a clock ahead on rank 2", 2):
        now = time.time
        patch.setattr("parallel.probe.time.time", lambda: now() + 100)
    if (fault, rank) == ("a group without rank 1", 1):
        patch.setattr("parallel.probe._probe", elsewhere(parallel.probe._probe))
    try:
        yield
    finally:
        patch.undo()


def elsewhere(real: Any) -> Any:
    """As the real probe of a group, but that this rank is not there for its tp group."""
    return lambda name, *rest: Reach("tp", (0, 1), 0.0, "", 0.0) if name == "tp" else real(name, *rest)


def fly_on_rank(overrides: list[str], faults: list[str]) -> dict[str, Any]:
    """What pre-flight raises and prints on this rank of TP 2 x DP 2, under each of `faults`; and how long it takes."""
    from launch.config import load
    from launch.preflight import PreflightError, preflight
    from launch.settings import Settings

    here = tiny.mesh(2, False)
    results = {}
    for fault in faults:
        over, at = SETTINGS.get(fault, ([], []))
        laid = [*overrides, *(over if not at or here.rank in at else [])]
        settings = load(Settings, ROOT / "launch/configs/smoke.toml", laid)
        said, printed, start = "", io.StringIO(), time.monotonic()
        with planted(fault, here.rank), contextlib.redirect_stdout(printed):
            try:
                if (fault, here.rank) != (STUCK, 3):
                    preflight(settings, here, 1e15 if fault == "too little memory" else None)
            except PreflightError as error:
                said = str(error)
        results[fault] = [said, printed.getvalue(), time.monotonic() - start]
    here.close()
    return results


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A run's settings, with a coordinator in this process that its ranks find."""
    folder = tmp_path_factory.mktemp("preflight")
    offer = SyntheticMaker(SyntheticJob(units=4)).offer
    server = CoordinatorServer(offer, Limits(horizon_bytes=1 << 24), host="127.0.0.1", port=0, access=TOKEN)
    (folder / "token").write_text(TOKEN)
    (folder / "wrong").write_text("another")
    statistics = {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    for name, config in (("vae", statistics), ("text_encoder", {"hidden_size": 64})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    yield [
        f"run.dir={folder}/run",
        f"encoder.root={folder}",
        "preflight.collective_s=30",
        f'pull={{address="{server.address}", token="{folder}/token", start_s=2, wait_s=20}}',
    ]
    server.stop()


# What is said of each fault: the check, what is wrong, how to mend it.
SAID = {
    "an older Python on rank 1": ("versions: python: ", "3.10.2 on rank 1 on ", "install the same everywhere"),
    "another torch on rank 3": ("versions: torch: ", "2.99.0 on rank 3 on ", "install the same everywhere"),
    "a Ray with known holes": ("versions: ray 2.40.0 does not meet >=2.56 (ranks 0-3 on ", "", "pip install -c constr"),
    "other code on rank 1": ("code: ", "0123456789ab on rank 1 on ", "bring the same checkout to every host"),
    "another rate on rank 2": ("settings: optim.lr: 0.003 on ranks 0-1, 3 on ", "0.5 on rank 2 on ", "the same CONFIG"),
    "another CPU on rank 2": ("devices: ", "CPU (SSE2) on rank 2 on ", "start on devices of one kind"),
    "too little memory": ("memory: ranks 0-3 on ", "of the 1,000,000.0 GB that each needs", "raise mesh.tp"),
    "too many checkpoints": ("disk: ", "GB that will be written there", "keep fewer checkpoints"),
    "a file in the way": ("folders: checkpoint.path: /dev/null/checkpoints: Not a dir", "ranks 0-3", "may write to"),
    "a clock ahead on rank 2": ("clocks: rank 2 on ", ": 100 s from the others'", "by NTP"),
    "units that two groups cannot share": (
        "layout: 2 data-parallel ranks cannot share 3 units",
        "or change recipe.units",
        "",
    ),
    "no encoders on rank 1": ("encoders: encoder.root: /nowhere/vae/config.json: No such", "(rank 1 on", "make_enc"),
    "no weights": ("weights: ", "/nowhere/config.json: No such file or directory", "give a folder"),
    "layers that are not there": ("layers: mesh.provider: transformer_engine ", "", "set mesh.provider=megatron"),
    "no producers": ("producers: no producers at 127.0.0.1:9 for 0.5 s", "(ranks 0, 2 on ", "launch/produce.py"),
    "another token": ("producers: ", "does not know our token", "both sides must use the same token file"),
    "producers of another plan": (
        "producers: recipe.units: 8 here, and the",
        "has 4 a step",
        "start both with the same",
    ),
}


@pytest.fixture(scope="module")
def results(ranks: Ranks, overrides: list[str]) -> list[dict[str, Any]]:
    """What each rank of TP 2 x DP 2 said of each fault; the last two break groups."""
    return ranks.run(4, fly_on_rank, overrides=overrides, faults=["none", *SAID, STUCK], deadline_s=120)


def test_where_all_is_well_rank_0_prints_one_table_and_nobody_complains(results: list[dict[str, Any]]) -> None:
    said, printed, _ = results[0]["none"]
    assert not said and "failed" not in printed and printed.count(" ok ") == 14
    assert not any(result["none"][1] or result["none"][0] for result in results[1:])


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_is_named_on_every_rank_with_what_mends_it(results: list[dict[str, Any]], fault: str) -> None:
    said, printed, _ = results[0][fault]
    assert all(result[fault][0] == said for result in results)
    assert not any(result[fault][1] for result in results[1:]), "rank 0 alone prints"
    head, *lines = said.splitlines()
    check, wrong, fix = SAID[fault]
    assert len(lines) == 1 + (fault == "units that two groups cannot share"), said  # the producers' plan has others
    assert head.startswith(f"pre-flight: {len(lines)} check") and printed.count("│ failed") == len(lines)
    assert lines[0].startswith(check) and wrong in lines[0] and fix in lines[0].partition("; ")[2], said


def test_all_faults_are_named_at_once_and_a_silent_rank_is_one_of_them(results: list[dict[str, Any]]) -> None:
    said, printed, seconds = results[0][STUCK]
    assert seconds < 30
    lines = said.splitlines()
    assert lines[1].startswith("ranks: nothing heard from rank 3 of 4; look at the end of their logs")
    assert list(dict.fromkeys(line.partition(":")[0] for line in lines[1:])) == [
        *("ranks", "folders", "collectives", "producers")
    ]
    # The fault before may have left the first tp group broken.
    assert {line.split(": ")[1] for line in lines if line.startswith("collectives")} - {"tp group of ranks 0-1"} == {
        "tp group of ranks 2-3",
        "dp group of ranks 1, 3",
        "bytes group of ranks 2-3",
        "world group of ranks 0-3",
    }
    assert all(result[STUCK][0] == said for result in results[:3])
    assert printed.count("│ failed") == len(lines) - 1
