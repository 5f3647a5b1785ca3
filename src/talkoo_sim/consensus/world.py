"""One scenario from its first event to its last: the queue of events, the network, the crashes, the clock.

Everything is drawn from the seed. Until `calm_at_ms` the network partitions, loses, delays, reorders and duplicates,
machines lose their power at any write, sync or send, and their clocks are wrong; from then on the network is merely
slow, clocks agree, who is down comes back, and all that keep the rules must decide within LIVENESS_MS. Liars go on.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import zlib
from collections import deque
from typing import TypeAlias

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState, genesis_state
from talkoo_consensus.driver import Driver, VoteReceived
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_ledger.conversation import FromPeer
from talkoo_ledger.divergence import Diverged
from talkoo_ledger.node import Item

from talkoo_core.errors import Corrupt
from talkoo_sim.consensus.damage import damage
from talkoo_sim.consensus.disk import Fuse, PowerCut, SimulatedDisk
from talkoo_sim.consensus.judge import Forked, InvariantBroken, Judge
from talkoo_sim.consensus.liars import AmnesiacDriver, LyingMesh
from talkoo_sim.consensus.machine import (
    CHAIN_ID,
    GENESIS_TIME_NS,
    Machine,
    MachineClock,
    Mesh,
    Replica,
    Store,
    StoredBlock,
    Timer,
    accused_in,
    index_of,
    organization,
)
from talkoo_sim.consensus.scenario import Lie, Scenario
from talkoo_sim.consensus.signatures import key_of
from talkoo_sim.consensus.tokens import ACCOUNTS, GENESIS, REMOVE_PROPOSER, Balances, TokenLedger, set_power, transfer

TICK_MS = 1_000
ACCIDENT_AGAIN_MS = 50
"""There must be something on the disk to be damaged."""
SUBMIT_MS = 700
ASK_AGAIN_MS = 1_000
LIVENESS_MS = 120_000
"""Within so long after the faults, every honest machine has decided HEIGHTS_AFTER_CALM more blocks."""
HEIGHTS_AFTER_CALM = 2
OVER_MS = 25_000
"""With a third of liars or more nothing is promised but blame: so long a fork is waited for."""
MAX_EVENTS = 400_000
LAST_EVENTS = 60


class Arrives:
    __slots__ = ("message", "source")

    def __init__(self, source: int, message: service_pb2.PeerMessage) -> None:
        self.source = source
        self.message = message


class Asks:
    __slots__ = ("height", "source")

    def __init__(self, source: int, height: int) -> None:
        self.source = source
        self.height = height


class Answers:
    __slots__ = ("source", "stored")

    def __init__(self, source: int, stored: StoredBlock) -> None:
        self.source = source
        self.stored = stored


class Elapses:
    __slots__ = ("incarnation", "item", "timer")

    def __init__(self, incarnation: int, item: Item, timer: Timer) -> None:
        self.incarnation = incarnation
        self.item = item
        self.timer = timer


class Occasion:
    """`tick`, `restart`, `submit`, `calm`, `accident`."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


Happening: TypeAlias = Arrives | Asks | Answers | Elapses | Occasion


class World:
    """See the module. `run` returns when the scenario's end is reached; raises InvariantBroken, Forked."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now_ms = 0
        self.events = self.crashes = self.lost = self.restarts = self.blames = self.most_rounds = 0
        self.calm_since_ms = -1
        self.crash_places: set[str] = set()
        self.trace = hashlib.blake2b(digest_size=16)
        self.last: deque[tuple[int, int, str]] = deque(maxlen=LAST_EVENTS)
        self._dice = random.Random(scenario.seed)  # noqa: S311 - repeatable by design
        self._queue: list[tuple[int, int, int, Happening]] = []
        self._sequence = 0
        self._tx_number = 0
        self._last_delivery: dict[tuple[int, int], int] = {}
        self._asked_ms: dict[int, int] = {}
        self._wanted_height = scenario.heights
        seeds = [bytes([index, 77]) + bytes(30) for index in range(scenario.validators)]
        self._keys = [key_of(seed, real=scenario.real_keys) for seed in seeds]
        self._addresses = {key.public.address: organization(index) for index, key in enumerate(self._keys)}
        faulty = {*scenario.lies, scenario.condemned} - {-1}
        self._faulty = frozenset(self._keys[index].public.address for index in faulty)
        honest = set(range(scenario.validators)) - set(scenario.lies)
        self.judge = Judge(frozenset(self._keys[index].public.address for index in honest), forks_allowed=scenario.over)
        self.application = TokenLedger([key.public.raw for key in self._keys], self._may_be_validators)
        self.machines = [self._machine(index, index) for index in range(scenario.validators)]
        for twin in scenario.twins:
            self.machines.append(self._machine(len(self.machines), twin))
        self._sides = self._two_sides()

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._begin()
        while not self._finished():
            self.step()

    def step(self) -> None:
        """One event."""
        self.events += 1
        self.now_ms, sequence, index, happening = heapq.heappop(self._queue)
        self._write_trace(sequence, index, happening)
        self._happen(index, happening)

    def _begin(self) -> None:
        self._at(self.scenario.calm_at_ms, 0, Occasion("calm"))
        self._at(1, 0, Occasion("submit"))
        for machine in self.machines:
            self._start(machine)
            self._at(self._dice.randint(1, TICK_MS), machine.index, Occasion("tick"))
        if self.scenario.condemned >= 0:
            self._at(self._dice.randint(100, 5_000), self.scenario.condemned, Occasion("accident"))

    def _finished(self) -> bool:
        if self.scenario.over:
            return self.now_ms > OVER_MS
        if self.calm_since_ms < 0:
            return False
        heights = [machine.store.chain.last_height for machine in self.machines if self._must_follow(machine)]
        if min(heights) >= self._wanted_height:
            return True
        if self.now_ms > self.calm_since_ms + LIVENESS_MS or self.events > MAX_EVENTS:
            raise InvariantBroken(
                f"liveness: heights {heights} instead of {self._wanted_height}, {self.now_ms - self.calm_since_ms} ms "
                f"after the faults ended, {self.events} events"
            )
        return False

    def _must_follow(self, machine: Machine) -> bool:
        return machine.honest and machine.index != self.scenario.condemned

    def _happen(self, index: int, happening: Happening) -> None:
        machine = self.machines[index]
        match happening:
            case Occasion():
                self._occasion(machine, happening.what)
            case Arrives() if machine.replica is not None:
                self._take(machine, FromPeer(organization(happening.source), happening.message))
            case Elapses() if machine.incarnation == happening.incarnation and not happening.timer.cancelled:
                self._take(machine, happening.item)
            case Asks():
                self._answer(machine, happening)
            case Answers() if machine.replica is not None:
                self._asked_ms.pop(index, None)
                self._guard(machine, happening)

    def _occasion(self, machine: Machine, what: str) -> None:
        if what == "calm":
            self._calm_down()
        elif what == "submit":
            self._submit()
        elif what == "restart" and machine.replica is None and not machine.dead:
            self._start(machine)
        elif what == "accident":
            self._damage(machine)
        elif what == "tick":
            self._at(TICK_MS, machine.index, Occasion("tick"))
            if machine.replica is not None:
                self.most_rounds = max(self.most_rounds, machine.replica.driver.round + 1)
                self._guard(machine, None)

    def _take(self, machine: Machine, item: Item) -> None:
        self._guard(machine, item)

    def _guard(self, machine: Machine, what: Item | Answers | None) -> None:
        """Run the production node until it waits again, or its power is cut."""
        replica = machine.replica
        if replica is None:
            return
        try:
            if what is None:
                replica.mesh.send_all(replica.step_message())
            elif isinstance(what, Answers):
                replica.fetched(organization(what.source), what.stored)
            else:
                replica.take_all(what)
        except PowerCut:
            self._crash(machine)
        except Diverged as diverged:
            # A liar's copy that was told the other story of a fork; honest ones on two sides are a fork to the judge.
            if machine.honest or not self.scenario.over:
                raise
            self._note(machine.index, f"halts: {diverged.code}")
            machine.dead, machine.replica = True, None

    # -- machines ----------------------------------------------------------------------------------------------------

    def _machine(self, index: int, validator: int) -> Machine:
        scenario, dice = self.scenario, self._dice
        validators = [
            Validator.of(key.public.raw, power) for key, power in zip(self._keys, scenario.powers, strict=True)
        ]
        chain = genesis_state(CHAIN_ID, GENESIS_TIME_NS, validators, b"")
        skew_ns = dice.randint(-scenario.skew_ms, scenario.skew_ms) * 1_000_000
        drift_ppm = dice.randint(-scenario.drift_ppm, scenario.drift_ppm)
        honest = validator not in scenario.lies
        fuse = Fuse(random.Random(dice.getrandbits(64)), scenario.crash if honest else 0.0)  # noqa: S311
        return Machine(
            index,
            validator,
            self._keys[validator],
            honest,
            MachineClock(lambda: self.now_ms, skew_ns, drift_ppm),
            fuse,
            SimulatedDisk(f"{organization(index)}/state", fuse),
            SimulatedDisk(f"{organization(index)}/wal", fuse),
            Store(chain, GENESIS),
        )

    def _start(self, machine: Machine) -> None:
        lies = self.scenario.lies.get(machine.validator, frozenset())
        mesh: Mesh
        if machine.honest or lies == {Lie.TWIN} or lies == {Lie.AMNESIA}:
            mesh = Mesh(machine, len(self.machines), self)
        else:
            mesh = LyingMesh(machine, len(self.machines), self, lies, self._dice, self._sides)
        try:
            driver = AmnesiacDriver if Lie.AMNESIA in lies else Driver
            replica = Replica(machine, mesh, self.application, self._addresses, self, driver)
            if isinstance(mesh, LyingMesh):
                mesh.replica = replica
            machine.replica = replica
            replica.begin()
        except PowerCut:
            self._crash(machine)
            return
        if machine.incarnation:
            self.restarts += 1
            self._connect(machine)

    def _damage(self, machine: Machine) -> None:
        """The disk loses a byte of what was durable, in the middle: the node must not start on it, ever again."""
        if machine.replica is None or not damage(machine, self._dice):
            self._at(ACCIDENT_AGAIN_MS, machine.index, Occasion("accident"))
            return
        self._crash(machine)
        machine.dead = True
        machine.fuse.chance = 0.0
        try:
            self._start(machine)
        except Corrupt as refused:
            self._note(machine.index, f"refuses to start: {refused.code}")
            machine.replica = None
            return
        raise InvariantBroken(f"damage: node {machine.index} started on a damaged disk")

    def _connect(self, machine: Machine) -> None:
        """Streams open again: each side tells the other what it needs to follow."""
        for other in self.machines:
            if other is not machine and other.replica is not None and machine.replica is not None:
                for source, target in ((machine, other), (other, machine)):
                    assert source.replica is not None
                    for message in source.replica.opening():
                        source.replica.mesh.send(target.organization, message)

    def _crash(self, machine: Machine) -> None:
        self.crashes += 1
        self.crash_places.add(machine.fuse.blown)
        self._note(machine.index, f"stops {machine.fuse.blown}")
        assert machine.replica is None or machine.replica.machine is machine
        machine.replica = None
        machine.incarnation += 1
        power = self._dice.random() < 0.7
        machine.state.crash(self._dice, power=power)
        machine.log.crash(self._dice, power=power)
        self._asked_ms.pop(machine.index, None)
        self._at(self._dice.randint(*self.scenario.down_ms), machine.index, Occasion("restart"))

    def _two_sides(self) -> tuple[frozenset[int], frozenset[int]]:
        if self.scenario.over and self.scenario.partitions:
            return self.scenario.partitions[0].sources, self.scenario.partitions[0].targets
        return frozenset(), frozenset()

    def _may_be_validators(self, validators: ValidatorSet) -> bool:
        faulty = sum(each.power for each in validators.validators if each.address in self._faulty)
        return 3 * faulty < validators.total_power

    # -- time, network -----------------------------------------------------------------------------------------------

    def _at(self, delay_ms: int, index: int, happening: Happening) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, index, happening))

    @property
    def _calm(self) -> bool:
        return self.calm_since_ms >= 0

    def _calm_down(self) -> None:
        if self.scenario.over:
            return
        self.calm_since_ms = self.now_ms
        reached = max(machine.store.chain.last_height for machine in self.machines if machine.honest)
        self._wanted_height = max(self.scenario.heights, reached + HEIGHTS_AFTER_CALM)
        for machine in self.machines:
            machine.fuse.chance = 0.0
            machine.clock.skew_ns = self._dice.randint(-200, 200) * 1_000_000
            machine.clock.drift_ppm = 0
            if machine.replica is None and not machine.dead:
                self._start(machine)

    def _linked(self, source: int, target: int) -> bool:
        return not any(
            partition.start_ms <= self.now_ms < partition.end_ms
            and source in partition.sources
            and target in partition.targets
            for partition in self.scenario.partitions
        )

    def _delay(self, source: int, target: int) -> int:
        scenario = self.scenario
        delay_ms = self._dice.randint(*(scenario.calm_delay_ms if self._calm else scenario.delay_ms))
        if scenario.in_order or self._calm:
            arrival = max(self.now_ms + delay_ms, self._last_delivery.get((source, target), 0))
            self._last_delivery[(source, target)] = arrival
            delay_ms = arrival - self.now_ms
        return delay_ms

    def _travel(self, source: int, target: int, happening: Happening) -> None:
        if not self._linked(source, target) or (not self._calm and self._dice.random() < self.scenario.loss):
            self.lost += 1
            return
        self._at(self._delay(source, target), target, happening)
        if not self._calm and self.scenario.duplicate and self._dice.random() < self.scenario.duplicate:
            self._at(self._delay(source, target), target, happening)

    def send(self, source: int, target: int, message: service_pb2.PeerMessage) -> None:
        self._travel(source, target, Arrives(source, message))

    def reaches(self, source: int, name: str) -> bool:
        target = index_of(name)
        return self.machines[target].replica is not None and self._linked(target, source)

    def later(self, index: int, delay_ms: int, item: Item) -> Timer:
        timer = Timer()
        self._at(max(delay_ms, 0), index, Elapses(self.machines[index].incarnation, item, timer))
        return timer

    def behind(self, index: int, name: str, height: int) -> None:
        """A machine has heard that a peer has decided what it has not: it asks for the block."""
        if self.now_ms - self._asked_ms.get(index, -ASK_AGAIN_MS) >= ASK_AGAIN_MS:
            self._asked_ms[index] = self.now_ms
            self._travel(index, index_of(name), Asks(index, height))

    def _answer(self, machine: Machine, asks: Asks) -> None:
        if machine.replica is None or not 0 < asks.height <= len(machine.store.blocks):
            return
        stored: StoredBlock | None = machine.store.blocks[asks.height - 1]
        if isinstance(machine.replica.mesh, LyingMesh) and stored is not None:
            stored = machine.replica.mesh.stored(stored)
        if stored is not None:
            self._travel(machine.index, asks.source, Answers(machine.index, stored))

    # -- clients -----------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        self._at(SUBMIT_MS, 0, Occasion("submit"))
        dice = self._dice
        self._tx_number += 1
        if dice.random() < self.scenario.power_changes:
            index = dice.choice((REMOVE_PROPOSER, *range(self.scenario.validators)))
            faulty = index >= 0 and self._keys[index].public.address in self._faulty
            power = self.scenario.powers[index] if faulty else dice.choice((0, 5, 10, 20))
            tx = set_power(self._tx_number, index, power)
        else:
            tx = transfer(self._tx_number, dice.randrange(ACCOUNTS), dice.randrange(ACCOUNTS), dice.randint(1, 1_500))
        self.judge.submitted.add(tx)
        for machine in self.machines:
            if machine.replica is not None and dice.random() < 0.7:
                machine.replica.waiting.add(tx)

    # -- what the judge hears ----------------------------------------------------------------------------------------

    def heard_vote(self, index: int, event: VoteReceived) -> None:
        machine = self.machines[index]
        if machine.honest:
            self.judge.heard(index, event.vote, own=event.vote.validator_address == machine.key.public.address)

    def says(self, index: int, message: service_pb2.PeerMessage) -> None:
        machine = self.machines[index]
        if not machine.honest:
            return
        kind = message.WhichOneof("message")
        if kind == "vote":
            replica = machine.replica
            assert replica is not None
            self.judge.said_vote(index, message.vote, replica.chain)
        elif kind == "proposal":
            self.judge.said_proposal(index, message.proposal)
        elif kind == "evidence":
            self.judge.accuses(index, accused_in(message))

    def blamed(self, index: int, name: str, why: str) -> None:
        self.blames += 1
        target = self.machines[index_of(name)]
        as_streams = self.scenario.in_order and not self.scenario.loss and not self.scenario.partitions
        if self.machines[index].honest and target.honest and as_streams:
            raise InvariantBroken(f"blame: node {index} blames the honest node {target.index}: {why}")

    def executes(self, index: int, chain: ChainState, stored: StoredBlock) -> None:
        if self.machines[index].honest:
            self.judge.decides(index, chain, stored)

    def executed(self, index: int, chain: ChainState, balances: Balances) -> None:
        self._note(index, f"decides {chain.last_height}: {chain.last_block_id}")
        if self.machines[index].honest:
            self.judge.executed(index, chain, balances)

    # -- the trace ---------------------------------------------------------------------------------------------------

    def _write_trace(self, sequence: int, index: int, happening: Happening) -> None:
        if isinstance(happening, Arrives):
            raw = happening.message.SerializeToString(deterministic=True)
            detail = f"{happening.message.WhichOneof('message')} from {happening.source}, crc {zlib.crc32(raw):08x}"
        elif isinstance(happening, Elapses):
            detail = f"timer {happening.item}"
        elif isinstance(happening, Occasion):
            detail = happening.what
        elif isinstance(happening, Asks):
            detail = f"asked for block {happening.height} by {happening.source}"
        else:
            detail = f"block {happening.stored.block_id} from {happening.source}"
        self._note(index, detail)
        self.trace.update(b"%d" % sequence)

    def _note(self, index: int, detail: str) -> None:
        self.trace.update(f"{self.now_ms} {index} {detail}\n".encode())
        self.last.append((self.now_ms, index, detail))

    def last_events(self) -> str:
        return "\n".join(f"  {now_ms:>7} ms  node {index}: {detail}" for now_ms, index, detail in self.last)


__all__ = ["Corrupt", "Forked", "InvariantBroken", "World"]
