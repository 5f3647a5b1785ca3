"""A member without voting power that listens to real ledger nodes and remembers what every validator has signed."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from dataclasses import dataclass, field

import grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc
from talkoo_consensus.encoding import decode_proposal, decode_vote
from talkoo_ledger.sign_state import Place, place_of
from talkoo_ledger.streams import unbundled

from talkoo_sim.ledger_processes import Ledgers

RECONNECT_S = 0.1
PROPOSAL = 32
"""CometBFT's SignedMsgType of a proposal; prevotes are 1, precommits 2."""


@dataclass(slots=True)
class WireRecorder:
    """Listens as `organization`, which must be a member. `run` until cancelled."""

    ledgers: Ledgers
    organization: str
    heard: int = 0
    _last: dict[bytes, Place] = field(default_factory=dict)
    _signatures: dict[tuple[bytes, int, int, int], set[bytes]] = field(default_factory=lambda: defaultdict(set))

    def twice(self) -> list[str]:
        """Places for which a validator has been heard with two different signatures.

        Of proposals the place says whose they are: one place has one proposer.
        """
        return [
            f"{who.hex() or 'the proposer'}, height {height}, round {round_}, type {kind}: {len(signatures)} signatures"
            for (who, height, round_, kind), signatures in self._signatures.items()
            if len(signatures) > 1
        ]

    def last(self, validator_address: bytes) -> Place:
        """The latest place for which a validator's vote has been heard."""
        return self._last.get(validator_address, (0, 0, 0))

    async def run(self, *names: str) -> None:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self._listen(name))

    async def _listen(self, name: str) -> None:
        """A stream to one node, opened again whenever it ends."""
        while True:
            channel = self.ledgers.channel(self.organization, role="ledger", to=name)
            try:
                stub = service_pb2_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]
                call = stub.Exchange()
                await call.write(self._hello())
                async for together in call:
                    for message in unbundled(together):
                        self._hear(message)
            except grpc.aio.AioRpcError:
                pass  # it is being killed or not up again yet: that is what we are here for
            finally:
                await channel.close()
                self.ledgers.channels.remove(channel)
            await asyncio.sleep(RECONNECT_S)

    def _hello(self) -> service_pb2.PeerMessage:
        genesis = self.ledgers.genesis
        return service_pb2.PeerMessage(
            hello=service_pb2.Hello(
                chain_id=genesis.chain_id,
                genesis_sha256=genesis.sha256(),
                organization=self.organization,
                session=secrets.token_bytes(8),
            )
        )

    def _hear(self, message: service_pb2.PeerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "vote":
            vote = decode_vote(message.vote)
            place = (vote.validator_address, vote.height, vote.round, int(vote.type))
            self._signatures[place].add(vote.signature)
            self._last[vote.validator_address] = max(self.last(vote.validator_address), place_of(vote))
        elif kind == "proposal":
            proposal = decode_proposal(message.proposal)
            self._signatures[(b"", proposal.height, proposal.round, PROPOSAL)].add(proposal.signature)
        else:
            return
        self.heard += 1
