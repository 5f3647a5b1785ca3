"""Who gets a task, and every reason why one waits. Pure: tables and properties."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_ledger import economy
from talkoo_scheduler.policy import (
    LANE_AFTER,
    MAX_NAMED,
    MIB,
    REASONS,
    TOO_FEW,
    Candidate,
    Decision,
    Demand,
    Rules,
    decide,
    queue_order,
    stake_needed_utlk,
    waits_for,
)

RULES = Rules(slash_ppm=500_000, audit_floor_ppm=100_000, min_node_stake_utlk=10_000_000)
DEMAND = Demand(
    task_id="task-1",
    name="digits",
    owner="alice",
    min_nodes=2,
    max_nodes=3,
    memory_bytes=256 * MIB,
    price_utlk_per_gflop=1_000_000,
    global_batch=256,
    steps_per_segment=30,
    flops_per_sample=500_000,
    audit_rate_ppm=300_000,
    created_height=5,
)


def node(name: str, speed: int = 10**9, price: int = 500_000, **changes: object) -> Candidate:
    made = Candidate(
        node_id=f"tlk1{name}",
        name=name,
        organization="north",
        offered=True,
        state="ready",
        state_reason="",
        memory_bytes=1024 * MIB,
        speed_flops=speed,
        price_utlk_per_gflop=price,
        stake_utlk=20_000_000,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def names(decision: Decision) -> list[str]:
    return [shard.node_id.removeprefix("tlk1") for shard in decision.shards]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"jailed_until_height": 412}, "jailed", "x is jailed for forging until block 412"),
        ({"offered": False}, "no_offer", "x does not offer itself"),
        ({"state": "draining", "state_reason": "disk full"}, "draining", "x takes no new work (disk full)"),
        ({"state": "busy", "state_reason": "1 of 1 slots are taken"}, "busy", "x is busy (1 of 1 slots are taken)"),
        ({"speed_flops": 0}, "not_measured", "x has not measured its speed yet"),
        ({"memory_bytes": 128 * MIB}, "too_small", "x has 128 MiB of 256 MiB"),
        ({"price_utlk_per_gflop": 2_000_000}, "too_expensive", "x asks for 2.0 TLK per GFLOP"),
        ({"stake_utlk": 5}, "stake_too_small", "x has a stake of only 0.000005 TLK"),
    ],
)
def test_each_reason_has_its_code_and_sentence(changes: dict[str, object], code: str, said: str) -> None:
    decision = decide(DEMAND, [node("a"), node("x", **changes)], RULES, 10)
    verdict = next(v for v in decision.nodes if v.name == "x")
    assert (verdict.fits, verdict.code) == (False, code)
    assert code in REASONS
    assert verdict.reason.startswith(said)
    assert not decision.shards
    assert decision.reason.startswith("waits: needs 2 nodes with 256 MiB at 1.0 TLK per GFLOP or less; 1 fit")
    assert said in decision.reason


def test_a_node_that_forged_in_this_task_is_not_placed_in_it_again() -> None:
    demand = replace(DEMAND, banned=frozenset({"tlk1x"}))
    decision = decide(demand, [node("a"), node("b"), node("x", speed=10**12)], RULES, 10)
    assert "x" not in names(decision)


def test_a_waiting_task_has_one_word_for_what_most_nodes_lack() -> None:
    small = [node(f"s{number}", memory_bytes=MIB) for number in range(2)]
    assert waits_for(decide(DEMAND, [node("a"), *small, node("x", offered=False)], RULES, 10)) == "too_small"
    assert waits_for(decide(DEMAND, [small[0], node("x", offered=False)], RULES, 10)) == "no_offer", "the first of two"
    assert waits_for(decide(DEMAND, [node("a")], RULES, 10)) == TOO_FEW
    assert waits_for(decide(DEMAND, [], RULES, 10)) == TOO_FEW


def test_no_node_at_all_is_said() -> None:
    assert "no node is registered" in decide(DEMAND, [], RULES, 1).reason


def test_the_batch_is_split_in_proportion_to_speed() -> None:
    decision = decide(replace(DEMAND, max_nodes=2), [node("fast", speed=3 * 10**9), node("slow")], RULES, 1)
    assert {s.node_id: s.samples for s in decision.shards} == {"tlk1fast": 192, "tlk1slow": 64}
    assert [s.rank for s in decision.shards] == [0, 1]


def test_speed_for_the_price_wins() -> None:
    cheap, dear = node("cheap", price=100_000), node("dear", price=1_000_000)
    decision = decide(replace(DEMAND, min_nodes=1, max_nodes=1), [dear, cheap], RULES, 1)
    assert names(decision) == ["cheap"]


def test_a_node_passed_over_often_gets_the_last_place_however_small() -> None:
    big = [node(f"big{i}", speed=10**10) for i in range(4)]
    small = node("small", speed=10**7, passed_over=LANE_AFTER)
    assert "small" in names(decide(DEMAND, [*big, small], RULES, 1))
    assert "small" not in names(decide(DEMAND, [*big, replace(small, passed_over=LANE_AFTER - 1)], RULES, 1))


def test_a_stake_that_does_not_cover_the_share_leaves_the_node_out() -> None:
    weak = node("weak", speed=10**12, price=1_000_000, stake_utlk=10_000_000)
    demand = replace(DEMAND, flops_per_sample=50_000_000)
    decision = decide(demand, [weak, *(node(n, stake_utlk=10**12) for n in "abc")], RULES, 1)
    assert "weak" not in names(decision)
    assert len(decision.shards) == 3


def test_the_stake_formula_is_the_ledger_s() -> None:
    for samples, price in ((1, 1), (256, 999_983), (77, 600_000)):
        pay = economy.price_of_work(samples * 30 * 500_000, price)
        assert stake_needed_utlk(DEMAND, samples, price, RULES) == economy.required_stake(pay, 300_000, 500_000)


def test_whoever_holds_least_is_served_first_then_the_older() -> None:
    young, old = replace(DEMAND, task_id="t2", created_height=9), replace(DEMAND, task_id="t1", created_height=1)
    greedy = replace(DEMAND, task_id="t0", created_height=0, owner_running=4)
    assert [d.task_id for d in queue_order([young, greedy, old])] == ["t1", "t2", "t0"]


CANDIDATES = st.lists(
    st.builds(
        node,
        name=st.text("abcdefgh", min_size=1, max_size=6),
        speed=st.integers(0, 10**12),
        price=st.integers(0, 2_000_000),
        memory_bytes=st.integers(0, 2**31),
        stake_utlk=st.integers(0, 10**9),
        offered=st.booleans(),
        state=st.sampled_from(["ready", "busy", "draining"]),
        jailed_until_height=st.none() | st.integers(0, 100),
        passed_over=st.integers(0, 5),
        organization=st.sampled_from(["north", "south", "west"]),
        outbound_only=st.booleans(),
    ),
    max_size=10,
    unique_by=lambda c: c.node_id,
)


@given(CANDIDATES, st.integers(1, 5), st.integers(0, 4), st.integers(5, 4096), st.randoms(use_true_random=False))
def test_a_gang_is_whole_fits_and_is_the_same_in_any_order(
    candidates: list[Candidate], least: int, more: int, batch: int, chance: random.Random
) -> None:
    demand = replace(DEMAND, min_nodes=least, max_nodes=least + more, global_batch=batch)
    decision = decide(demand, candidates, RULES, 50)
    shuffled = list(candidates)
    chance.shuffle(shuffled)
    assert decide(demand, shuffled, RULES, 50) == decision
    assert {v.node_id for v in decision.nodes} == {c.node_id for c in candidates}
    assert all(v.reason and (v.fits or v.code in REASONS) for v in decision.nodes)
    if not decision.shards:
        assert decision.reason.startswith("waits: ")
        return
    by_id = {c.node_id: c for c in candidates}
    assert least <= len(decision.shards) <= least + more
    assert sum(s.samples for s in decision.shards) == batch
    assert len({s.node_id for s in decision.shards}) == len(decision.shards)
    assert [s.rank for s in decision.shards] == list(range(len(decision.shards)))
    for shard in decision.shards:
        chosen = by_id[shard.node_id]
        assert shard.samples >= 1
        assert chosen.memory_bytes >= demand.memory_bytes
        assert chosen.price_utlk_per_gflop == shard.price_utlk_per_gflop <= demand.price_utlk_per_gflop
        needed = stake_needed_utlk(demand, shard.samples, shard.price_utlk_per_gflop, RULES)
        assert chosen.stake_utlk >= needed
        assert chosen.state == "ready"
        assert chosen.jailed_until_height is None
    gang = [by_id[shard.node_id] for shard in decision.shards]
    assert len({node.organization for node in gang}) == 1 or not gang[0].outbound_only


@given(st.lists(st.integers(10**6, 10**12), min_size=2, max_size=8))
def test_a_faster_node_never_gets_a_smaller_share(speeds: list[int]) -> None:
    candidates = [node(f"n{i}", speed=speed, stake_utlk=10**15) for i, speed in enumerate(speeds)]
    demand = replace(DEMAND, min_nodes=len(speeds), max_nodes=len(speeds))
    decision = decide(demand, candidates, RULES, 1)
    shares = {s.node_id: s.samples for s in decision.shards}
    ordered = sorted(candidates, key=lambda c: c.speed_flops)
    for slower, faster in pairwise(ordered):
        assert shares[faster.node_id] >= shares[slower.node_id] - 1


def test_a_larger_gang_is_formed_where_no_stake_covers_a_smaller_one_s_shares() -> None:
    """The cheap node alone would be best, but neither stake covers the whole batch; each covers its half."""
    demand = replace(DEMAND, min_nodes=1, max_nodes=2, flops_per_sample=500_000_000)
    pair = [
        node(name, price=price, stake_utlk=stake_needed_utlk(demand, 128, price, RULES))
        for name, price in (("cheap", 100_000), ("dear", 1_000_000))
    ]
    assert [s.samples for s in decide(demand, pair, RULES, 1).shards] == [128, 128]


def test_a_node_left_out_for_its_stake_says_so_itself_and_how_much_it_needs() -> None:
    demand = replace(DEMAND, flops_per_sample=50_000_000)
    weak = [node(n, stake_utlk=10_000_000) for n in "ab"]
    decision = decide(demand, weak, RULES, 1)
    assert not decision.shards
    assert "stake_too_small" in {v.code for v in decision.nodes}
    assert f"{sum(v.fits for v in decision.nodes)} fit" in decision.reason
    assert "of free stake; its share needs" in decision.reason


def test_a_jail_that_is_over_reads_the_same_at_every_height() -> None:
    """A reason that names the height would be a new decision, a new line in the log and a write with every block."""
    forger = node("x", jailed_until_height=412)
    later = [decide(DEMAND, [node("a"), forger], RULES, height).reason for height in (412, 413, 900)]
    assert len(set(later)) == 1
    assert "works again once stake is bonded" in later[0]


def test_one_line_names_some_nodes_and_counts_the_others() -> None:
    many = [node(f"n{i:02d}", offered=False) for i in range(MAX_NAMED + 3)]
    decision = decide(DEMAND, many, RULES, 1)
    assert decision.reason.endswith("and 3 more nodes do not fit")
    assert len(decision.nodes) == len(many)


def test_free_nodes_are_weighed_by_their_speed() -> None:
    free = [node(n, price=0) for n in "abc"]
    assert len(decide(replace(DEMAND, min_nodes=1, max_nodes=3), free, RULES, 1).shards) == 3


def test_the_small_lane_does_not_break_the_rule_of_stakes() -> None:
    demand = replace(DEMAND, flops_per_sample=50_000_000)
    big = [node(f"big{i}", stake_utlk=10**12) for i in range(3)]
    small = node("small", passed_over=LANE_AFTER + 1, stake_utlk=RULES.min_node_stake_utlk)
    decision = decide(demand, [*big, small], RULES, 1)
    assert len(decision.shards) == 3
    assert "small" not in names(decision)


def private(name: str, organization: str = "south", **changes: object) -> Candidate:
    """A node that dials out only."""
    return node(name, organization=organization, outbound_only=True, **changes)  # type: ignore[arg-type]


PAIR = replace(DEMAND, max_nodes=2)


def test_rank_0_of_a_gang_over_several_organizations_can_be_dialled_however_slow_it_is() -> None:
    decision = decide(PAIR, [node("slow"), private("fast", speed=10**10)], RULES, 1)
    assert names(decision) == ["slow", "fast"]
    assert [shard.samples for shard in decision.shards] == [24, 232], "shares go by speed all the same"


def test_nodes_of_several_private_clusters_meet_at_one_that_can_be_dialled() -> None:
    three = [private("s", speed=10**10), private("w", "west", speed=10**10), node("n")]
    assert names(decide(replace(DEMAND, min_nodes=3), three, RULES, 1))[0] == "n"


def test_one_cluster_s_own_nodes_need_nobody_to_dial() -> None:
    assert names(decide(PAIR, [private("a", speed=10**10), private("b")], RULES, 1)) == ["a", "b"]
    mixed = [private("a", speed=10**10), node("b", organization="south")]
    assert names(decide(PAIR, mixed, RULES, 1)) == ["a", "b"], "the order is by value where all can dial all"


def test_private_clusters_alone_do_not_meet_and_each_node_says_why() -> None:
    decision = decide(PAIR, [private("s"), private("w", "west")], RULES, 1)
    assert not decision.shards
    assert {(verdict.fits, verdict.code) for verdict in decision.nodes} == {(False, "outbound_only")}
    assert "; 0 fit; s only dials out, and so do all nodes of other organizations that fit" in decision.reason
    assert waits_for(decision) == "outbound_only"
    assert len(decide(replace(DEMAND, min_nodes=1), [private("s"), private("w", "west")], RULES, 1).shards) == 1


def test_where_the_best_cannot_meet_the_best_that_can_are_taken() -> None:
    apart = [private("s1", speed=10**11), private("w", "west", speed=10**11)]
    assert names(decide(PAIR, [*apart, node("n")], RULES, 1)) == ["n", "s1"]
    assert names(decide(PAIR, [*apart, node("n"), private("s2", speed=10**10)], RULES, 1)) == ["s1", "s2"]


def test_the_small_lane_does_not_part_a_gang() -> None:
    gang = [private(name, speed=10**10) for name in "abc"]
    alone = private("w", "west", passed_over=LANE_AFTER)
    assert names(decide(replace(DEMAND, min_nodes=3), [*gang, alone], RULES, 1)) == ["a", "b", "c"]
    open_one = node("n", passed_over=LANE_AFTER)
    assert names(decide(replace(DEMAND, min_nodes=3), [*gang, open_one], RULES, 1)) == ["n", "a", "b"]


def test_a_node_too_weak_for_rank_0_leaves_private_clusters_apart() -> None:
    demand = replace(PAIR, flops_per_sample=50_000_000)
    weak = node("n", stake_utlk=RULES.min_node_stake_utlk)
    rich = [private("s", stake_utlk=10**12), private("w", "west", stake_utlk=10**12)]
    decision = decide(demand, [weak, *rich], RULES, 1)
    assert not decision.shards
    assert {verdict.name: verdict.code for verdict in decision.nodes} == {
        "n": "stake_too_small",
        "s": "outbound_only",
        "w": "outbound_only",
    }
