"""The command line as a person and as a script meet it: help, one-line errors, exit statuses, no needless imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from talkoo import cli
from talkoo.commands.group import COMMANDS, SECTIONS, talkoo
from talkoo.version import __version__

HEAVY = ("grpc", "google.protobuf", "rich", "torch", "yaml", "cryptography", "opentelemetry", "msgspec", "asyncio")
OWN = [name for name, entry in COMMANDS.items() if entry.module.startswith("talkoo.commands.")]


def run(*arguments: str, home: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home or "/nonexistent"), "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-m", "talkoo", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=environment,
        cwd=home or "/",
        timeout=60,
    )


def loaded_by(statement: str) -> set[str]:
    """Which heavy modules a fresh interpreter has after a statement."""
    code = f"import sys, json\n{statement}\nprint('\\n' + json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    return set(json.loads(out.splitlines()[-1]))


def test_the_version_is_printed_without_loading_even_click() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"talkoo {__version__}\n")
    assert loaded_by("from talkoo import cli; cli.main(['--version']); assert 'click' not in sys.modules") == set()


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by("from talkoo import cli; assert cli.run(['--help']) == 0") == set()
    for name in OWN:
        assert loaded_by(f"from talkoo import cli; assert cli.run(['{name}', '--help']) == 0") == set(), name


def test_importing_the_package_is_light() -> None:
    assert loaded_by("import talkoo; talkoo.__version__") == set()


@pytest.mark.parametrize("name", OWN)
def test_every_command_has_examples_and_the_short_help_of_the_table(name: str) -> None:
    command = talkoo.get_command(click.Context(talkoo), name)
    assert command is not None
    assert command.get_short_help_str(100) == COMMANDS[name].short_help
    shown = CliRunner().invoke(talkoo, [name, "--help"])
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    assert f"talkoo {name}" in shown.output


def test_every_command_is_in_a_section_of_the_help() -> None:
    assert {entry.section for entry in COMMANDS.values()} == set(SECTIONS)
    shown = CliRunner().invoke(talkoo, ["--help"]).output
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_without_a_home_one_line_says_talkoo_up(tmp_path: Path) -> None:
    result = run("tasks", home=tmp_path)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"error: there is no federation under {tmp_path}/.talkoo; start one with `talkoo up`, "
        "or choose its folder with --home\n"
    )


def test_home_and_user_may_stand_before_or_after_the_command(tmp_path: Path) -> None:
    for arguments in (["--home", "h", "tasks"], ["tasks", "--home", "h"]):
        result = run(*arguments, home=tmp_path)
        assert result.returncode == 3
        assert "there is no federation under h;" in result.stderr
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "profile.toml").write_text("")
    assert (
        "no user 'bob' under h; the users are: none" in run("tasks", "--home", "h", "--as", "bob", home=tmp_path).stderr
    )


def test_an_incomplete_profile_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text("federation = 'x'\ngateway = 5\n")
    result = run("--home", str(tmp_path), "nodes", home=tmp_path)
    assert result.returncode == 9
    assert "profile.toml lacks organization, gateway, http" in result.stderr


def test_a_mistyped_command_or_option_gets_a_guess() -> None:
    result = run("task")
    assert result.returncode == 2
    assert "there is no command 'task'; did you mean `talkoo tasks`?" in result.stderr
    assert run("tasks", "--otput", "json").returncode == 2


def test_a_bad_task_file_is_one_line_and_its_status(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(
        "".join(f"{f} = '127.0.0.1:1'\n" for f in ("federation", "organization", "gateway", "http"))
        + "".join(f"{f} = 'x'\n" for f in ("trust_bundle", "certificate", "private_key", "account_key"))
    )
    (tmp_path / "task.yaml").write_text("apiVersion: talkoo.dev/v1alpha1\nkind: TrainingTask\nspecs: {}\n")
    result = run("--home", str(tmp_path), "submit", "task.yaml", home=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: task.yaml:3: specs is not a field; did you mean spec?"


def test_our_own_fault_is_one_line_and_a_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(talkoo, "main", break_down)
    assert cli.run(["tasks"]) == 70
    assert "error: this is a fault of talkoo: KeyError: 'x'" in capsys.readouterr().err
    monkeypatch.setenv("TALKOO_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.run(["tasks"])


def test_ctrl_c_ends_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talkoo, "main", interrupt)
    assert cli.run(["tasks"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m talkoo --help | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr
