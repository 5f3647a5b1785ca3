"""JSON-RPC's errors, with CometBFT's codes and words."""

from __future__ import annotations

from typing import Any

from talkoo_core.errors import TalkooError

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
SERVER_ERROR = -32000

MESSAGES = {
    PARSE_ERROR: "Parse error. Invalid JSON",
    INVALID_REQUEST: "Invalid Request",
    METHOD_NOT_FOUND: "Method not found",
    INVALID_PARAMS: "Invalid params",
    INTERNAL_ERROR: "Internal error",
    SERVER_ERROR: "Server error",
}


class RpcError(Exception):
    """What a call is answered with. `data` says what was wrong."""

    def __init__(self, code: int, data: str = "") -> None:
        super().__init__(data or MESSAGES[code])
        self.code = code
        self.data = data

    @classmethod
    def of(cls, error: TalkooError) -> RpcError:
        """As CometBFT, which has one code for whatever a method refuses; the words say more."""
        return cls(INTERNAL_ERROR, str(error))

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"code": self.code, "message": MESSAGES[self.code]}
        if self.data:
            # Words may repeat what a client sent, down to halves of characters.
            document["data"] = self.data.encode(errors="backslashreplace").decode()
        return document
