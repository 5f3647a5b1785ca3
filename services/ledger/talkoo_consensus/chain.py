"""The chain between blocks: what the next header must say, how a block is made, checked, and followed by the next.

As CometBFT's `state`: validators change two heights after the block that changes them (`next_validators` is already
fixed), the application's hash and the results of a block stand in the next header. Times are proposer-based: a block's
time is its proposer's clock; others prevote for it only when it is timely by theirs, and it always moves forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from talkoo_consensus.encoding import (
    commit_hash,
    consensus_params_hash,
    data_hash,
    evidence_hash,
    results_hash,
    validators_hash,
)
from talkoo_consensus.types import (
    BLOCK_PROTOCOL,
    EMPTY_COMMIT,
    MAX_BLOCK_BYTES,
    MAX_CHAIN_ID_LENGTH,
    NIL_BLOCK_ID,
    Block,
    BlockId,
    Commit,
    Data,
    DuplicateVoteEvidence,
    Header,
    TxResult,
)
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import verify_commit
from talkoo_core.errors import InvalidInput

PRECISION_NS = 505 * 10**6
"""How far apart the clocks of correct validators may be (CometBFT's default)."""
MESSAGE_DELAY_NS = 15 * 10**9
"""How long a proposal may travel (CometBFT's default); each round allows a tenth more."""
NO_GAS_LIMIT = -1


def timely(
    proposal_time_ns: int,
    now_ns: int,
    round_: int = 0,
    precision_ns: int = PRECISION_NS,
    delay_ns: int = MESSAGE_DELAY_NS,
) -> bool:
    """Whether a proposal that arrives now was made by a clock that agrees with ours."""
    for _ in range(round_):
        delay_ns += delay_ns // 10
        if delay_ns > 10**18:
            break
    return proposal_time_ns - precision_ns <= now_ns <= proposal_time_ns + delay_ns + precision_ns


@dataclass(frozen=True, slots=True)
class ChainState:
    """After block `last_height` (0 before the first). `validators` decide the next block, at `last_height + 1`."""

    chain_id: str
    last_height: int
    last_block_id: BlockId
    last_time_ns: int
    last_validators: ValidatorSet
    validators: ValidatorSet
    next_validators: ValidatorSet
    app_hash: bytes
    last_results_hash: bytes
    consensus_hash: bytes
    app_version: int = 0

    @property
    def height(self) -> int:
        return self.last_height + 1


def genesis_state(chain_id: str, time_ns: int, validators: Sequence[Validator], app_hash: bytes) -> ChainState:
    """Before block one. Raises InvalidInput on an impossible validator set (`bad_validator_change`) or chain id."""
    if not 0 < len(chain_id.encode()) <= MAX_CHAIN_ID_LENGTH:
        raise InvalidInput(f"chain id {chain_id!r} must have 1 to {MAX_CHAIN_ID_LENGTH} bytes", code="bad_chain_id")
    first = ValidatorSet.create(validators)
    return ChainState(
        chain_id=chain_id,
        last_height=0,
        last_block_id=NIL_BLOCK_ID,
        last_time_ns=time_ns,
        last_validators=ValidatorSet(()),
        validators=first,
        next_validators=first.rotate(),
        app_hash=app_hash,
        last_results_hash=results_hash(()),
        consensus_hash=consensus_params_hash(MAX_BLOCK_BYTES, NO_GAS_LIMIT),
    )


EvidenceCheck: TypeAlias = Callable[[ChainState, Sequence[DuplicateVoteEvidence]], None]
"""`EvidencePool.check`: raises InvalidInput (`bad_evidence`) where a block that follows the state may not hold this."""


def no_evidence(_: ChainState, evidence: Sequence[DuplicateVoteEvidence]) -> None:
    """Of whoever knows no earlier height. Raises InvalidInput (`bad_evidence`) on any."""
    if evidence:
        raise InvalidInput("nothing is known here of the heights this evidence is about", code="bad_evidence")


def make_block(
    state: ChainState,
    txs: Sequence[bytes],
    last_commit: Commit,
    time_ns: int,
    proposer_address: bytes,
    evidence: Sequence[DuplicateVoteEvidence] = (),
) -> Block:
    """The next block. A clock that stands before the last block's time is moved just past it."""
    header = Header(
        version_block=BLOCK_PROTOCOL,
        version_app=state.app_version,
        chain_id=state.chain_id,
        height=state.height,
        time_ns=max(time_ns, state.last_time_ns + 1),
        last_block_id=state.last_block_id,
        last_commit_hash=commit_hash(last_commit),
        data_hash=data_hash(txs),
        validators_hash=validators_hash(state.validators),
        next_validators_hash=validators_hash(state.next_validators),
        consensus_hash=state.consensus_hash,
        app_hash=state.app_hash,
        last_results_hash=state.last_results_hash,
        evidence_hash=evidence_hash(evidence),
        proposer_address=proposer_address,
    )
    return Block(header, Data(tuple(txs)), last_commit, tuple(evidence))


def check_block(state: ChainState, block: Block, check_evidence: EvidenceCheck = no_evidence) -> None:
    """That the block may follow this state. Raises InvalidInput: `bad_block` naming the field, `bad_commit` or
    `bad_evidence`.

    The transactions themselves are the application's to judge.
    """
    header = block.header
    if state.validators.find(header.proposer_address) is None:
        raise InvalidInput("the block's proposer is not a validator of its height", code="bad_block")
    if header.time_ns <= state.last_time_ns:
        raise InvalidInput("the block's time is not after the block before it", code="bad_block")
    expected = make_block(
        state, block.data.txs, block.last_commit, header.time_ns, header.proposer_address, block.evidence
    ).header
    for name in Header.__slots__:
        if getattr(header, name) != getattr(expected, name):
            raise InvalidInput(f"the block's {name} is not what this chain's state demands", code="bad_block")
    if state.last_height > 0:
        verify_commit(state.chain_id, state.last_validators, state.last_block_id, state.last_height, block.last_commit)
    elif block.last_commit != EMPTY_COMMIT:
        raise InvalidInput("the first block can have no commit before it", code="bad_block")
    check_evidence(state, block.evidence)


def advance(
    state: ChainState,
    block: Block,
    block_id: BlockId,
    results: Sequence[TxResult],
    app_hash: bytes,
    validator_updates: Sequence[Validator] = (),
) -> ChainState:
    """The state after a decided block was executed. `validator_updates` take effect two heights later.

    Raises InvalidInput (`bad_validator_change`) on an impossible update.
    """
    assert block.header.height == state.height
    return replace(
        state,
        last_height=block.header.height,
        last_block_id=block_id,
        last_time_ns=block.header.time_ns,
        last_validators=state.validators,
        validators=state.next_validators,
        next_validators=state.next_validators.next_height(validator_updates),
        app_hash=app_hash,
        last_results_hash=results_hash(results),
    )
