"""Control groups: whatever the cluster starts is in its group, so that all of it can be ended, whoever was killed."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from talkoo_core.errors import Unavailable

CGROUPS = Path("/sys/fs/cgroup")
END_TIMEOUT_S = 20.0
POLL_S = 0.05


def hierarchies() -> list[Path]:
    """Mount points: every hierarchy of version 1, and version 2 where that is the only one."""
    if (CGROUPS / "cgroup.controllers").is_file():
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if (path / "tasks").exists())


def is_version_1() -> bool:
    return not (CGROUPS / "cgroup.controllers").is_file()


def make_group(name: str) -> None:
    """In every hierarchy; a group without processors and memory nodes takes no process."""
    for hierarchy in hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        for field in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / field).is_file() and is_version_1():
                (group / field).write_text((hierarchy / field).read_text())


def join_group(name: str, pid: int) -> None:
    """All hierarchies: kubelet and containerd put pods into groups below this one."""
    for hierarchy in hierarchies():
        (hierarchy / name / "cgroup.procs").write_text(str(pid))


def end_group(name: str) -> None:
    """Kill everything in the group and below, then remove it. Raises Unavailable when something does not end."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while pids := _members(name):
        for pid in pids:
            _kill(pid)
        if time.monotonic() > deadline:
            raise Unavailable(f"processes of {name} do not end: {sorted(pids)}")
        time.sleep(POLL_S)
    for hierarchy in hierarchies():
        for folder in _groups_below(hierarchy / name):
            _remove(folder, deadline)


def _members(name: str) -> set[int]:
    found: set[int] = set()
    for hierarchy in hierarchies():
        for folder in _groups_below(hierarchy / name):
            try:
                found |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # it went while we looked
                    raise
    return found - {os.getpid(), 0}


def _groups_below(group: Path) -> list[Path]:
    """The group and all below it, the deepest first."""
    return [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]


def _remove(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:  # the last process is being buried
                raise
        time.sleep(POLL_S)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
