"""What a proven double vote costs: stake, also what is on its way back, and the voice in consensus; once."""

from __future__ import annotations

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.application import FinalizeResponse, replay
from talkoo_ledger.members import ValidatorUpdate
from talkoo_ledger.misbehavior import Misbehavior
from talkoo_ledger.records import Organization
from talkoo_ledger.transfers import TREASURY

from talkoo_core.amounts import PPM, UTLK_PER_TLK, share_ppm
from talkoo_core.errors import Conflict
from talkoo_sim.ledger_chain import BLOCK_NS, ORGANIZATIONS, LedgerChain, address, key_of, make_genesis

GUILTY, OTHER = ORGANIZATIONS[:2]
EPOCH = 10


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis(epoch_blocks=EPOCH, jail_blocks=25, slash_ppm=400_000))


def fault(height: int, name: str = GUILTY, kind: str = "duplicate_vote") -> Misbehavior:
    return Misbehavior(kind, key_of(f"{name}-consensus").public.address, 5, height, height * BLOCK_NS, 20)


def member(chain: LedgerChain, name: str = GUILTY) -> Organization:
    return chain.state.organizations[name]


def unbonding(chain: LedgerChain) -> int:
    return sum(entry.amount_utlk for entry in chain.state.unbonding.live())


def punished(response: FinalizeResponse) -> int:
    return sum(event.type == "validator_punished" for event in response.all_events())


@pytest.mark.parametrize("kind", ["duplicate_vote", "light_client_attack"])
def test_stake_and_power_go_and_what_is_unbonding_is_slashed_as_well(chain: LedgerChain, kind: str) -> None:
    chain.send(GUILTY, tx_pb2.Unbond(subject=GUILTY, amount_utlk=40 * UTLK_PER_TLK))
    chain.skip(2)
    before, treasury = member(chain), chain.state.accounts.get(TREASURY)
    held = treasury.balance_utlk if treasury else 0
    response = chain.block(misbehavior=(fault(2, kind=kind),))
    after = member(chain)
    taken = share_ppm(before.stake_utlk, 400_000)
    assert after.stake_utlk == before.stake_utlk - taken
    assert unbonding(chain) == 24 * UTLK_PER_TLK
    assert after.slashed_utlk == taken + 16 * UTLK_PER_TLK
    assert chain.state.accounts[TREASURY].balance_utlk == held + after.slashed_utlk
    assert after.power == 0
    assert response.validator_updates == (ValidatorUpdate(before.validator_key, 0),)
    (event,) = [each for each in response.all_events() if each.type == "validator_punished"]
    assert dict(event.attributes) == {
        "fault": kind,
        "height": "2",
        "amount_utlk": str(after.slashed_utlk),
        "jailed_until_height": str(chain.height + 25),
    }
    assert member(chain, OTHER).slashed_utlk == 0


def test_all_that_a_key_did_before_its_power_was_gone_is_punished_once(chain: LedgerChain) -> None:
    chain.skip(5)
    assert punished(chain.block(misbehavior=(fault(3), fault(3), fault(4)))) == 1
    once = member(chain)
    for height in (2, 3, 5, chain.height, chain.height + 1):
        assert punished(chain.block(misbehavior=(fault(height),))) == 0
        assert member(chain).stake_utlk == once.stake_utlk
    assert member(chain).punished_height == 6


def test_a_second_fault_after_the_jail_is_punished_again(chain: LedgerChain) -> None:
    chain.skip(2)
    chain.block(misbehavior=(fault(2),))
    first = member(chain)
    while not member(chain).power:
        assert chain.height < 60
        chain.block()
    assert chain.height >= first.jailed_until_height
    assert chain.height % EPOCH == 0
    assert punished(chain.block(misbehavior=(fault(chain.height),))) == 1
    assert member(chain).stake_utlk == first.stake_utlk - share_ppm(first.stake_utlk, 400_000)


def test_power_stays_away_over_epochs_until_the_jail_is_over_and_comes_back_smaller(chain: LedgerChain) -> None:
    full = member(chain).power
    chain.skip(2)
    chain.block(misbehavior=(fault(2),))
    until = member(chain).jailed_until_height
    powers = {}
    while chain.height < until + EPOCH:
        chain.block()
        powers[chain.height] = member(chain).power
    assert all(power == 0 for height, power in powers.items() if height < until)
    assert 0 < powers[until + EPOCH - 1] < full


def test_a_fault_in_the_block_that_ends_an_epoch_changes_a_power_once(chain: LedgerChain) -> None:
    chain.send(GUILTY, tx_pb2.Bond(subject=GUILTY, amount_utlk=UTLK_PER_TLK))
    chain.skip(EPOCH - 1 - chain.height)
    response = chain.block(misbehavior=(fault(3),))
    assert chain.height == EPOCH
    keys = [update.public_key for update in response.validator_updates]
    assert len(keys) == len(set(keys))
    assert ValidatorUpdate(member(chain).validator_key, 0) in response.validator_updates


def test_stake_that_is_due_in_the_very_block_is_slashed_first() -> None:
    chain = LedgerChain(make_genesis(slash_ppm=PPM))
    chain.send(GUILTY, tx_pb2.Unbond(subject=GUILTY, amount_utlk=UTLK_PER_TLK))
    chain.skip(chain.state.unbonding.live()[0].release_height - chain.height - 1)
    before = chain.balance(GUILTY)
    chain.block(misbehavior=(fault(chain.height),))
    assert unbonding(chain) == 0
    paid = [e for e in chain.responses[-1].all_events() if dict(e.attributes).get("kind") == "unbond"]
    assert paid == []
    assert chain.balance(GUILTY) <= before + 5_000, "no stake came back, only a proposer's fee may have"


def test_a_stranger_and_one_who_left_are_passed_over(chain: LedgerChain) -> None:
    stranger = Misbehavior("duplicate_vote", bytes(20), 5, 1, BLOCK_NS, 20)
    assert punished(chain.block(misbehavior=(stranger,))) == 0


def test_the_last_validator_with_power_is_slashed_and_goes_on(chain: LedgerChain) -> None:
    chain.skip(2)
    response = chain.block(misbehavior=tuple(fault(2, name) for name in ORGANIZATIONS))
    assert punished(response) == len(ORGANIZATIONS)
    left = [name for name in ORGANIZATIONS if member(chain, name).power]
    assert left == [ORGANIZATIONS[-1]]
    assert len(response.validator_updates) == len(ORGANIZATIONS) - 1
    chain.skip(2 * EPOCH)
    assert [name for name in ORGANIZATIONS if member(chain, name).power] == left


def test_the_last_member_that_is_not_jailed_keeps_some_stake(chain: LedgerChain) -> None:
    chain.skip(2)
    chain.block(misbehavior=tuple(fault(2, name) for name in ORGANIZATIONS[:-1]))
    last = member(chain, ORGANIZATIONS[-1])
    with pytest.raises(Conflict) as error:
        chain.send(last.name, tx_pb2.Unbond(subject=last.name, amount_utlk=last.stake_utlk))
    assert error.value.code == "last_stake"


def test_a_replay_punishes_alike(chain: LedgerChain) -> None:
    chain.skip(3)
    chain.block(misbehavior=(fault(2), fault(3, OTHER)))
    chain.skip(3)
    assert replay(chain.genesis, chain.blocks).info() == chain.application.info()
    assert address(GUILTY) == member(chain).owner
