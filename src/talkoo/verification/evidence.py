"""Everything about one task that its proofs are checked against, as the replay of the chain leaves it."""

from __future__ import annotations

from dataclasses import dataclass, field

from talkoo_api.ledger.v1 import state_pb2, tx_pb2

SegmentKey = tuple[int, int]
"""(attempt, segment)"""


@dataclass(slots=True)
class SeenTx:
    """A transaction that was applied: where it stands, who signed it, what it says."""

    height: int
    sender: str
    body: tx_pb2.TxBody


@dataclass(slots=True)
class Slash:
    """One forger's slash in utlk: its stake and what it was unbonding before (empty: not known), and what was taken."""

    node_id: str
    segment: SegmentKey
    stakes_before_utlk: tuple[int, ...]
    amount_utlk: int
    height: int


@dataclass(slots=True)
class Evidence:
    """Records are the messages of state.proto; block hashes are those of verified headers."""

    task: state_pb2.Task
    params: state_pb2.Params
    height: int = 0
    block_hashes: dict[int, bytes] = field(default_factory=dict)
    txs: dict[bytes, SeenTx] = field(default_factory=dict)
    segments: dict[SegmentKey, state_pb2.Segment] = field(default_factory=dict)
    opened: dict[SegmentKey, int] = field(default_factory=dict)
    """Height of the block that opened a segment, hence whose hash is in its beacon."""
    discarded: dict[SegmentKey, int] = field(default_factory=dict)
    """Height at which a segment was discarded."""
    on_probation: dict[SegmentKey, bool] = field(default_factory=dict)
    """Whether a node of the gang was new when the lot was drawn."""
    powers: dict[SegmentKey, dict[str, int]] = field(default_factory=dict)
    """Voting power by organization when a verdict became final."""
    verdict_accounts: dict[str, str] = field(default_factory=dict)
    """Organization to the address of its verdict key."""
    payments: list[state_pb2.Payment] = field(default_factory=list)
    slashes: list[Slash] = field(default_factory=list)
    model: state_pb2.ModelVersion | None = None
    supply: state_pb2.Supply = field(default_factory=state_pb2.Supply)
    holdings: state_pb2.Supply = field(default_factory=state_pb2.Supply)
    """The same totals, summed anew over every record of the state."""

    def standing(self) -> list[state_pb2.Segment]:
        """The accepted segments, in order."""
        accepted = [s for s in self.segments.values() if s.phase == state_pb2.SEGMENT_PHASE_ACCEPTED]
        return sorted(accepted, key=lambda segment: segment.segment)

    def committed(self) -> list[state_pb2.Segment]:
        """All segments that every rank committed, accepted or discarded since, in order."""
        whole = [segment for segment in self.segments.values() if segment.committed_height]
        return sorted(whole, key=lambda segment: (segment.attempt, segment.segment))


def label(segment: state_pb2.Segment) -> str:
    return f"segment {segment.segment} (attempt {segment.attempt})"
