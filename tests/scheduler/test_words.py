"""What the leader writes about a task."""

from __future__ import annotations

import msgspec
from talkoo_api.ledger.v1 import state_pb2
from talkoo_scheduler.keys import StoredDecision
from talkoo_scheduler.leader import MAX_REASONS, Word
from talkoo_scheduler.policy import Decision, NodeVerdict

ETCD_TAKES_BYTES = 3 << 19


def test_of_very_many_nodes_those_that_fit_are_spoken_of_first_and_etcd_takes_it() -> None:
    reason = "offers 1 GiB of memory, the task asks for 2 GiB on each node " * 5
    nodes = tuple(
        NodeVerdict(f"talkoo1{number:032x}", f"a-node-with-a-long-name-{number:06d}", number == 9_999, "small", reason)
        for number in range(10_000)
    )
    word = Word(state_pb2.Task(id="task-1"), "waits", Decision((), "waits", nodes))

    stored = word.stored(7, "north")

    found = msgspec.json.decode(stored, type=StoredDecision)
    assert [node.fits for node in found.nodes[:2]] == [True, False]
    assert found.nodes[1].node_id == nodes[0].node_id
    assert len(found.nodes) == MAX_REASONS
    assert len(stored) < ETCD_TAKES_BYTES
