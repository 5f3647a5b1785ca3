"""The application of the simulated chain: balances that move, and validators whose power changes.

A transaction carries a seal that only the simulation's clients can make, so that what a liar invents is refused and
"every decided transaction was submitted" can be checked. Powers change only so that liars stay below their share:
the real ledger's economy is not under test here, the validator sets that follow from any economy are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from talkoo_consensus.types import TxResult
from talkoo_consensus.validators import Validator, ValidatorSet

ACCOUNTS = 8
SUPPLY = 8_000
MAX_TXS = 4
SEAL_BYTES = 8
REMOVE_PROPOSER = -1

Balances = tuple[int, ...]
GENESIS: Balances = (SUPPLY // ACCOUNTS,) * ACCOUNTS


def sealed(body: str) -> bytes:
    return body.encode() + b"|" + _seal(body.encode())


def transfer(number: int, source: int, target: int, amount: int) -> bytes:
    return sealed(f"{number} move {source} {target} {amount}")


def set_power(number: int, index: int, power: int) -> bytes:
    """`index` REMOVE_PROPOSER: whoever would propose first, two heights later."""
    return sealed(f"{number} power {index} {power}")


def is_sealed(data: bytes) -> bool:
    body, _, seal = data.partition(b"|")
    return seal == _seal(body)


@dataclass(frozen=True, slots=True)
class Finalized:
    balances: Balances
    results: tuple[TxResult, ...]
    updates: tuple[Validator, ...]
    app_hash: bytes


class TokenLedger:
    """Pure, so all nodes share one. `keys`: public keys by index; `allowed`: whether a validator set may come to be."""

    def __init__(self, keys: Sequence[bytes], allowed: Callable[[ValidatorSet], bool]) -> None:
        self._keys = keys
        self._allowed = allowed

    def prepare_proposal(self, txs: Sequence[bytes], _max_bytes: int) -> list[bytes]:
        return [tx for tx in txs if is_sealed(tx)][:MAX_TXS]

    def process_proposal(self, txs: Sequence[bytes]) -> bool:
        return len(txs) <= MAX_TXS and len(set(txs)) == len(txs) and all(map(is_sealed, txs))

    def finalize(self, balances: Balances, txs: Sequence[bytes], next_set: ValidatorSet, before: bytes) -> Finalized:
        """`next_set`: of the height before the one for which updates take effect. `before`: the last app hash."""
        after, results = list(balances), list[TxResult]()
        updates: dict[bytes, Validator] = {}
        for tx in txs:
            _, kind, *numbers = tx.partition(b"|")[0].decode().split()
            first, second, *amount = map(int, numbers)
            done = kind == "move" and after[first] >= amount[0]
            if done:
                after[first] -= amount[0]
                after[second] += amount[0]
            elif kind == "power":
                change = self._change(next_set, first, second)
                wanted = {**updates, change.address: change}
                done = self._may_follow(next_set, list(wanted.values()))
                updates = wanted if done else updates
            results.append(TxResult(code=0 if done else 1))
        digest = hashlib.sha256(before + repr((after, sorted(updates), results)).encode()).digest()
        return Finalized(tuple(after), tuple(results), tuple(updates.values()), digest)

    def _change(self, next_set: ValidatorSet, index: int, power: int) -> Validator:
        if index == REMOVE_PROPOSER:
            return Validator.of(next_set.rotate().proposer.public_key, 0)
        return Validator.of(self._keys[index], power)

    def _may_follow(self, next_set: ValidatorSet, changes: list[Validator]) -> bool:
        if any(change.power == 0 and next_set.find(change.address) is None for change in changes):
            return False
        removed = {change.address for change in changes if change.power == 0}
        if not {validator.address for validator in next_set.validators} - removed:
            return False
        return self._allowed(next_set.update(changes))


def _seal(body: bytes) -> bytes:
    return hashlib.blake2b(body, key=b"the clients of the simulation", digest_size=SEAL_BYTES).hexdigest().encode()
