"""Ledger events as sentences. Pure: an event and the names in, a line or nothing out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.amounts import PPM, format_tlk


class Story:
    """Turns events into lines a person enjoys; `names` maps addresses to labels and may grow."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def tell(self, event: service_pb2.Event) -> str | None:
        """One sentence for an event, or None for those that say nothing new to a person."""
        teller = _TELLERS.get(event.type)
        if teller is None:
            return None
        return teller(self, event.subject, {a.key: a.value for a in event.attributes})

    def name(self, address: str) -> str:
        return self.names.get(address, address[:12] + "…" if len(address) > 13 else address)

    def all_names(self, addresses: str) -> str:
        return ", ".join(self.name(a) for a in addresses.split(",") if a)


Teller = Callable[[Story, str, Mapping[str, str]], str | None]


def _number(attributes: Mapping[str, str]) -> int:
    return int(attributes["segment"])


def _created(story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"{story.name(a['owner'])} funds task “{a['name']}” with {format_tlk(int(a['escrow_utlk']))} in escrow"


def _placed(story: Story, _subject: str, a: Mapping[str, str]) -> str:
    again = f" again, from segment {a['first_segment']}" if int(a["attempt"]) > 1 else ""
    return f"placed{again} on {story.all_names(a['nodes'])}"


def _audit_opened(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    rate = int(a["rate_ppm"])
    chance = f", chance {rate * 100 // PPM} %" if rate < PPM else ""
    return f"segment {_number(a)} is opened: the validators re-compute it ({a['reason']}{chance})"


def _audit_skipped(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"segment {_number(a)} is not drawn (chance {int(a['rate_ppm']) * 100 // PPM} %)"


def _verdict(story: Story, _subject: str, a: Mapping[str, str]) -> str:
    if a["outcome"] == "honest":
        return f"segment {_number(a)}: every bit confirmed"
    if a["outcome"] == "forged":
        return f"segment {_number(a)}: FORGED by {story.all_names(a['forgers'])}: re-computation gives other bits"
    return f"segment {_number(a)}: could not be re-computed, its data was not to be had"


def _accepted(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"segment {_number(a)} accepted and paid"


def _discarded(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"segment {_number(a)} discarded: its work is done again elsewhere"


def _slashed(story: Story, subject: str, a: Mapping[str, str]) -> str:
    return f"{story.name(subject)} loses {format_tlk(int(a['amount_utlk']))} of its stake"


def _registered(_story: Story, subject: str, a: Mapping[str, str]) -> str:
    total = int(a["total"])
    accuracy = f", {int(a['correct']) * 100 / total:.1f} % right on {total} held-out samples" if total else ""
    return f"model {subject} registered{accuracy}"


def _completed(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"task completed: {a['model_version']}"


def _failed(_story: Story, _subject: str, a: Mapping[str, str]) -> str:
    return f"task failed ({a['kind']}): {a['message']}"


def _request_opened(story: Story, _subject: str, a: Mapping[str, str]) -> str:
    price = format_tlk(int(a["price_utlk"]))
    return f"{story.name(a['sender'])} pays {price} for a request to {a['version']}, served by {story.name(a['node'])}"


_TELLERS: dict[str, Teller] = {
    "task_created": _created,
    "task_placed": _placed,
    "audit_opened": _audit_opened,
    "audit_skipped": _audit_skipped,
    "verdict": _verdict,
    "segment_accepted": _accepted,
    "segment_discarded": _discarded,
    "slashed": _slashed,
    "model_registered": _registered,
    "task_completed": _completed,
    "task_failed": _failed,
    "request_opened": _request_opened,
}
