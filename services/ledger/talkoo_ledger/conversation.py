"""What this node and its peers say to each other: who may speak, how much, and who stands where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import TalkooError
from talkoo_ledger.answers import Answers
from talkoo_ledger.executor import Executor
from talkoo_ledger.intake import ANSWERS_BYTES_PER_S, ANSWERS_PER_S, MAX_MESSAGE_BYTES, Faults, Pace, PeerTrouble, Room
from talkoo_ledger.members import is_member, names_by_address
from talkoo_ledger.peers import Mesh
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.snapshots import SnapshotStore
from talkoo_ledger.sync import Head
from talkoo_runtime.clock import Clock

STALLED_TICKS = 4
"""A peer that says the same place so many times in a row is sent everything of the height again."""
RESEND_EVERY_S = 0.8
"""Everything of the height is sent again to one peer no more often than that, however fast it repeats itself."""
MAX_HEIGHT = 2**62


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message for the node's loop; `counted_bytes` is what it holds of its sender's room."""

    organization: str
    message: service_pb2.PeerMessage
    counted_bytes: int = 0


class _Peer:
    """What is kept of a member while it is connected."""

    def __init__(self, now_s: float) -> None:
        self.room = Room()
        self.pace = Pace(now_s)
        self.answers = Pace(now_s, ANSWERS_BYTES_PER_S, ANSWERS_PER_S)
        self.place = (0, 0, 0)
        self.repeats = 0
        self.resent_s = now_s
        self.head = Head(0, 0)


class Conversation:
    """`put`: into the node's inbox. `opening`: what a peer that has just connected needs to follow us."""

    def __init__(
        self,
        settings: LedgerSettings,
        executor: Executor,
        clock: Clock,
        put: Callable[[FromPeer], None],
        opening: Callable[[], Iterable[service_pb2.PeerMessage]],
        snapshots: SnapshotStore,
    ) -> None:
        self.mesh = Mesh(settings, self, clock)
        self.faults = Faults(clock)
        self._executor = executor
        self._put = put
        self._opening = opening
        self._answers = Answers(executor, self.mesh, snapshots)
        self._peers: dict[str, _Peer] = {}
        self._members: frozenset[str] = frozenset()
        self._by_address: dict[bytes, str] = {}
        self.members_may_have_changed()

    # -- members -----------------------------------------------------------------------------------------------------

    def members_may_have_changed(self) -> None:
        """After a block: who is a member is what the committed state says."""
        organizations = self._executor.application.state.organizations.all()
        self._by_address = names_by_address(organizations)
        height = self._executor.chain.last_height
        self._members = frozenset(each.name for each in organizations if is_member(each, height))

    def members(self) -> frozenset[str]:
        return self._members

    def organization_of(self, address: bytes) -> str:
        """Whose validator has this address, "" when it is nobody's any more."""
        return self._by_address.get(address, "")

    # -- what the mesh needs -----------------------------------------------------------------------------------------

    def hello(self) -> service_pb2.Hello:
        return service_pb2.Hello(
            chain_id=self._executor.chain.chain_id,
            genesis_sha256=self._executor.genesis_sha256,
            organization=self.mesh.own,
            height=self._executor.chain.last_height,
        )

    def greeting(self) -> Iterator[service_pb2.PeerMessage]:
        yield service_pb2.PeerMessage(neighbours=service_pb2.Neighbours(organizations=self.mesh.connected()))
        yield from self._opening()

    def welcome(self, organization: str) -> None:
        """A peer opens its stream. Raises Exhausted while its last one's faults are too fresh."""
        self.faults.admit(organization)

    async def receive(self, organization: str, message: service_pb2.PeerMessage) -> None:
        """Called by the stream of a peer; waits while the peer is too fast or the loop behind.

        Raises PeerTrouble: close the stream.
        """
        self.faults.check(organization)
        size = message.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise PeerTrouble(f"a message of {size} bytes; ledger nodes take at most {MAX_MESSAGE_BYTES}")
        peer, now_s = self._peer(organization), asyncio.get_running_loop().time()
        early_s = peer.pace.wait_s(size, now_s)
        if early_s > 0:
            await asyncio.sleep(early_s)
        kind = message.WhichOneof("message")
        if kind not in ("neighbours", "ask", "answer"):
            self._put(FromPeer(organization, message, await peer.room.enter(size)))
            return
        try:
            await self._about_the_mesh(organization, kind, message)
        except TalkooError as error:
            self.blame(organization, f"dropped a {kind}: {error}")

    async def _about_the_mesh(self, organization: str, kind: str, message: service_pb2.PeerMessage) -> None:
        if kind == "neighbours":
            self.mesh.neighbours_of(organization, message.neighbours)
        elif kind == "answer":
            self.mesh.asks.answered(organization, message.answer)
        else:
            answer = await self._answers.answer(organization, message.ask)
            early_s = self._peer(organization).answers.wait_s(answer.ByteSize(), asyncio.get_running_loop().time())
            if early_s > 0:
                await asyncio.sleep(early_s)
            self.mesh.send(organization, service_pb2.PeerMessage(answer=answer))

    # -- what the node needs -----------------------------------------------------------------------------------------

    def taken(self, item: FromPeer) -> None:
        """The loop has taken a message: its sender's room is free again."""
        peer = self._peers.get(item.organization)
        if peer is not None:
            peer.room.leave(item.counted_bytes)

    def blame(self, organization: str, what: str) -> None:
        self.faults.blame(organization, what)

    def heads(self) -> dict[str, Head]:
        """How far the connected peers say they are."""
        return {name: self._peers[name].head for name in self.mesh.streams if name in self._peers}

    def stands_still(self, organization: str, step: service_pb2.RoundStep) -> bool:
        """A peer says where it is. True when it has said so for long: it may lack something."""
        if step.height > MAX_HEIGHT:
            raise PeerTrouble(f"height {step.height}")
        peer = self._peer(organization)
        place = (step.height, step.round, step.step)
        peer.head = Head(max(step.height - 1, 0), step.base)
        peer.repeats = peer.repeats + 1 if place == peer.place else 0
        peer.place = place
        now_s = asyncio.get_running_loop().time()
        if peer.repeats < STALLED_TICKS or now_s - peer.resent_s < RESEND_EVERY_S:
            return False
        peer.repeats, peer.resent_s = 0, now_s
        return True

    def _peer(self, organization: str) -> _Peer:
        peer = self._peers.get(organization)
        if peer is None:
            for gone in [name for name in self._peers if name not in self._members]:
                del self._peers[gone]
            peer = self._peers[organization] = _Peer(asyncio.get_running_loop().time())
        return peer
