"""The state as tables of records, in layers: a layer is dropped on an error and absorbed when all went well.

Committed state is the lowest layer, a block writes into one above it and a transaction into one above that. A layer
sees through to what lies below. Rules only ever touch a `State`; none knows on which layer it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from talkoo_ledger.records import (
    Account,
    AmnesiaAccusation,
    Chain,
    MembershipApplication,
    ModelRequest,
    ModelVersion,
    Node,
    Organization,
    Params,
    Payment,
    Record,
    Segment,
    Supply,
    Task,
    TaskPhase,
    Unbonding,
    ValidatorsAt,
)

R = TypeVar("R")

FINAL_PHASES = (TaskPhase.COMPLETED, TaskPhase.FAILED, TaskPhase.CANCELLED)


class Table(Generic[R]):
    """Records by key. `is_live` marks those that a block may have to look at without being asked."""

    def __init__(self, is_live: Callable[[R], bool], below: Table[R] | None = None) -> None:
        self._is_live = is_live
        self._below = below
        self._written: dict[str, R | None] = {}
        self._live: set[str] = set()

    def get(self, key: str) -> R | None:
        layer: Table[R] | None = self
        while layer is not None:
            if key in layer._written:
                return layer._written[key]
            layer = layer._below
        return None

    def __getitem__(self, key: str) -> R:
        """A record that must be there: its absence is our bug, not somebody's input."""
        record = self.get(key)
        assert record is not None, f"no record {key!r}"
        return record

    def put(self, key: str, record: R) -> None:
        self._written[key] = record
        if self._is_live(record):
            self._live.add(key)
        else:
            self._live.discard(key)

    def remove(self, key: str) -> None:
        self._live.discard(key)
        if self._below is None:
            self._written.pop(key, None)
        else:
            self._written[key] = None

    def live_keys(self) -> set[str]:
        if self._below is None:
            return set(self._live)
        return (self._below.live_keys() - self._written.keys()) | self._live

    def live(self) -> list[R]:
        """Live records in key order, as they stand now."""
        return [self[key] for key in sorted(self.live_keys())]

    def keys(self) -> Iterator[str]:
        """All keys in order: for tables that are small, and for rare transactions."""
        keys: dict[str, None] = {}
        for layer in self._layers():
            for key, record in layer._written.items():
                if record is None:
                    keys.pop(key, None)
                else:
                    keys[key] = None
        return iter(sorted(keys))

    def all(self) -> list[R]:
        return [self[key] for key in self.keys()]

    def above(self) -> Table[R]:
        return Table(self._is_live, self)

    def changes(self) -> list[tuple[str, R | None, R | None]]:
        """What this layer changes: (key, before, after), in key order, without writes that change nothing."""
        below = self._below
        assert below is not None
        pairs = [(key, below.get(key), record) for key, record in sorted(self._written.items())]
        return [(key, before, after) for key, before, after in pairs if before != after]

    def absorb(self, layer: Table[R]) -> None:
        assert layer._below is self
        for key, record in layer._written.items():
            if record is None:
                self.remove(key)
            else:
                self.put(key, record)

    def _layers(self) -> list[Table[R]]:
        return [*(self._below._layers() if self._below else []), self]


def _never(_record: Any) -> bool:
    return False


def _always(_record: Any) -> bool:
    return True


def _task_is_live(task: Task) -> bool:
    """Not finished, or finished with segments whose audit and payment are still due."""
    return task.phase not in FINAL_PHASES or task.accepted_segments < task.next_segment


_TABLES = {"chain": "chains", "params": "parameters", "supply": "supplies"}
"""Tables whose name is not their module's: each of these holds one record."""

_LIVE: dict[str, Callable[[Any], bool]] = {
    "accounts": _never,
    "accusations": _always,
    "applications": _never,
    "chains": _never,
    "models": _never,
    "nodes": _never,
    "organizations": _never,
    "parameters": _never,
    "payments": _never,
    "requests": lambda request: request.state == "open",
    "segments": _never,
    "supplies": _never,
    "tasks": _task_is_live,
    "unbonding": _always,
    "validator_sets": _always,
}
"""The tables, and which of their records are live."""


class State:
    """One layer over all modules. Attribute names are the modules' names in the state tree."""

    MODULES = (
        "accounts",
        "accusations",
        "applications",
        "chain",
        "models",
        "nodes",
        "organizations",
        "params",
        "payments",
        "requests",
        "segments",
        "supply",
        "tasks",
        "unbonding",
        "validator_sets",
    )

    accounts: Table[Account]
    accusations: Table[AmnesiaAccusation]
    applications: Table[MembershipApplication]
    chains: Table[Chain]
    models: Table[ModelVersion]
    nodes: Table[Node]
    organizations: Table[Organization]
    parameters: Table[Params]
    payments: Table[Payment]
    requests: Table[ModelRequest]
    segments: Table[Segment]
    supplies: Table[Supply]
    tasks: Table[Task]
    unbonding: Table[Unbonding]
    validator_sets: Table[ValidatorsAt]

    def __init__(self, below: State | None = None) -> None:
        self.below = below
        self._tables: dict[str, Table[Any]] = {}

    def __getattr__(self, name: str) -> Table[Any]:
        """A table is made when it is first used: most transactions touch two of them."""
        is_live = _LIVE.get(name)
        if is_live is None:
            raise AttributeError(f"the state has no table {name!r}")
        table = getattr(self.below, name).above() if self.below is not None else Table(is_live)
        self._tables[name] = table
        setattr(self, name, table)
        return table

    @property
    def chain(self) -> Chain:
        return self.chains["chain"]

    @property
    def params(self) -> Params:
        return self.parameters["params"]

    @property
    def supply(self) -> Supply:
        return self.supplies["supply"]

    def table(self, module: str) -> Table[Record]:
        return cast("Table[Record]", getattr(self, _TABLES.get(module, module)))

    def above(self) -> State:
        return State(self)

    def absorb(self, layer: State) -> None:
        for name, table in layer._tables.items():
            getattr(self, name).absorb(table)

    def changes(self) -> list[tuple[str, str, Record | None, Record | None]]:
        """What this layer changes: (module, key, before, after)."""
        return [(module, *change) for module in self.MODULES for change in self.table(module).changes()]


def segment_key(task_id: str, attempt: int, segment: int) -> str:
    return f"{task_id}/{attempt:06d}/{segment:06d}"


def payment_key(number: int) -> str:
    return f"{number:012d}"


def model_key(model: str, number: int) -> str:
    return f"{model}@{number:06d}"
