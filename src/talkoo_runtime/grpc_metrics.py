"""How many calls a gRPC server answers, how they end and how long they take."""

from __future__ import annotations

import time

from talkoo_runtime.metrics import counter, exposed, histogram

CALLS = counter(
    "talkoo_grpc_calls_total",
    "Calls that ended, by method and by status: ok, cancelled, or the family of the error.",
    ["method", "status"],
    max_series=512,
)
CALL_SECONDS = histogram("talkoo_grpc_call_seconds", "Time of calls whose answer is no stream, by method.", ["method"])


def count_call(path: str, status: str, began_s: float | None = None) -> None:
    """`path` is one that the server has, for example `/talkoo.ledger.v1.Ledger/Get`; `began_s` by `time.monotonic`."""
    if not exposed():
        return
    method = path.rpartition(".")[2]
    CALLS.add(method=method, status=status)
    if began_s is not None:
        CALL_SECONDS.observe(time.monotonic() - began_s, method=method)
