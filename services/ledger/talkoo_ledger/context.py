"""What a rule works on: a layer of the state, the block it happens in, and the events it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from talkoo_ledger.records import Params, Payment
from talkoo_ledger.state import State, payment_key

PAYMENTS_KEPT = 100_000
"""Newest payment records that stay in the state. Older ones remain in the blocks, as events."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened, as followers read it. Attributes are texts."""

    type: str
    subject: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """What consensus says about the block in which a rule applies."""

    height: int
    hash: bytes
    time_ns: int
    proposer: str
    """Organization whose consensus key proposed the block; empty when it is not a member any more."""


@dataclass(slots=True)
class Context:
    """A state layer under a block. `tx_hash` and `memo` are empty at the beginning and the end of a block."""

    state: State
    block: Block
    tx_hash: bytes = b""
    memo: str = ""
    events: list[Event] = field(default_factory=list)
    born_id: str = ""

    @property
    def height(self) -> int:
        return self.block.height

    @property
    def params(self) -> Params:
        return self.state.params

    def emit(self, type_: str, subject: str, **attributes: str | int) -> None:
        self.events.append(Event(type_, subject, tuple([(key, str(value)) for key, value in attributes.items()])))

    def record_payment(
        self,
        kind: str,
        source: str,
        destination: str,
        amount_utlk: int,
        proof: str,
        *,
        task_id: str = "",
        segment: int = 0,
        note: str = "",
    ) -> None:
        """Note one movement of tokens; moving them is the caller's work. Nothing is noted for an amount of zero."""
        if amount_utlk == 0:
            return
        chain = self.state.chain
        number = chain.payments + 1
        self.state.chains.put("chain", msgspec.structs.replace(chain, payments=number))
        self.state.payments.put(
            payment_key(number),
            Payment(number, self.height, kind, source, destination, amount_utlk, task_id, segment, proof, note),
        )
        if number > PAYMENTS_KEPT:
            self.state.payments.remove(payment_key(number - PAYMENTS_KEPT))
        self.emit("payment", destination, number=number, kind=kind, amount_utlk=amount_utlk, proof=proof)
