"""An HTTP proxy in front of a node's RPC that changes answers on their way, for tests of whoever must notice it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

Alter = Callable[[Any], None]
"""Changes a method's result in place."""
CHUNK_BYTES = 65_536


class TamperingProxy:
    """Forwards JSON-RPC by POST, and websockets untouched, to 127.0.0.1:`port`. Threads, so that tests need no loop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.altered = 0
        """Answers that were changed."""
        self._rules: dict[str, Alter] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def alter(self, method: str, change: Alter) -> None:
        """From now on the method's results are changed."""
        self._rules[method] = change

    def __enter__(self) -> TamperingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._port)) as node,
            client.makefile("rb") as reader,
            node.makefile("rb") as answering,
        ):
            while head := _read_head(reader):
                if b"upgrade: websocket" in head.lower():
                    node.sendall(head)
                    threading.Thread(target=_pipe, args=(node, client), daemon=True).start()
                    _pipe(client, node)
                    return
                asked = reader.read(_length_of(head))
                node.sendall(head + asked)
                answer_head = _read_head(answering)
                body = self._changed(asked, _body(answer_head, answering))
                client.sendall(_with_length(answer_head, len(body)) + body)

    def _changed(self, asked: bytes, body: bytes) -> bytes:
        change = self._rules.get(json.loads(asked)["method"]) if asked else None
        answer = json.loads(body)
        if change is None or "result" not in answer:
            return body
        change(answer["result"])
        self.altered += 1
        return json.dumps(answer).encode()


def _read_head(reader: Any) -> bytes:
    lines = []
    while line := reader.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _length_of(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _body(head: bytes, reader: Any) -> bytes:
    """Of a length that is said, or in chunks, as CometBFT sends what is longer."""
    if b"transfer-encoding: chunked" not in head.lower():
        return bytes(reader.read(_length_of(head)))
    body = b""
    while size := int(reader.readline(), 16):
        body += reader.read(size)
        reader.readline()
    reader.readline()
    return body


def _with_length(head: bytes, length: int) -> bytes:
    told = (b"content-length:", b"transfer-encoding:")
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(told)]
    return b"\r\n".join([*lines, f"content-length: {length}".encode(), b"", b""])


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
