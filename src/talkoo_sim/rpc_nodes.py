"""CometBFT's RPC as tests ask it: of our own nodes, and of the real CometBFT beside them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.types import Block
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_ledger.comet.documents import block_of
from websockets.sync.client import ClientConnection, connect

from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of

FEE_UTLK = 1_000
DEADLINE_S = 90.0
LOOK_EVERY_S = 0.1
CALL_TIMEOUT_S = 60.0


@dataclass
class Rpc:
    """One node's RPC."""

    port: int
    home: Path = Path()
    """Of the real CometBFT."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, **params: Any) -> Any:
        """The whole answer of a JSON-RPC call."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        return json.loads(self.post(body)[1])

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", "/", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, method: str, **params: Any) -> Any:
        answer = self.ask(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    def height(self) -> int:
        return int(self.get("status")["sync_info"]["latest_block_height"])

    def block(self, height: int) -> Block:
        return block_of(self.get("block", height=str(height))["block"])

    def validators(self, height: int) -> ValidatorSet:
        shown = self.get("validators", height=str(height))["validators"]
        return ValidatorSet(
            tuple(
                Validator(
                    bytes.fromhex(each["address"]),
                    base64.b64decode(each["pub_key"]["value"]),
                    int(each["voting_power"]),
                    int(each["proposer_priority"]),
                )
                for each in shown
            )
        )

    def send(self, tx: bytes) -> Any:
        return self.get("broadcast_tx_commit", tx=base64.b64encode(tx).decode())

    def websocket(self) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/websocket", proxy=None, max_size=None)


@dataclass
class Nodes:
    """All four, and a sender whose nonce is known."""

    rpcs: list[Rpc]
    nonce: int = 0

    def transfer(self, amount_utlk: int) -> bytes:
        message = tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)
        self.nonce += 1
        return sign_transaction(key_of("alice"), CHAIN_ID, self.nonce - 1, FEE_UTLK, message)


def until(holds: Callable[[], Any], what: str) -> Any:
    """Look again until it holds; who cannot be reached does not hold."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            seen = holds()
            if seen:
                return seen
        time.sleep(LOOK_EVERY_S)
    raise AssertionError(f"in {DEADLINE_S:.0f} s it did not happen that {what}")
