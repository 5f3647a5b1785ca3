"""Which shard has which card. Pure: what is faulty is told, and what CUDA sees is the children's business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from talkoo_agent.nvml import Gpu


@dataclass(frozen=True, slots=True)
class Card:
    """What one shard gets: a GPU, a part of one in MIG mode, or a place on the processor.

    `uuid` is what CUDA takes it by, and empty on a processor; of a part it is not that of its GPU.
    """

    uuid: str = ""
    gpu: Gpu | None = None
    product: str = ""
    """As CUDA names it: cards of one product compute the same bits."""
    memory_bytes: int = 0

    @property
    def is_part(self) -> bool:
        return self.gpu is not None and self.uuid != self.gpu.uuid


class Cards:
    """The cards that are lent, the first to be taken first, each to one shard at a time.

    A faulty card is taken by no shard. One that has it keeps it: it goes on while the card lets it.
    """

    def __init__(self, cards: Sequence[Card], limit: int) -> None:
        """`limit`: shards at once, at most one for each card."""
        assert 1 <= limit <= len(cards)
        self._cards = tuple(cards)
        self._limit = limit
        self._held: dict[str, int] = {}
        """By the holder; places in `_cards`."""
        self._faults: dict[str, tuple[str, ...]] = {}
        """By the GPU's UUID; of those that have any."""

    def take(self, holder: str) -> Card | None:
        """A healthy card, the first that is free; None when there is none."""
        assert holder not in self._held
        if not self.free:
            return None
        place = self._takeable()[0]
        self._held[holder] = place
        return self._cards[place]

    def give_back(self, holder: str) -> None:
        """Its child has ended. Nothing happens when it holds none."""
        self._held.pop(holder, None)

    def note_faults(self, faults: Mapping[str, Sequence[str]]) -> bool:
        """Of each GPU, by its UUID; GPUs that are not lent do not matter. Returns whether something changed here."""
        before = self._faults
        self._faults = {uuid: tuple(faults[uuid]) for uuid in self._gpus() if faults.get(uuid)}
        return self._faults != before

    @property
    def free(self) -> int:
        """So many may be taken now."""
        return max(0, min(self._limit - len(self._held), len(self._takeable())))

    @property
    def slots(self) -> int:
        """Shards at once, as things are: those that hold a card, and those for which there is one."""
        return len(self._held) + self.free

    @property
    def all_faulty(self) -> bool:
        return not any(self._is_healthy(card) for card in self._cards)

    @property
    def faults(self) -> str:
        """For a person, by the names in GPUNode: `gpu-1: XID 79; gpu-3: …`; empty when there are none."""
        gpus = self._gpus()
        return "; ".join(f"gpu-{gpus[uuid].index}: {', '.join(words)}" for uuid, words in self._faults.items())

    @property
    def quietest(self) -> Card:
        """For what takes no slot: the card that shards take last, healthy and free where there is such a one."""
        healthy = [place for place, card in enumerate(self._cards) if self._is_healthy(card)]
        return self._cards[(self._takeable() or healthy or range(len(self._cards)))[-1]]

    def lends(self, gpu: Gpu) -> bool:
        """It, or a part of it."""
        return gpu.uuid in self._gpus()

    def _gpus(self) -> dict[str, Gpu]:
        return {card.gpu.uuid: card.gpu for card in self._cards if card.gpu is not None}

    def _is_healthy(self, card: Card) -> bool:
        return card.gpu is None or card.gpu.uuid not in self._faults

    def _takeable(self) -> list[int]:
        """Places of the cards that are healthy and free."""
        taken = set(self._held.values())
        return [place for place, card in enumerate(self._cards) if place not in taken and self._is_healthy(card)]
