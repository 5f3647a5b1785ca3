"""A new node begins with a snapshot of its peers: the state after some block, and then the blocks behind it.

Peers may lie in everything. What is taken for true comes from headers that are verified from the operator's trusted
header or from the genesis (`header_trust`): the state's root stands in the header behind the snapshot's block, and the
entries must have that root. Chunks are held against the hashes that the snapshot's peers told; when the whole then has
another root, these peers have lied and the next snapshot is tried. Whose turn it is to propose stands in no header:
members with more than a third of the voting power must say the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import validators_hash
from talkoo_consensus.light import LightBlock
from talkoo_consensus.types import Commit
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError, Unavailable
from talkoo_ledger.application import Application, root_of
from talkoo_ledger.header_trust import HeaderTrust
from talkoo_ledger.members import names_by_address
from talkoo_ledger.snapshots import FORMAT, HASH_BYTES, MAX_CHUNKS, Entry, Restore, Snapshot
from talkoo_ledger.sync import ANSWER_TIMEOUT_S, Follows, Lie, Rests

log = logging.getLogger(__name__)

MAX_OFFERS_OF_ONE = 4
"""Snapshots that one peer may offer."""
MAX_OFFERS_TRIED = 8
MAX_STATE_CHUNKS = 8_192
"""8 GiB: a larger state is not held in memory on the word of a peer."""
CHUNKS_AT_ONCE = 4
CHUNK_TIMEOUT_S = 10.0
"""A chunk has at most 1 MiB."""
AGREE_TRIES = 10
AGREE_EVERY_S = 1.0


@dataclass(slots=True)
class Offer:
    """A snapshot, and the peers that say they have it."""

    snapshot: Snapshot
    peers: list[str]


class Restores(Follows, Protocol):
    """What a snapshot needs of the node."""

    @property
    def chain(self) -> ChainState: ...

    async def adopt(self, entries: Sequence[Entry], chain: ChainState, commit: Commit) -> None:
        """Put the verified state of a later height in the place of the node's own."""


class SnapshotSync:
    """`rests` is shared with the block sync: who lied there is not asked here."""

    def __init__(self, node: Restores, trust: HeaderTrust, rests: Rests) -> None:
        self._node = node
        self._trust = trust
        self._rests = rests

    async def restore(self) -> bool:
        """Try the peers' snapshots, those that most peers have first. True: the node stands behind one now."""
        offers = await self._offers()
        for offer in offers[:MAX_OFFERS_TRIED]:
            height = offer.snapshot.height
            if height <= self._node.chain.last_height:
                continue
            try:
                entries, chain, commit = await self._restored(offer)
            except TalkooError as error:
                log.info("the snapshot of block %d is not used: %s", height, error)
                continue
            await self._node.adopt(entries, chain, commit)
            log.info("began with the snapshot of block %d of %s", height, ", ".join(offer.peers))
            return True
        return False

    async def _offers(self) -> list[Offer]:
        names = [name for name in self._node.mesh.streams if self._rests.may_be_asked(name)]
        answers = await asyncio.gather(*(self._offers_of(name) for name in names))
        found: dict[tuple[int, bytes], Offer] = {}
        for name, snapshots in zip(names, answers, strict=True):
            for snapshot in snapshots:
                found.setdefault((snapshot.height, snapshot.hash), Offer(snapshot, [])).peers.append(name)
        return sorted(found.values(), key=lambda o: (-len(o.peers), -o.snapshot.height, o.snapshot.hash))

    async def _offers_of(self, name: str) -> list[Snapshot]:
        question = service_pb2.Ask(snapshots=service_pb2.SnapshotsRequest())
        try:
            answer = await self._node.mesh.asks.ask(self._node.mesh.streams[name], question, ANSWER_TIMEOUT_S)
            return _offered(answer.snapshots)
        except InvalidInput as error:
            self._lied([name], f"offered a wrong snapshot: {error}")
        except (Unavailable, KeyError) as error:
            log.info("%s offers no snapshot: %s", name, error)
            self._rests.rest(name)
        return []

    async def _restored(self, offer: Offer) -> tuple[list[Entry], ChainState, Commit]:
        """Everything of a snapshot, verified. Raises the typed error of what was wrong with it."""
        height = offer.snapshot.height
        behind = await self._trust.verified(height + 1)  # its header holds the state's root
        at = await self._trust.linked(behind)
        try:
            restore = Restore(offer.snapshot, behind.header.app_hash)
        except Corrupt as error:
            self._lied(offer.peers, f"offered a snapshot of block {height} that is not of this chain: {error}")
            raise
        await self._fetch(offer, restore)
        try:
            entries, application = await asyncio.to_thread(_loaded, restore, height, behind.header.app_hash)
        except Corrupt as error:
            self._lied(offer.peers, f"sent a snapshot of block {height} with a wrong state: {error}")
            raise
        validators = await self._agreed(behind, application)
        following = await self._trust.validators(height + 2, behind.header.next_validators_hash)
        chain = replace(
            self._node.chain,
            last_height=height,
            last_block_id=behind.header.last_block_id,
            last_time_ns=at.header.time_ns,
            last_validators=at.validators,
            validators=validators,
            next_validators=successor(validators, following),
            app_hash=behind.header.app_hash,
            last_results_hash=behind.header.last_results_hash,
            consensus_hash=behind.header.consensus_hash,
            app_version=behind.header.version_app,
        )
        return entries, chain, at.commit

    # -- chunks ------------------------------------------------------------------------------------------------------

    async def _fetch(self, offer: Offer, restore: Restore) -> None:
        """All chunks, a few at a time from all who have them. Raises Unavailable when nobody is left."""
        while not restore.complete:
            able = [name for name in offer.peers if self._rests.may_be_asked(name)]
            able = [name for name in able if name in self._node.mesh.streams]
            if not able:
                raise Unavailable(f"nobody is left to send block {restore.snapshot.height}'s snapshot", code="no_peer")
            wanted = restore.missing()[:CHUNKS_AT_ONCE]
            await asyncio.gather(
                *(self._fetch_chunk(able[i % len(able)], index, restore) for i, index in enumerate(wanted))
            )

    async def _fetch_chunk(self, name: str, index: int, restore: Restore) -> None:
        """What is wrong with it makes the peer rest; the chunk is asked of another."""
        snapshot = restore.snapshot
        request = service_pb2.ChunkRequest(height=snapshot.height, format=snapshot.format, index=index)
        try:
            stream = self._node.mesh.streams[name]
            answer = await self._node.mesh.asks.ask(stream, service_pb2.Ask(chunk=request), CHUNK_TIMEOUT_S)
            if not answer.chunk.data:
                raise Unavailable(f"{name} has chunk {index} no more", code="no_chunk")
            restore.add(index, answer.chunk.data)
        except Corrupt as error:
            self._lied([name], f"sent a wrong chunk: {error}")
        except (Unavailable, KeyError) as error:
            log.info("chunk %d is asked of another peer: %s", index, error)
            self._rests.rest(name)

    # -- whose turn it is --------------------------------------------------------------------------------------------

    async def _agreed(self, behind: LightBlock, application: Application) -> ValidatorSet:
        """The validators of a verified header with the priorities that more than a third of their power confirm."""
        member = names_by_address(application.state.organizations.all())
        power: dict[str, int] = {}
        for v in behind.validators.validators:
            name = member.get(v.address, "")
            power[name] = power.get(name, 0) + v.power
        for _ in range(AGREE_TRIES):
            said: dict[ValidatorSet, int] = {}
            names = [name for name in self._node.mesh.streams if power.get(name, 0) > 0]
            answers = await asyncio.gather(
                *(self._trust.light_block(name, behind.header.height) for name in names), return_exceptions=True
            )
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, LightBlock) and answer.header == behind.header:
                    said[answer.validators] = said.get(answer.validators, 0) + power[name]
                elif isinstance(answer, BaseException) and not isinstance(answer, TalkooError):
                    raise answer
            for validators, weight in said.items():
                if 3 * weight > behind.validators.total_power:
                    return validators
            await asyncio.sleep(AGREE_EVERY_S)
        raise Unavailable(
            "no peers with more than a third of the voting power say alike whose turn it is to propose; "
            "this node needs connections to more members",
            code="no_agreement",
        )

    def _lied(self, names: Sequence[str], what: str) -> None:
        for name in names:
            self._node.blame(name, what)
            self._node.mesh.book.distrust(name)
            self._rests.liar(name)


def successor(validators: ValidatorSet, following: ValidatorSet) -> ValidatorSet:
    """The set that follows by the rule of heights and has the members of `following`, whose priorities are not used.

    Raises Corrupt when there is none: a header would say so, too.
    """
    before = {v.address: v.power for v in validators.validators}
    after = {v.address: v for v in following.validators}
    changes = [Validator.of(v.public_key, v.power) for v in after.values() if before.get(v.address) != v.power]
    changes += [Validator.of(v.public_key, 0) for v in validators.validators if v.address not in after]
    result = validators.next_height(changes)
    if validators_hash(result) != validators_hash(following):
        raise Corrupt("the validators of two verified headers do not follow each other", code="bad_validators")
    return result


def _offered(answer: service_pb2.Snapshots) -> list[Snapshot]:
    """Raises Lie."""
    if len(answer.snapshots) > MAX_OFFERS_OF_ONE:
        raise Lie(f"{len(answer.snapshots)} snapshots at once", code="wrong_snapshot")
    offered = []
    for info in answer.snapshots:
        if info.format != FORMAT:
            continue  # of a newer version
        if not 0 < info.chunks <= MAX_CHUNKS or len(info.metadata) != HASH_BYTES * (info.chunks + 1):
            raise Lie(f"one of {info.chunks} chunks without their hashes", code="wrong_snapshot")
        if hashlib.sha256(info.metadata).digest() != info.hash or info.height == 0:
            raise Lie("its hash is not that of its metadata", code="wrong_snapshot")
        if info.chunks <= MAX_STATE_CHUNKS:
            offered.append(Snapshot(info.height, info.format, info.chunks, info.hash, info.metadata))
    return offered


def _loaded(restore: Restore, height: int, app_hash: bytes) -> tuple[list[Entry], Application]:
    """Into an application of its own, so that a false state touches nothing: its root is looked at first.

    Raises Corrupt.
    """
    entries = list(restore.entries())
    root = root_of(entries)
    if root != app_hash:
        raise Corrupt(f"its entries have the root {root.hex()[:16]}, the chain says {app_hash.hex()[:16]}")
    application = Application()
    application.load(entries, height, app_hash)
    return entries, application
