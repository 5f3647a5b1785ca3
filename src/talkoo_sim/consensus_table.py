"""A table of validators around one driver: tests say in one line who sends what, with real signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from talkoo_consensus.chain import ChainState, genesis_state, make_block
from talkoo_consensus.driver import (
    Command,
    Driver,
    ProposalReceived,
    SignAndSendVote,
    StartHeight,
    ValueChecked,
    VoteReceived,
)
from talkoo_consensus.encoding import block_id_of, proposal_sign_bytes, vote_sign_bytes
from talkoo_consensus.types import EMPTY_COMMIT, NIL_BLOCK_ID, Block, BlockId, Proposal, SignedType, Vote
from talkoo_consensus.validators import Validator

from talkoo_core.signing import PrivateKey

CHAIN_ID = "table"
TIME_NS = 1_700_000_000 * 10**9


class Table:
    """A height of four validators, seen by one driver. Validators are named by their index in the set.

    `us` is the index of the driver's validator; by default one that proposes in none of the first rounds.
    """

    def __init__(self, powers: Sequence[int] = (10, 10, 10, 10)) -> None:
        keys = [PrivateKey.from_seed(bytes([i]) * 32) for i in range(len(powers))]
        members = [Validator.of(key.public.raw, power) for key, power in zip(keys, powers, strict=True)]
        self.state: ChainState = genesis_state(CHAIN_ID, TIME_NS, members, b"")
        self.validators = self.state.validators
        by_address = {key.public.address: key for key in keys}
        self.keys = [by_address[v.address] for v in self.validators.validators]
        proposers = [self.proposer(round_) for round_ in range(len(powers) - 1)]
        self.us = next(i for i in range(len(powers)) if i not in proposers)
        self.driver = Driver(self.validators.validators[self.us].address)
        self.others = [i for i in range(len(powers)) if i != self.us]

    def proposer(self, round_: int) -> int:
        found = self.validators.find(self.validators.proposer_of_round(round_).address)
        assert found is not None
        return found[0]

    def start(self) -> tuple[Command, ...]:
        return self.driver.step(StartHeight(1, self.validators))

    def block(self, text: bytes = b"a", proposer: int | None = None) -> Block:
        address = self.validators.validators[self.proposer(0) if proposer is None else proposer].address
        return make_block(self.state, [text], EMPTY_COMMIT, TIME_NS + 10**9, address)

    def proposal(self, block: Block, round_: int = 0, pol_round: int = -1, timely: bool = True) -> ProposalReceived:
        unsigned = Proposal(block.header.height, round_, pol_round, block_id_of(block), block.header.time_ns)
        key = self.keys[self.proposer(round_)]
        return ProposalReceived(
            replace(unsigned, signature=key.sign(proposal_sign_bytes(CHAIN_ID, unsigned))), block, timely
        )

    def vote(self, index: int, type_: SignedType, value: BlockId | None, round_: int = 0, height: int = 1) -> Vote:
        block_id = NIL_BLOCK_ID if value is None else value
        address = self.validators.validators[index].address
        unsigned = Vote(type_, height, round_, block_id, TIME_NS + index, address, index)
        return replace(unsigned, signature=self.keys[index].sign(vote_sign_bytes(CHAIN_ID, unsigned)))

    def prevotes(self, indices: Sequence[int], value: BlockId | None, round_: int = 0) -> tuple[Command, ...]:
        return self._cast(indices, SignedType.PREVOTE, value, round_)

    def precommits(self, indices: Sequence[int], value: BlockId | None, round_: int = 0) -> tuple[Command, ...]:
        return self._cast(indices, SignedType.PRECOMMIT, value, round_)

    def _cast(
        self, indices: Sequence[int], type_: SignedType, value: BlockId | None, round_: int
    ) -> tuple[Command, ...]:
        return tuple(
            command
            for index in indices
            for command in self.driver.step(VoteReceived(self.vote(index, type_, value, round_)))
        )

    def receive(self, event: ProposalReceived, valid: bool = True) -> tuple[Command, ...]:
        """A proposal, and the application's answer to the check it causes."""
        first = self.driver.step(event)
        proposal = event.proposal
        return first + self.driver.step(ValueChecked(1, proposal.round, proposal.block_id, valid))


def votes_of(commands: Sequence[Command]) -> list[tuple[SignedType, BlockId]]:
    """What we were told to vote."""
    return [(c.vote.type, c.vote.block_id) for c in commands if isinstance(c, SignAndSendVote)]
