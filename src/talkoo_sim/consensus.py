"""Validators that run the production consensus driver over a simulated network, clock and disk, all from one seed.

Until `calm_at_ms` messages are delayed, reordered and dropped, and correct validators crash, also between writing an
event to their log and acting on it; later the network is merely slow (the partial synchrony that Tendermint needs).
Validators with less than a third of the power stay silent or send different votes and blocks to different peers.
Checked all along: no two correct validators decide differently, what is decided is valid and properly signed, no
correct validator ever signs two votes of one round; in the end, all of them have reached the target height.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from dataclasses import dataclass, field, replace

from talkoo_consensus.chain import ChainState, advance, check_block, genesis_state, make_block, timely
from talkoo_consensus.driver import (
    BuildValue,
    CheckValue,
    Command,
    Decide,
    Driver,
    EndHeight,
    Event,
    ProposalReceived,
    Redeliver,
    ReportEvidence,
    ScheduleTimeout,
    SignAndSendProposal,
    SignAndSendVote,
    StartHeight,
    TimeoutElapsed,
    ValueBuilt,
    ValueChecked,
    VoteReceived,
)
from talkoo_consensus.encoding import block_id_of, proposal_sign_bytes, vote_sign_bytes
from talkoo_consensus.types import (
    NIL_BLOCK_ID,
    Block,
    BlockId,
    Commit,
    Proposal,
    SignedType,
    TxResult,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import is_block_of, verify_commit, verify_proposal, verify_vote

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey

CHAIN_ID = "simulated"
GENESIS_TIME_NS = 1_700_000_000 * 10**9
MAX_EVENTS = 200_000
GOSSIP_MS = 400


class InvariantBroken(AssertionError):
    """The seed that broke it is in the message; running it again shows the same."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed draws. Times in simulated milliseconds; `byzantine`: how many validators do not follow the rules."""

    seed: int
    validators: int
    heights: int
    byzantine: int
    equivocate: bool
    drop: float
    crash: float
    delay_ms: tuple[int, int]
    calm_at_ms: int
    deadline_ms: int

    @classmethod
    def draw(cls, seed: int, validators: int = 4, heights: int = 4) -> Scenario:
        dice = random.Random(seed)  # noqa: S311 - repeatable by design
        slowest = dice.choice((20, 200, 1500, 6000))
        return cls(
            seed=seed,
            validators=validators,
            heights=heights,
            byzantine=dice.randint(0, (validators - 1) // 3),
            equivocate=dice.random() < 0.7,
            drop=dice.choice((0.0, 0.1, 0.6)),
            crash=dice.choice((0.0, 0.01, 0.05)),
            delay_ms=(1, slowest),
            calm_at_ms=dice.choice((0, 5_000, 30_000)),
            deadline_ms=600_000,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """`digest` covers every decision and the number of events: equal seeds give equal digests."""

    seed: int
    events: int
    simulated_ms: int
    most_rounds: int
    crashes: int
    dropped: int
    evidence: int
    digest: str


@dataclass(frozen=True, slots=True)
class _DecidedBlock:
    """What a validator that is behind fetches."""

    block: Block
    block_id: BlockId
    commit: Commit


@dataclass(slots=True)
class _Node:
    """`driver` is what a crash loses; the rest is on disk."""

    index: int
    key: PrivateKey
    state: ChainState
    byzantine: bool
    skew_ns: int
    driver: Driver
    log: list[Event] = field(default_factory=list)
    signed: dict[tuple[int, int, int], Vote | Proposal] = field(default_factory=dict)
    store: list[_DecidedBlock] = field(default_factory=list)
    incarnation: int = 0
    up: bool = True
    stopped: bool = False

    @property
    def address(self) -> bytes:
        return self.key.public.address


class Simulation:
    """One scenario. `run()` returns its outcome or raises InvariantBroken."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now_ms = 0
        self._dice = random.Random(scenario.seed + 1)  # noqa: S311 - repeatable by design
        self._queue: list[tuple[int, int, _Node, int, Event | _DecidedBlock | None]] = []
        self._sequence = 0
        self._events = self._crashes = self._dropped = self._most_rounds = 0
        self._accused: set[bytes] = set()
        self._verified: dict[tuple[int, Vote | Proposal], bool] = {}
        self.decisions: dict[int, BlockId] = {}
        keys = [PrivateKey.from_seed(bytes([i, 77]) + bytes(30)) for i in range(scenario.validators)]
        validators = [Validator.of(key.public.raw, 10) for key in keys]
        state = genesis_state(CHAIN_ID, GENESIS_TIME_NS, validators, b"")
        self.nodes = [
            _Node(
                index=i,
                key=key,
                state=state,
                byzantine=i < scenario.byzantine,
                skew_ns=self._dice.randint(-(10**8), 10**8),
                driver=Driver(key.public.address),
            )
            for i, key in enumerate(keys)
        ]

    @property
    def correct(self) -> list[_Node]:
        return [node for node in self.nodes if not node.byzantine]

    @property
    def _calm(self) -> bool:
        return self.now_ms >= self.scenario.calm_at_ms

    def run(self) -> Outcome:
        self.start()
        while any(node.state.last_height < self.scenario.heights for node in self.correct):
            self._next()
            if self.now_ms > self.scenario.deadline_ms or self._events > MAX_EVENTS:
                heights = [other.state.last_height for other in self.correct]
                raise self._broken(f"no progress: heights {heights} after {self.now_ms} ms and {self._events} events")
        return self._outcome()

    def start(self) -> None:
        for node in self.nodes:
            self._feed(node, StartHeight(1, node.state.validators))
            self._at(self._dice.randint(1, GOSSIP_MS), node, None, any_incarnation=True)

    def run_until(self, time_ms: int) -> list[int]:
        """Let simulated time pass; the height of every validator then. For tests that stop and resume validators."""
        while self._queue and self._queue[0][0] <= time_ms:
            self._next()
        return [node.state.last_height for node in self.nodes]

    def stop(self, index: int) -> None:
        """A crash that lasts until `resume`."""
        self.nodes[index].stopped = True
        self._crash(self.nodes[index])

    def resume(self, index: int) -> None:
        self.nodes[index].stopped = False

    def _next(self) -> None:
        self._events += 1
        self.now_ms, _, node, incarnation, what = heapq.heappop(self._queue)
        if what is None:
            self._tick(node)
        elif node.up and incarnation in (-1, node.incarnation):
            self._arrive(node, what)

    def _outcome(self) -> Outcome:
        named = {node.address for node in self.correct}
        if self._accused & named:
            raise self._broken("a correct validator signed two votes of one round")
        trace = [f"{height}:{block_id.hash.hex()}" for height, block_id in sorted(self.decisions.items())]
        digest = hashlib.sha256("\n".join([*trace, str(self._events), str(self.now_ms)]).encode()).hexdigest()
        return Outcome(
            self.scenario.seed,
            self._events,
            self.now_ms,
            self._most_rounds,
            self._crashes,
            self._dropped,
            len(self._accused),
            digest,
        )

    def _broken(self, why: str) -> InvariantBroken:
        return InvariantBroken(f"seed {self.scenario.seed} with {self.scenario.validators} validators: {why}")

    # Network, clock and disk

    def _at(
        self, delay_ms: int, node: _Node, what: Event | _DecidedBlock | None, *, any_incarnation: bool = False
    ) -> None:
        self._sequence += 1
        incarnation = -1 if any_incarnation else node.incarnation
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, node, incarnation, what))

    def _send(self, node: _Node, what: Event | _DecidedBlock) -> None:
        if not self._calm and self._dice.random() < self.scenario.drop:
            self._dropped += 1
            return
        self._at(self._dice.randint(*self.scenario.delay_ms), node, what, any_incarnation=True)

    def _tick(self, node: _Node) -> None:
        """Restart after a crash; otherwise tell peers what they lack, as the ledger's gossip does."""
        self._at(GOSSIP_MS, node, None, any_incarnation=True)
        if node.stopped:
            return
        if not node.up:
            self._restart(node)
            return
        if node.byzantine:
            return
        for peer in self.nodes:
            if peer is node or not peer.up:
                continue
            if peer.driver.height < node.driver.height:
                for held in node.store[peer.state.last_height : peer.state.last_height + 1]:
                    self._send(peer, held)
            elif peer.driver.height == node.driver.height:
                known = set(map(_identity, peer.driver.messages()))
                for message in node.driver.messages():
                    if _identity(message) not in known:
                        self._send(peer, message)

    def _crash(self, node: _Node) -> None:
        self._crashes += 1
        node.up = False
        node.incarnation += 1

    def _restart(self, node: _Node) -> None:
        """A new driver on the logged events; every command is carried out again."""
        node.up = True
        node.driver = Driver(node.address)
        for event in list(node.log):
            for command in node.driver.step(event):
                self._carry_out(node, command)

    def _feed(self, node: _Node, event: Event) -> None:
        if isinstance(event, StartHeight):
            node.log.clear()
        node.log.append(event)
        for command in node.driver.step(event):
            if not self._calm and not node.byzantine and self._dice.random() < self.scenario.crash:
                self._crash(node)
                return
            self._carry_out(node, command)
            if not node.up:
                return

    # What the shell does

    def _arrive(self, node: _Node, what: Event | _DecidedBlock) -> None:
        if isinstance(what, _DecidedBlock):
            self._catch_up(node, what)
            return
        if isinstance(what, StartHeight) and what.height <= node.driver.height:
            return  # a decided block that was fetched came first
        if isinstance(what, VoteReceived) and not self._is_signed(node, what.vote):
            return
        if isinstance(what, ProposalReceived):
            if not self._is_signed(node, what.proposal) or not is_block_of(what.proposal, what.block):
                return
            now_ns = GENESIS_TIME_NS + self.now_ms * 10**6 + node.skew_ns
            what = replace(what, timely=timely(what.proposal.timestamp_ns, now_ns, what.proposal.round))
        self._feed(node, what)

    def _validators_at(self, node: _Node, height: int) -> ValidatorSet | None:
        state = node.state
        known = {
            state.last_height: state.last_validators,
            state.height: state.validators,
            state.height + 1: state.next_validators,
        }
        return known.get(height)

    def _is_signed(self, node: _Node, message: Vote | Proposal) -> bool:
        validators = self._validators_at(node, message.height)
        if validators is None:
            return False
        signer = (
            validators.at(message.validator_index)
            if isinstance(message, Vote)
            else validators.proposer_of_round(message.round)
        )
        if signer is None:
            return False
        key = (signer.power, message)
        if key not in self._verified:
            self._verified[key] = (
                verify_vote(message, CHAIN_ID, signer)
                if isinstance(message, Vote)
                else verify_proposal(message, CHAIN_ID, signer)
            )
        return self._verified[key]

    def _carry_out(self, node: _Node, command: Command) -> None:
        match command:
            case BuildValue():
                self._build(node, command)
            case CheckValue():
                self._check(node, command)
            case SignAndSendProposal(proposal, block):
                self._propose(node, proposal, block)
            case SignAndSendVote(vote):
                self._vote(node, vote)
            case ScheduleTimeout(height, round_, step, duration_ms):
                self._most_rounds = max(self._most_rounds, round_ + 1)
                self._at(duration_ms, node, TimeoutElapsed(height, round_, step))
            case Decide(height, _, block_id, block, commit):
                self._decide(node, height, block_id, block, commit)
            case EndHeight(height, commit):
                if node.driver.height == height:
                    self._at(1, node, StartHeight(height + 1, node.state.validators, commit))
            case Redeliver(message):
                self._at(0, node, message)
            case ReportEvidence(evidence):
                self._accused.add(evidence.first.validator_address)

    def _build(self, node: _Node, command: BuildValue) -> None:
        if node.state.height != command.height:
            return
        now_ns = GENESIS_TIME_NS + self.now_ms * 10**6 + node.skew_ns
        tx = b"power %d %d" % (self._dice.randrange(self.scenario.validators), 10 + self._dice.randrange(3))
        block = make_block(node.state, [tx], command.last_commit, now_ns, node.address)
        self._at(2, node, ValueBuilt(command.height, command.round, block, block_id_of(block)))

    def _check(self, node: _Node, command: CheckValue) -> None:
        valid = True
        if node.state.height == command.height:
            try:
                check_block(node.state, command.block)
            except InvalidInput:
                valid = False
        self._at(2, node, ValueChecked(command.height, command.round, command.block_id, valid))

    def _signed_vote(self, node: _Node, vote: Vote) -> Vote:
        stamped = replace(vote, timestamp_ns=GENESIS_TIME_NS + self.now_ms * 10**6 + node.skew_ns)
        return replace(stamped, signature=node.key.sign(vote_sign_bytes(CHAIN_ID, stamped)))

    def _signed_proposal(self, node: _Node, proposal: Proposal) -> Proposal:
        return replace(proposal, signature=node.key.sign(proposal_sign_bytes(CHAIN_ID, proposal)))

    def _vote(self, node: _Node, vote: Vote) -> None:
        place = (vote.height, vote.round, int(vote.type))
        if node.byzantine:
            self._misvote(node, vote)
            return
        stored = node.signed.get(place)
        if stored is None:
            stored = node.signed[place] = self._signed_vote(node, vote)
        assert isinstance(stored, Vote)
        if stored.block_id != vote.block_id:
            raise self._broken("a restarted driver asked for another vote than before its crash")
        self._broadcast(node, VoteReceived(stored))

    def _propose(self, node: _Node, proposal: Proposal, block: Block) -> None:
        if node.byzantine:
            self._mispropose(node, proposal, block)
            return
        place = (proposal.height, proposal.round, int(SignedType.PROPOSAL))
        if place not in node.signed:
            node.signed[place] = self._signed_proposal(node, proposal)
        stored = node.signed[place]
        assert isinstance(stored, Proposal)
        if stored.block_id != proposal.block_id:
            raise self._broken("a restarted driver asked for another proposal than before its crash")
        self._broadcast(node, ProposalReceived(stored, block))

    def _broadcast(self, node: _Node, event: VoteReceived | ProposalReceived) -> None:
        self._at(0, node, event)
        for peer in self.nodes:
            if peer is not node:
                self._send(peer, event)

    def _misvote(self, node: _Node, vote: Vote) -> None:
        if not self.scenario.equivocate:
            return
        others = [NIL_BLOCK_ID, vote.block_id, *node.driver.proposed(vote.round)]
        for peer in self.nodes:
            chosen = replace(vote, block_id=self._dice.choice(others))
            self._send(peer, VoteReceived(self._signed_vote(node, chosen)))

    def _mispropose(self, node: _Node, proposal: Proposal, block: Block) -> None:
        if not self.scenario.equivocate:
            return
        twin = make_block(node.state, [b"twin"], block.last_commit, block.header.time_ns, node.address)
        other = replace(proposal, block_id=block_id_of(twin))
        events = [
            ProposalReceived(self._signed_proposal(node, proposal), block),
            ProposalReceived(self._signed_proposal(node, other), twin),
        ]
        for peer in self.nodes:
            for event in self._dice.sample(events, self._dice.randint(1, 2)):
                self._send(peer, event)

    def _decide(self, node: _Node, height: int, block_id: BlockId, block: Block, commit: Commit) -> None:
        if node.state.height != height:
            return
        try:
            check_block(node.state, block)
            verify_commit(CHAIN_ID, node.state.validators, block_id, height, commit)
        except InvalidInput as error:
            raise self._broken(f"validator {node.index} decided what is not valid: {error}") from error
        if not node.byzantine and self.decisions.setdefault(height, block_id) != block_id:
            raise self._broken(f"two decisions at height {height}")
        node.store.append(_DecidedBlock(block, block_id, commit))
        app_hash = hashlib.sha256(node.state.app_hash + block_id.hash).digest()
        node.state = advance(node.state, block, block_id, [TxResult()], app_hash, self._changes(block))

    def _changes(self, block: Block) -> list[Validator]:
        """A block's transaction sets a validator's power; those that break the rules keep theirs, below a third."""
        _, _, rest = block.data.txs[0].partition(b"power ")
        if not rest:
            return []
        index, power = (int(part) for part in rest.split())
        target = self.nodes[index]
        return [] if target.byzantine else [Validator.of(target.key.public.raw, power)]

    def _catch_up(self, node: _Node, held: _DecidedBlock) -> None:
        height = held.block.header.height
        if height != node.state.height:
            return
        verify_commit(CHAIN_ID, node.state.validators, held.block_id, height, held.commit)
        self._decide(node, height, held.block_id, held.block, held.commit)
        self._feed(node, StartHeight(height + 1, node.state.validators, held.commit))


def _identity(message: ProposalReceived | VoteReceived) -> tuple[object, ...]:
    if isinstance(message, VoteReceived):
        vote = message.vote
        return vote.type, vote.round, vote.validator_index, vote.block_id
    return SignedType.PROPOSAL, message.proposal.round, -1, message.proposal.block_id


def run_seed(seed: int, validators: int = 4, heights: int = 4) -> Outcome:
    return Simulation(Scenario.draw(seed, validators, heights)).run()
