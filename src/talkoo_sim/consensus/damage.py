"""Damage in the middle of a log or a sign state: of what was synced, and not where a torn write could explain it."""

from __future__ import annotations

import random

from talkoo_ledger import sign_state, wal

from talkoo_sim.consensus.disk import SimulatedDisk
from talkoo_sim.consensus.machine import Machine


def damage(machine: Machine, dice: random.Random) -> bool:
    """Flip a byte of one of the two files. False where neither holds anything that can be damaged so."""
    log_name = wal.file_name(machine.store.chain.height)
    places = _places_of_log(machine.log, log_name)
    slots = _slots(machine.state)
    if slots and (not places or dice.random() < 0.5):
        slot = dice.randrange(slots)
        in_slot = dice.randrange(sign_state.SLOT_BYTES - 1)
        machine.state.damage(sign_state.FILE, slot * sign_state.SLOT_BYTES + in_slot)
        return True
    if places:
        machine.log.damage(log_name, dice.randrange(places))
        return True
    return False


def _places_of_log(disk: SimulatedDisk, name: str) -> int:
    """Bytes ahead of the last durable record."""
    data = disk.durable(name)
    offset = last = 0
    while offset < len(data):
        last = offset
        length = int.from_bytes(data[offset : offset + 4], "big")
        offset += 8 + length
    return last


def _slots(disk: SimulatedDisk) -> int:
    """Durable signatures."""
    data = disk.durable(sign_state.FILE)
    ends = data[sign_state.SLOT_BYTES - 1 :: sign_state.SLOT_BYTES]
    return len(ends.rstrip(b"\x00"))
