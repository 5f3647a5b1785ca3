"""Headers that peers send, verified from one that is trusted: skipping verification as CometBFT's light client does it.

A header far ahead is believed when validators with more than a third of the power that is trusted signed it, and with
more than two thirds of its own; else one in the middle is verified first. Where two are neighbours, the hash of the
later one's validators stands in the earlier one.

The trust begins at what this node has itself (the genesis, or its last block), or at the header of the settings.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.encoding import decode_commit, decode_header, validators_hash
from talkoo_consensus.light import LEAST_TRUST, LightBlock, check_light_block, is_trusted
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError, Unavailable
from talkoo_core.signing import address_of
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sync import ANSWER_TIMEOUT_S, Follows, Lie, Rests

log = logging.getLogger(__name__)

MAX_STEPS = 256
"""Headers looked at for one verification; bisecting 2^62 heights with a few lies on the way takes fewer."""
MAX_VALIDATORS = 10_000
HASH_BYTES = 32
NEXT_AFTER_S = 0.5
"""So long is waited for a peer's header before another is asked, too."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is trusted: validators of about this height, and the hash of those of the next."""

    height: int
    validators: ValidatorSet
    next_validators_hash: bytes


class HeaderTrust:
    """`trust_height`, `trust_hash`: the operator's trusted header; height 0: none."""

    def __init__(self, node: Follows, rests: Rests, trust_height: int = 0, trust_hash: bytes = b"") -> None:
        self._node = node
        self._rests = rests
        self._trust_height = trust_height
        self._trust_hash = trust_hash
        self._answered: set[str] = set()
        """Members that are asked first: they have answered before."""

    async def verified(self, height: int) -> LightBlock:
        """The header of a height, whoever sends it. Raises Unavailable where no peer has what proves it."""
        anchor = await self._anchor(height)
        wanted: list[tuple[int, str, LightBlock]] = []
        for _ in range(MAX_STEPS):
            if not wanted:
                wanted.append((height, *await self._any(height)))
            at, source, block = wanted[-1]
            if at == anchor.height + 1 and validators_hash(block.validators) != anchor.next_validators_hash:
                self._lied(source, f"sent a header {at} of validators that are not the chain's")
                wanted = [step for step in wanted if step[1] != source]
                continue
            if at > anchor.height + 1 and not is_trusted(anchor.validators, block, LEAST_TRUST):
                middle = (anchor.height + at) // 2
                wanted.append((middle, *await self._any(middle)))
                continue
            wanted.pop()
            if at == height:
                return block
            anchor = Anchor(at, block.validators, block.header.next_validators_hash)
        raise Unavailable(f"header {height} could not be verified in {MAX_STEPS} steps", code="unverified")

    async def linked(self, behind: LightBlock) -> LightBlock:
        """The light block before a verified one, which holds its hash. Raises Unavailable."""
        height, link = behind.header.height - 1, behind.header.last_block_id.hash
        return (await self._any(height, lambda block: block.hash == link))[1]

    async def validators(self, height: int, wanted_hash: bytes) -> ValidatorSet:
        """Of a height, by the hash that a verified header says. Their priorities are unproven. Raises Unavailable."""
        return (await self._any(height, lambda block: validators_hash(block.validators) == wanted_hash))[1].validators

    async def light_block(self, name: str, height: int) -> LightBlock:
        """As one peer sends it; its parts fit each other. Raises Unavailable, Lie."""
        stream = self._node.mesh.streams.get(name)
        if stream is None:
            raise Unavailable(f"the stream to {name} ended", code="connection_lost")
        question = service_pb2.Ask(light_block=service_pb2.LightBlockRequest(height=height))
        answer = (await self._node.mesh.asks.ask(stream, question, ANSWER_TIMEOUT_S)).light_block
        if not answer.header:
            raise Unavailable(f"{name} does not hold header {height}", code="no_header")
        return await asyncio.to_thread(_decoded, self._node.chain.chain_id, height, answer)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _anchor(self, height: int) -> Anchor:
        chain = self._node.chain
        if self._trust_height <= chain.last_height:
            return Anchor(chain.last_height, chain.validators, validators_hash(chain.validators))
        if self._trust_height > height:
            raise Unavailable(
                f"block {height} is older than the trusted header {self._trust_height}; a newer snapshot is needed",
                code="unverified",
            )
        _, trusted = await self._any(self._trust_height, lambda b: b.hash == self._trust_hash)
        return Anchor(self._trust_height, trusted.validators, trusted.header.next_validators_hash)

    async def _any(
        self, height: int, accept: Callable[[LightBlock], bool] = lambda _block: True
    ) -> tuple[str, LightBlock]:
        """From the first peer that has it and is not found lying; one that is slow is not waited for before the next is
        asked. Raises Unavailable when there is none.
        """
        heads = self._node.heads()
        able = [name for name, head in heads.items() if head.decided >= height and self._rests.may_be_asked(name)]
        able.sort(key=lambda n: (n not in self._answered, self._rests.times(n), n), reverse=True)
        asked: dict[asyncio.Task[LightBlock], str] = {}
        try:
            while able or asked:
                if able:
                    name = able.pop()
                    asked[asyncio.create_task(self.light_block(name, height))] = name
                done, _ = await asyncio.wait(
                    asked, timeout=NEXT_AFTER_S if able else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    name = asked.pop(task)
                    block = self._heard(name, height, task, accept)
                    if block is not None:
                        return name, block
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise Unavailable(f"no peer sends header {height}", code="no_header")

    def _heard(
        self, name: str, height: int, task: asyncio.Task[LightBlock], accept: Callable[[LightBlock], bool]
    ) -> LightBlock | None:
        try:
            block = task.result()
        except InvalidInput as error:
            self._lied(name, f"sent a wrong header {height}: {error}")
            return None
        except TalkooError as error:
            log.info("header %d is asked of another peer: %s", height, error)
            if error.code == "no_answer":
                self._rests.rest(name)
            return None
        if not accept(block):
            self._lied(name, f"sent a header {height} of another chain")
            return None
        self._answered.add(name)
        return block

    def _lied(self, name: str, what: str) -> None:
        self._node.blame(name, what)
        self._node.mesh.book.distrust(name)
        self._rests.liar(name)
        self._answered.discard(name)


def trusted_header(settings: LedgerSettings) -> tuple[int, bytes]:
    """Height and hash, 0 and nothing where the settings name none. Raises InvalidInput (code `bad_trust`)."""
    try:
        trusted = bytes.fromhex(settings.trust_hash)
    except ValueError:
        trusted = b"?"
    if (settings.trust_height, len(trusted)) != (0, 0) and (settings.trust_height <= 0 or len(trusted) != HASH_BYTES):
        raise InvalidInput(
            "`trust_height` and `trust_hash` name a header together: a height and the 32 bytes of its hash in hex",
            code="bad_trust",
        )
    return settings.trust_height, trusted


def _decoded(chain_id: str, height: int, answer: service_pb2.LightBlock) -> LightBlock:
    """Raises InvalidInput for what no honest node sends."""
    if len(answer.validators) > MAX_VALIDATORS:
        raise Lie(f"{len(answer.validators)} validators", code="wrong_header")
    try:
        header, commit = decode_header(answer.header), decode_commit(answer.commit)
        members = [
            Validator(address_of(v.public_key), v.public_key, v.power, v.proposer_priority) for v in answer.validators
        ]
    except (Corrupt, ValueError) as error:
        raise Lie(str(error), code="wrong_header") from None
    block = LightBlock(header, commit, ValidatorSet(tuple(members), answer.proposer_address))
    check_light_block(chain_id, block)
    if block.height != height:
        raise Lie(f"header {block.height} for {height}", code="wrong_header")
    if any(abs(v.proposer_priority) > 4 * block.validators.total_power for v in members):
        raise Lie("impossible priorities", code="wrong_header")
    if block.validators.find(answer.proposer_address) is None:
        raise Lie("its proposer is no validator", code="wrong_header")
    return block
