"""Which methods there are, with their parameters: docs/rpc.md is held against this table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from talkoo_ledger.rpc.chain import ChainMethods
from talkoo_ledger.rpc.documents import Document
from talkoo_ledger.rpc.evidence import EvidenceMethods
from talkoo_ledger.rpc.parameters import Kind, Parameter
from talkoo_ledger.rpc.status import StatusMethods
from talkoo_ledger.rpc.transactions import TransactionMethods

Call = Callable[..., Document | Awaitable[Document]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method over URI and JSON-RPC; `call` takes the parameters by their names."""

    parameters: tuple[Parameter, ...]
    call: Call
    waits: bool = False
    """For a block or a search, which have bounds of their own."""


HEIGHT = Parameter("height", Kind.INTEGER)
TX = Parameter("tx", Kind.BYTES)
QUERY = Parameter("query", Kind.TEXT)
PAGES = (Parameter("page", Kind.INTEGER), Parameter("per_page", Kind.INTEGER))
ORDER = Parameter("order_by", Kind.TEXT)
PROVE = Parameter("prove", Kind.BOOLEAN)

PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "health": (),
    "status": (),
    "net_info": (),
    "genesis": (),
    "genesis_chunked": (Parameter("chunk", Kind.NUMBER),),
    "blockchain": (
        Parameter("minHeight", Kind.NUMBER, "min_height"),
        Parameter("maxHeight", Kind.NUMBER, "max_height"),
    ),
    "block": (HEIGHT,),
    "block_by_hash": (Parameter("hash", Kind.BYTES, "hash_"),),
    "block_results": (HEIGHT,),
    "block_search": (QUERY, *PAGES, ORDER),
    "header": (HEIGHT,),
    "header_by_hash": (Parameter("hash", Kind.HEX, "hash_"),),
    "commit": (HEIGHT,),
    "validators": (HEIGHT, *PAGES),
    "consensus_params": (HEIGHT,),
    "consensus_state": (),
    "unconfirmed_txs": (Parameter("limit", Kind.INTEGER),),
    "num_unconfirmed_txs": (),
    "tx": (Parameter("hash", Kind.BYTES, "hash_"), PROVE),
    "tx_search": (QUERY, PROVE, *PAGES, ORDER),
    "broadcast_evidence": (Parameter("evidence", Kind.JSON),),
    "broadcast_tx_async": (TX,),
    "broadcast_tx_sync": (TX,),
    "broadcast_tx_commit": (TX,),
    "check_tx": (TX,),
    "abci_info": (),
    "abci_query": (
        Parameter("path", Kind.TEXT),
        Parameter("data", Kind.HEX),
        Parameter("height", Kind.NUMBER),
        PROVE,
    ),
}
WAITING = {"broadcast_tx_commit", "tx_search", "block_search", "block_by_hash", "header_by_hash"}
WEBSOCKET_PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "subscribe": (QUERY,),
    "unsubscribe": (QUERY,),
    "unsubscribe_all": (),
}
"""Only over a websocket."""


def routes_of(*methods: ChainMethods | TransactionMethods | StatusMethods | EvidenceMethods) -> dict[str, Route]:
    """Each method of the table, found by its name in one of the objects."""
    routes: dict[str, Route] = {}
    for name, parameters in PARAMETERS.items():
        (call,) = (getattr(each, name) for each in methods if hasattr(each, name))
        routes[name] = Route(parameters, call, name in WAITING)
    return routes
