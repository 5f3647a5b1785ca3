"""Headers that peers send to a new node, verified from its genesis or from the operator's header; without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import encode_commit
from talkoo_consensus.light import LightBlock
from talkoo_consensus.validators import ValidatorSet
from talkoo_ledger.answers import light_block_message
from talkoo_ledger.header_trust import HeaderTrust, trusted_header
from talkoo_ledger.snapshot_sync import successor
from talkoo_ledger.sync import BlockSync, Head, Rests

from talkoo_core.errors import InvalidInput, Unavailable
from talkoo_sim.light_chain import LightChain, validator

NAMES = [f"v{n}" for n in range(12)]
FIRST = {name: 10 if n < 4 else 0 for n, name in enumerate(NAMES)}
Provider = Callable[[int], LightBlock | None]


class Federation:
    """Stands for a node and its mesh: questions are answered at once by the providers."""

    def __init__(self, chain: ChainState, **providers: Provider) -> None:
        self.chain = chain
        self.providers = providers
        self.streams = dict.fromkeys(providers, "")
        for name in providers:
            self.streams[name] = name
        self.mesh: Any = self
        self.asks = self
        self.book = self
        self.blamed: list[str] = []
        self.asked: list[int] = []

    async def ask(self, stream: str, question: service_pb2.Ask, _timeout_s: float) -> service_pb2.Answer:
        self.asked.append(question.light_block.height)
        block = self.providers[stream](question.light_block.height)
        if block is None:
            return service_pb2.Answer(light_block=service_pb2.LightBlock())
        return service_pb2.Answer(
            light_block=light_block_message(block.header, encode_commit(block.commit), block.validators)
        )

    def heads(self) -> dict[str, Head]:
        return {name: Head(10_000, 1) for name in self.providers}

    def next_height(self) -> int:
        return self.chain.height

    def blame(self, organization: str, _what: str) -> None:
        self.blamed.append(organization)

    def distrust(self, _organization: str) -> None:
        return


def moving_chain(blocks: int = 41) -> LightChain:
    """Every fourth block one validator goes and one comes: after the third of them nobody knows the others."""
    chain = LightChain(NAMES, FIRST)
    chain.grow()
    for n in range(8):
        chain.grow(4, updates=[validator(NAMES[n], 0), validator(NAMES[n + 4], 10)])
    chain.grow(blocks - len(chain.blocks))
    return chain


@pytest.fixture(scope="module")
def chain() -> LightChain:
    return moving_chain()


def honest(chain: LightChain) -> Provider:
    return lambda height: chain.at(height) if height <= len(chain.blocks) else None


def lying(chain: LightChain, lie: LightBlock) -> Provider:
    """About one height."""
    return lambda height: lie if height == 40 else chain.at(height)


async def test_a_header_is_verified_from_the_genesis_in_few_steps(chain: LightChain) -> None:
    node = Federation(chain.states[0], a=honest(chain))
    block = await HeaderTrust(node, Rests()).verified(40)  # type: ignore[arg-type]
    assert block.header == chain.at(40).header
    assert 40 in node.asked
    assert len(node.asked) < 20, node.asked
    assert node.blamed == []


async def test_where_the_validators_stay_one_step_is_enough() -> None:
    still = LightChain(NAMES[:4])
    still.grow(30)
    node = Federation(still.states[0], a=honest(still))
    await HeaderTrust(node, Rests()).verified(29)  # type: ignore[arg-type]
    assert node.asked == [29]


async def test_a_forged_header_is_found_and_its_sender_blamed(chain: LightChain) -> None:
    """Signed by more than 2/3 of validators that nobody has ever chosen."""
    forged = LightChain([f"forger-{n}" for n in range(4)])
    forged.grow(41)
    node = Federation(chain.states[0], a=honest(forged), b=honest(chain))
    block = await HeaderTrust(node, Rests()).verified(40)  # type: ignore[arg-type]
    assert block.header == chain.at(40).header
    assert set(node.blamed) == {"a"}
    alone = Federation(chain.states[0], a=honest(forged))
    with pytest.raises(Unavailable):
        await HeaderTrust(alone, Rests()).verified(40)  # type: ignore[arg-type]


async def test_parts_that_do_not_fit_each_other_are_lies(chain: LightChain) -> None:
    good = chain.at(40)
    first = good.validators.validators[0]
    lies = {
        "another height": chain.at(39),
        "another commit": replace(good, commit=chain.at(39).commit),
        "other validators": replace(good, validators=chain.at(1).validators),
        "a validator twice": replace(good, validators=replace(good.validators, validators=(first,) * 4)),
        "no proposer": replace(good, validators=replace(good.validators, proposer_address=b"")),
        "wild priorities": replace(
            good,
            validators=replace(
                good.validators,
                validators=(replace(first, proposer_priority=2**62), *good.validators.validators[1:]),
            ),
        ),
        "another state": replace(good, header=replace(good.header, app_hash=b"x" * 32)),
    }
    for what, lie in lies.items():
        node = Federation(chain.states[0], a=lying(chain, lie), b=honest(chain))
        block = await HeaderTrust(node, Rests()).verified(40)  # type: ignore[arg-type]
        assert block == chain.at(40)
        assert node.blamed == ["a"], what


async def test_the_operators_header_is_where_the_trust_begins(chain: LightChain) -> None:
    node = Federation(chain.states[0], a=honest(chain))
    trusted = chain.at(30)
    await HeaderTrust(node, Rests(), 30, trusted.hash).verified(40)  # type: ignore[arg-type]
    assert min(node.asked) == 30
    wrong = Federation(chain.states[0], a=honest(chain))
    with pytest.raises(Unavailable):
        await HeaderTrust(wrong, Rests(), 30, bytes(32)).verified(40)  # type: ignore[arg-type]
    assert wrong.blamed == ["a"]
    with pytest.raises(Unavailable, match="older than the trusted header"):
        await HeaderTrust(node, Rests(), 30, trusted.hash).verified(20)  # type: ignore[arg-type]


async def test_without_the_headers_between_nothing_is_believed(chain: LightChain) -> None:
    """All peers have pruned them: the operator must name a later header."""
    pruned = Federation(chain.states[0], a=lambda height: chain.at(height) if height >= 30 else None)
    with pytest.raises(Unavailable, match="no peer sends header"):
        await HeaderTrust(pruned, Rests()).verified(40)  # type: ignore[arg-type]
    assert pruned.blamed == [], "who has pruned does not lie"
    assert await HeaderTrust(pruned, Rests(), 30, chain.at(30).hash).verified(40)  # type: ignore[arg-type]


async def test_the_header_before_is_the_one_whose_hash_it_holds(chain: LightChain) -> None:
    twin = moving_chain()
    twin = twin.fork(39)
    twin.grow(3, tx=b"another")
    node = Federation(chain.states[0], a=honest(twin), b=honest(chain))
    assert await HeaderTrust(node, Rests()).linked(chain.at(40)) == chain.at(39)  # type: ignore[arg-type]
    assert node.blamed == ["a"]


def test_validators_that_follow_have_the_priorities_of_the_rule_whatever_a_peer_says(chain: LightChain) -> None:
    for state in chain.states:
        said = state.next_validators
        unproven = ValidatorSet(
            tuple(replace(v, proposer_priority=7) for v in said.validators), said.validators[0].address
        )
        assert successor(state.validators, unproven) == said


@pytest.mark.parametrize(("height", "hash_"), [(5, ""), (0, "ab" * 32), (5, "ab"), (5, "zz" * 32), (-1, "ab" * 32)])
def test_a_trusted_header_needs_height_and_hash(height: int, hash_: str) -> None:
    class Settings:
        trust_height, trust_hash = height, hash_

    with pytest.raises(InvalidInput, match="name a header together"):
        trusted_header(Settings())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "bases", "restores"),
    [(1, [1, 1], True), (2, [1, 1], False), (50, [40, 60], False), (50, [60, 70], True), (1, [0, 0], True)],
)
async def test_a_snapshot_is_for_new_nodes_far_behind_and_for_blocks_that_nobody_kept(
    height: int, bases: list[int], restores: bool, chain: LightChain
) -> None:
    node = Federation(replace(chain.states[0], last_height=height - 1))
    node.heads = lambda: {f"p{n}": Head(100, base) for n, base in enumerate(bases)}  # type: ignore[method-assign]
    tried: list[bool] = []

    async def restore() -> bool:
        tried.append(True)
        return False

    sync = BlockSync(node, Rests(), restore, 90)  # type: ignore[arg-type]
    for _ in range(3):
        await sync._restore_if_better(height, 101 - height)
    assert len(tried) == restores, "and not again at once"
