"""What peers say about consensus, on its way in: bounded, decoded and verified before the driver hears of it.

Nothing here changes the chain. What is wrong with a message is raised as a typed error and is the peer's fault; what
comes out is an event whose signature holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState, timely
from talkoo_consensus.driver import Driver
from talkoo_consensus.encoding import block_id_of, decode_block, decode_proposal, decode_vote
from talkoo_consensus.events import ProposalReceived, VoteReceived
from talkoo_consensus.types import MAX_BLOCK_BYTES, Proposal, Vote
from talkoo_consensus.validators import ValidatorSet
from talkoo_consensus.verify import verify_proposal, verify_vote

from talkoo_core.errors import Exhausted, InvalidInput
from talkoo_runtime.clock import Clock

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = MAX_BLOCK_BYTES + 64 * 1024
"""A block with what surrounds it is the largest message between ledger nodes."""
ROOM_BYTES = 16 * 1024 * 1024
"""Of one peer's messages that may wait for the loop; a faster peer waits."""
LEAST_MESSAGE_BYTES = 1024
"""Counted for a smaller message, so that the room bounds their number too."""
PACE_BYTES_PER_S = 32 * 1024 * 1024
PACE_MESSAGES_PER_S = 4_096
"""Of one peer in the long run; a faster one waits. Sixteen validators at 1,000 transactions a second need a tenth."""
PACE_BURST_S = 2.0
"""So much of the pace may come at once."""
ANSWERS_BYTES_PER_S = 16 * 1024 * 1024
ANSWERS_PER_S = 64
"""What one peer may have of our answers in the long run; further questions of it wait."""
MAX_VERIFIED_VOTES = 4_096
MAX_PROPOSALS_WITHOUT_BLOCK = 16
MAX_SEEN_PROPOSALS = 64
MAX_ROUNDS_AHEAD = 256
"""Finding the proposer of a round takes time in proportion to the round; honest peers are never so far ahead."""
MAX_FAULTS = 16
"""Of one peer in one stream; then the stream is closed."""
CLOSED_FOR_S = 5.0


class PeerTrouble(InvalidInput):
    """A peer sent what no honest node sends."""


class Room:
    """Bounds the bytes of one sender that wait for the loop."""

    def __init__(self) -> None:
        self._bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, size_bytes: int) -> int:
        """Wait for room; returns what `leave` has to give back."""
        while self._bytes >= ROOM_BYTES:
            self._freed.clear()
            await self._freed.wait()
        counted = max(size_bytes, LEAST_MESSAGE_BYTES)
        self._bytes += counted
        return counted

    def leave(self, counted: int) -> None:
        self._bytes -= counted
        self._freed.set()


class Pace:
    """A token bucket for one peer's bytes and messages. A message that is too early waits, it is not dropped."""

    def __init__(
        self, now_s: float, bytes_per_s: int = PACE_BYTES_PER_S, messages_per_s: int = PACE_MESSAGES_PER_S
    ) -> None:
        self._bytes_per_s, self._messages_per_s = bytes_per_s, messages_per_s
        self._bytes, self._messages = bytes_per_s * PACE_BURST_S, messages_per_s * PACE_BURST_S
        self._seen_s = now_s

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """Count a message; returns how long it has to wait, 0.0 as a rule."""
        passed_s, self._seen_s = max(now_s - self._seen_s, 0.0), now_s
        most_bytes, most_messages = self._bytes_per_s * PACE_BURST_S, self._messages_per_s * PACE_BURST_S
        self._bytes = min(self._bytes + passed_s * self._bytes_per_s, most_bytes) - size_bytes
        self._messages = min(self._messages + passed_s * self._messages_per_s, most_messages) - 1
        return max(-self._bytes / self._bytes_per_s, -self._messages / self._messages_per_s, 0.0)


class Faults:
    """What each peer did wrong: told once, and too much of it closes its stream for a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._closed_until_ns: dict[str, int] = {}

    def blame(self, organization: str, what: str) -> None:
        self._counts[organization] += 1
        level = logging.WARNING if self._counts[organization] == 1 else logging.DEBUG
        log.log(level, "%s: %s", organization, what)

    def admit(self, organization: str) -> None:
        """At the start of a stream. Raises Exhausted while the last one's faults are too fresh."""
        if self._clock.now_ns() < self._closed_until_ns.get(organization, 0):
            raise Exhausted(
                f"too many faulty messages of {organization}; connect again in {CLOSED_FOR_S:.0f} s",
                code="faulty_peer",
            )
        self._counts[organization] = 0

    def check(self, organization: str) -> None:
        """Raises PeerTrouble, which closes the stream, after too many faults."""
        if self._counts[organization] < MAX_FAULTS:
            return
        self._closed_until_ns[organization] = self._clock.now_ns() + int(CLOSED_FOR_S * 1e9)
        log.warning("closed the stream of %s after %d faulty messages", organization, MAX_FAULTS)
        raise PeerTrouble(f"{MAX_FAULTS} faulty messages; see the ledger node's log of the other side")


class Intake:
    """Verifies votes and proposals against the validators of their height. Each vote is verified once."""

    def __init__(self, driver: Driver, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._verified: dict[Vote, None] = {}
        self._round = 0
        self._proposals: dict[tuple[str, int, int], Proposal] = {}
        self._seen: dict[tuple[int, int, bytes], None] = {}

    def forget_votes(self) -> None:
        """A new height has begun."""
        self._verified.clear()

    def vote(self, raw: bytes, chain: ChainState) -> VoteReceived | None:
        """A vote of the height under way or the next; None for others and for known ones.

        Raises Corrupt (malformed), PeerTrouble (not a validator's).
        """
        vote, height = decode_vote(raw), self._driver.height
        if vote.height not in (height, height + 1) or self._is_known(vote):
            return None
        found = self.validators_of(vote.height, chain).find(vote.validator_address)
        if found is None or found[0] != vote.validator_index:
            raise PeerTrouble(f"a vote of {vote.validator_address.hex()}, which is no validator of {vote.height}")
        if not verify_vote(vote, chain.chain_id, found[1]):
            raise PeerTrouble("a vote with a wrong signature")
        if len(self._verified) >= MAX_VERIFIED_VOTES:
            self._verified.clear()
        self._verified[vote] = None
        return VoteReceived(vote)

    def validators_of(self, height: int, chain: ChainState) -> ValidatorSet:
        """Of a vote of the height under way or the next."""
        if height == self._driver.height and chain.last_height == height:
            return chain.last_validators  # a late precommit for the block just executed
        return chain.validators if height == chain.height else chain.next_validators

    def _is_known(self, vote: Vote) -> bool:
        """Whether the driver has heard it. What it had no room for then it is offered again in another round."""
        if self._driver.round != self._round:
            self._round = self._driver.round
            self._verified.clear()
        return vote in self._verified or self._driver.holds(vote)

    def is_new(self, proposed: ProposalReceived) -> bool:
        """Whether this proposal is seen for the first time, so that others may lack it too."""
        key = (proposed.proposal.height, proposed.proposal.round, proposed.proposal.block_id.hash)
        if key in self._seen:
            return False
        self._seen[key] = None
        while len(self._seen) > MAX_SEEN_PROPOSALS:
            self._seen.pop(next(iter(self._seen)))
        return True

    def proposal(self, organization: str, raw: bytes) -> None:
        """Remembered until its block arrives right behind it on the same stream. Raises Corrupt."""
        proposal = decode_proposal(raw)
        self._proposals[(organization, proposal.height, proposal.round)] = proposal
        while len(self._proposals) > MAX_PROPOSALS_WITHOUT_BLOCK:
            self._proposals.pop(next(iter(self._proposals)))

    def block(self, organization: str, data: service_pb2.BlockData, chain: ChainState) -> ProposalReceived | None:
        """The block of a proposal of the height under way or the next; None for others. Raises Corrupt, PeerTrouble."""
        proposal = self._proposals.pop((organization, data.height, data.round), None)
        height = self._driver.height
        if proposal is None or proposal.height not in (height, height + 1) or proposal.height <= chain.last_height:
            return None
        if proposal.round > (self._driver.round if proposal.height == height else 0) + MAX_ROUNDS_AHEAD:
            return None
        validators = chain.validators if proposal.height == chain.height else chain.next_validators
        if not verify_proposal(proposal, chain.chain_id, validators.proposer_of_round(proposal.round)):
            raise PeerTrouble(f"a proposal for round {proposal.round} that its proposer did not sign")
        block = decode_block(data.block)
        if block_id_of(block) != proposal.block_id or block.header.time_ns != proposal.timestamp_ns:
            raise PeerTrouble("a block that is not its proposal's")
        return ProposalReceived(proposal, block, timely(proposal.timestamp_ns, self._clock.now_ns(), proposal.round))
