"""`python -m talkoo_validator.recompute`: computes segments again, as lines on stdin say.

torch is loaded once. Every order then runs in a fork of this process, so a user's program starts clean each time,
cannot stain the next audit, and ends at once when it is told to stop or when stdin closes. Standard output carries
messages only; what a program prints goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys

import msgspec

from talkoo_core.errors import InvalidInput
from talkoo_validator.orders import LINE_MAX_BYTES, Failed, Ready, Recompute, Stop, line_of, to_child

NICENESS = 5
"""Training on the same machine goes first."""
READ_BYTES = 1 << 16


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_validator.recompute", description=__doc__)
    parser.parse_args()
    os.nice(NICENESS)
    out = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        from talkoo_validator.recompute.segment import this_hardware_class
    except ImportError as error:
        failed = Failed(
            kind="no_torch", message=f"{error.name} is not installed here; install talkoo[train] to re-compute"
        )
        _write(out, failed)
        return InvalidInput.exit_status
    _write(out, Ready(hardware_class=this_hardware_class()))
    try:
        return _serve(_Orders(), out)
    except InvalidInput as error:
        _write(out, Failed(kind="bad_message", message=error.message))
        return error.exit_status


class _Orders:
    """Lines of stdin, read without a buffer that `select` would not know of."""

    def __init__(self) -> None:
        self._rest = b""
        self.closed = False

    @property
    def has_line(self) -> bool:
        """Whether a line was read together with the one before it, so that `select` would wait for it in vain."""
        return b"\n" in self._rest

    def next(self) -> Recompute | Stop | None:
        """Waits for the next order; None when stdin has closed. Raises InvalidInput for what is not an order."""
        while b"\n" not in self._rest and not self.closed:
            data = os.read(0, READ_BYTES)
            self.closed = not data
            self._rest += data
            if len(self._rest) > LINE_MAX_BYTES:
                raise InvalidInput(f"a line to the re-computing child exceeds {LINE_MAX_BYTES} bytes")
        if not self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            order: Recompute | Stop = to_child.decode(line)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"the re-computing child cannot read its order: {error}") from error
        return order


def _serve(orders: _Orders, out: int) -> int:
    while (order := orders.next()) is not None:
        if isinstance(order, Recompute):
            _compute(order, orders, out)
    return 0


def _compute(order: Recompute, orders: _Orders, out: int) -> None:
    """Run one order in a fork and pass its answer on; `stop` or a closed stdin end it."""
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reader)
        _work(order, writer)
    os.close(writer)
    try:
        answer = _answer_of(reader, orders)
    finally:
        os.close(reader)
        os.kill(worker, signal.SIGKILL)  # it has answered, was told to stop, or is dead already
        status = os.waitpid(worker, 0)[1]
    if answer is None:
        _write(out, Failed(kind="stopped", message="the re-computation was stopped"))
    elif answer.endswith(b"\n"):
        os.write(out, answer)
    else:
        ending = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        _write(out, Failed(kind="died", message=f"the re-computation ended with {ending} and without an answer"))


def _answer_of(reader: int, orders: _Orders) -> bytes | None:
    """The fork's line (whole, or cut short when it died), or None when it is to be stopped."""
    answer = b""
    while not answer.endswith(b"\n"):
        ready = [] if orders.has_line else select.select([reader, 0], [], [])[0]
        if reader in ready:
            data = os.read(reader, READ_BYTES)
            if not data:
                return answer
            answer += data
        elif not isinstance(orders.next(), Recompute):
            return None
        else:
            raise InvalidInput("the re-computing child takes one order at a time; wait for its answer")
    return answer


def _work(order: Recompute, writer: int) -> None:
    """In the fork: compute, answer, end without running the parent's exit handlers."""
    from talkoo_validator.recompute.segment import answer_to

    _write(writer, answer_to(order))
    sys.stderr.flush()
    os._exit(0)


def _write(descriptor: int, message: msgspec.Struct) -> None:
    line = line_of(message)
    while line:
        line = line[os.write(descriptor, line) :]


if __name__ == "__main__":
    raise SystemExit(main())
