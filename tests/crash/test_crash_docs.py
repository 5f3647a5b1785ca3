"""docs/crashes.md says what the code does: files, codes, bounds, commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from talkoo_ledger.sign_state import FILE, SLOT_BYTES, SLOTS

from talkoo_sim import crashes, fuzzing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "crashes.md").read_text()
LEDGER = ROOT / "services" / "ledger" / "talkoo_ledger"


def test_the_sign_state_is_as_the_page_says() -> None:
    assert f"`{FILE}`" in PAGE
    assert f"{SLOTS} slots of {SLOT_BYTES} bytes" in PAGE


@pytest.mark.parametrize("code", ["wal_damaged", "sign_state_damaged", "disk_full", "disk_failed", "diverged"])
def test_every_code_of_the_page_is_raised(code: str) -> None:
    assert f"`{code}`" in PAGE
    sources = [*LEDGER.rglob("*.py"), ROOT / "src" / "talkoo_runtime" / "disk.py"]
    assert any(f'code="{code}"' in path.read_text() for path in sources)


def test_every_module_and_option_of_the_page_is_there() -> None:
    for module in re.findall(r"talkoo_sim\.(?:crashes|\w+_node)", PAGE):
        assert importlib.util.find_spec(module) is not None, module
    options = {name for option in crashes.main.params for name in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= options
    assert "TALKOO_FUZZ_EXAMPLES" in Path(fuzzing.__file__).read_text()
    assert "TALKOO_CRASH_KILLS" in (ROOT / "tests" / "crash" / "test_real_crashes.py").read_text()
