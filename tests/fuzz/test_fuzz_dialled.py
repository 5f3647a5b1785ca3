"""A member whose server answers a node that dials it with anything: the node lives and goes on deciding."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace
from talkoo_api.ledger.v1 import service_pb2

from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.scripted_peer import genesis_with_small_members

NODE, LIAR = "north", "liar"
DIALS = 6
"""So often the node must have dialled the liar: each time it hears something else."""


class Liar:
    """Takes streams as `LIAR`, and says what its turn is."""

    def __init__(self, ledgers: Ledgers) -> None:
        self.ledgers = ledgers
        self.dialled = 0
        self._chance = random.Random(4)
        self._server = grpc.aio.server()

    async def start(self) -> None:
        folder = self.ledgers.certificate(LIAR, "ledger")
        credentials = grpc.ssl_server_credentials(
            [((folder / KEY_FILE).read_bytes(), (folder / CERTIFICATE_FILE).read_bytes())],
            (self.ledgers.folder / "trust.pem").read_bytes(),
            require_client_auth=True,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._exchange)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("talkoo_api.ledger.v1.Consensus", {"Exchange": handler}),)
        )
        self._server.add_secure_port(f"127.0.0.1:{self.ledgers.ports[LIAR]}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _exchange(self, _requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        self.dialled += 1
        genesis = self.ledgers.genesis
        hello = service_pb2.PeerMessage(
            hello=service_pb2.Hello(
                chain_id=genesis.chain_id, genesis_sha256=genesis.sha256(), organization=LIAR, session=b"lies"
            )
        ).SerializeToString()
        rubbish = self._chance.randbytes(40)
        vote = service_pb2.PeerMessage(vote=rubbish).SerializeToString()
        said = [[rubbish], [hello, b"\x00"], [b""], [hello, b""], [hello, vote, rubbish], [hello, hello]]
        for message in said[(self.dialled - 1) % len(said)]:
            yield message


@pytest.mark.timeout(120)
async def test_a_node_survives_whatever_the_member_says_that_it_dialled(tmp_path: Path) -> None:
    genesis = genesis_with_small_members(LIAR)
    organizations = [
        each if each.name == NODE else replace(each, stake_utlk=0)
        for each in genesis.organizations
        if each.name in (NODE, LIAR)
    ]
    ledgers = Ledgers(tmp_path, replace(genesis, organizations=organizations))
    liar = Liar(ledgers)
    await liar.start()
    try:
        ledgers.start(NODE)
        await ledgers.reach(2, NODE)

        async def dialled() -> bool:
            assert ledgers.processes[NODE].poll() is None, ledgers.log(NODE)[-2000:]
            return liar.dialled >= DIALS

        await ledgers.eventually(dialled, "the node has dialled the liar often enough", 90)
        height = await ledgers.height(NODE)
        await ledgers.reach(height + 2, NODE)
        assert "Traceback" not in ledgers.log(NODE)
    finally:
        await ledgers.close()
        await liar.stop()
