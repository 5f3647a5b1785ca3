"""broadcast_evidence: a double vote that somebody outside has seen, most often a light client."""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import Any

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.encoding import decode_evidence, encode_evidence

from talkoo_core.errors import InvalidInput
from talkoo_ledger.comet.documents import evidence_of
from talkoo_ledger.node import Node
from talkoo_ledger.rpc.documents import DUPLICATE_VOTE_TYPE, Document

log = logging.getLogger(__name__)


class EvidenceMethods:
    """Each method is named as in CometBFT's RPC and returns its result's document."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def broadcast_evidence(self, evidence: Any) -> Document:
        """New and right: kept for a block and told to the peers. Raises InvalidInput (`bad_evidence`), Corrupt."""
        if not isinstance(evidence, dict) or not isinstance(evidence.get("value"), dict):
            raise InvalidInput("no evidence was provided: send an object with type and value", code="bad_evidence")
        if evidence.get("type") != DUPLICATE_VOTE_TYPE:
            raise InvalidInput(
                f"this chain takes {DUPLICATE_VOTE_TYPE}; of an attack on a light client, send the double votes in it",
                code="bad_evidence",
            )
        raw = encode_evidence(evidence_of(evidence))
        found = decode_evidence(raw)  # which holds its numbers against their bounds
        if self._node.executor.evidence.add(found, self._node.chain):
            log.info(
                "a client has proven that %s voted twice at height %d", found.validator_address.hex(), found.height
            )
            self._node.mesh.send_all(service_pb2.PeerMessage(evidence=raw))
        return {"hash": base64.b64encode(hashlib.sha256(raw).digest()).decode()}
