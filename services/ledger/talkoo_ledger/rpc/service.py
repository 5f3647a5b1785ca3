"""The RPC of a node: its parts put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from talkoo_core.signing import PublicKey
from talkoo_ledger.abci.beginning import beginning_of
from talkoo_ledger.application import Application
from talkoo_ledger.comet.home import genesis_document
from talkoo_ledger.engine import Engine
from talkoo_ledger.event_index import EventSearch
from talkoo_ledger.executor import begin_chain
from talkoo_ledger.node import Node
from talkoo_ledger.rpc.calls import Calls
from talkoo_ledger.rpc.chain import ChainMethods, ChainReader
from talkoo_ledger.rpc.evidence import EvidenceMethods
from talkoo_ledger.rpc.routes import routes_of
from talkoo_ledger.rpc.searches import Searches
from talkoo_ledger.rpc.server import RpcApp, RpcServer
from talkoo_ledger.rpc.status import StatusMethods
from talkoo_ledger.rpc.subscriptions import Subscriptions
from talkoo_ledger.rpc.transactions import TransactionMethods
from talkoo_ledger.settings import LedgerSettings
from talkoo_runtime.supervision import Background


def make_app(settings: LedgerSettings, node: Node, engine: Engine, key: PublicKey) -> tuple[RpcApp, Subscriptions]:
    """The application over this node's chain, and the subscriptions, which somebody has to run."""
    executor = node.executor
    first = begin_chain(Application(), executor.genesis)
    reader, search = ChainReader(executor), Searches(EventSearch(executor.store.path))
    genesis = genesis_document(executor.genesis, beginning_of(executor.genesis, first, (0, 0, 0)))
    routes = routes_of(
        ChainMethods(reader, search, genesis),
        TransactionMethods(reader, engine, node.mempool, search),
        StatusMethods(reader, node, settings, key),
        EvidenceMethods(node),
    )
    subscriptions = Subscriptions(reader)
    return RpcApp(Calls(routes), subscriptions), subscriptions


def serve_rpc(
    settings: LedgerSettings, node: Node, engine: Engine, key: PublicKey, background: Background
) -> Callable[[], Awaitable[None]]:
    """Listen on `rpc_listen`. Returns how to stop. Raises Exhausted (`port_taken`), InvalidInput (`bad_settings`)."""
    app, subscriptions = make_app(settings, node, engine, key)
    server = RpcServer(app, settings.rpc_listen)
    server.start(background)
    background.start("rpc subscriptions", subscriptions.run())
    return server.stop
