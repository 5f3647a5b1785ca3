"""The RPC of a node that serves headers, over real HTTP: an honest one, or one that lies as a test asks it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from talkoo_ledger.rpc.documents import commit_document, header_document, validator_document

from talkoo_sim.light_chain import LightChain

DRIP_S = 0.2


class LightServer:
    """Serves `commit` and `validators` of a chain. `lie` changes an answer (method, result) before it is sent.

    `drip`: send one byte at a time, for ever. `raw`: send these bytes instead of any answer.
    """

    def __init__(self, chain: LightChain) -> None:
        self.chain = chain
        self.lie: Callable[[str, Any], None] = lambda _method, _result: None
        self.drip = False
        self.raw = b""
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LightServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, call: bytes) -> dict[str, Any]:
        asked = json.loads(call)
        method, height = asked["method"], int(asked["params"].get("height", len(self.chain.blocks)))
        self.asked.append(f"{method} {height}")
        if not 0 < height <= len(self.chain.blocks):
            return {"error": {"code": -32603, "message": "Internal error", "data": f"height {height} is not available"}}
        block = self.chain.at(height)
        if method == "commit":
            signed = {"header": header_document(block.header), "commit": commit_document(block.commit)}
            result: dict[str, Any] = {"signed_header": signed, "canonical": True}
        else:
            validators = [validator_document(each) for each in block.validators.validators]
            result = {"block_height": str(height), "validators": validators, "total": str(len(validators))}
        result = json.loads(json.dumps(result))
        self.lie(method, result)
        return {"jsonrpc": "2.0", "id": -1, "result": result}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                call = self.rfile.read(int(self.headers["Content-Length"]))
                body = outer.raw or json.dumps(outer.answer(call)).encode()
                self.send_response(200)
                self.end_headers()
                try:
                    while outer.drip:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(DRIP_S)
                    self.wfile.write(body)
                except OSError:
                    return  # the client has had enough

            def log_message(self, *_: object) -> None:
                return

        return Handler
