"""The invariants, checked as things happen, by code of its own: it counts quorums and tokens without the production's.

- agreement: no two honest machines decide differently (unless liars hold a third: then see accountability).
- validity: a decided block may follow its chain, > 2/3 signed it, and clients submitted each of its transactions.
- one state: the same app hash after the same height everywhere; the tokens' sum never changes.
- signatures: nothing that leaves an honest machine contradicts what left it before, crashes or not.
- lock rules: an honest precommit for v in round r stands on > 2/3 prevotes for v in r that it has received; an honest
  prevote for w after its precommit for v in round l stands on > 2/3 prevotes for w in one round of [l, r).
- blame: evidence never names an honest validator; when two blocks are decided at a height, those whom
  `accountability.accuse` names hold a third of the power or more.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from talkoo_consensus.accountability import accuse, accused_power
from talkoo_consensus.chain import ChainState, check_block
from talkoo_consensus.encoding import decode_proposal, decode_vote
from talkoo_consensus.types import BlockId, BlockIdFlag, Commit, SignedType, Vote
from talkoo_consensus.validators import ValidatorSet
from talkoo_consensus.verify import verify_commit, vote_of_commit

from talkoo_core.errors import InvalidInput
from talkoo_sim.consensus.machine import CHAIN_ID, StoredBlock
from talkoo_sim.consensus.tokens import SUPPLY, Balances


class InvariantBroken(AssertionError):
    """What was broken, with the seed, how to run it again, and the last events."""


class Forked(Exception):
    """Two honest machines decided differently, as may happen where liars hold a third or more."""

    def __init__(self, height: int) -> None:
        super().__init__(f"two decisions at height {height}")
        self.height = height


@dataclass(slots=True)
class _Memory:
    """Of one honest machine, across its crashes. `polkas`: prevoters by height, round and value."""

    said: dict[tuple[int, int, int], BlockId] = field(default_factory=dict)
    polkas: dict[tuple[int, int, BlockId], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    locks: dict[int, tuple[BlockId, int]] = field(default_factory=dict)


class Judge:
    """`honest`: addresses of validators that keep the rules. `submitted` grows as clients submit."""

    def __init__(self, honest: frozenset[bytes], *, forks_allowed: bool) -> None:
        self.honest = honest
        self.forks_allowed = forks_allowed
        self.submitted: set[bytes] = set()
        self.decisions: dict[int, BlockId] = {}
        self.validators: dict[int, ValidatorSet] = {}
        self.app_hashes: dict[int, bytes] = {}
        self.votes: dict[int, dict[Vote, None]] = defaultdict(dict)
        self.accused: set[bytes] = set()
        self.prevotes_on_locks = 0
        """How many prevotes contradicted an earlier precommit, each with its proof: what the lock rule allows."""
        self._memories: dict[int, _Memory] = defaultdict(_Memory)

    def heard(self, index: int, vote: Vote, *, own: bool) -> None:
        """An honest machine takes a vote into account. Its own one counts for others only once it has left."""
        if not own:
            self.votes[vote.height][vote] = None
        if vote.type is SignedType.PREVOTE and not vote.block_id.is_nil:
            self._memories[index].polkas[(vote.height, vote.round, vote.block_id)].add(vote.validator_address)

    def said_vote(self, index: int, raw: bytes, chain: ChainState) -> None:
        """A vote leaves an honest machine, which may have decided its height in the meantime."""
        vote = decode_vote(raw)
        validators = chain.validators if vote.height == chain.height else chain.last_validators
        memory = self._memories[index]
        place = (vote.height, vote.round, int(vote.type))
        if place in memory.said:
            self._same(place, memory.said[place], vote.block_id)
            return
        memory.said[place] = vote.block_id
        self.votes[vote.height][vote] = None
        if vote.block_id.is_nil:
            return
        if vote.type is SignedType.PRECOMMIT:
            if not self._has_polka(memory, vote, vote.round, validators):
                raise InvariantBroken(f"lock rules: node {index} precommits {_told(vote)} without prevotes for it")
            memory.locks[vote.height] = vote.block_id, vote.round
        elif vote.height in memory.locks and memory.locks[vote.height][0] != vote.block_id:
            locked, since = memory.locks[vote.height]
            if not any(self._has_polka(memory, vote, round_, validators) for round_ in range(since, vote.round)):
                raise InvariantBroken(
                    f"lock rules: node {index} prevotes {_told(vote)} though it has precommitted {locked} in round "
                    f"{since} and no prevotes allowed it"
                )
            self.prevotes_on_locks += 1

    def said_proposal(self, index: int, raw: bytes) -> None:
        proposal = decode_proposal(raw)
        place = (proposal.height, proposal.round, int(SignedType.PROPOSAL))
        self._same(place, self._memories[index].said.setdefault(place, proposal.block_id), proposal.block_id)

    def decides(self, index: int, chain: ChainState, stored: StoredBlock) -> None:
        """An honest machine is about to execute a block on `chain`."""
        height = chain.height
        try:
            verify_commit(CHAIN_ID, chain.validators, stored.block_id, height, stored.commit)
        except InvalidInput as error:
            raise InvariantBroken(f"validity: node {index} decided what is not signed: {error}") from error
        self._hear_commit(stored.commit)
        first = self.decisions.get(height)
        if first is None:
            self._check_valid(index, chain, stored)
            self.decisions[height] = stored.block_id
            self.validators[height] = chain.validators
        elif first != stored.block_id:
            if self.forks_allowed:
                raise Forked(height)
            raise InvariantBroken(f"agreement: two decisions at height {height}, {first} and {stored.block_id}")

    def executed(self, index: int, chain: ChainState, balances: Balances) -> None:
        if sum(balances) != SUPPLY or min(balances) < 0:
            raise InvariantBroken(f"tokens: node {index} holds {balances}, in sum {sum(balances)} of {SUPPLY}")
        first = self.app_hashes.setdefault(chain.last_height, chain.app_hash)
        if first != chain.app_hash:
            raise InvariantBroken(f"one state: node {index} has another app hash after block {chain.last_height}")

    def accuses(self, index: int, address: bytes) -> None:
        """An honest machine tells its peers of evidence."""
        self.accused.add(address)
        if address in self.honest:
            raise InvariantBroken(f"blame: node {index} has evidence against an honest validator")

    def settle(self) -> None:
        """At the end: nobody honest is accused, whatever was voted."""
        for height, validators in sorted(self.validators.items()):
            self._accuse(height, validators)

    def settle_fork(self, height: int) -> int:
        """After two decisions at a height: the power that is named, of which a third must be."""
        validators = self.validators[height]
        power = self._accuse(height, validators)
        if 3 * power < validators.total_power:
            raise InvariantBroken(
                f"accountability: a fork at height {height} names power {power} of {validators.total_power}"
            )
        return power

    def _accuse(self, height: int, validators: ValidatorSet) -> int:
        accusations = accuse(validators, self.votes[height])
        for accusation in accusations:
            self.accused.add(accusation.validator_address)
            if accusation.validator_address in self.honest:
                raise InvariantBroken(
                    f"accountability: {accusation.kind} of an honest validator at height {height}: "
                    f"{_told(accusation.vote_a)}, then {_told(accusation.vote_b)}"
                )
        return accused_power(validators, accusations)

    def _hear_commit(self, commit: Commit) -> None:
        for place, sig in enumerate(commit.signatures):
            if sig.flag is not BlockIdFlag.ABSENT:
                self.votes[commit.height][vote_of_commit(commit, place, sig)] = None

    def _check_valid(self, index: int, chain: ChainState, stored: StoredBlock) -> None:
        for tx in stored.block.data.txs:
            if tx not in self.submitted:
                raise InvariantBroken(f"validity: node {index} decided a transaction that nobody submitted")
        for evidence in stored.block.evidence:
            self.accuses(index, evidence.validator_address)
        try:
            check_block(chain, stored.block, lambda *_: None)
        except InvalidInput as error:
            raise InvariantBroken(f"validity: node {index} decided a block that is not valid: {error}") from error

    def _has_polka(self, memory: _Memory, vote: Vote, round_: int, validators: ValidatorSet) -> bool:
        voters = memory.polkas.get((vote.height, round_, vote.block_id), set())
        power = sum(validator.power for validator in validators.validators if validator.address in voters)
        return power * 3 > sum(validator.power for validator in validators.validators) * 2

    def _same(self, place: tuple[int, int, int], before: BlockId, now: BlockId) -> None:
        if before != now:
            raise InvariantBroken(
                f"signatures: an honest validator signed twice for height, round, type {place}: {before} and {now}"
            )


def _told(vote: Vote) -> str:
    return f"{vote.block_id} at height {vote.height}, round {vote.round}"
