"""Spare trainers: loaded one after the other on a machine, and taken only when they have loaded torch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from talkoo_agent import spare
from talkoo_agent.spare import Spare

WAIT_S = 60.0


async def test_a_spare_waits_for_its_turn_and_is_taken_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "CALM_S", 0.0)
    lock = tmp_path / "spare.lock"
    kept = Spare({}, True, lock)
    keeper = asyncio.create_task(kept.keep())
    try:
        async with spare.alone(lock):
            kept.refill()
            taken = await kept.take()  # another node loads its own: this one does not wait for it
            assert taken.alive
            await taken.stop()
        async with asyncio.timeout(WAIT_S):
            while kept._child is None:
                await asyncio.sleep(0.02)
            loaded = await kept.take()
        assert loaded.alive
        assert Path(f"/proc/{loaded._process.popen.pid}/maps").read_text().count("libtorch") > 0  # type: ignore[union-attr]
        await loaded.stop()
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await kept.stop()
