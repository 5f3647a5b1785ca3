"""The ledger goes away, for a while or for good: objects say so, and none of them hangs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from talkoo_operator.plan import RELEASE_AFTER_S

from talkoo_sim.operator_bed import Bed, LocalFederation, eventually, waits

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SPACE = "ledger-gone"


@pytest.fixture
def mortal(bed: Bed, tmp_path: Path) -> Iterator[Bed]:
    """A federation of this test's own, which may be stopped."""
    bed.federation = LocalFederation(tmp_path / "mortal" / "home", {"alice": 500})
    bed.federation.home.parent.mkdir()
    try:
        bed.federation.start()
        bed.namespace(SPACE, "alice")
        operator = bed.operator("mortal", resync_s=5.0)
        eventually(lambda: operator.leads, "the operator leads")
        yield bed
    finally:
        bed.stop_operators()
        bed.federation.stop()


def begin_anew(home: Path) -> None:
    """The same keys, certificates and ports, and another chain."""
    (home / "genesis.json").unlink()
    for state in (*home.glob("organizations/*/*/state"), home / "etcd" / "data"):
        shutil.rmtree(state, ignore_errors=True)


def test_without_a_ledger_tasks_wait_and_deleted_ones_are_let_go_and_another_ledger_is_noticed(mortal: Bed) -> None:
    mortal.submit(SPACE, "kept")
    mortal.submit(SPACE, "let-go")
    kept = mortal.until(SPACE, "kept", waits)
    mortal.until(SPACE, "let-go", waits)
    mortal.federation.stop()

    mortal.submit(SPACE, "late")
    mortal.until(SPACE, "late", lambda s: s.get("reason") == "LedgerUnavailable", patience_s=120.0)
    began = time.monotonic()
    mortal.cluster.kubectl("-n", SPACE, "delete", "tt", "let-go", "--timeout=240s", timeout_s=250.0)
    assert time.monotonic() - began > RELEASE_AFTER_S - 5, "it was tried for as long as was promised"

    begin_anew(mortal.federation.home)
    mortal.federation.start()
    lost = mortal.until(SPACE, "kept", lambda s: s.get("phase") == "Failed", patience_s=120.0)
    assert lost["reason"] == "LedgerReplaced"
    assert kept["submission"]["chain"] in lost["message"]
    status = mortal.until(SPACE, "late", waits, patience_s=120.0)
    assert status["submission"]["chain"] != kept["submission"]["chain"]
    assert [each.spec.name for each in mortal.on_ledger("alice")] == ["late"]
    mortal.cluster.kubectl("-n", SPACE, "delete", "tt", "--all", "--timeout=60s")
