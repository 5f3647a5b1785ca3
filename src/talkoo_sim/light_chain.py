"""Chains of signed headers for light clients: production headers and commits, made-up blocks, keys from names.

A chain can be forked at a height: the twin shares the keys and what came before, and then says something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from talkoo_consensus.chain import ChainState, advance, genesis_state, make_block
from talkoo_consensus.encoding import block_id_of, vote_sign_bytes
from talkoo_consensus.light import LightBlock
from talkoo_consensus.types import (
    ABSENT_SIG,
    EMPTY_COMMIT,
    Block,
    BlockIdFlag,
    Commit,
    CommitSig,
    SignedType,
    TxResult,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_sim.ledger_chain import key_of

CHAIN_ID = "light-1"
START_NS = 1_700_000_000 * 10**9
BLOCK_NS = 10**9


def validator(name: str, power: int) -> Validator:
    """Power 0 removes it."""
    return Validator.of(key_of(name).public.raw, power)


@dataclass
class LightChain:
    """`names`: whose keys may sign. `blocks`: decided so far, the first of height 1."""

    names: Sequence[str]
    powers: Mapping[str, int] = field(default_factory=dict)
    blocks: list[LightBlock] = field(default_factory=list)
    states: list[ChainState] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.states:
            first = [validator(name, self.powers.get(name, 10)) for name in self.names if self.powers.get(name, 10)]
            self.states.append(genesis_state(CHAIN_ID, START_NS, first, bytes(32)))

    @property
    def state(self) -> ChainState:
        return self.states[-1]

    def at(self, height: int) -> LightBlock:
        return self.blocks[height - 1]

    def grow(
        self,
        blocks: int = 1,
        *,
        updates: Sequence[Validator] = (),
        tx: bytes = b"",
        signers: Sequence[str] | None = None,
        round_: int = 0,
    ) -> LightBlock:
        """Decide blocks; `updates` are the first one's, `signers` the only ones who sign them (None: all)."""
        for number in range(blocks):
            state = self.state
            last_commit = self.blocks[-1].commit if self.blocks else EMPTY_COMMIT
            time_ns = state.last_time_ns + BLOCK_NS
            block = make_block(state, [tx] if tx else [], last_commit, time_ns, state.validators.proposer.address)
            self._add(block, updates if number == 0 else (), signers, round_)
        return self.blocks[-1]

    def fork(self, height: int) -> LightChain:
        """A chain with the same blocks below `height`."""
        return LightChain(self.names, self.powers, self.blocks[: height - 1], self.states[:height])

    def _add(self, block: Block, updates: Sequence[Validator], signers: Sequence[str] | None, round_: int) -> None:
        state = self.state
        commit = self.signed(block, state.validators, signers, round_)
        self.blocks.append(LightBlock(block.header, commit, state.validators))
        app_hash = hashlib.sha256(state.app_hash + commit.block_id.hash).digest()
        self.states.append(advance(state, block, commit.block_id, [TxResult()], app_hash, updates))

    def signed(self, block: Block, validators: ValidatorSet, signers: Sequence[str] | None, round_: int) -> Commit:
        """The commit of a block by those who sign; the others are absent."""
        keys = {key_of(name).public.address: key_of(name) for name in (self.names if signers is None else signers)}
        unsigned = Commit(block.header.height, round_, block_id_of(block), ())
        places = []
        for index, each in enumerate(validators.validators):
            key = keys.get(each.address)
            if key is None:
                places.append(ABSENT_SIG)
                continue
            time_ns = block.header.time_ns + 10**8
            vote = Vote(SignedType.PRECOMMIT, unsigned.height, round_, unsigned.block_id, time_ns, each.address, index)
            signature = key.sign(vote_sign_bytes(CHAIN_ID, vote))
            places.append(CommitSig(BlockIdFlag.COMMIT, each.address, time_ns, signature))
        return replace(unsigned, signatures=tuple(places))
