"""The docs cannot rot: every command, option, field, exit status, SDK method, REST path and setting stands in them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import msgspec
import pytest
import yaml
from talkoo_gateway.operations import OPERATIONS
from talkoo_gateway.settings import GatewaySettings

from talkoo.client import Client, Task
from talkoo.commands.group import COMMANDS, talkoo
from talkoo.taskfile import read_task_mapping
from talkoo_core.errors import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
SDK = (DOCS / "sdk.md").read_text(encoding="utf-8")
REST = (DOCS / "rest.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The part of cli.md about one command."""
    match = re.search(rf"^### `talkoo {name}\b.*?(?=^##)", CLI, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/cli.md has no section about `talkoo {name}`"
    return match[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_cli_md(name: str) -> None:
    command = talkoo.get_command(click.Context(talkoo), name)
    assert command is not None
    text = section(name)
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        here = text if not {"--home", "--as"} & set(parameter.opts) else CLI
        for option in parameter.opts:
            assert f"`{option}" in here or f"/`{option}" in here, f"`talkoo {name} {option}` is not in docs/cli.md"


def test_no_section_is_about_a_command_that_is_gone() -> None:
    assert set(re.findall(r"^### `talkoo (\w+)", CLI, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_status_is_in_cli_md() -> None:
    for family in FAMILIES.values():
        assert f"| {family.exit_status} |" in CLI or family.exit_status == 1


def test_the_task_file_in_cli_md_is_read_as_it_stands() -> None:
    match = re.search(r"### The task file\n```yaml\n(.*?)```", CLI, re.DOTALL)
    assert match is not None
    text = match[1].replace("8bdd…", "8b" * 32)
    assert read_task_mapping(yaml.safe_load(text)).parent_version == "digits@1"


@pytest.mark.parametrize("kind", [Client, Task])
def test_every_public_method_of_the_sdk_is_in_sdk_md(kind: type) -> None:
    ours = {"run", "iterate", "close", "profile", "core"}
    for name, _ in inspect.getmembers(kind):
        if not name.startswith("_") and name not in ours:
            assert re.search(rf"`{name}\b", SDK), f"{kind.__name__}.{name} is not in docs/sdk.md"


def test_every_route_is_in_rest_md() -> None:
    for operation in OPERATIONS:
        assert f"| {operation.method} | `{operation.path}` | {operation.summary} |" in REST
    assert REST.count("\n| GET |") + REST.count("\n| POST |") == len(OPERATIONS)


def test_every_setting_of_the_gateway_is_in_rest_md() -> None:
    for setting in msgspec.structs.fields(GatewaySettings):
        assert f"`{setting.name}`" in REST
