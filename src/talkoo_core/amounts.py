"""Token amounts. 1 TLK = 10^6 utlk; every amount anywhere is an integer number of utlk."""

from __future__ import annotations

import re

from talkoo_core.errors import InvalidInput

UTLK_PER_TLK = 1_000_000
MAX_AMOUNT_UTLK = 2**63 - 1
PPM = 1_000_000
"""Parts per million: rates that two parties must agree on are integers of this unit."""

_AMOUNT = re.compile(r"(\d{1,13})(?:\.(\d{1,6}))?\s*(tlk)?|(\d{1,19})\s*utlk", re.IGNORECASE)


def format_tlk(amount_utlk: int) -> str:
    """`1_500_000` to `1.5 TLK`: at least one and at most six decimals, none lost."""
    sign = "-" if amount_utlk < 0 else ""
    whole, rest = divmod(abs(amount_utlk), UTLK_PER_TLK)
    decimals = f"{rest:06d}".rstrip("0") or "0"
    return f"{sign}{whole:,}.{decimals} TLK"


def parse_tlk(text: str) -> int:
    """`1.5`, `1.5 TLK` or `1500000utlk` to utlk. Raises `InvalidInput` (code `bad_amount`)."""
    match = _AMOUNT.fullmatch(text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise InvalidInput(
            f"{text!r} is not an amount; write 1.5, 1.5TLK or 1500000utlk (at most six decimals)", code="bad_amount"
        )
    if match[4] is not None:
        amount = int(match[4])
    else:
        amount = int(match[1]) * UTLK_PER_TLK + int((match[2] or "").ljust(6, "0"))
    if amount > MAX_AMOUNT_UTLK:
        raise InvalidInput(f"{text!r} is more than the ledger can hold", code="bad_amount")
    return amount


def share_ppm(amount: int, rate_ppm: int) -> int:
    """`rate_ppm` millionths of an amount, rounded down."""
    return amount * rate_ppm // PPM


def split_by_weight(amount: int, weights: list[int]) -> list[int]:
    """Split an amount in proportion to non-negative integer weights by largest remainder; the parts sum to it.

    All weights zero gives all zeros. Ties go to the earlier entry, so the split is the same everywhere.
    """
    total = sum(weights)
    if total == 0:
        return [0] * len(weights)
    parts = [amount * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % total), i))
    for index in order[: amount - sum(parts)]:
        parts[index] += 1
    return parts
