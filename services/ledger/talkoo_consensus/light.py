"""Light-client verification, as CometBFT's `light` package and its specification: headers without their blocks.

A light block is a header with the commit that decided it and the validators of its height. From one that is trusted
another follows
- next to it, when its validators are the ones whose hash the trusted header names, and more than 2/3 of them signed;
- further ahead, when validators that hold more than the trust level (1/3 or more) of the *trusted* power signed it, and
  more than 2/3 of its own; where too much has changed in between, a header in the middle is verified first;
- further back, by the hash that each header holds of the one before.

Stricter than CometBFT in one thing: every signature of a commit must be right, not just the first 2/3. Pure: time is an
argument, whoever calls fetches what `Verification.wanted` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Final

from talkoo_consensus.encoding import header_hash, validators_hash
from talkoo_consensus.types import BlockIdFlag, Commit, Header
from talkoo_consensus.validators import MAX_TOTAL_POWER, ValidatorSet
from talkoo_consensus.verify import verify_commit
from talkoo_core.errors import Conflict, InvalidInput

LEAST_TRUST: Final = Fraction(1, 3)
MAX_CLOCK_DRIFT_NS: Final = 10 * 10**9
MAX_STEPS: Final = 512
"""Light blocks looked at on the way to one height; bisecting 2^62 heights takes fewer."""


@dataclass(frozen=True, slots=True)
class LightBlock:
    header: Header
    commit: Commit
    validators: ValidatorSet

    @property
    def height(self) -> int:
        return self.header.height

    @property
    def hash(self) -> bytes:
        return header_hash(self.header)


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """`trusting_period_ns` must be shorter than unbonding lasts: later, those who signed have nothing left to lose."""

    trusting_period_ns: int
    trust_level: Fraction = LEAST_TRUST
    max_clock_drift_ns: int = MAX_CLOCK_DRIFT_NS

    def __post_init__(self) -> None:
        if not LEAST_TRUST <= self.trust_level <= 1:
            raise InvalidInput(f"the trust level is {self.trust_level}; it takes 1/3 to 1", code="bad_trust_level")
        if self.trusting_period_ns <= 0:
            raise InvalidInput("the trusting period must be more than 0", code="bad_trust_period")
        if self.max_clock_drift_ns < 0:
            raise InvalidInput("the clock drift cannot be less than 0", code="bad_clock_drift")


class BadLightBlock(InvalidInput):
    """A light block that no honest provider sends for this chain. Code `bad_light_block`."""


class TooMuchChanged(InvalidInput):
    """Too few of the trusted validators signed: one in the middle is needed first. Code `too_much_changed`."""


class TrustExpired(Conflict):
    """The trusted header is too old: a newer one is needed from elsewhere. Code `trust_expired`."""


def check_light_block(chain_id: str, block: LightBlock) -> None:
    """That the parts fit each other and validators with more than 2/3 of its own power signed it.

    Says nothing about whether this is the chain's header: only `verify` does. Raises BadLightBlock.
    """
    header, validators = block.header, block.validators.validators
    if header.chain_id != chain_id:
        raise _bad(f"it is of chain {header.chain_id!r}, not {chain_id!r}")
    if not validators or any(v.power <= 0 for v in validators) or block.validators.total_power > MAX_TOTAL_POWER:
        raise _bad("its validators have impossible powers")
    if len({v.address for v in validators}) != len(validators):
        raise _bad("a validator stands in its set twice")
    if validators_hash(block.validators) != header.validators_hash:
        raise _bad("its validators are not those whose hash its header holds")
    if block.commit.block_id.hash != block.hash:
        raise _bad("its commit is for another header")
    try:
        verify_commit(chain_id, block.validators, block.commit.block_id, header.height, block.commit)
    except InvalidInput as error:
        raise _bad(str(error)) from None


def is_expired(header: Header, now_ns: int, options: TrustOptions) -> bool:
    return header.time_ns + options.trusting_period_ns <= now_ns


def verify(trusted: LightBlock, new: LightBlock, now_ns: int, options: TrustOptions) -> None:
    """That `new` follows from `trusted`, which is earlier. Raises TrustExpired, BadLightBlock, TooMuchChanged."""
    if is_expired(trusted.header, now_ns, options):
        raise TrustExpired(
            f"the trusted header {trusted.height} is older than the trusting period; get a newer one from somebody you "
            "trust, and begin with that",
            code="trust_expired",
        )
    if new.height <= trusted.height:
        raise _bad(f"height {new.height} is not after the trusted {trusted.height}")
    if new.header.time_ns <= trusted.header.time_ns:
        raise _bad("its time is not after the trusted header's")
    if new.header.time_ns >= now_ns + options.max_clock_drift_ns:
        raise _bad("its time lies in the future")
    if new.height == trusted.height + 1:
        if new.header.validators_hash != trusted.header.next_validators_hash:
            raise _bad("its validators are not those that the trusted header before it names")
    elif not is_trusted(trusted.validators, new, options.trust_level):
        raise TooMuchChanged(
            f"validators with {options.trust_level} of the power at {trusted.height} did not sign {new.height}",
            code="too_much_changed",
        )
    check_light_block(trusted.header.chain_id, new)


def verify_backwards(older: LightBlock, trusted: LightBlock) -> None:
    """That `older` is the header right before a trusted one. Raises BadLightBlock.

    The hash binds the header and so its validators; the commit is checked as well.
    """
    if older.hash != trusted.header.last_block_id.hash:
        raise _bad(f"its hash is not the one that the trusted header {trusted.height} holds of the header before it")
    check_light_block(trusted.header.chain_id, older)


def is_trusted(trusted: ValidatorSet, new: LightBlock, level: Fraction) -> bool:
    """Whether validators with more than `level` of the trusted power are among those that the commit names.

    Their signatures are verified by `check_light_block`, under the keys of the new set: an address is its key's hash.
    """
    signed = {sig.validator_address for sig in new.commit.signatures if sig.flag is BlockIdFlag.COMMIT}
    keys = {validator.address: validator.public_key for validator in new.validators.validators}
    power = sum(v.power for v in trusted.validators if v.address in signed and keys.get(v.address) == v.public_key)
    return power * level.denominator > trusted.total_power * level.numerator


@dataclass(slots=True)
class Verification:
    """The way from a trusted light block to a target height. Fetch `wanted`, `give` it, until `wanted` is 0.

    `trace`: the trusted block and all that were verified, in order; its last is the target's in the end.
    """

    trusted: LightBlock
    target: int
    options: TrustOptions
    sequential: bool = False
    trace: list[LightBlock] = field(init=False)
    _ahead: list[LightBlock] = field(default_factory=list)
    """Fetched and not verified yet, the nearest last."""
    _steps: int = 0

    def __post_init__(self) -> None:
        self.trace = [self.trusted]

    @property
    def wanted(self) -> int:
        """The height to fetch next; 0: the target is verified."""
        at = self.trace[-1].height
        if at == self.target:
            return 0
        if self.target < at:
            return at - 1
        if self.sequential:
            return at + 1
        return (at + self._ahead[-1].height) // 2 if self._ahead else self.target

    def forget(self) -> None:
        """Drop what was fetched and is not verified: it came from a provider that is not used any more."""
        self._ahead.clear()

    def give(self, block: LightBlock, now_ns: int) -> None:
        """A block of the wanted height. Raises BadLightBlock (ask another provider), TrustExpired, InvalidInput."""
        self._steps += 1
        if self._steps > MAX_STEPS and not self.sequential and self.target > self.trusted.height:
            raise InvalidInput(
                f"{MAX_STEPS} headers did not lead to {self.target}; verify sequentially", code="too_many_steps"
            )
        if block.height != self.wanted:
            raise _bad(f"height {self.wanted} was asked for, {block.height} came")
        if self.target < self.trace[-1].height:
            verify_backwards(block, self.trace[-1])
            self.trace.append(block)
            return
        self._ahead.append(block)
        while self._ahead:
            nearest = self._ahead[-1]
            try:
                verify(self.trace[-1], nearest, now_ns, self.options)
            except TooMuchChanged:
                return  # `wanted` now names one in the middle
            except BadLightBlock:
                self._ahead.pop()
                raise
            self.trace.append(nearest)
            self._ahead.pop()


class Attack(Enum):
    """How two headers of one height came to be signed (CometBFT's specification of attacks on light clients)."""

    LUNATIC = "lunatic"
    """The conflicting header's state fields cannot follow from the chain: whoever signed it made it up."""
    EQUIVOCATION = "equivocation"
    """Both were signed in the same round."""
    AMNESIA = "amnesia"
    """In different rounds: who forgot a lock cannot be told from the commits alone."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A proof that two chains split behind `common`. `faulty`: addresses of validators of `common` that are proven."""

    common: LightBlock
    trusted: LightBlock
    conflicting: LightBlock
    attack: Attack
    faulty: tuple[bytes, ...]


def split_of(trace: Sequence[LightBlock], others: Sequence[LightBlock]) -> int:
    """Index in `trace` of the first block that differs from the other provider's of the same height.

    `others[i]` is the other's block of the height of `trace[i]`. Raises InvalidInput (code `no_common_header`) where
    even the first differs: the two were never on one chain.
    """
    for index, (ours, theirs) in enumerate(zip(trace, others, strict=True)):
        if ours.hash != theirs.hash:
            if index == 0:
                raise InvalidInput(
                    f"the providers differ already at the trusted header {ours.height}; one is of another chain",
                    code="no_common_header",
                )
            return index
    raise InvalidInput("the providers agree", code="no_divergence")


def attribute(common: LightBlock, trusted: LightBlock, conflicting: LightBlock) -> Divergence:
    """Who is to blame for `conflicting`, given the `trusted` block of the same height and one common to both before.

    CometBFT's `LightClientAttackEvidence.GetByzantineValidators`.
    """
    if not _states_agree(trusted.header, conflicting.header):
        here = {v.address for v in common.validators.validators}
        return Divergence(common, trusted, conflicting, Attack.LUNATIC, _signers(conflicting.commit, here))
    if trusted.commit.round == conflicting.commit.round:
        both = set(_signers(trusted.commit, {v.address for v in trusted.validators.validators}))
        return Divergence(common, trusted, conflicting, Attack.EQUIVOCATION, _signers(conflicting.commit, both))
    return Divergence(common, trusted, conflicting, Attack.AMNESIA, ())


def _states_agree(ours: Header, theirs: Header) -> bool:
    """Whether the fields that follow from the blocks before are the same."""
    return all(
        getattr(ours, name) == getattr(theirs, name)
        for name in ("validators_hash", "next_validators_hash", "consensus_hash", "app_hash", "last_results_hash")
    )


def _signers(commit: Commit, among: set[bytes]) -> tuple[bytes, ...]:
    return tuple(
        sig.validator_address
        for sig in commit.signatures
        if sig.flag is BlockIdFlag.COMMIT and sig.validator_address in among
    )


def _bad(why: str) -> BadLightBlock:
    return BadLightBlock(f"the light block is refused: {why}", code="bad_light_block")
