"""A child's end of the line protocol. Standard output is for messages only: what user code prints goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from talkoo_agent.trainer_messages import LINE_MAX_BYTES, line_of
from talkoo_core.errors import InvalidInput

T = TypeVar("T")


class Lines:
    """Own the process's stdin and stdout. Make one, first thing in `main`."""

    def __init__(self) -> None:
        self._in = sys.stdin.buffer
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def send(self, message: msgspec.Struct) -> None:
        self._out.write(line_of(message))

    def send_text(self, text: str) -> None:
        self._out.write(text.encode() + b"\n")

    def receive(self, decoder: msgspec.json.Decoder[T]) -> Iterator[T]:
        """Messages until the parent closes the pipe. Raises `InvalidInput` (code `bad_message`) on anything else."""
        while line := self._in.readline(LINE_MAX_BYTES):
            try:
                message = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise InvalidInput(
                    f"the agent sent a line this child cannot read: {error}", code="bad_message"
                ) from error
            yield message
