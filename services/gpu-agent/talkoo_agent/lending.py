"""Which cards of this machine are lent: those that the environment leaves to us, as far as they are alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from talkoo_agent.cards import Card, Cards
from talkoo_agent.nvml import Gpu
from talkoo_core.errors import InvalidInput

log = logging.getLogger(__name__)


def lent_cards(gpus: Sequence[Gpu], visible: str | None) -> tuple[Card, ...]:
    """`visible`: CUDA_VISIBLE_DEVICES of the agent, which NVML knows nothing of; None where it is not set.

    Cards of another product than the first are not lent: a node has one hardware class on the ledger, and validators
    compare results by their bits within it.
    """
    named = [card for gpu in gpus for card in _cards_of(gpu)] if visible is None else _named(gpus, visible)
    lent = tuple(card for card in named if card.product == named[0].product)
    for card in named:
        if card.product != named[0].product:
            log.warning("%s (%s) is not lent: the first card is a %s", card.uuid, card.product, named[0].product)
    return lent


def cards_for(lent: Sequence[Card], slots: int) -> Cards:
    """`slots` as in the settings. Raises InvalidInput (code `bad_settings`) when there is not a card for each."""
    if not lent:
        places = slots or 1
        return Cards([Card()] * places, places)
    if slots > len(lent):
        raise InvalidInput(
            f"slots is {slots}, and this node has {len(lent)} to lend: a card takes one shard at a time; "
            f"set slots to {len(lent)} at most, or to 0 for one on each card",
            code="bad_settings",
        )
    return Cards(lent, slots or len(lent))


def _cards_of(gpu: Gpu) -> Iterator[Card]:
    """The GPU itself, or its parts: a process sees one part only, and without any none of the GPU."""
    if not gpu.mig_enabled:
        yield Card(gpu.uuid, gpu, gpu.product, gpu.memory_bytes)
    for part in gpu.mig:
        yield Card(part.uuid, gpu, f"{gpu.product} MIG {part.profile}", part.memory_bytes)


def _named(gpus: Sequence[Gpu], visible: str) -> list[Card]:
    """In the order of their names. As CUDA does it, nothing counts from the first name on that is no card's.

    CUDA takes a list with a card in it twice for an empty one.
    """
    found: list[Card] = []
    for name in (word.strip() for word in visible.split(",")):
        cards = _called(gpus, name)
        if not cards:
            if name not in ("", "-1"):  # those say that nothing more is meant
                log.warning("CUDA_VISIBLE_DEVICES: %r is no card here; it and what follows is not lent", name)
            break
        if any(card in found for card in cards):
            log.warning("CUDA_VISIBLE_DEVICES names %r twice, so nothing is lent", name)
            return []
        found += cards
    return found


def _called(gpus: Sequence[Gpu], name: str) -> list[Card]:
    """An index in NVML's order, or the UUID of a GPU or of a part, or its beginning where that is unique.

    A GPU that is named stands for all of its parts.
    """
    if name.isdecimal():
        return [card for gpu in gpus if gpu.index == int(name) for card in _cards_of(gpu)]
    if name.startswith("GPU-"):
        found = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
        return list(_cards_of(found[0])) if len(found) == 1 else []
    if name.startswith("MIG-"):
        parts = [card for gpu in gpus for card in _cards_of(gpu) if card.is_part and card.uuid.startswith(name)]
        return parts if len(parts) == 1 else []
    return []
