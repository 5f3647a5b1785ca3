"""A disk that keeps what was synced, and of the rest what luck leaves. One for each simulated machine.

`SimulatedDisk` is `talkoo_runtime.disk.Disk`: the production log and sign state run on it unchanged. Each of its
methods, and each `Fuse.point` that a node passes (before and after its store, between sync and send), is a place where
the machine may stop: a `PowerCut` is raised there, before the operation or right after it, and `crash` decides what of
the unsynced writes is there at the next start. Writes to one file reach the platter in their order; the last of them
may be torn at any byte. Files made or removed since `sync_names` may be there or not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


class PowerCut(BaseException):
    """The machine stopped here. Not an Exception: no handler of the code under test may catch it."""


@dataclass(slots=True)
class Fuse:
    """Stops a machine. `chance`: of a stop at each place; 0.0 once the faults are over. `blown`: where it happened."""

    dice: random.Random
    chance: float = 0.0
    blown: str = ""
    passed: int = 0

    def point(self, where: str) -> None:
        self.passed += 1
        if self.chance and self.dice.random() < self.chance:
            self.blown = where
            raise PowerCut


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    named: bool = False

    def settle(self, kept: list[tuple[int, bytes]]) -> None:
        for offset, data in kept:
            if len(self.durable) < offset:
                self.durable.extend(bytes(offset - len(self.durable)))
            self.durable[offset : offset + len(data)] = data
        self.pending.clear()


class SimulatedDisk:
    """`talkoo_runtime.disk.Disk`, with crashes."""

    def __init__(self, name: str, fuse: Fuse) -> None:
        self._name = name
        self._fuse = fuse
        self._files: dict[str, _File] = {}
        self._removed: dict[str, _File] = {}

    # -- what the log and the sign state need ------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str) -> bytes | None:
        file = self._files.get(name)
        if file is None:
            return None
        if not file.pending:
            return bytes(file.durable)
        seen = _File(bytearray(file.durable))
        seen.settle(file.pending)
        return bytes(seen.durable)

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        self._fuse.point(f"before writing {name}")
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _File()
        file.pending.append((offset, data))
        self._fuse.point(f"after writing {name}")

    def truncate(self, name: str, size: int) -> None:
        self._fuse.point(f"before cutting {name}")
        file = self._files[name]
        file.settle(file.pending)
        del file.durable[size:]
        self._fuse.point(f"after cutting {name}")

    def sync(self, name: str) -> None:
        self._fuse.point(f"before syncing {name}")
        file = self._files[name]
        file.settle(file.pending)
        self._fuse.point(f"after syncing {name}")

    def replace(self, name: str, content: bytes) -> None:
        self._fuse.point(f"before replacing {name}")
        self._files[name] = _File(bytearray(content), named=True)
        self._fuse.point(f"after replacing {name}")

    def remove(self, name: str) -> None:
        file = self._files.pop(name)
        if file.named:
            self._removed[name] = file
        self._fuse.point(f"after removing {name}")

    def sync_names(self) -> None:
        self._fuse.point("before syncing names")
        for file in self._files.values():
            file.named = True
        self._removed.clear()
        self._fuse.point("after syncing names")

    def path(self, name: str) -> str:
        return f"{self._name}/{name}"

    def close(self) -> None:
        """Nothing is open."""

    # -- what happens to it ------------------------------------------------------------------------------------------

    def crash(self, dice: random.Random, *, power: bool) -> None:
        """`power`: the machine lost it and unsynced writes are at risk; otherwise the process alone ended."""
        if not power:
            for file in self._files.values():
                file.settle(file.pending)
            return
        for name in sorted(self._removed):
            if dice.random() < 0.5 and name not in self._files:
                self._files[name] = self._removed[name]
        self._removed.clear()
        for name in sorted(self._files):
            file = self._files[name]
            if not file.named and dice.random() < 0.5:
                del self._files[name]
                continue
            file.named = True
            kept = file.pending[: dice.randint(0, len(file.pending))]
            if kept and dice.random() < 0.7:
                offset, data = kept[-1]
                kept[-1] = (offset, data[: dice.randint(0, len(data))])
            file.settle(kept)

    def durable(self, name: str) -> bytes:
        """What a power cut would leave for certain."""
        file = self._files.get(name)
        return bytes(file.durable) if file is not None and file.named else b""

    def damage(self, name: str, place: int) -> None:
        """Flip the bits of one byte that was durable."""
        self._files[name].durable[place] ^= 0xFF
