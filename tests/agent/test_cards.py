"""Which cards a node lends, and which shard gets which: no driver is asked here."""

from __future__ import annotations

import logging

import pytest
from talkoo_agent.cards import Card, Cards
from talkoo_agent.devices import find_device
from talkoo_agent.lending import cards_for, lent_cards
from talkoo_agent.nvml import Gpu, MigInstance
from talkoo_agent.settings import AgentSettings
from talkoo_agent.standing import refusal_of
from talkoo_agent.wire import offer_of
from talkoo_api.agent.v1 import node_pb2
from talkoo_api.ledger.v1 import state_pb2

from talkoo_core.errors import InvalidInput

H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


def gpu(index: int, product: str = H100, memory_gb: int = 80, mig: tuple[MigInstance, ...] | None = None) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}{index}ab",
        product=product,
        brand="Nvidia",
        architecture="Hopper",
        compute_capability="9.0",
        memory_bytes=memory_gb << 30,
        driver_version="580.105.08",
        cuda_version="13.0",
        pcie_bus_id=f"0000:{index}4:00.0",
        mig_capable=True,
        mig_enabled=mig is not None,
        mig=mig or (),
    )


def part(name: str, profile: str = "1g.10gb") -> MigInstance:
    return MigInstance(f"MIG-{name}", profile, 10 << 30)


THREE = (gpu(0), gpu(1), gpu(2))
CUT = (gpu(0, mig=(part("aa"), part("ab"))), gpu(1, mig=(part("ba"), part("bb", "3g.40gb"))))


def names(gpus: tuple[Gpu, ...], visible: str | None) -> str:
    return " ".join(card.uuid for card in lent_cards(gpus, visible))


@pytest.mark.parametrize(
    ("visible", "lent"),
    [
        (None, "GPU-00ab GPU-11ab GPU-22ab"),
        ("0,2", "GPU-00ab GPU-22ab"),
        ("2, 0", "GPU-22ab GPU-00ab"),
        ("GPU-11ab", "GPU-11ab"),
        ("GPU-1,GPU-0", "GPU-11ab GPU-00ab"),
        ("GPU-", ""),  # the beginning of all three
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("1,-1,0", "GPU-11ab"),
        ("1,7,0", "GPU-11ab"),
        ("1,GPU-11ab", ""),
        ("MIG-aa", ""),
        ("all", ""),
    ],
)
def test_only_what_cuda_would_show_the_agent_is_lent(visible: str | None, lent: str) -> None:
    assert names(THREE, visible) == lent


def test_an_index_is_that_of_nvml_though_a_card_before_does_not_answer() -> None:
    assert names(THREE[1:], "1") == "GPU-11ab"
    assert names(THREE[1:], "0,1") == ""


@pytest.mark.parametrize(
    ("visible", "lent"),
    [
        (None, "MIG-aa MIG-ab MIG-ba"),
        ("0", "MIG-aa MIG-ab"),
        ("GPU-00ab", "MIG-aa MIG-ab"),
        ("MIG-b", ""),  # two begin so
        ("MIG-ba", "MIG-ba"),
        ("MIG-bb,MIG-ba", "MIG-bb"),
        ("0,MIG-ab", ""),
    ],
)
def test_a_card_in_mig_mode_is_lent_by_its_parts(visible: str | None, lent: str) -> None:
    """Those of the first part's profile; `MIG-bb` has another."""
    assert names(CUT, visible) == lent


def test_a_card_in_mig_mode_without_parts_has_nothing_to_lend() -> None:
    assert names((gpu(0, mig=()), gpu(1)), None) == "GPU-11ab"


def test_a_card_of_another_product_is_not_lent_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    mixed = (gpu(0), gpu(1, product=L4), gpu(2))
    with caplog.at_level(logging.WARNING):
        assert names(mixed, None) == "GPU-00ab GPU-22ab"
    assert caplog.messages == [f"GPU-11ab ({L4}) is not lent: the first card is a {H100}"]
    assert names(mixed, "1,2") == "GPU-11ab", "the first that is named decides"
    cards = cards_for(lent_cards(mixed, None), 0)
    assert [cards.lends(one) for one in mixed] == [True, False, True]


def test_the_smallest_card_says_how_much_memory_a_shard_may_have() -> None:
    lent = lent_cards((gpu(0), gpu(1, memory_gb=79)), None)
    assert find_device(lent).memory_bytes == 79 << 30
    assert find_device(lent, declared_memory_bytes=100 << 30).memory_bytes == 79 << 30
    assert find_device(lent, declared_memory_bytes=1 << 30).memory_bytes == 1 << 30
    assert find_device(lent).backend == "nccl"
    assert find_device(()).kind == "cpu"


def test_there_is_a_slot_for_each_card_unless_fewer_are_wanted() -> None:
    lent = lent_cards(THREE, None)
    assert [cards_for(lent, slots).slots for slots in (0, 1, 3)] == [3, 1, 3]
    with pytest.raises(InvalidInput, match="slots is 4, and this node has 3 to lend") as refused:
        cards_for(lent, 4)
    assert refused.value.code == "bad_settings"
    assert [cards_for((), slots).slots for slots in (0, 1, 4)] == [1, 1, 4], "a processor takes as many as are wanted"


def three(limit: int = 3) -> Cards:
    return Cards(lent_cards(THREE, None), limit)


def taken(cards: Cards, holder: str) -> str:
    card = cards.take(holder)
    return card.uuid if card is not None else ""


def test_each_shard_has_a_card_of_its_own_until_it_gives_it_back() -> None:
    cards = three()
    assert [taken(cards, holder) for holder in "abcd"] == ["GPU-00ab", "GPU-11ab", "GPU-22ab", ""]
    assert (cards.free, cards.slots) == (0, 3)
    cards.give_back("b")
    cards.give_back("d")  # never had one
    assert (cards.free, taken(cards, "d")) == (1, "GPU-11ab")


def test_no_more_shards_than_wanted_though_cards_are_free() -> None:
    cards = three(limit=2)
    assert [taken(cards, holder) for holder in "abc"] == ["GPU-00ab", "GPU-11ab", ""]
    assert cards.slots == 2


def test_a_faulty_card_is_passed_over_and_its_shard_keeps_it() -> None:
    cards = three()
    assert taken(cards, "a") == "GPU-00ab"
    assert cards.note_faults({"GPU-00ab": ("XID 79",), "GPU-11ab": (), "GPU-99ab": ("XID 48",)})
    assert not cards.note_faults({"GPU-00ab": ("XID 79",)})
    assert (cards.slots, cards.free, cards.faults) == (3, 2, "gpu-0: XID 79")
    cards.give_back("a")
    assert (cards.slots, cards.free, cards.all_faulty) == (2, 2, False)
    assert [taken(cards, holder) for holder in "bcd"] == ["GPU-11ab", "GPU-22ab", ""]
    assert cards.note_faults({one.uuid: ("XID 79",) for one in THREE})
    assert cards.all_faulty
    cards.give_back("b")
    assert (cards.slots, cards.free) == (1, 0)


def test_with_fewer_slots_than_cards_another_card_stands_in_for_a_faulty_one() -> None:
    cards = three(limit=2)
    cards.note_faults({"GPU-00ab": ("XID 79",)})
    assert (cards.slots, taken(cards, "a"), taken(cards, "b")) == (2, "GPU-11ab", "GPU-22ab")


def test_a_fault_of_a_card_puts_all_its_parts_out() -> None:
    cards = Cards(lent_cards(CUT, None), 3)
    cards.note_faults({"GPU-00ab": ("XID 79",)})
    assert (cards.slots, cards.faults, taken(cards, "a")) == (1, "gpu-0: XID 79", "MIG-ba")


def test_what_takes_no_slot_disturbs_shards_as_little_as_may_be() -> None:
    cards = three()
    assert cards.quietest.uuid == "GPU-22ab"
    cards.note_faults({"GPU-22ab": ("XID 79",)})
    assert cards.quietest.uuid == "GPU-11ab"
    assert [taken(cards, holder) for holder in "ab"] == ["GPU-00ab", "GPU-11ab"]
    assert cards.quietest.uuid == "GPU-11ab", "healthy, though taken"
    assert cards_for((), 2).quietest == Card()


def test_an_offer_says_how_many_cards_there_are_and_which_are_out(own_settings: AgentSettings) -> None:
    record, cards = state_pb2.Node(id="n"), three()

    def offer(*running: str) -> tuple[str, int, str]:
        made = offer_of(own_settings, record, cards, running, [])
        return made.state, made.slots, made.reason

    assert offer() == ("ready", 3, "")
    cards.note_faults({"GPU-11ab": ("XID 79", "uncorrectable memory errors")})
    out = "not lent for its fault: gpu-1: XID 79, uncorrectable memory errors"
    assert offer() == ("ready", 2, out)
    cards.take("a")
    assert offer("a") == ("ready", 2, out)
    cards.take("b")
    assert offer("a", "b") == ("busy", 2, f"2 of 2 slots are taken; {out}")


def test_a_node_refuses_work_when_its_last_card_is_out() -> None:
    orders, record, cards = node_pb2.NodeOrders(), state_pb2.Node(), three()
    cards.note_faults({one.uuid: ("XID 79",) for one in THREE[:2]})
    assert refusal_of(orders, cards, record) is None
    cards.note_faults({one.uuid: ("XID 79",) for one in THREE})
    refusal = refusal_of(orders, cards, record)
    assert refusal is not None
    assert refusal.reason == "GPUFault"
    assert "gpu-0: XID 79; gpu-1: XID 79; gpu-2: XID 79" in refusal.message
