"""Liquid tokens: accounts, transfers, and the two verbs that every other rule moves tokens with."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import InsufficientFunds
from talkoo_core.ids import address_of_key
from talkoo_ledger.context import Context
from talkoo_ledger.messages import Transfer
from talkoo_ledger.records import Account
from talkoo_ledger.state import State

TREASURY = address_of_key(hashlib.sha256(b"talkoo/treasury").digest())
"""No key has this address: what lies there waits for governance."""


def account_of(state: State, address: str) -> Account:
    """The account, a new one where the address was never used."""
    return state.accounts.get(address) or Account(address=address)


def credit(state: State, address: str, amount_utlk: int) -> None:
    if amount_utlk:
        account = account_of(state, address)
        state.accounts.put(address, replace(account, balance_utlk=account.balance_utlk + amount_utlk))


def debit(state: State, address: str, amount_utlk: int, purpose: str) -> None:
    """Raises InsufficientFunds (code `insufficient_funds`)."""
    account = account_of(state, address)
    if account.balance_utlk < amount_utlk:
        raise InsufficientFunds(
            f"{account.label or address} holds {format_tlk(account.balance_utlk)}, {purpose} takes "
            f"{format_tlk(amount_utlk)}; {format_tlk(amount_utlk - account.balance_utlk)} are missing",
            code="insufficient_funds",
        )
    state.accounts.put(address, replace(account, balance_utlk=account.balance_utlk - amount_utlk))


def transfer(context: Context, sender: str, message: Transfer) -> None:
    debit(context.state, sender, message.amount_utlk, "the transfer")
    credit(context.state, message.to, message.amount_utlk)
    context.emit("transfer", message.to, sender=sender, amount_utlk=message.amount_utlk)
