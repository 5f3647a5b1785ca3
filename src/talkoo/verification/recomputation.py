"""The strongest proof: compute the task's segments again on this machine, in the validator's own child process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from talkoo_api.ledger.v1 import state_pb2
from talkoo_validator.orders import (
    Failed,
    FromChild,
    Ready,
    Recomputed,
    data_file_name,
    findings_text,
    from_child,
    line_of,
    needs_of,
    order_of,
)

from talkoo.verification.evidence import Evidence, label
from talkoo.verification.report import Check, Tally
from talkoo.verification.training import FetchBlob, checked_blob
from talkoo_core.errors import Corrupt, TalkooError, Unavailable
from talkoo_runtime.bundle import unpack

STOP_TIMEOUT_S = 10.0


def check_by_recomputing(evidence: Evidence, fetch: FetchBlob) -> Check:
    """Accepted segments must come out with equal bits, and those found forged must be forged by the same ranks."""
    tally = Tally("recomputation", "segments computed again with the outcome that the ledger holds")
    judged = [
        segment
        for segment in evidence.committed()
        if segment.phase == state_pb2.SEGMENT_PHASE_ACCEPTED
        or (segment.HasField("outcome") and segment.outcome.available)
    ]
    with tempfile.TemporaryDirectory(prefix="talkoo-verify-") as folder, _Child() as child:
        for segment in judged:
            try:
                problem = _problem(evidence, segment, child, Path(folder), fetch)
            except TalkooError as error:
                problem = error.message
            tally.expect(not problem, f"{label(segment)}: {problem}")
    return tally.done()


def _problem(evidence: Evidence, segment: state_pb2.Segment, child: _Child, folder: Path, fetch: FetchBlob) -> str:
    """Empty when the segment comes out as the ledger says."""
    spec = evidence.task.spec
    paths = {digest: _file(folder / "blobs", digest, fetch) for digest in needs_of(spec, segment).all()}
    code = folder / "code"
    if not code.exists():
        unpack(paths[spec.code.sha256].read_bytes(), code)
    data = folder / "data" / data_file_name(spec)
    if not data.exists():
        data.parent.mkdir(exist_ok=True)
        data.symlink_to(paths[spec.data.sha256])
    answer = child.ask(line_of(order_of(spec, segment, code, data, paths)))
    if isinstance(answer, Failed):
        return answer.message
    found = [finding.honest for finding in answer.findings]
    said = [finding.honest for finding in segment.outcome.findings] or [True] * len(found)
    if answer.disputed:
        return answer.disputed
    if found != said:
        return f"the ledger says otherwise, but here {findings_text(answer.findings)}"
    score = (answer.heldout_correct, answer.heldout_total)
    if answer.heldout_total and score != (segment.outcome.heldout_correct, segment.outcome.heldout_total):
        return f"the held-out result here is {score[0]} of {score[1]}"
    return ""


def _file(folder: Path, digest: str, fetch: FetchBlob) -> Path:
    path = folder / digest
    if not path.exists():
        data, problem = checked_blob(digest, fetch)
        if problem:
            raise Corrupt(f"blob {digest[:16]}: {problem}")
        folder.mkdir(exist_ok=True)
        path.write_bytes(data)
    return path


class _Child:
    """The validator's re-computing child, for as long as the block lasts."""

    def __enter__(self) -> _Child:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "talkoo_validator.recompute"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        answer = self._read()
        if not isinstance(answer, Ready):
            self.__exit__()
            told = answer.message if isinstance(answer, Failed) else "the re-computing child does not start"
            raise Unavailable(told, code="no_torch")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, line: bytes) -> Recomputed | Failed:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        answer = self._read()
        if isinstance(answer, Recomputed | Failed):
            return answer
        raise Unavailable("the re-computing child ended; is there enough memory?", code="no_child")

    def _read(self) -> FromChild | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return from_child.decode(line) if line else None
