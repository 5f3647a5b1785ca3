"""Four organizations' real ledger nodes for the tests of this room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from talkoo_sim.ledger_processes import Ledgers


@pytest.fixture
async def ledgers(tmp_path: Path) -> AsyncIterator[Ledgers]:
    """Provisioned and not yet started; everything started is killed afterwards."""
    federation = Ledgers(tmp_path)
    yield federation
    await federation.close()
