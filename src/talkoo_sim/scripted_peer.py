"""A ledger peer that says what a test tells it to: a member's certificate, the real wire, and any lie.

It dials like a node that only dials out, says hello and how far it is, and answers questions by the test's function.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc
from talkoo_ledger.genesis import Genesis, GenesisOrganization
from talkoo_ledger.streams import unbundled

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_sim.ledger_chain import key_of, make_genesis

STEP_EVERY_S = 0.1
SMALL_STAKE_UTLK = UTLK_PER_TLK
Answering = Callable[[service_pb2.Ask], service_pb2.Answer | None]


def genesis_with_small_members(*names: str) -> Genesis:
    """The usual four, and members whose stake is too small to matter."""
    from msgspec.structs import replace

    def small(name: str) -> GenesisOrganization:
        owner, consensus, scheduler, validator = (
            key_of(f"{name}{role}").public.raw.hex() for role in ("", "-consensus", "-scheduler", "-validator")
        )
        return GenesisOrganization(name, owner, consensus, scheduler, validator, SMALL_STAKE_UTLK, [])

    genesis = make_genesis()
    return replace(genesis, organizations=[*genesis.organizations, *map(small, names)])


@dataclass
class ScriptedPeer:
    """`answer` returns None to stay silent. What the node says is kept in `heard`, at most `MOST_HEARD`."""

    organization: str
    genesis: Genesis
    answer: Answering
    height: int
    """The last height it says it has decided."""
    base: int = 1
    heard: list[service_pb2.PeerMessage] = field(default_factory=list)
    asked: list[service_pb2.Ask] = field(default_factory=list)
    ended: str = ""
    """With what the node ended the stream."""
    _outgoing: asyncio.Queue[service_pb2.PeerMessage] = field(default_factory=asyncio.Queue)

    MOST_HEARD = 10_000

    def say(self, message: service_pb2.PeerMessage) -> None:
        self._outgoing.put_nowait(message)

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Until the node ends the stream or the task is cancelled."""
        stub = service_pb2_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]  # generated
        telling = asyncio.create_task(self._tell())
        try:
            async for together in stub.Exchange(self._speech(), wait_for_ready=True):
                for message in unbundled(together):
                    self._hear(message)
            self.ended = "closed"
        except grpc.aio.AioRpcError as error:
            self.ended = error.details() or str(error.code())
        finally:
            telling.cancel()

    def _hear(self, message: service_pb2.PeerMessage) -> None:
        if len(self.heard) < self.MOST_HEARD:
            self.heard.append(message)
        if message.WhichOneof("message") == "ask":
            self.asked.append(message.ask)
            answer = self.answer(message.ask)
            if answer is not None:
                answer.id = message.ask.id
                self.say(service_pb2.PeerMessage(answer=answer))

    def say_height(self) -> None:
        step = service_pb2.RoundStep(height=self.height + 1, round=0, step=1, base=self.base)
        self.say(service_pb2.PeerMessage(step=step))

    async def _tell(self) -> None:
        while True:
            self.say_height()
            await asyncio.sleep(STEP_EVERY_S)

    async def _speech(self) -> AsyncIterator[service_pb2.PeerMessage]:
        hello = service_pb2.Hello(
            chain_id=self.genesis.chain_id,
            genesis_sha256=self.genesis.sha256(),
            organization=self.organization,
            height=self.height,
            session=self.organization.encode(),
        )
        yield service_pb2.PeerMessage(hello=hello)
        while True:
            yield await self._outgoing.get()
