"""The light client: one node is asked (the primary), others watch it (the witnesses), none is trusted.

A header counts only when it was verified from one that the user trusts and every witness that answers has the same. Two
that differ and are both signed are an attack: the client stops, and writes what proves it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from talkoo_consensus.light import (
    BadLightBlock,
    Divergence,
    LightBlock,
    TrustOptions,
    Verification,
    attribute,
    check_light_block,
    split_of,
)
from talkoo_ledger.ics23 import verify_state

from talkoo.light.provider import Provider
from talkoo.light.store import LightStore
from talkoo_core.errors import Conflict, Corrupt, Failed, NotFound, TalkooError, Unavailable
from talkoo_runtime.disk import write_atomic

log = logging.getLogger(__name__)

NEXT_HEADER_S = 30.0
"""A proof needs the header behind its block; a chain that makes none for so long stands still."""
LOOK_EVERY_S = 0.2
ATTEMPTS = 3
"""Of a state query, since its block may be pruned or followed by another in between."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A value (None: proven to be absent) after block `height`, by the header of the block behind it."""

    module: str
    key: str
    value: bytes | None
    height: int
    header_height: int
    header_hash: bytes


@dataclass
class LightClient:
    """`primary` answers, `witnesses` are compared with it. `now_ns`: the clock, as an argument."""

    primary: Provider
    witnesses: list[Provider]
    store: LightStore
    options: TrustOptions
    evidence_folder: Path
    sequential: bool = False
    now_ns: Callable[[], int] = field(default=time.time_ns)

    def begin(self, height: int, hash_: bytes) -> LightBlock:
        """Trust the header of this height and hash, which the user has from somebody. Raises Conflict where the
        primary has another, and what `update` raises."""
        known = self.store.at(height)
        if known is not None and known.hash == hash_:
            return known
        block = self._from_primary(height)
        if block.hash != hash_:
            raise Conflict(
                f"{self.primary.url} has {block.hash.hex()} at height {height}, not the trusted {hash_.hex()}; check "
                "the height and the hash, or ask another node",
                code="wrong_trusted_hash",
            )
        check_light_block(block.header.chain_id, block)
        self._compare([block])
        self.store.save(block)
        return block

    def update(self, height: int = 0) -> LightBlock:
        """Verify the header of a height; 0: the newest. Raises NotFound where nothing is trusted yet, TrustExpired,
        Conflict (code `light_client_attack`, the evidence is on disk), Unavailable where no provider is left."""
        target = height or self._newest_height()
        trusted = self.store.at(target)
        if trusted is not None:
            return trusted
        trusted = self.store.below(target) or self.store.oldest()
        if trusted is None:
            raise NotFound(
                "nothing is trusted yet; give --trusted-height and --trusted-hash of a header that somebody you trust "
                "has told you",
                code="no_trust",
            )
        verification = Verification(trusted, target, self.options, self.sequential)
        while verification.wanted:
            self._step(verification)
        self._compare(verification.trace)
        for block in verification.trace[1:]:
            self.store.save(block)
        return verification.trace[-1]

    def prove(self, module: str, key: str) -> Proven:
        """A value of the state, or its absence, as the newest header proves it. Raises as `update`, and Corrupt."""
        for attempt in range(1, ATTEMPTS + 1):
            answer = self.primary.state(module, key)
            try:
                header = self.update(self._wait_for(answer.height + 1))
                verify_state(header.header.app_hash, module, key, answer.value, answer.proof)
            except (NotFound, Corrupt) as error:
                if attempt == ATTEMPTS or (isinstance(error, NotFound) and error.code == "no_trust"):
                    raise
                log.info("asked again: %s", error)
                continue
            return Proven(module, key, answer.value, answer.height, header.height, header.hash)
        raise AssertionError("the loop returns or raises")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _newest_height(self) -> int:
        """What the primary says it has; never below what is verified already."""
        known = self.store.newest()
        return max(self._from_primary(0).height, known.height if known is not None else 0)

    def _wait_for(self, height: int) -> int:
        end = time.monotonic() + NEXT_HEADER_S
        while True:
            try:
                if self.primary.light_block().height >= height:
                    return height
            except NotFound:
                log.info("%s has no header yet", self.primary.url)
            if time.monotonic() > end:
                raise Unavailable(
                    f"no block followed {height - 1} in {NEXT_HEADER_S:.0f} s; the proof needs the header behind it",
                    code="chain_stands_still",
                )
            time.sleep(LOOK_EVERY_S)

    def _step(self, verification: Verification) -> None:
        """Fetch one block for it; a primary that lies or is gone is replaced by a witness."""
        primary = self.primary
        block = self._from_primary(verification.wanted)
        try:
            if self.primary is primary:
                verification.give(block, self.now_ns())
        except BadLightBlock as error:
            self._replace_primary(str(error))
        if self.primary is not primary:
            verification.forget()

    def _from_primary(self, height: int) -> LightBlock:
        """From the primary, or whoever takes its place. Raises Unavailable where no provider is left."""
        while True:
            try:
                return self.primary.light_block(height)
            except (Unavailable, Corrupt, Failed) as error:
                self._replace_primary(str(error))

    def _replace_primary(self, why: str) -> None:
        if not self.witnesses:
            raise Unavailable(
                f"{self.primary.url} cannot be used ({why}), and there is no witness to take its place; name another "
                "node with --primary or --witness",
                code="no_provider",
            )
        log.warning("%s is left for %s: %s", self.primary.url, self.witnesses[0].url, why)
        self.primary = self.witnesses.pop(0)

    def _compare(self, trace: Sequence[LightBlock]) -> None:
        """Hold what was verified against every witness. One that has not got so far, or is gone, is passed over."""
        for witness in list(self.witnesses):
            try:
                theirs = witness.light_block(trace[-1].height)
            except (Unavailable, NotFound, Corrupt, Failed) as error:
                log.warning("%s could not be asked: %s", witness.url, error)
                continue
            if theirs.hash != trace[-1].hash:
                self._examine(witness, trace, theirs)

    def _examine(self, witness: Provider, trace: Sequence[LightBlock], theirs: LightBlock) -> None:
        """A witness differs: it is dropped where it proves nothing; else this is an attack. Raises Conflict."""
        try:
            others = [*(witness.light_block(block.height) for block in trace[:-1]), theirs]
            index = split_of(trace, others)
            common = trace[index - 1]
            verification = Verification(common, others[index].height, self.options, self.sequential)
            while at := verification.wanted:
                block = others[index] if at == others[index].height else witness.light_block(at)
                verification.give(block, self.now_ns())
        except TalkooError as error:
            log.warning("%s is dropped: it differs and cannot prove it: %s", witness.url, error)
            self.witnesses.remove(witness)
            return
        found = attribute(common, trace[index], others[index])
        path = self._write(found, witness)
        raise Conflict(
            f"{self.primary.url} and {witness.url} have different headers {trace[index].height}, and both are signed: "
            f"this is an attack ({found.attack.value}). Trust neither, tell the members; the evidence is in {path}",
            code="light_client_attack",
        )

    def _write(self, found: Divergence, witness: Provider) -> Path:
        path = self.evidence_folder / f"attack-{found.trusted.height}.json"
        content = {
            "attack": found.attack.value,
            "common_height": found.common.height,
            "height": found.trusted.height,
            "headers": {self.primary.url: found.trusted.hash.hex(), witness.url: found.conflicting.hash.hex()},
            "rounds": {self.primary.url: found.trusted.commit.round, witness.url: found.conflicting.commit.round},
            "faulty_validators": [address.hex() for address in found.faulty],
        }
        write_atomic(path, json.dumps(content, indent=2).encode() + b"\n")
        return path
