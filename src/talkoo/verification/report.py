"""What a verification found: one line for each kind of proof, and one verdict over all."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN_PROBLEMS = 3
"""Of each check, in its detail; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of proof: how many were looked at, whether all hold, and the first that do not."""

    name: str
    count: int
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    task_id: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line for people."""
        bad = [check.name for check in self.checks if not check.ok]
        if bad:
            return f"{self.task_id} is NOT proven: {', '.join(bad)} {'fails' if len(bad) == 1 else 'fail'}"
        return f"{self.task_id}: all {sum(check.count for check in self.checks)} proofs hold"


@dataclass(slots=True)
class Tally:
    """Collects what one check looks at."""

    name: str
    what: str
    """Plural of what is counted, for the detail of a check that holds."""
    count: int = 0
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Count one proof; `problem` says what is wrong when it does not hold."""
        self.count += 1
        if not holds:
            self.problems.append(problem)

    def done(self, note: str = "") -> Check:
        if not self.problems:
            return Check(self.name, self.count, True, f"{self.count:,} {self.what}{'; ' + note if note else ''}")
        shown = "; ".join(self.problems[:SHOWN_PROBLEMS])
        more = len(self.problems) - SHOWN_PROBLEMS
        return Check(self.name, self.count, False, shown + (f"; and {more} more" if more > 0 else ""))
