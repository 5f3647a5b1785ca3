"""The driver: Tendermint (arXiv 1807.04938) as a machine without input or output. Events in, commands out.

    driver = Driver(address, timeouts)              # address: our validator's 20 bytes; not in the set: follow only
    commands = driver.step(event)                   # deterministic: the same events give the same commands

The loop around it: log the event → step → sync the log → carry out the commands in order. After a crash, a new
Driver is fed the logged events of the unfinished height and stands where the old one stood; its commands are carried
out again (signing must return the stored signature for the same height, round and step).
ValueBuilt need not be logged, nor ValueChecked where CheckValue is answered before any other event and always alike:
a lock rests on that answer, and a driver that forgot a lock could help to decide twice.

    StartHeight(h) ─► … BuildValue → ValueBuilt → SignAndSendProposal → ProposalReceived (own or a peer's)
        → CheckValue → ValueChecked → SignAndSendVote(prevote) → VoteReceived … → SignAndSendVote(precommit) → …
        → Decide(h)  execute and store the block          ┐ in this order; both once for a height
        → EndHeight(h)  after commit_ms, or once every    ┘
          validator has precommitted: send StartHeight(h+1) with the commit given there

Votes and proposals for height h+1 that arrive early are held (bounded) and given back by StartHeight(h+1) as Redeliver
commands, so that the log of h+1 holds them too (without them a restarted driver would want to vote otherwise than it
did); those of other heights are dropped. A node that is further behind fetches decided blocks with their commits
(`verify.verify_commit`), executes them, and sends StartHeight for the one after, at any time; a StartHeight that is not
later than the current height is ignored.

`missing` names a block that the votes prove wanted and that has not arrived; `messages()` is what a peer that has just
connected needs in order to follow the current height. Votes carry no extension of ours: whoever signs may add one.

Bounds: votes (see `votes`), MAX_PROPOSALS_PER_ROUND, MAX_HELD_VOTES_PER_VALIDATOR, MAX_HELD_PROPOSALS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from talkoo_consensus.events import (
    BuildValue,
    CheckValue,
    Command,
    Decide,
    EndHeight,
    Event,
    ProposalReceived,
    Redeliver,
    ReportEvidence,
    ScheduleTimeout,
    SignAndSendProposal,
    SignAndSendVote,
    StartHeight,
    Step,
    TimeoutElapsed,
    Timeouts,
    ValueBuilt,
    ValueChecked,
    VoteReceived,
)
from talkoo_consensus.round import (
    Arm,
    Build,
    Decided,
    FreshProposal,
    Input,
    NextRound,
    NilRound,
    Output,
    PolkaAny,
    PolkaNil,
    PolkaValue,
    Precommit,
    PrecommitAny,
    PrecommitValue,
    Prevote,
    ProposalWithPolka,
    Repropose,
    RoundState,
    SkipRound,
    StartRound,
    Timeout,
    apply,
)
from talkoo_consensus.types import (
    EMPTY_COMMIT,
    NIL_BLOCK_ID,
    Block,
    BlockId,
    Commit,
    Proposal,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import ValidatorSet
from talkoo_consensus.votes import VoteKeeper

__all__ = [
    "BuildValue",
    "CheckValue",
    "Command",
    "Decide",
    "Driver",
    "EndHeight",
    "Event",
    "ProposalReceived",
    "Redeliver",
    "ReportEvidence",
    "ScheduleTimeout",
    "SignAndSendProposal",
    "SignAndSendVote",
    "StartHeight",
    "Step",
    "TimeoutElapsed",
    "Timeouts",
    "ValueBuilt",
    "ValueChecked",
    "VoteReceived",
]

MAX_PROPOSALS_PER_ROUND: Final = 2
"""A proposer that proposes more than this in one round is heard only for values that f+1 have voted for."""
MAX_FUTURE_PROPOSAL_ROUNDS: Final = 8
MAX_HELD_VOTES_PER_VALIDATOR: Final = 8
MAX_HELD_PROPOSALS: Final = 4
MAX_HELD_MESSAGES: Final = 1024


class Driver:
    """One validator's (or follower's) view of one height at a time. See the module's docstring."""

    def __init__(self, address: bytes, timeouts: Timeouts | None = None) -> None:
        self._address = address
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._state = RoundState(0)
        self._votes = VoteKeeper(0, ValidatorSet(()))
        self._last_commit = EMPTY_COMMIT
        self._proposals: dict[int, list[ProposalReceived]] = {}
        self._blocks: dict[BlockId, Block] = {}
        self._verdicts: dict[BlockId, bool | None] = {}
        self._ended = False
        self._proposed_round = -1
        self._held: list[ProposalReceived | VoteReceived] = []
        self._commands: list[Command] = []

    @property
    def height(self) -> int:
        return self._state.height

    @property
    def round(self) -> int:
        return self._state.round

    @property
    def step_of_round(self) -> Step:
        return self._state.step

    @property
    def decided(self) -> BlockId | None:
        """The decision of the current height."""
        return None if self._state.decision is None else self._state.decision[0]

    @property
    def locked(self) -> tuple[BlockId, int] | None:
        return self._state.locked

    @property
    def valid(self) -> tuple[BlockId, int] | None:
        return self._state.valid

    @property
    def missing(self) -> tuple[int, BlockId] | None:
        """Round and id of a block with 2f+1 votes whose proposal has not arrived: ask a peer for it."""
        if self._state.decision is not None:
            return None
        for round_ in reversed(self._votes.rounds()):
            for type_ in (SignedType.PRECOMMIT, SignedType.PREVOTE):
                value = self._votes.quorum_value(round_, type_)
                if value is not None and not value.is_nil and self._proposal(round_, value) is None:
                    return round_, value
        return None

    def messages(self) -> tuple[ProposalReceived | VoteReceived, ...]:
        """Every proposal and vote of the current height, for a peer that has just connected."""
        proposals = [proposal for _, held in sorted(self._proposals.items()) for proposal in held]
        return (*proposals, *(VoteReceived(vote) for vote in self._votes.votes()))

    def holds(self, vote: Vote) -> bool:
        """Whether this vote is held. One that found no room is worth hearing again in a later round: a proposal may
        rest on it (line 28), or a decision."""
        if vote.height == self.height:
            return self._votes.holds(vote)
        return VoteReceived(vote) in self._held

    def has_quorum_of_any(self, round_: int, type_: SignedType) -> bool:
        """Whether 2f+1 have voted in a round of the current height, for whatever."""
        return self._votes.has_quorum_of_any(round_, type_)

    def all_voted(self, round_: int, type_: SignedType) -> bool:
        return self._votes.all_voted(round_, type_)

    def transcript(self) -> tuple[Vote, ...]:
        """Every vote of a height in which a round failed: who locked and what allowed later votes can be told from them
        (`accountability`). Empty for other heights, whose commit says all."""
        return tuple(self._votes.votes()) if self.round or len(self._votes.rounds()) > 1 else ()

    def proposed(self, round_: int) -> tuple[BlockId, ...]:
        """Ids of the blocks proposed in a round, as far as they have arrived."""
        return tuple(event.proposal.block_id for event in self._proposals.get(round_, []))

    def commit(self) -> Commit | None:
        """The decision's commit with every precommit seen so far."""
        if self._state.decision is None:
            return None
        value, round_ = self._state.decision
        return self._votes.commit(round_, value)

    def step(self, event: Event) -> tuple[Command, ...]:
        """Take one event; the commands are to be carried out in order."""
        self._commands = []
        match event:
            case StartHeight(height) if height > self.height:
                self._start_height(event)
            case ProposalReceived():
                self._receive_proposal(event)
            case VoteReceived():
                self._receive_vote(event)
            case TimeoutElapsed(height, round_, step) if height == self.height:
                self._time_out(round_, step)
            case ValueBuilt() if event.height == self.height:
                self._propose(event)
            case ValueChecked(height, _, block_id, valid) if height == self.height and block_id in self._verdicts:
                self._verdicts[block_id] = valid
        if self._state.step is not Step.UNSTARTED:
            self._apply_rules()
        return tuple(self._commands)

    # Events

    def _start_height(self, event: StartHeight) -> None:
        self._state = RoundState(event.height)
        self._votes = VoteKeeper(event.height, event.validators)
        self._last_commit = event.last_commit
        self._proposals, self._blocks, self._verdicts = {}, {}, {}
        self._ended, self._proposed_round = False, -1
        self._apply(StartRound(0, self._we_propose(0)))
        self._commands += [Redeliver(message) for message in self._held]
        self._held = []

    def _receive_proposal(self, event: ProposalReceived) -> None:
        proposal = event.proposal
        if proposal.height == self.height + 1:
            self._hold_proposal(event)
            return
        if proposal.height != self.height or self._state.decision is not None:
            return
        if self._proposal(proposal.round, proposal.block_id) is not None:
            return
        wanted = self._votes.is_backed(proposal.block_id)
        held = self._proposals.get(proposal.round, [])
        too_far = proposal.round > self.round + MAX_FUTURE_PROPOSAL_ROUNDS
        if not wanted and (too_far or len(held) >= MAX_PROPOSALS_PER_ROUND):
            return
        self._proposals[proposal.round] = [*held, event]
        self._blocks[proposal.block_id] = event.block
        if proposal.block_id not in self._verdicts:
            self._verdicts[proposal.block_id] = None
            self._commands.append(CheckValue(self.height, proposal.round, proposal.block_id, event.block))

    def _receive_vote(self, event: VoteReceived) -> None:
        vote = event.vote
        if vote.height == self.height + 1:
            self._hold_vote(event)
            return
        changed, conflict = self._votes.add(vote, self.round, vote.block_id in self._blocks)
        if conflict is not None:
            self._commands.append(ReportEvidence(conflict))
        if changed and self._state.decision is not None:
            _, round_ = self._state.decision
            if self._votes.all_voted(round_, SignedType.PRECOMMIT):
                self._end_height()

    def _hold_proposal(self, event: ProposalReceived) -> None:
        held = [message.proposal for message in self._held if isinstance(message, ProposalReceived)]
        if len(held) < MAX_HELD_PROPOSALS and event.proposal not in held:
            self._held.append(event)

    def _hold_vote(self, event: VoteReceived) -> None:
        sender = event.vote.validator_address
        count = sum(isinstance(m, VoteReceived) and m.vote.validator_address == sender for m in self._held)
        if count < MAX_HELD_VOTES_PER_VALIDATOR and len(self._held) < MAX_HELD_MESSAGES and event not in self._held:
            self._held.append(event)

    def _time_out(self, round_: int, step: Step) -> None:
        if step is Step.COMMIT:
            if self._state.decision is not None:
                self._end_height()
            return
        self._apply(Timeout(round_, step))

    def _propose(self, event: ValueBuilt) -> None:
        """Lines 18-19, once the value is there. A late one, or a second one after a restart, is dropped."""
        late = event.round != self.round or self._state.step is not Step.PROPOSE
        if late or self._proposed_round == event.round or not self._we_propose(event.round):
            return
        self._proposed_round = event.round
        self._verdicts[event.block_id] = True
        proposal = Proposal(self.height, event.round, -1, event.block_id, event.block.header.time_ns)
        self._commands.append(SignAndSendProposal(proposal, event.block))

    # Rules

    def _apply_rules(self) -> None:
        """Offer the machine every input whose messages are there, until none changes anything (the paper's `upon`)."""
        progressed = True
        while progressed and self._state.decision is None:
            before = self._state
            for enabled in self._enabled(before.round):
                self._apply(enabled)
                if self._state is not before:
                    break
            progressed = self._state is not before

    def _enabled(self, round_: int) -> Iterator[Input]:
        votes = self._votes
        yield from self._decisions()
        later = votes.skip_round(round_)
        if later is not None:
            yield SkipRound(later, self._we_propose(later))
        for event in self._proposals.get(round_, []):
            yield from self._proposal_inputs(event)
        if votes.has_quorum(round_, SignedType.PREVOTE, NIL_BLOCK_ID):
            yield PolkaNil()
        if votes.has_quorum_of_any(round_, SignedType.PREVOTE):
            yield PolkaAny()
        if all(votes.has_quorum(round_, type_, NIL_BLOCK_ID) for type_ in (SignedType.PREVOTE, SignedType.PRECOMMIT)):
            yield NilRound()
        if votes.has_quorum_of_any(round_, SignedType.PRECOMMIT):
            yield PrecommitAny()

    def _decisions(self) -> Iterator[Input]:
        """Line 49: in any round, past ones included."""
        for round_ in self._votes.rounds():
            value = self._votes.quorum_value(round_, SignedType.PRECOMMIT)
            if value is not None and self._verdicts.get(value) and self._proposal(round_, value) is not None:
                yield PrecommitValue(round_, value)

    def _proposal_inputs(self, event: ProposalReceived) -> Iterator[Input]:
        value, pol_round = event.proposal.block_id, event.proposal.pol_round
        valid = self._verdicts[value]
        if valid is None:
            return
        if pol_round == -1:
            yield FreshProposal(value, valid and event.timely)
        elif self._votes.has_quorum(pol_round, SignedType.PREVOTE, value):
            yield ProposalWithPolka(value, pol_round, valid)
        if valid and self._votes.has_quorum(event.proposal.round, SignedType.PREVOTE, value):
            yield PolkaValue(value)

    def _apply(self, enabled: Input) -> None:
        self._state, outputs = apply(self._state, enabled)
        for output in outputs:
            self._carry_out(output)

    def _carry_out(self, output: Output) -> None:
        height, round_ = self.height, self.round
        match output:
            case Build():
                self._commands.append(BuildValue(height, round_, self._last_commit))
            case Repropose(value, valid_round):
                block = self._blocks[value]
                proposal = Proposal(height, round_, valid_round, value, block.header.time_ns)
                self._commands.append(SignAndSendProposal(proposal, block))
            case Prevote(value):
                self._vote(SignedType.PREVOTE, value)
            case Precommit(value):
                self._vote(SignedType.PRECOMMIT, value)
            case Arm(step):
                self._commands.append(ScheduleTimeout(height, round_, step, self._timeouts.of(step, round_)))
            case NextRound(next_round):
                self._apply(StartRound(next_round, self._we_propose(next_round)))
            case Decided(decided_round, value):
                self._decide(decided_round, value)

    def _vote(self, type_: SignedType, value: BlockId | None) -> None:
        place = self._votes.validators.find(self._address)
        if place is None:
            return
        block_id = NIL_BLOCK_ID if value is None else value
        self._commands.append(
            SignAndSendVote(Vote(type_, self.height, self.round, block_id, 0, self._address, place[0]))
        )

    def _decide(self, round_: int, value: BlockId) -> None:
        commit = self._votes.commit(round_, value)
        self._commands.append(Decide(self.height, round_, value, self._blocks[value], commit))
        if self._votes.all_voted(round_, SignedType.PRECOMMIT):
            self._end_height()
        else:
            self._commands.append(ScheduleTimeout(self.height, round_, Step.COMMIT, self._timeouts.of(Step.COMMIT, 0)))

    def _end_height(self) -> None:
        commit = self.commit()
        if self._ended or commit is None:
            return
        self._ended = True
        self._commands.append(EndHeight(self.height, commit))

    def _we_propose(self, round_: int) -> bool:
        return self._votes.validators.proposer_of_round(round_).address == self._address

    def _proposal(self, round_: int, value: BlockId) -> ProposalReceived | None:
        return next((p for p in self._proposals.get(round_, []) if p.proposal.block_id == value), None)
