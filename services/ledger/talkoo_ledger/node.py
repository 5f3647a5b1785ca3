"""A ledger node: the only loop. Log the input → step → sync the log → send.

Everything that happens to consensus (a peer's message, an elapsed timeout, our own vote) is an item of the inbox; items
are taken in batches. What the driver commands is carried out in order; what leaves the node leaves after one sync of
the log for the whole batch, so a crash forgets nothing that anybody has seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState, check_block, make_block
from talkoo_consensus.driver import Driver
from talkoo_consensus.encoding import (
    block_id_of,
    encode_block,
    encode_evidence_list,
    encode_proposal,
    encode_vote,
)
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
from talkoo_consensus.types import Block, BlockId, Commit, Vote

from talkoo_core.errors import Internal, InvalidInput, TalkooError
from talkoo_ledger.catching_up import Adopted, CatchingUp, Fetched
from talkoo_ledger.collecting import Collecting, OwnVote, PassOn, Unheard
from talkoo_ledger.conversation import Conversation, FromPeer
from talkoo_ledger.divergence import Diverged, explained
from talkoo_ledger.executor import Executor
from talkoo_ledger.gossip import Gossip, batches
from talkoo_ledger.intake import Intake, PeerTrouble
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.offences import Offences
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sign_state import DoubleSignRefused, Signer
from talkoo_ledger.snapshotting import SnapshotKeeper
from talkoo_ledger.wal import WriteAheadLog
from talkoo_runtime.clock import Clock

log = logging.getLogger(__name__)

BATCH = 256
TICK_S = 0.25
TICK_PEERS = 4
"""With more peers than this the ticks are rarer."""
SILENT_TICKS = 4
"""In a crowd no new height is told by itself; at least every so many ticks we tell where we stand."""
PROPOSE_TIMEOUT_MS = 3_000
PROPOSE_SPARE_MS = 2_000
"""The others wait at least so long beyond the pause of an idle proposer before they give it up."""
UNREACHABLE_PROPOSER_MS = 200
"""A proposer to whom no stream leads is waited for so long, which is enough for one that is just coming back."""


@dataclass(frozen=True, slots=True)
class BuildNow:
    height: int
    round: int


Item: TypeAlias = FromPeer | Fetched | Adopted | BuildNow | TimeoutElapsed | PassOn | Unheard


class Node:
    """Drives consensus for one organization. `executor` applies and stores decided blocks."""

    def __init__(
        self,
        settings: LedgerSettings,
        executor: Executor,
        signer: Signer,
        address: bytes,
        wal: WriteAheadLog,
        mempool: Mempool,
        clock: Clock,
    ) -> None:
        self.executor = executor
        self.mempool = mempool
        self.snapshots = SnapshotKeeper(
            Path(settings.state_dir), executor.application, settings.snapshot_interval_blocks
        )
        self.peers = Conversation(settings, executor, clock, self._put, self._opening, self.snapshots.store)
        self.mesh = self.peers.mesh
        self._catching_up = CatchingUp(settings, executor, self.peers, self._put, self._execute, self._start_height)
        self.sync = self._catching_up.sync
        propose_ms = max(PROPOSE_TIMEOUT_MS, settings.empty_block_interval_ms + PROPOSE_SPARE_MS)
        self.driver = Driver(address, Timeouts(propose_ms=propose_ms, commit_ms=settings.commit_timeout_ms))
        self._settings = settings
        self._signer = signer
        self._address = address
        self._wal = wal
        self._clock = clock
        self._inbox: deque[Item] = deque()
        self._bell = asyncio.Event()
        self._intake = Intake(self.driver, clock)
        self._collecting = Collecting(self.mesh, self.driver, self._later)
        self._events: deque[Event] = deque()
        self._outgoing: list[service_pb2.PeerMessage | OwnVote] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._building: BuildValue | None = None
        self._build_timer_ms = 0
        """The interval that a pending BuildNow waits for; 0: none is pending."""
        self._offences = Offences(executor, self.mesh, address)
        self._gossip = Gossip(mempool, self.mesh, lambda: self.driver.height, self._bell.set, self.work_arrived)
        self._logged: frozenset[Event] = frozenset()
        self._failed = False

    @property
    def chain(self) -> ChainState:
        return self.executor.chain

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Forever. Ends only with an error that must stop the node: a full disk, damage, a diverged state."""
        try:
            self._recover()
            self._flush()
            while True:
                await self._bell.wait()
                self._bell.clear()
                more = True
                while self._inbox or more:
                    for _ in range(min(BATCH, len(self._inbox))):
                        self._take(self._inbox.popleft())
                    self._flush()
                    more = self._gossip.check_some()
                    await asyncio.sleep(0)  # let gRPC read and write between batches
        except Diverged as diverged:
            self._failed = True
            raise await explained(
                diverged, self.executor.application.module_roots(), self.mesh.asks, self.mesh.streams
            ) from None
        except OSError as error:
            raise Internal(
                f"this node cannot write to its disk ({error}) and stops before it says anything it could forget; "
                "check the disk, then start it again",
                code="disk_failed",
            ) from error
        finally:
            self._failed = True

    def _recover(self) -> None:
        """Start the height after the last stored block, and feed what its log holds.

        What our key signs for the first time meanwhile is new to the log, and is appended to it like anything else.
        """
        height = self.chain.height
        if self._halted():
            return
        logged = list(self._wal.replay(height))
        for event in logged:
            self._adopt_signed(event)
        self._wal.begin(height)
        self._logged = frozenset(logged)
        self._feed(StartHeight(height, self.chain.validators, self.executor.last_commit()))
        for event in logged:
            if self.chain.height == height:
                self._feed(event)
        self._logged = frozenset()
        log.info("at height %d, %d logged inputs replayed", height, len(logged))

    def _adopt_signed(self, event: Event) -> None:
        """The sign state gets to know our own messages of the log, if it does not yet."""
        if isinstance(event, VoteReceived) and event.vote.validator_address == self._address:
            self._signer.adopt(event.vote)
        if isinstance(event, ProposalReceived):
            proposer = self.chain.validators.proposer_of_round(event.proposal.round)
            if event.proposal.height == self.chain.height and proposer.address == self._address:
                self._signer.adopt(event.proposal)

    def _take(self, item: Item) -> None:
        match item:
            case FromPeer(organization, message) if message.WhichOneof("message") == "txs":
                self._gossip.arrived(organization, message.txs, partial(self.peers.taken, item))
            case FromPeer(organization, message):
                self.peers.taken(item)
                self._from_peer(organization, message)
            case Fetched() | Adopted():
                self._catching_up.take(item)
            case BuildNow(height, round_):
                if self._building is not None and (self._building.height, self._building.round) == (height, round_):
                    self._build_timer_ms = 0
                    self._build_when_worth_it()
            case TimeoutElapsed():
                if item.height == self.driver.height:
                    self._feed(item)
            case PassOn() | Unheard():
                self._collecting.take(item)

    def _feed(self, event: Event) -> None:
        """Log an input, step, carry out; events that follow from it come after, in order."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            current = self._events[0]
            if isinstance(current, ProposalReceived | VoteReceived | TimeoutElapsed) and current not in self._logged:
                self._wal.append(current)
            for command in self.driver.step(current):
                self._carry_out(command)
            self._events.popleft()

    def _flush(self) -> None:
        """Make durable what we signed and, in the log, why; then send. What binds nobody needs no waiting for the disk.

        The log comes first: whatever the sign state knows, the log explains.
        """
        if self._signer.unsynced:
            self._wal.sync()
            self._signer.sync()
        self._depart()

    def _depart(self) -> None:
        messages, self._outgoing = self._outgoing, []
        for message in messages:
            if isinstance(message, OwnVote):
                self._collecting.send(message)
            else:
                self.mesh.send_all(message)
        self._collecting.pass_on_what_is_due()

    def _put(self, item: Item) -> None:
        self._inbox.append(item)
        self._bell.set()

    # -- commands of the driver --------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case BuildValue():
                self._building, self._build_timer_ms = command, 0
                self._build_when_worth_it()
            case CheckValue(height, round_, block_id, block):
                self._feed(ValueChecked(height, round_, block_id, self._is_valid(block)))
            case SignAndSendProposal():
                self._sign_proposal(command)
            case SignAndSendVote(vote):
                self._sign_vote(vote)
            case ScheduleTimeout(height, round_, step, duration_ms):
                if step is Step.PROPOSE and not self._can_hear_proposer(round_):
                    duration_ms = min(duration_ms, UNREACHABLE_PROPOSER_MS * (round_ + 1))
                self._later(duration_ms / 1000, TimeoutElapsed(height, round_, step))
            case Decide(_, round_, block_id, block, commit):
                self._execute(round_, block_id, block, commit)
            case EndHeight(height, commit):
                self._start_height(commit)
            case Redeliver(message):
                self._feed(message)
            case ReportEvidence(votes):
                self._offences.voted_twice(votes)

    def _can_hear_proposer(self, round_: int) -> bool:
        proposer = self.chain.validators.proposer_of_round(round_).address
        return proposer == self._address or self.mesh.reaches(self.peers.organization_of(proposer))

    def _later(self, delay_s: float, item: Item) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, self._put, item))

    def _build_when_worth_it(self) -> None:
        """When the interval of blocks has passed; without work, that of empty blocks."""
        building = self._building
        if building is None:
            return
        work = len(self.mempool) > 0 or self.executor.more_work
        interval_ms = self._settings.block_interval_ms if work else self._settings.empty_block_interval_ms
        passed_ms = (self._clock.now_ns() - self.chain.last_time_ns) / 1e6
        # A clock that stands before the last block's time tells no interval: waiting for it could take for ever.
        known = 0 <= passed_ms < interval_ms
        if building.round > 0 or self.chain.last_height == 0 or not known:
            self._build()
        elif not self._build_timer_ms or self._build_timer_ms > interval_ms:
            self._build_timer_ms = interval_ms
            self._later((interval_ms - passed_ms) / 1000, BuildNow(building.height, building.round))

    def _build(self) -> None:
        building, self._building = self._building, None
        if building is None or building.height != self.chain.height:
            return
        evidence = self.executor.evidence.pending(self.chain)
        room_bytes = max(self.executor.max_block_bytes - len(encode_evidence_list(evidence)), 0)
        txs = self.executor.application.prepare_proposal(self.mempool.transactions(), room_bytes)
        block = make_block(self.chain, txs, building.last_commit, self._clock.now_ns(), self._address, evidence)
        self._feed(ValueBuilt(building.height, building.round, block, block_id_of(block)))

    def _is_valid(self, block: Block) -> bool:
        try:
            check_block(self.chain, block, self.executor.evidence.check)
        except InvalidInput as error:
            log.warning("refused the proposed block %d: %s", block.header.height, error)
            return False
        return self.executor.application.process_proposal(block.data.txs)

    def _sign_proposal(self, command: SignAndSendProposal) -> None:
        try:
            signed = self._signer.sign_proposal(command.proposal)
        except DoubleSignRefused as error:
            log.info("%s", error)
            return
        self._outgoing.append(service_pb2.PeerMessage(proposal=encode_proposal(signed)))
        self._outgoing.append(_block_message(signed.height, signed.round, command.block))
        self._feed(ProposalReceived(signed, command.block))

    def _sign_vote(self, vote: Vote) -> None:
        try:
            signed = self._signer.sign_vote(vote, max(self._clock.now_ns(), self.chain.last_time_ns + 1))
        except DoubleSignRefused as error:
            log.info("%s", error)
            return
        proposer = self.chain.validators.proposer_of_round(signed.round)
        self._outgoing.append(OwnVote(signed, self.peers.organization_of(proposer.address)))
        self._feed(VoteReceived(signed))

    def _execute(self, round_: int, block_id: BlockId, block: Block, commit: Commit) -> None:
        if len(self._events) <= 1:  # nothing of ours is still to be logged
            self._flush()  # the peers need not wait for our votes until we have executed
        final = self.executor.execute(round_, block_id, block, commit, self.driver.transcript())
        self.mempool.after_block(final)
        self._offences.after_block(block)
        self.peers.members_may_have_changed()
        self.snapshots.after_block(block.header.height)

    def _start_height(self, commit: Commit) -> None:
        self._offences.height_ended(commit)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._building = None
        self._intake.forget_votes()
        if self._halted():
            return
        self._wal.begin(self.chain.height)
        self._logged = frozenset()
        self._feed(StartHeight(self.chain.height, self.chain.validators, commit))
        self._collecting.height_began()
        if not self.mesh.crowded:
            self._outgoing.append(self._round_step())

    def _halted(self) -> bool:
        """Whether the federation agreed to stop at this block; it is still served, nothing more is signed."""
        halted = 0 < self._settings.halt_height <= self.chain.last_height
        if halted:
            log.warning(
                "stopped at block %d, as halt_height says; no later block is decided here", self.chain.last_height
            )
        return halted

    # -- peers -------------------------------------------------------------------------------------------------------

    def _from_peer(self, organization: str, message: service_pb2.PeerMessage) -> None:
        """What is wrong with the message is the peer's fault; what fails after it was accepted is ours and stops us."""
        kind = message.WhichOneof("message")
        try:
            event = self._heard(organization, kind, message)
        except TalkooError as error:
            self.peers.blame(organization, f"dropped a {kind}: {error}")
            return
        if event is not None:
            self._feed(event)

    def _heard(self, organization: str, kind: str | None, message: service_pb2.PeerMessage) -> Event | None:
        if kind == "vote":
            voted = self._intake.vote(message.vote, self.chain)
            if voted is not None:
                self._spread(organization, voted.vote, message)
            return voted
        if kind == "block":
            return self._peer_block(organization, message.block)
        if kind == "proposal":
            self._intake.proposal(organization, message.proposal)
        elif kind == "evidence":
            self._offences.heard(organization, message.evidence)
        elif kind == "step":
            self._peer_step(organization, message.step)
        else:
            raise PeerTrouble("nothing this node knows; it may be of a newer version")
        return None

    def _spread(self, organization: str, vote: Vote, message: service_pb2.PeerMessage) -> None:
        """A new vote of a peer: gathered where it is ours to pass on, else told to those who cannot have heard it."""
        origin = self.peers.organization_of(vote.validator_address)
        if organization == origin and self._collecting.may_collect(vote):
            validators = self._intake.validators_of(vote.height, self.chain)
            if validators.proposer_of_round(vote.round).address == self._address:
                self._collecting.gather(organization, origin, vote, message)
                return
        self.mesh.relay(organization, origin, message)

    def _peer_block(self, organization: str, data: service_pb2.BlockData) -> ProposalReceived | None:
        proposed = self._intake.block(organization, data, self.chain)
        if proposed is not None and self._intake.is_new(proposed):
            proposer = self.peers.organization_of(proposed.block.header.proposer_address)
            proposal = service_pb2.PeerMessage(proposal=encode_proposal(proposed.proposal))
            self.mesh.relay(organization, proposer, proposal, service_pb2.PeerMessage(block=data))
        return proposed

    def _peer_step(self, organization: str, step: service_pb2.RoundStep) -> None:
        """A peer that stands still at our height lacks something: it gets everything of the height again. One that is
        behind hears where we are."""
        if self.peers.stands_still(organization, step) and step.height == self.driver.height:
            self._flush()
            for message in self._height_messages():
                self.mesh.send(organization, message)
        elif self.mesh.crowded and step.height < self.driver.height:
            self.mesh.send(organization, self._round_step())

    def _opening(self) -> Iterator[service_pb2.PeerMessage]:
        yield from self._height_messages()
        yield self._round_step()
        yield from self._offences.messages()
        yield from batches(self.mempool.transactions())

    def _height_messages(self) -> Iterator[service_pb2.PeerMessage]:
        """Nothing once the loop has failed: something of ours among it may not be durable."""
        if self._failed:
            return
        for event in self.driver.messages():
            if isinstance(event, VoteReceived):
                yield service_pb2.PeerMessage(vote=encode_vote(event.vote))
            else:
                yield service_pb2.PeerMessage(proposal=encode_proposal(event.proposal))
                yield _block_message(event.proposal.height, event.proposal.round, event.block)

    def _round_step(self) -> service_pb2.PeerMessage:
        step = service_pb2.RoundStep(
            height=self.driver.height,
            round=self.driver.round,
            step=int(self.driver.step_of_round),
            base=self.executor.store.base(),
        )
        return service_pb2.PeerMessage(step=step)

    async def tick(self) -> None:
        """Tell the peers where we stand, when no new height has told them. Forever."""
        silent = 0
        while True:
            height = self.driver.height
            await asyncio.sleep(TICK_S * max(1.0, len(self.mesh.streams) / TICK_PEERS))
            silent += 1
            if self.driver.height == height or (self.mesh.crowded and silent >= SILENT_TICKS):
                silent = 0
                self.mesh.send_all(self._round_step())

    # -- transactions ------------------------------------------------------------------------------------------------

    def broadcast(self, data: bytes) -> bytes:
        """Take a client's transaction and spread it. Raises its typed error. Returns its hash."""
        return self._gossip.broadcast(data)

    def work_arrived(self) -> None:
        """A proposer that waits for transactions need not wait longer."""
        waits_long = self._build_timer_ms != self._settings.block_interval_ms
        if self._building is not None and waits_long and len(self.mempool) > 0:
            self._put(BuildNow(self._building.height, self._building.round))


def _block_message(height: int, round_: int, block: Block) -> service_pb2.PeerMessage:
    return service_pb2.PeerMessage(block=service_pb2.BlockData(height=height, round=round_, block=encode_block(block)))
