"""A simulated machine: what its disk holds, its clock, and the production node that runs on it until the next crash.

`Replica` is `talkoo_ledger.node.Node` itself (its inbox, log, sign state, recovery, intake of messages, accusations);
only what touches the world is put in its place: the mesh is the simulated network, timers are simulated, the
application is `tokens`, the block store is a list that is written whole or not at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol, cast

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState, advance
from talkoo_consensus.driver import Driver, Event, Timeouts, VoteReceived
from talkoo_consensus.encoding import decode_evidence, decode_vote
from talkoo_consensus.evidence import EvidenceParams, EvidencePool, PastHeight
from talkoo_consensus.types import EMPTY_COMMIT, Block, BlockId, Commit, DuplicateVoteEvidence, Vote
from talkoo_consensus.validators import ValidatorSet
from talkoo_ledger.catching_up import CatchingUp, Fetched
from talkoo_ledger.collecting import Collecting
from talkoo_ledger.conversation import MAX_HEIGHT, STALLED_TICKS, FromPeer
from talkoo_ledger.intake import Intake, PeerTrouble
from talkoo_ledger.node import BATCH, Item, Node
from talkoo_ledger.offences import Offences
from talkoo_ledger.peers import CROWD_PEERS
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.sync import Decided
from talkoo_ledger.wal import WriteAheadLog

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey
from talkoo_sim.consensus.disk import Fuse, SimulatedDisk
from talkoo_sim.consensus.tokens import GENESIS, Balances, TokenLedger

GENESIS_TIME_NS = 1_700_000_000 * 10**9
UNBONDING_BLOCKS = 50
MAX_MEMPOOL = 64
SETTINGS: Any = SimpleNamespace(block_interval_ms=150, empty_block_interval_ms=1_000, halt_height=0)
CHAIN_ID = "simulated"


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What a machine that is behind fetches."""

    block: Block
    block_id: BlockId
    commit: Commit
    validators: ValidatorSet


@dataclass(slots=True)
class Store:
    """What the block store holds on disk; a save replaces all of it at once."""

    chain: ChainState
    balances: Balances = GENESIS
    blocks: list[StoredBlock] = field(default_factory=list)
    evidence: bytes = b""


class Outside(Protocol):
    """What a replica needs of the simulated world."""

    def send(self, source: int, target: int, message: service_pb2.PeerMessage) -> None: ...
    def reaches(self, source: int, organization: str) -> bool: ...
    def later(self, index: int, delay_ms: int, item: Item) -> Timer: ...
    def behind(self, index: int, organization: str, height: int) -> None: ...
    def heard_vote(self, index: int, event: VoteReceived) -> None: ...
    def says(self, index: int, message: service_pb2.PeerMessage) -> None: ...
    def blamed(self, index: int, organization: str, why: str) -> None: ...
    def executes(self, index: int, chain: ChainState, stored: StoredBlock) -> None: ...
    def executed(self, index: int, chain: ChainState, balances: Balances) -> None: ...


class Timer:
    """In place of asyncio's handle."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(slots=True)
class MachineClock:
    """`skew_ns` and `drift_ppm` against true time, which `now_ms` tells."""

    now_ms: Callable[[], int]
    skew_ns: int
    drift_ppm: int

    def now_ns(self) -> int:
        passed_ns = self.now_ms() * 1_000_000
        return GENESIS_TIME_NS + passed_ns + passed_ns * self.drift_ppm // 1_000_000 + self.skew_ns

    def true_ms(self, own_ms: int) -> int:
        """How long this machine's timer of so many milliseconds really runs."""
        return max(own_ms - own_ms * self.drift_ppm // 1_000_000, 1)


@dataclass(slots=True)
class Machine:
    """Node `index` holds the key of validator `validator`. All but `replica` outlives a crash."""

    index: int
    validator: int
    key: PrivateKey
    honest: bool
    clock: MachineClock
    fuse: Fuse
    state: SimulatedDisk
    log: SimulatedDisk
    store: Store
    replica: Replica | None = None
    incarnation: int = 0
    dead: bool = False
    """Its disk was damaged: it refused to start, and stays down."""

    @property
    def organization(self) -> str:
        return organization(self.index)


def organization(index: int) -> str:
    return f"n{index}"


def index_of(name: str) -> int:
    return int(name[1:])


class Mesh:
    """In place of `peers.Mesh`: every machine is linked to every other, as far as the simulated network lets it."""

    def __init__(self, machine: Machine, nodes: int, outside: Outside) -> None:
        self.machine = machine
        self.others = [index for index in range(nodes) if index != machine.index]
        self.outside = outside

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        self.machine.fuse.point("before sending")
        self.outside.says(self.machine.index, message)
        for target in self.others:
            self.outside.send(self.machine.index, target, message)

    def send(self, name: str, message: service_pb2.PeerMessage) -> None:
        if self.crowded and self._is_own_vote(message):
            self.outside.says(self.machine.index, message)
        self.outside.send(self.machine.index, index_of(name), message)

    def pass_on(self, source: str, origin: str, message: service_pb2.PeerMessage) -> None:
        for target in self.others:
            if organization(target) not in (source, origin):
                self.send(organization(target), message)

    @property
    def own(self) -> str:
        return self.machine.organization

    @property
    def crowded(self) -> bool:
        return len(self.others) > CROWD_PEERS

    def spreads(self, name: str) -> bool:
        """Everybody is linked to everybody; a link that is cut is not known at once."""
        return self.reaches(name)

    def _is_own_vote(self, message: service_pb2.PeerMessage) -> bool:
        if message.WhichOneof("message") != "vote":
            return False
        return decode_vote(message.vote).validator_address == self.machine.key.public.address

    def relay(self, source: str, origin: str, *messages: service_pb2.PeerMessage) -> None:
        """In a full mesh nobody relays; what the network loses is sent again to peers that stand still."""

    def reaches(self, name: str) -> bool:
        return self.outside.reaches(self.machine.index, name)


class Peers:
    """In place of `conversation.Conversation`: who stands where. Nobody is shut out for faults, nobody has to wait."""

    def __init__(self, mesh: Mesh, addresses: dict[bytes, str], outside: Outside) -> None:
        self._places: dict[str, tuple[tuple[int, int, int], int]] = {}
        self._addresses = addresses
        self._outside = outside
        self._own = mesh.machine

    def organization_of(self, address: bytes) -> str:
        return self._addresses.get(address, "")

    def members_may_have_changed(self) -> None:
        """All machines stay members; powers change."""

    def taken(self, item: FromPeer) -> None:
        """The simulated network has no room to give back."""

    def blame(self, name: str, what: str) -> None:
        self._outside.blamed(self._own.index, name, what)

    def stands_still(self, name: str, step: service_pb2.RoundStep) -> bool:
        """As in production: a peer that says the same place again and again is sent everything of its height."""
        if step.height > MAX_HEIGHT:
            raise PeerTrouble(f"height {step.height}")
        height = self._own.store.chain.height
        if step.height > height:
            self._outside.behind(self._own.index, name, height)
        place = (step.height, step.round, step.step)
        before, repeats = self._places.get(name, ((0, 0, 0), 0))
        repeats = repeats + 1 if place == before else 0
        still = repeats >= STALLED_TICKS
        self._places[name] = place, 0 if still else repeats
        return still


class Executor:
    """In place of `executor.Executor`: tokens for the application, `Store` for the database, production evidence."""

    def __init__(self, machine: Machine, application: TokenLedger, outside: Outside) -> None:
        self.application = application
        self.max_block_bytes = 1 << 20
        self.more_work = False
        self.store = SimpleNamespace(base=lambda: 1)
        self.evidence = EvidencePool(EvidenceParams.within_unbonding(UNBONDING_BLOCKS), self._past)
        self.evidence_found: tuple[DuplicateVoteEvidence, ...] = ()
        self._machine = machine
        self._outside = outside
        self._deciding: StoredBlock | None = None
        self.evidence.restore(machine.store.evidence)

    @property
    def chain(self) -> ChainState:
        return self._machine.store.chain

    def last_commit(self) -> Commit:
        blocks = self._machine.store.blocks
        return blocks[-1].commit if blocks else EMPTY_COMMIT

    def execute(
        self, _round: int, block_id: BlockId, block: Block, commit: Commit, _votes: Sequence[Vote] = ()
    ) -> list[bytes]:
        kept = self._machine.store
        stored = StoredBlock(block, block_id, commit, kept.chain.validators)
        self._outside.executes(self._machine.index, kept.chain, stored)
        done = self.application.finalize(
            kept.balances, block.data.txs, kept.chain.next_validators, kept.chain.app_hash + block_id.hash
        )
        chain = advance(kept.chain, block, block_id, done.results, done.app_hash, done.updates)
        self._deciding = stored
        self.evidence_found = self.evidence.after_block(chain, block)
        self._deciding = None
        self.evidence.changed = False
        self._machine.fuse.point("before storing a block")
        self._machine.store = Store(chain, done.balances, [*kept.blocks, stored], self.evidence.encoded())
        self._machine.fuse.point("after storing a block")
        self._outside.executed(self._machine.index, chain, done.balances)
        return list(block.data.txs)

    def _past(self, height: int) -> PastHeight | None:
        blocks = self._machine.store.blocks
        if self._deciding is not None and height == self._deciding.block.header.height:
            found = self._deciding
        elif 0 < height <= len(blocks):
            found = blocks[height - 1]
        else:
            return None
        return PastHeight(found.block.header.time_ns, found.validators)


class Mempool:
    """What this machine has heard of clients, until a block holds it."""

    def __init__(self) -> None:
        self._txs: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._txs)

    def add(self, tx: bytes) -> None:
        if len(self._txs) < MAX_MEMPOOL:
            self._txs[tx] = None

    def transactions(self) -> list[bytes]:
        return list(self._txs)

    def after_block(self, txs: Iterable[bytes]) -> None:
        for tx in txs:
            self._txs.pop(tx, None)


class _Told:
    """In place of the future behind a fetched block: keeps what was wrong with it."""

    lie: InvalidInput | None = None

    def done(self) -> bool:
        return False

    def set_result(self, _: None) -> None:
        """The block was applied."""

    def set_exception(self, lie: InvalidInput) -> None:
        self.lie = lie


class _CatchingUp(CatchingUp):
    """The production verification and application of fetched blocks, without the fetching."""

    def __init__(self, node: Replica) -> None:
        self._executor = node.executor
        self._peers = node.peers
        self._execute = node._execute
        self._start_height = node._start_height


class Replica(Node):
    """The production node on a machine. `driver`: the production one, or a liar's."""

    def __init__(
        self,
        machine: Machine,
        mesh: Mesh,
        application: TokenLedger,
        addresses: dict[bytes, str],
        outside: Outside,
        driver: type[Driver] = Driver,
    ) -> None:
        address = machine.key.public.address
        self.machine = machine
        self.executor = cast("Any", Executor(machine, application, outside))
        self.waiting = Mempool()
        self.mempool = cast("Any", self.waiting)
        self.mesh = cast("Any", mesh)
        self.peers = cast("Any", Peers(mesh, addresses, outside))
        self.snapshots = cast("Any", SimpleNamespace(after_block=lambda _height: None))
        self.driver = driver(address, Timeouts())
        self._outside = outside
        self._catching_up = _CatchingUp(self)
        self._settings = SETTINGS
        self._signer = Signer(machine.key, CHAIN_ID, machine.state)
        self._address = address
        self._wal = WriteAheadLog(machine.log)
        self._clock = machine.clock
        self._inbox = deque()
        self._bell = cast("Any", SimpleNamespace(set=lambda: None))
        self._intake = Intake(self.driver, machine.clock)
        self._collecting = Collecting(mesh, self.driver, self._later)
        self._events = deque()
        self._outgoing = []
        self._timers = []
        self._building = None
        self._build_timer_ms = 0
        self._offences = Offences(self.executor, self.mesh, address)
        self._gossip = cast("Any", SimpleNamespace(arrived=lambda *_: None))
        self._logged = frozenset()
        self._failed = False

    def begin(self) -> None:
        """As the production loop begins. Raises Corrupt on a damaged disk."""
        self._recover()
        self._flush()

    def take_all(self, *items: Item) -> None:
        """As the production loop takes what its inbox holds."""
        self._inbox.extend(items)
        while self._inbox:
            for _ in range(min(BATCH, len(self._inbox))):
                self._take(self._inbox.popleft())
            self._flush()

    def fetched(self, organization: str, stored: StoredBlock) -> None:
        """A block that a peer says is decided."""
        told = _Told()
        self.take_all(Fetched(Decided(organization, stored.block, stored.commit), cast("Any", told)))
        if told.lie is not None:
            self.peers.blame(organization, f"said that a block is decided: {told.lie}")

    def opening(self) -> Iterator[service_pb2.PeerMessage]:
        """What a peer that has just connected is sent, but for transactions."""
        yield from self._height_messages()
        yield self._round_step()
        yield from self._offences.messages()

    def step_message(self) -> service_pb2.PeerMessage:
        return self._round_step()

    def _depart(self) -> None:
        if self._outgoing and self.mesh.crowded:
            self.machine.fuse.point("before sending")
        super()._depart()

    def _feed(self, event: Event) -> None:
        if isinstance(event, VoteReceived):
            self._outside.heard_vote(self.machine.index, event)
        super()._feed(event)

    def _later(self, delay_s: float, item: Item) -> None:
        delay_ms = self.machine.clock.true_ms(math.ceil(delay_s * 1000))
        self._timers.append(cast("Any", self._outside.later(self.machine.index, delay_ms, item)))


def accused_in(message: service_pb2.PeerMessage) -> bytes:
    """Whom a message of evidence accuses."""
    return decode_evidence(message.evidence).validator_address
