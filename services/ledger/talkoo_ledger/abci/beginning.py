"""Where another engine begins: with block one, or behind the last block of our own engine."""

from __future__ import annotations

from dataclasses import dataclass

from talkoo_consensus.chain import ChainState
from talkoo_consensus.validators import ValidatorSet

from talkoo_ledger.genesis import Genesis


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where CometBFT begins: the first block it decides, the validators and the state before it.

    `signed`: the last place (height, round, step) that our own engine signed, which CometBFT must not sign again.
    """

    height: int
    time_ns: int
    validators: ValidatorSet
    app_hash: bytes
    app_version: int
    signed: tuple[int, int, int] = (0, 0, 0)


def beginning_of(genesis: Genesis, chain: ChainState, signed: tuple[int, int, int] = (0, 0, 0)) -> Beginning:
    """Block one for a new chain; for one that our own engine has decided so far, the block behind its last."""
    if chain.last_height == 0:
        height, time_ns, validators = genesis.initial_height, genesis.genesis_time_ns, chain.validators
    else:
        # Whoever joins with block `height + 1` joins with this one: CometBFT's genesis names one set of validators.
        height, time_ns, validators = chain.height, chain.last_time_ns + 1, chain.next_validators
    return Beginning(height, time_ns, validators, chain.app_hash, chain.app_version, signed)
