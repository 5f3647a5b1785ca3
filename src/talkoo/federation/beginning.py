"""What a new federation's genesis file says: every key and every token of the beginning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from talkoo_ledger.genesis import default_params

from talkoo_core.signing import PrivateKey
from talkoo_runtime.keys import address_of

ORGANIZATION_KEYS = ("owner", "consensus", "scheduler", "validator")


def organization_entry(
    name: str, keys: Mapping[str, PrivateKey], stake_utlk: int, node_keys: Iterable[PrivateKey] = ()
) -> dict[str, object]:
    """`keys` by `ORGANIZATION_KEYS`; nodes that are not listed here need their owner's endorsement."""
    return {
        "name": name,
        **{f"{which}_key": keys[which].public.raw.hex() for which in ORGANIZATION_KEYS},
        "stake_utlk": stake_utlk,
        "node_keys": [key.public.raw.hex() for key in node_keys],
    }


def account_entry(key: PrivateKey, balance_utlk: int, label: str) -> dict[str, object]:
    return {"address": address_of(key), "balance_utlk": balance_utlk, "label": label}


def genesis_document(
    chain_id: str, time_ns: int, organizations: list[dict[str, object]], accounts: list[dict[str, object]]
) -> dict[str, object]:
    return {
        "chain_id": chain_id,
        "genesis_time_ns": time_ns,
        "initial_height": 1,
        "params": default_params(),
        "organizations": organizations,
        "accounts": accounts,
    }
