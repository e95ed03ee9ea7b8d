"""README and docs followed to the letter in a fresh copy of the tree: all commands that one machine can run."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.e2e.documents import ROOT, Block, blocks, pages

# What does not run here, and why; tests/unit/test_documents.py checks the form of each.
ELSEWHERE = {
    r"make ": "what it makes is tested by itself, or is these tests",
    r"pip install": "no test installs packages",
    r"ray up|fleet\.address=auto": "needs a cluster",
    r"--nnodes|train\.start_from=FOLDER|CONFIG|my\.toml": "needs several machines, or what only the user has",
    r"sbatch|kubectl": "needs a cluster; tests/unit/launch/test_cluster.py tries what they are given",
    r"tensorboard": "serves until it is ended",
    r"curl": "asks what another command serves",
}
# What a user fills in, and a length that tests have time for.
GIVEN = {
    "/path/to/images": "images",
    "train.steps=200 schedule.total_steps=200": "train.steps=12 schedule.total_steps=12",
}
BLOCK_S = 1500.0
_CLEAR = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"
READY_S = 400  # for what is started in the background


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files of the project, with the packages of this one and a folder of images."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    (tree / ".venv").symlink_to(Path(sys.prefix))
    run(tree, "python launch/make_corpus.py raw")
    for shard in (tree / "raw").glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tree / "images" / shard.stem, filter="data")
    return tree


def run(tree: Path, script: str) -> str:
    """What a shell printed, standing in `tree` as a user would; AssertionError with all of it if a command failed."""
    env = os.environ | {"PYTHONPATH": str(tree), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    log = tree / "shell.log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            [
                "bash",
                "-eux",
                "-o",
                "pipefail",
                "-c",
                f"trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}",
            ],
            cwd=tree,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            code = shell.wait(BLOCK_S)
        finally:
            shell.terminate()
            shell.wait(60)
    said = log.read_text(errors="replace")
    assert code == 0, f"ended with {code}:\n{said[-6000:]}"
    return said


def typed(command: str) -> str:
    """A command as it is typed here."""
    for said, here in GIVEN.items():
        command = command.replace(said, here)
    line, background, comment = re.fullmatch(r"(.*?)( &)?(\s+#.*)?", command).groups()  # type: ignore[union-attr]
    if not background:
        return line
    ready = re.search(r'prints "(\w+)"', comment or "")
    assert ready, f"{command}: nothing says when it is ready"
    wait = f"timeout {READY_S} bash -c 'until grep -q {ready[1]} background.log; do sleep 0.5; done'"
    return f"{line} > background.log 2>&1 &\n{wait} || {{ cat background.log; false; }}"


def reason(command: str) -> str | None:
    """Why a command is not run here."""
    return next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, command)), None)


RUN = [block for page in pages() for block in blocks(page) if not all(map(reason, block.commands))]


@pytest.mark.long
@pytest.mark.timeout(BLOCK_S + 200)
@pytest.mark.parametrize("block", RUN, ids=str)
def test_what_a_page_says_to_type_works_as_it_says(block: Block, tree: Path) -> None:
    said = run(tree, "\n".join(typed(command) for command in block.commands if not reason(command)))
    lines = {" ".join(line.split()) for line in said.splitlines()}
    shown = [" ".join(line.split()) for line in block.shown if line.strip() != "..."]
    assert not [line for line in shown if line not in lines], f"the page shows what did not come:\n{said[-6000:]}"


@pytest.mark.long
def test_a_plan_for_a_thousand_ranks_takes_less_than_a_minute(tree: Path) -> None:
    script = "time python launch/estimate.py launch/configs/pretrain-256p.toml --gpus 1024 --memory 80GB"
    said = run(tree, f"TIMEFORMAT='cpu %U'; {script}")
    assert "1024 GPUs of 80.0 GB" in said
    seconds = re.search(r"^cpu ([\d.]+)", said, re.MULTILINE)
    assert seconds and float(seconds[1]) <= 60
