"""Where ranks stand, and what they tell each other."""

import os
from typing import Any

import pytest
import torch

from parallel.config import MeshConfig
from parallel.mesh import Mesh, MeshError
from tests.distributed import tiny
from tests.distributed.ranks import Ranks, RanksError


def talk_on_rank() -> dict[str, Any]:
    """Everything a rank can say, from a TP 2 x DP 2 mesh."""
    here = tiny.mesh(2, False)
    said = f"from {here.rank}".encode() * 1000
    shared = here.share(said if here.tp_rank == 0 else None)
    empty = here.share(b"" if here.tp_rank == 0 else None)
    result = {
        "place": [here.rank, here.world, here.tp_rank, here.tp, here.dp_rank, here.dp],
        "shared": shared.decode()[:6],
        "length": [len(shared), len(empty)],
        "sum": here.sum(torch.tensor([here.rank, 1.0], dtype=torch.float64)).tolist(),
        "max": here.max(torch.tensor([here.rank, -here.rank])).tolist(),
        "every": [here.every(True), here.every(here.rank != 2)],
        "warned": os.environ["CUDA_DEVICE_MAX_CONNECTIONS"],
    }
    here.close()
    return result


def test_ranks_know_their_place_and_share_within_their_group(ranks: Ranks) -> None:
    results = ranks.run(4, talk_on_rank)
    assert [result["place"] for result in results] == [[r, 4, r % 2, 2, r // 2, 2] for r in range(4)]
    for rank, result in enumerate(results):
        first = rank // 2 * 2
        assert result["shared"] == f"from {first}" and result["length"] == [6000, 0]
        assert result["sum"] == [rank % 2 + rank % 2 + 2, 2]
        assert result["max"] == [3, 0]
        assert result["every"] == [True, False]


def uneven_on_rank() -> str:
    with pytest.raises(MeshError) as refused:
        Mesh.start(MeshConfig(tp=2))
    return str(refused.value)


def test_ranks_that_do_not_form_the_layout_are_refused_before_they_meet(ranks: Ranks) -> None:
    for said in ranks.run(3, uneven_on_rank):
        assert said == "mesh.tp: 2 does not divide the 3 ranks of this job; start a multiple of 2 ranks"


def lonely_on_rank() -> None:
    """Rank 0 waits for the others; they have gone."""
    here = Mesh.start(MeshConfig(timeout_s=2))
    if here.rank == 0:
        here.barrier()


def test_a_rank_that_waits_for_one_that_is_gone_fails_by_itself(ranks: Ranks) -> None:
    with pytest.raises(RanksError) as ended:
        ranks.run(2, lonely_on_rank, deadline_s=20)
    assert ended.value.codes == [1, 0]
