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


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        load_settings(ServiceSettings, tmp_path, {})


class Numbered(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As a room's own settings: values that are not text."""

    ttl_s: int = 5
    peers: tuple[str, ...] = ()


def test_variables_that_are_not_text_are_json_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    settings = load_settings(Numbered, path, {"TALKOO_TTL_S": "7", "TALKOO_PEERS": '["a", "b"]'})
    assert (settings.ttl_s, settings.peers) == (7, ("a", "b"))
    for text, said in (('"x"', "TALKOO_TTL_S: Expected `int`"), ("soon", "write it as JSON")):
        with pytest.raises(InvalidInput, match=said):
            load_settings(Numbered, path, {"TALKOO_TTL_S": text})
