"""Checkpoints damaged, killed and loaded elsewhere as often as the acceptance asks; `make soak` runs it."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parallel.mesh import Mesh
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.saving import draw_weights, start
from tests.distributed.test_checkpoint_faults import damage, kills, two_on_rank
from tests.distributed.test_reshard import ERROR, LAYOUTS, reshard

Report = Callable[..., None]

FLIPS, CUTS = 300, 50
KILLS = {"waited for": 50, "beside training": 50, "two in flight": 20}
SAVED = ["TP 2", "TP 2 + SP", "DP 2", "TP 2 x DP 2", "TP 4"]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    forked = Ranks()
    yield forked
    forked.close()


@pytest.fixture
def here() -> Iterator[Mesh]:
    """A job of one rank, this process."""
    mesh = tiny.mesh(1, False)
    yield mesh
    mesh.close()


@pytest.mark.timeout(1800)
def test_every_damage_is_refused_by_name(ranks: Ranks, here: Mesh, tmp_path: Path, report: Report) -> None:
    draw_weights(tmp_path)
    ranks.run(4, two_on_rank, folder=tmp_path / "two")
    wrong = damage(tmp_path / "two", start(tmp_path, here), here, random.Random(11), flips=FLIPS, cuts=CUTS)
    report(flips=FLIPS, cuts=CUTS, exchanged_or_missing=12, wrong=wrong)
    assert wrong == []


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", KILLS)
def test_every_kill_leaves_a_whole_newest_one(
    ranks: Ranks, here: Mesh, tmp_path: Path, report: Report, how: str
) -> None:
    draw_weights(tmp_path)
    left = kills(ranks, tmp_path, start(tmp_path, here), here, count=KILLS[how], how=how)
    report(kills=KILLS[how], inside_a_save=sum(map(bool, left)), newest_loaded=len(left), left_after_next_start=0)
    assert any(left)  # else none fell into a save


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("came", SAVED)
def test_every_layout_loads_what_every_other_saved(ranks: Ranks, tmp_path: Path, report: Report, came: str) -> None:
    to = [name for name in LAYOUTS if name not in (came, "one rank")]
    error = reshard(ranks, tmp_path, came, to)
    shutil.rmtree(tmp_path)
    report(saved=came, loaded=["one rank", *to], bits="equal", worst_gradient_error=error)
    assert error <= ERROR
