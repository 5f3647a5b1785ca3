"""CometBFT is built from what is pinned here; without Go a test run says loudly what it did not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from talkoo_core.errors import NotFound
from talkoo_sim import go_tools
from talkoo_sim.cometbft import COMETBFT, VERSION, cometbft_binary
from talkoo_sim.go_tools import find_go

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_GO = """
import sys
from pathlib import Path

import pytest

from talkoo_sim import go_tools

go_tools.GO_USUAL = Path("/nowhere/go")
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/comet/test_cometbft.py", "-k", "both_engines"]))
"""


def test_the_binary_is_the_version_that_is_pinned(cometbft: Path) -> None:
    said = subprocess.run([cometbft, "version"], capture_output=True, text=True, check=True)
    assert (said.stdout + said.stderr).strip().startswith(VERSION)
    assert f"github.com/cometbft/cometbft v{VERSION} " in (COMETBFT.module / "go.mod").read_text()


def test_without_go_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(go_tools, "GO_USUAL", tmp_path / "go")
    with pytest.raises(NotFound, match="install Go"):
        find_go()
    with pytest.raises(NotFound, match="install Go"):
        cometbft_binary()


def test_a_run_without_go_names_in_its_last_lines_what_was_not_run(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_GO], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    end = run.stdout[-2_000:]
    assert "NOT RUN" in end, run.stdout + run.stderr
    assert "test_both_engines_make_the_same_state_of_the_same_transactions: there is no Go" in end
    assert "1 skipped" in end
