"""Where light blocks and proofs come from: the CometBFT RPC of any node of the chain. Nothing it says is trusted."""

from __future__ import annotations

import base64
import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from talkoo_consensus.light import LightBlock
from talkoo_consensus.validators import MAX_VALIDATORS, Validator, ValidatorSet
from talkoo_ledger.comet.documents import commit_of, header_of, validator_of
from talkoo_ledger.ics23 import ProofOp

from talkoo_core.errors import Corrupt, Failed, InvalidInput, NotFound, Unavailable

MAX_ANSWER_BYTES = 16 * 1024 * 1024
ANSWER_DEADLINE_S = 15.0
"""For the whole answer: one that drips is given up, too."""
CHUNK_BYTES = 64 * 1024
PER_PAGE = 100
MAX_KEY_BYTES = 256


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """What a node says a key's value is (None: it has none) after block `height`, and its proof."""

    value: bytes | None
    height: int
    proof: tuple[ProofOp, ...]


class Provider:
    """One node's RPC, `http://host:port`. Raises InvalidInput for another form of address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise InvalidInput(f"{url!r} is not the address of an RPC; it looks like http://host:26657", code="bad_url")
        self.url = url.rstrip("/")
        self._parts = parts

    def light_block(self, height: int = 0) -> LightBlock:
        """Of a height; 0: the newest. Raises Unavailable, NotFound (it does not hold that height), Corrupt."""
        signed = self._ask("commit", **({"height": str(height)} if height else {}))
        document = _part(signed, "signed_header")
        header, commit = header_of(_part(document, "header")), commit_of(_part(document, "commit"))
        if height and header.height != height:
            raise Corrupt(f"{self.url} sent header {header.height} for {height}", code="malformed")
        return LightBlock(header, commit, self._validators(header.height))

    def state(self, module: str, key: str) -> StateAnswer:
        """A value with its proof, unchecked. Raises Unavailable, NotFound, Corrupt, Failed (the node's refusal)."""
        document = _part(
            self._ask("abci_query", path=f"/store/{module}/key", data=key.encode().hex(), prove=True), "response"
        )
        try:
            if int(document.get("code") or 0) != 0:
                raise Failed(f"{self.url} does not answer: {document.get('log')}", code="query_failed")
            value = base64.b64decode(document.get("value") or "", validate=True)
            proof = document.get("proofOps") or document.get("proof_ops") or {}
            ops = tuple(
                ProofOp(str(op["type"]), base64.b64decode(op["key"]), base64.b64decode(op["data"]))
                for op in proof.get("ops") or ()
            )
            return StateAnswer(value or None, int(document.get("height") or 0), ops)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"{self.url} sent an answer that cannot be read: {error}", code="malformed") from None

    def _validators(self, height: int) -> ValidatorSet:
        found: list[Validator] = []
        total = 1
        while len(found) < total:
            page = str(len(found) // PER_PAGE + 1)
            document = self._ask("validators", height=str(height), page=page, per_page=str(PER_PAGE))
            each = document.get("validators")
            if not isinstance(each, list) or not each or len(found) % PER_PAGE:
                raise Corrupt(f"{self.url} sent fewer validators than it says there are", code="malformed")
            found += [validator_of(one) for one in each]
            total = _number(document.get("total"), self.url)
        return ValidatorSet(tuple(found))

    def _ask(self, method: str, **params: str | bool) -> dict[str, Any]:
        """The result of a call. Raises Unavailable, NotFound, Failed, Corrupt."""
        raw = self._fetch(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
        try:
            answer = json.loads(raw)
        except ValueError:
            raise Corrupt(f"{self.url} answers something that is no JSON; is it an RPC?", code="malformed") from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            error = answer["error"]
            why = str(error.get("data") or error.get("message"))[:500]
            if "height" in why:
                raise NotFound(f"{self.url}: {why}", code="no_header")
            raise Failed(f"{self.url} refuses: {why}", code="rpc_error")
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), dict):
            raise Corrupt(f"{self.url} answers something that is no JSON-RPC", code="malformed")
        result: dict[str, Any] = answer["result"]
        return result

    def _fetch(self, call: bytes) -> bytes:
        """Reads at most MAX_ANSWER_BYTES in at most ANSWER_DEADLINE_S."""
        deadline = time.monotonic() + ANSWER_DEADLINE_S
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=ANSWER_DEADLINE_S)
        try:
            headers = {"Connection": "close", "Content-Type": "application/json"}
            connection.request("POST", self._parts.path or "/", call, headers)
            answer = connection.getresponse()
            body = bytearray()
            while chunk := answer.read1(CHUNK_BYTES):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise Corrupt(f"{self.url} sends more than {MAX_ANSWER_BYTES} bytes", code="answer_too_large")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole answer in {ANSWER_DEADLINE_S:.0f} s")
            return bytes(body)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.url} does not answer: {error}", code="provider_unavailable") from None
        finally:
            connection.close()


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if not isinstance(part, dict):
        raise Corrupt(f"an answer holds no {name}", code="malformed")
    return part


def _number(value: object, url: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if not 0 < number <= MAX_VALIDATORS:
        raise Corrupt(f"{url} says that there are {str(value)[:50]} validators", code="malformed")
    return number
