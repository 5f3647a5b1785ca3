"""Double votes between the driver, the peers and our blocks: each is told to every peer once, and kept for a block."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.encoding import decode_evidence, encode_evidence
from talkoo_consensus.evidence import conflicts
from talkoo_consensus.types import EMPTY_COMMIT, Block, Commit, ConflictingVotes, DuplicateVoteEvidence

from talkoo_ledger.executor import Executor
from talkoo_ledger.peers import Mesh

log = logging.getLogger(__name__)


class Offences:
    """`address`: of our own validator, which is never accused here."""

    def __init__(self, executor: Executor, mesh: Mesh, address: bytes) -> None:
        self._executor = executor
        self._mesh = mesh
        self._address = address
        self._last_commit = EMPTY_COMMIT

    def voted_twice(self, votes: ConflictingVotes) -> None:
        """Two votes that the driver has seen, or two commits have shown."""
        vote = votes.first
        if vote.validator_address == self._address:
            log.error(
                "another node signs with this validator's key (height %d, round %d): the others will prove a double "
                "vote and its stake will be slashed; stop one of the two nodes at once",
                vote.height,
                vote.round,
            )
            return
        log.warning(
            "validator %s voted twice at height %d, round %d", vote.validator_address.hex(), vote.height, vote.round
        )
        evidence = self._executor.evidence.report(votes, self._executor.chain)
        self._tell([] if evidence is None else [evidence])

    def heard(self, organization: str, raw: bytes) -> None:
        """Of a peer. Raises Corrupt, InvalidInput: its fault."""
        if self._executor.evidence.add(decode_evidence(raw), self._executor.chain):
            self._mesh.relay(organization, "", service_pb2.PeerMessage(evidence=raw))

    def after_block(self, block: Block) -> None:
        """It was executed. What its height has shown is told; a last commit other than ours shows who signed twice."""
        self._tell(self._executor.evidence_found)
        for votes in conflicts(self._last_commit, block.last_commit):
            self.voted_twice(votes)

    def height_ended(self, commit: Commit) -> None:
        """`commit`: with every precommit that this node has seen."""
        self._last_commit = commit

    def messages(self) -> Iterator[service_pb2.PeerMessage]:
        """For a peer that has just connected."""
        for evidence in self._executor.evidence.all_pending():
            yield service_pb2.PeerMessage(evidence=encode_evidence(evidence))

    def _tell(self, evidence: Iterable[DuplicateVoteEvidence]) -> None:
        for piece in evidence:
            self._mesh.send_all(service_pb2.PeerMessage(evidence=encode_evidence(piece)))
