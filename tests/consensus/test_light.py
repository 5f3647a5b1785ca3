"""Light-client verification: forward by trust, sequentially, backward, and whom to blame for a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
from talkoo_consensus.encoding import header_hash
from talkoo_consensus.light import (
    Attack,
    BadLightBlock,
    LightBlock,
    TooMuchChanged,
    TrustExpired,
    TrustOptions,
    Verification,
    attribute,
    check_light_block,
    split_of,
    verify,
    verify_backwards,
)
from talkoo_consensus.types import ABSENT_SIG, Header
from talkoo_consensus.validators import ValidatorSet

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey
from talkoo_sim.ledger_chain import key_of
from talkoo_sim.light_chain import BLOCK_NS, CHAIN_ID, START_NS, LightChain, validator

HOUR_NS = 3_600 * 10**9
OPTIONS = TrustOptions(HOUR_NS)
NOW_NS = START_NS + 200 * BLOCK_NS
FOUR = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def chain() -> LightChain:
    grown = LightChain(FOUR)
    grown.grow(40)
    return grown


def walk(verification: Verification, chain: LightChain, now_ns: int = NOW_NS) -> list[int]:
    """Give what is wanted from a chain; returns the heights in the order in which they were fetched."""
    fetched = []
    while verification.wanted:
        fetched.append(verification.wanted)
        verification.give(chain.at(verification.wanted), now_ns)
    return fetched


def replaced_gradually(every: int, blocks: int) -> LightChain:
    """One of the validators is replaced by a new one every so many blocks."""
    names = [f"v{number}" for number in range(4 + blocks // every)]
    chain = LightChain(names, {name: 10 if index < 4 else 0 for index, name in enumerate(names)})
    for number in range(blocks // every):
        chain.grow(updates=[validator(names[number], 0), validator(names[number + 4], 10)])
        chain.grow(every - 1)
    return chain


def test_a_chain_without_changes_is_followed_in_one_step(chain: LightChain) -> None:
    verification = Verification(chain.at(1), 40, OPTIONS)
    assert walk(verification, chain) == [40]
    assert [block.height for block in verification.trace] == [1, 40]


def test_sequential_verification_looks_at_every_header(chain: LightChain) -> None:
    verification = Verification(chain.at(30), 40, OPTIONS, sequential=True)
    assert walk(verification, chain) == list(range(31, 41))


def test_headers_before_the_trusted_one_are_verified_by_their_hashes(chain: LightChain) -> None:
    verification = Verification(chain.at(20), 15, OPTIONS)
    assert walk(verification, chain, now_ns=NOW_NS + 10 * HOUR_NS) == [19, 18, 17, 16, 15]
    with pytest.raises(BadLightBlock, match="is not the one that the trusted header 20 holds"):
        verify_backwards(chain.at(18), chain.at(20))


def test_where_the_validators_changed_a_header_in_the_middle_is_verified_first() -> None:
    chain = replaced_gradually(every=10, blocks=80)
    verification = Verification(chain.at(1), 80, OPTIONS)
    fetched = walk(verification, chain)
    assert fetched[0] == 80
    assert 1 < len(fetched) < 40
    heights = [block.height for block in verification.trace]
    assert heights == sorted(heights)
    assert heights[-1] == 80


def test_a_joiner_of_most_power_is_not_followed_in_one_step() -> None:
    chain = LightChain((*FOUR, "giant"), {"giant": 0})
    chain.grow(3, updates=[validator("giant", 1_000)])
    chain.grow(20, signers=["giant"])
    with pytest.raises(TooMuchChanged):
        verify(chain.at(1), chain.at(20), NOW_NS, OPTIONS)
    assert walk(Verification(chain.at(1), 20, OPTIONS), chain)[-1] > 1


@pytest.mark.parametrize(
    ("signers", "level", "follows"),
    [
        (FOUR, Fraction(1, 3), True),
        (FOUR[:3], Fraction(1), False),
        (FOUR[:3], Fraction(2, 3), True),
        (FOUR, Fraction(1), False),
    ],
)
def test_the_trust_level_is_more_than_its_share_of_the_trusted_power(
    signers: tuple[str, ...], level: Fraction, follows: bool
) -> None:
    chain = LightChain(FOUR)
    chain.grow(9, signers=signers)
    options = TrustOptions(HOUR_NS, level)
    if follows:
        verify(chain.at(1), chain.at(9), NOW_NS, options)
    else:
        with pytest.raises(TooMuchChanged):
            verify(chain.at(1), chain.at(9), NOW_NS, options)


def test_two_thirds_exactly_do_not_decide() -> None:
    chain = LightChain(("a", "b", "c"))
    chain.grow(2)
    chain.grow(signers=("a", "b"))
    with pytest.raises(BadLightBlock, match="holds power 20 of 30"):
        verify(chain.at(1), chain.at(3), NOW_NS, OPTIONS)


def test_a_trust_that_is_too_old_proves_nothing(chain: LightChain) -> None:
    expiry = chain.at(5).header.time_ns + HOUR_NS
    verify(chain.at(5), chain.at(9), expiry - 1, OPTIONS)
    with pytest.raises(TrustExpired, match="get a newer one"):
        verify(chain.at(5), chain.at(9), expiry, OPTIONS)


def test_a_header_from_the_future_is_refused_beyond_the_drift(chain: LightChain) -> None:
    now_ns = chain.at(30).header.time_ns - OPTIONS.max_clock_drift_ns
    verify(chain.at(5), chain.at(30), now_ns + 1, OPTIONS)
    with pytest.raises(BadLightBlock, match="future"):
        verify(chain.at(5), chain.at(30), now_ns, OPTIONS)


@pytest.mark.parametrize(("number", "match"), [(5, "not after the trusted"), (3, "not after the trusted")])
def test_an_older_header_is_no_step_forward(chain: LightChain, number: int, match: str) -> None:
    with pytest.raises(BadLightBlock, match=match):
        verify(chain.at(5), chain.at(number), NOW_NS, OPTIONS)


def test_no_byte_of_a_light_block_can_be_changed(chain: LightChain) -> None:
    good = chain.at(9)
    for name in Header.__slots__:
        value = getattr(good.header, name)
        if isinstance(value, bytes):
            changed = replace(good.header, **{name: bytes([value[0] ^ 1]) + value[1:] if value else b"\1" * 32})
        elif isinstance(value, int):
            changed = replace(good.header, **{name: value + 1})
        elif isinstance(value, str):
            changed = replace(good.header, **{name: value + "x"})
        else:
            changed = replace(good.header, **{name: replace(value, hash=b"\7" * 32)})
        with pytest.raises(BadLightBlock):
            check_light_block(CHAIN_ID, replace(good, header=changed))
    for index, sig in enumerate(good.commit.signatures):
        wrong = replace(sig, signature=bytes([sig.signature[0] ^ 1]) + sig.signature[1:])
        places = (*good.commit.signatures[:index], wrong, *good.commit.signatures[index + 1 :])
        with pytest.raises(BadLightBlock, match="is wrong"):
            check_light_block(CHAIN_ID, replace(good, commit=replace(good.commit, signatures=places)))
    first = good.validators.validators[0]
    for other in (replace(first, power=11), replace(first, public_key=PrivateKey.from_seed(bytes(32)).public.raw)):
        others = ValidatorSet((other, *good.validators.validators[1:]), good.validators.proposer_address)
        with pytest.raises(BadLightBlock, match="not those whose hash"):
            check_light_block(CHAIN_ID, replace(good, validators=others))


def test_a_validator_that_stands_twice_in_a_set_does_not_count_twice(chain: LightChain) -> None:
    good = chain.at(9)
    twice = ValidatorSet((*good.validators.validators, good.validators.validators[0]))
    with pytest.raises(BadLightBlock, match="twice"):
        check_light_block(CHAIN_ID, replace(good, validators=twice))


def test_what_a_liar_sent_is_forgotten_and_the_next_providers_is_taken(chain: LightChain) -> None:
    verification = Verification(chain.at(1), 40, OPTIONS)
    with pytest.raises(BadLightBlock, match="was asked for"):
        verification.give(chain.at(39), NOW_NS)
    nobody = replace(chain.at(40).commit, signatures=(ABSENT_SIG,) * 4)
    verification.give(replace(chain.at(40), commit=nobody), NOW_NS)
    assert verification.wanted == 20  # as if too much had changed
    verification.forget()
    assert walk(verification, chain) == [40]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: TrustOptions(0), "bad_trust_period"),
        (lambda: TrustOptions(1, Fraction(1, 4)), "bad_trust_level"),
        (lambda: TrustOptions(1, Fraction(4, 3)), "bad_trust_level"),
        (lambda: TrustOptions(1, max_clock_drift_ns=-1), "bad_clock_drift"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], TrustOptions], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.code == code


def forked(round_: int = 0, signers: tuple[str, ...] | None = None) -> tuple[LightChain, LightChain]:
    honest = LightChain(FOUR)
    honest.grow(10)
    other = honest.fork(6)
    other.grow(5, tx=b"another", round_=round_, signers=signers)
    return honest, other


def test_the_first_header_that_differs_is_found() -> None:
    honest, other = forked()
    trace = [honest.at(height) for height in (1, 4, 5, 8, 10)]
    others = [other.at(block.height) for block in trace]
    assert split_of(trace, others) == 3
    with pytest.raises(InvalidInput) as caught:
        split_of(trace[:3], others[:3])
    assert caught.value.code == "no_divergence"


def test_who_signed_twice_in_a_round_is_named_and_nobody_else() -> None:
    honest, other = forked(signers=("a", "b", "c"))
    found = attribute(honest.at(5), honest.at(6), other.at(6))
    assert found.attack is Attack.EQUIVOCATION
    assert set(found.faulty) == {key_of(name).public.address for name in ("a", "b", "c")}


def test_a_split_over_rounds_names_nobody_by_commits_alone() -> None:
    honest, other = forked(round_=1)
    found = attribute(honest.at(5), honest.at(6), other.at(6))
    assert (found.attack, found.faulty) == (Attack.AMNESIA, ())


def test_a_made_up_state_names_those_of_the_common_height_who_signed_it() -> None:
    honest = LightChain(FOUR)
    honest.grow(10)
    states = honest.states[:6]
    states[-1] = replace(states[-1], app_hash=b"\x66" * 32)
    lunatic = LightChain(FOUR, {}, honest.blocks[:5], states)
    lunatic.grow(signers=("b", "c", "d"))
    found = attribute(honest.at(5), honest.at(6), lunatic.at(6))
    assert found.attack is Attack.LUNATIC
    assert set(found.faulty) == {key_of(name).public.address for name in ("b", "c", "d")}
    assert header_hash(found.conflicting.header) != honest.at(6).hash


def test_a_block_is_what_its_hash_says(chain: LightChain) -> None:
    block: LightBlock = chain.at(3)
    assert block.hash == chain.at(4).header.last_block_id.hash
