"""The star's process group: ranks as threads over one store, and then real trainers, side by side with gloo's mesh."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from talkoo_agent.trainer.star import CHUNK_BYTES, StarGroup
from talkoo_agent.trainer_messages import ChildFailed, RunSegment
from torch._C._distributed_c10d import HashStore

RANKS = 4
TIMEOUT = timedelta(seconds=20)


@pytest.fixture
def store() -> HashStore:
    return HashStore()


def each(store: HashStore, work: Any) -> list[Any]:
    """What `work(group, rank)` gives on every rank, all at once."""
    with ThreadPoolExecutor(RANKS) as pool:
        futures = [pool.submit(work, StarGroup(store, rank, RANKS, TIMEOUT), rank) for rank in range(RANKS)]
        return [future.result() for future in futures]


def test_sums_of_many_sizes_in_a_row_are_exact_and_nothing_stays_in_the_store(store: HashStore) -> None:
    sizes = [1, 0, 7, CHUNK_BYTES // 8, CHUNK_BYTES // 8 + 1, 3]

    def work(group: StarGroup, rank: int) -> list[torch.Tensor]:
        made = [torch.arange(size, dtype=torch.int64) * 2**40 + rank for size in sizes]
        for tensor in made:
            group.allreduce([tensor]).wait()
        return made

    wanted = [torch.arange(size, dtype=torch.int64) * 2**40 * RANKS + sum(range(RANKS)) for size in sizes]
    for found in each(store, work):
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert store.num_keys() == 0


def test_what_one_rank_has_reaches_all_and_each_gets_everything(store: HashStore) -> None:
    def work(group: StarGroup, rank: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        options = dist.BroadcastOptions()
        options.rootRank = 2
        tensor = torch.full((3, 2), float(rank))
        group.broadcast([tensor], options).wait()
        gathered = [torch.empty(2, dtype=torch.int64) for _ in range(RANKS)]
        group.allgather([gathered], [torch.tensor([rank, -rank])]).wait()
        group.barrier().wait()
        return tensor, gathered

    for tensor, gathered in each(store, work):
        assert torch.equal(tensor, torch.full((3, 2), 2.0))
        assert [each.tolist() for each in gathered] == [[rank, -rank] for rank in range(RANKS)]
    assert store.num_keys() == 0


def test_a_peer_that_does_not_come_is_an_error_of_the_network(store: HashStore) -> None:
    group = StarGroup(store, 0, 2, timedelta(seconds=0.2))
    with pytest.raises((dist.DistError, RuntimeError), match=r"[Tt]ime"):
        group.allreduce([torch.zeros(1, dtype=torch.int64)])


def test_a_peer_with_another_tensor_is_told(store: HashStore) -> None:
    StarGroup(store, 1, 2, timedelta(seconds=0.0))._give(1, 1, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(dist.DistNetworkError, match="another tensor"):
        StarGroup(store, 0, 2, TIMEOUT).allreduce([torch.zeros(3, dtype=torch.int64)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_not_summed(store: HashStore, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="sums integers"):
        StarGroup(store, 0, 2, TIMEOUT).allreduce([torch.zeros(1, dtype=dtype)])


def test_trainers_in_a_star_commit_to_what_trainers_in_a_mesh_commit_to_and_miss_who_is_lost(
    honest_then_forging: Any, group_of: Any, tmp_path: Any
) -> None:
    _, mesh = honest_then_forging
    star = group_of(tmp_path, [40, 24], [{"exchange": "star", "peer_timeout_s": 5.0}, {"exchange": "star"}])
    try:
        for segment in range(2):
            assert [done.root for done in star.run(segment)] == [done.root for done in mesh[segment]]
        star.trainers[1].kill()
        star.trainers[0].send(RunSegment(segment=2, beacon="00" * 32, first_step=8, steps=4))
        failed = star.trainers[0].next(ChildFailed)
        assert (failed.kind, failed.step) == ("peer_lost", 8)
    finally:
        star.kill()


def test_a_rank_of_a_star_misses_rank_0(group_of: Any, tmp_path: Any) -> None:
    star = group_of(tmp_path, [40, 24], [{"exchange": "star"}, {"exchange": "star"}])
    try:
        star.trainers[0].kill()
        star.trainers[1].send(RunSegment(segment=0, beacon="00" * 32, first_step=0, steps=4))
        assert star.trainers[1].next(ChildFailed).kind == "peer_lost"
    finally:
        star.kill()
