"""Prices, rates and sums: the arithmetic of the ledger's economy, integers only."""

from __future__ import annotations

from talkoo_core.amounts import PPM

FLOP_PER_GFLOP = 1_000_000_000
MFLOP_PER_GFLOP = 1_000
FLOP_PER_MFLOP = 1_000_000


def price_of_work(flops: int, price_utlk_per_gflop: int) -> int:
    """What a piece of work pays in utlk, rounded down."""
    return flops * price_utlk_per_gflop // FLOP_PER_GFLOP


def required_escrow(flops: int, price_utlk_per_gflop: int, validation_ppm: int) -> int:
    """The most a task can cost in utlk: all its work at the highest price, every segment opened. Rounded up."""
    return -(-flops * price_utlk_per_gflop * (PPM + validation_ppm) // (FLOP_PER_GFLOP * PPM))


def audit_rate(task_rate_ppm: int, floor_ppm: int) -> int:
    """Chance in ppm that a segment is opened: what the owner asks for, at least the ledger's floor."""
    return min(max(task_rate_ppm, floor_ppm), PPM)


def required_stake(pay_per_segment_utlk: int, audit_rate_ppm: int, slash_ppm: int) -> int:
    """The least stake in utlk at which forging a segment loses money (DESIGN, decision 4).

    With p the chance to be opened, a forged segment gains `pay` with 1 - p and loses `slash * stake` with p, so the
    stake must satisfy `stake * slash >= pay * (1 - p) / p`. Rounded up.
    """
    assert 0 < audit_rate_ppm <= PPM
    assert 0 < slash_ppm <= PPM
    return -(-pay_per_segment_utlk * (PPM - audit_rate_ppm) * PPM // (audit_rate_ppm * slash_ppm))


def emission_of_epoch(epoch: int, per_epoch_utlk: int, halving_epochs: int) -> int:
    """What epoch 1, 2, 3… issues in utlk: halved after every `halving_epochs` epochs."""
    assert epoch >= 1
    return per_epoch_utlk >> min((epoch - 1) // halving_epochs, 64)


def decayed(credit_gflop: int, decay_ppm: int) -> int:
    """Training credit at the end of an epoch, before the epoch's own work is added."""
    return credit_gflop - -(-credit_gflop * decay_ppm // PPM)


def voting_power(stake_utlk: int, credit_gflop: int, half_gflop: int) -> int:
    """`stake * (1 + b)` with `b = credit / (2 (credit + half))`, strictly below 1.5 * stake (DESIGN, decision 2)."""
    if credit_gflop == 0:
        return stake_utlk
    return stake_utlk + stake_utlk * credit_gflop // (2 * (credit_gflop + half_gflop))
