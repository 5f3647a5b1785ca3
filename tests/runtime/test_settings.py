"""Settings: one clear line for everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkoo_core.errors import InvalidInput, NotFound
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.settings import load_settings

GOOD = """
federation = "town"
organization = "north"
name = "north-ledger"
listen = "127.0.0.1:1"
state_dir = "/s"
certificate = "/c"
private_key = "/k"
trust_bundle = "/t"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_and_variables_win(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert load_settings(ServiceSettings, path, {}).log_level == "info"
    settings = load_settings(ServiceSettings, path, {"TALKOO_LOG_LEVEL": "debug", "TALKOO_NAME": "x", "OTHER": "y"})
    assert (settings.log_level, settings.name) == ("debug", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + 'lissten = "x"', "did you mean 'listen'"),
        (GOOD + 'qqqqq = "x"', "the settings are certificate"),
        (GOOD.replace('"/s"', "5"), "state_dir: Expected `str`"),
        (GOOD.replace('name = "north-ledger"', ""), "missing setting `name`"),
        ("not toml", "settings.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings(ServiceSettings, written(tmp_path, text), {})
    assert said in caught.value.message
    assert "settings.toml" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--settings"):
        load_settings(ServiceSettings, tmp_path / "none.toml", {})
