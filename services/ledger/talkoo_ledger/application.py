"""The ledger as an application in the shape of ABCI 2.0: deterministic, without I/O, driven by any consensus engine.

Order of calls: `init_chain` or `load` once; then for each decided block `finalize_block`, then `commit`. Between them
`check_tx`, `prepare_proposal` and `process_proposal` may come at any time; they never change the state.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError
from talkoo_core.signing import PublicKey
from talkoo_ledger import tree
from talkoo_ledger.audits import awaits_draw
from talkoo_ledger.context import Block, Context, Event
from talkoo_ledger.genesis import Genesis, genesis_state
from talkoo_ledger.members import ValidatorUpdate, names_by_address, validator_updates
from talkoo_ledger.messages import Transaction
from talkoo_ledger.misbehavior import Misbehavior
from talkoo_ledger.records import Account
from talkoo_ledger.state import State
from talkoo_ledger.transfers import account_of
from talkoo_ledger.transition import (
    TxResult,
    apply_transaction,
    begin_block,
    check_fee,
    check_nonce,
    check_supply,
    check_terms,
    end_block,
    failed,
    holdings,
)
from talkoo_ledger.wire import decode_record, decode_transaction, encode_record

KNOWN_TRANSACTIONS_MAX = 16_384
"""Decoded transactions with checked signatures that are remembered, so that each is verified once."""
LIST_MAX = 1_000

Change = tuple[str, str, bytes | None]
"""(module, key, value); None removes the key."""


@dataclass(frozen=True, slots=True)
class Info:
    """What the application has: `height` 0 before the first block."""

    height: int
    app_hash: bytes


class CheckResult(Struct, frozen=True, gc=False):
    """Whether a transaction may wait for a block. `code` 0: yes."""

    code: int
    hash: bytes
    family: str = ""
    error_code: str = ""
    message: str = ""
    sender: str = ""
    nonce: int = 0
    fee_utlk: int = 0


@dataclass(frozen=True, slots=True)
class FinalizeRequest:
    """A decided block. `proposer_address` is the 20-byte address of the proposer's consensus key.

    `misbehavior`: what the block proves against validators, in its order.
    """

    height: int
    hash: bytes
    time_ns: int
    proposer_address: bytes
    txs: Sequence[bytes]
    misbehavior: tuple[Misbehavior, ...] = ()


@dataclass(frozen=True, slots=True)
class FinalizeResponse:
    """Results in the order of the transactions; `events` are the block's own, apart from its transactions'."""

    tx_results: tuple[TxResult, ...]
    events: tuple[Event, ...]
    validator_updates: tuple[ValidatorUpdate, ...]
    app_hash: bytes
    more_work: bool
    """The next block has work without any transaction and should be proposed at once."""
    begin_events: int = 0
    """How many of `events` happened before the transactions; the rest happened after them."""

    def all_events(self) -> tuple[Event, ...]:
        """Events of the whole block in the order in which they happened."""
        begin, end = self.events[: self.begin_events], self.events[self.begin_events :]
        return (*begin, *(event for result in self.tx_results for event in result.events), *end)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A value (None: there is none) as of `height`, with its proofs when they were asked for."""

    value: bytes | None
    height: int
    app_hash: bytes
    module_root: bytes = b""
    proof: tree.Proof | None = None
    module_proof: tree.ModuleProof | None = None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A finalized block that is not committed yet."""

    height: int
    layer: State
    changes: list[Change]
    trees: dict[str, tree.Tree]
    app_hash: bytes


@dataclass(slots=True)
class _Module:
    """Committed values of a module by key, and the keys in order."""

    values: dict[str, bytes] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def apply(self, key: str, value: bytes | None) -> None:
        if value is None:
            if self.values.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]
            return
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value


class Application:
    """One chain's ledger. Not thread-safe: the node calls it from one place."""

    def __init__(self) -> None:
        self._state = State()
        self._modules: dict[str, _Module] = {module: _Module() for module in State.MODULES}
        self._trees: dict[str, tree.Tree] = dict.fromkeys(State.MODULES)
        self._app_hash = b""
        self._height = 0
        self._pending: _Pending | None = None
        self._known: OrderedDict[bytes, Transaction] = OrderedDict()
        self._waiting: dict[str, Account] = {}

    @property
    def state(self) -> State:
        """Committed state, to be read only."""
        return self._state

    def info(self) -> Info:
        return Info(self._height, self._app_hash)

    def module_roots(self) -> dict[str, bytes]:
        """Roots of the committed state's modules by name; the app hash is the root over them."""
        return {name: tree.root_of(each) for name, each in self._trees.items()}

    # --- beginnings ---

    def init_chain(self, genesis: Genesis) -> bytes:
        """Start from genesis. Returns the app hash before the first block. Raises InvalidInput."""
        state = genesis_state(genesis)
        entries = [
            (module, key, encode_record(module, state.table(module)[key]))
            for module in State.MODULES
            for key in state.table(module).keys()  # noqa: SIM118 (a table is no dict)
        ]
        self._restore(entries, 0)
        return self._app_hash

    def load(self, entries: Iterable[tuple[str, str, bytes]], height: int, app_hash: bytes) -> None:
        """Restore a committed state. Raises Corrupt where the entries are not what the app hash says."""
        self._restore(list(entries), height)
        if self._app_hash != app_hash:
            raise Corrupt(
                f"the stored state of block {height} has the root {self._app_hash.hex()[:16]}, the chain says "
                f"{app_hash.hex()[:16]}; remove the state to replay the blocks",
                code="state_mismatch",
            )

    def snapshot(self) -> Iterator[tuple[str, str, bytes]]:
        """All committed entries, for `load`. Ends before the next commit."""
        for name, module in self._modules.items():
            for key in module.keys:
                yield name, key, module.values[key]

    def frozen(self) -> dict[str, dict[str, bytes]]:
        """A copy of all committed entries by module, quick enough to be made between two blocks."""
        return {name: dict(module.values) for name, module in self._modules.items()}

    # --- before a decision ---

    def check_tx(self, data: bytes, admit: Callable[[str], None] | None = None) -> CheckResult:
        """Form, signature, chain, nonce and fee, after the sender's transactions that wait already.

        `admit` is asked about the sender before its transaction counts; a typed error of it refuses the transaction.

        The mempool calls it for each new transaction, and after each commit (which forgets what waits) once more for
        each one it still holds, in order; those refused then are to be dropped.
        """
        try:
            tx = self._admit(data)
            check_terms(self._state, tx)
            after = _after(tx, self._waiting.get(tx.sender) or account_of(self._state, tx.sender))
            if admit is not None:
                admit(tx.sender)
            self._waiting[tx.sender] = after
        except TalkooError as error:
            refused = failed(hashlib.sha256(data).digest(), error)
            return CheckResult(refused.code, refused.hash, refused.family, refused.error_code, refused.message)
        return CheckResult(0, tx.hash, sender=tx.sender, nonce=tx.nonce, fee_utlk=tx.fee_utlk)

    def retract(self, data: bytes) -> None:
        """Forget a checked transaction that waits no more; it must be the last of its sender."""
        tx = self._admit(data)
        account = self._waiting[tx.sender]
        assert account.nonce == tx.nonce + 1, "only a sender's last transaction can be retracted"
        self._waiting[tx.sender] = replace(
            account, balance_utlk=account.balance_utlk + tx.fee_utlk, nonce=account.nonce - 1
        )

    def prepare_proposal(self, txs: Sequence[bytes], max_bytes: int) -> list[bytes]:
        """Those of the waiting transactions, in order, that make a block other members will accept."""
        params = self._state.params
        room = min(max_bytes, params.max_block_bytes)
        accounts: dict[str, Account] = {}
        chosen: list[bytes] = []
        for data in txs:
            if len(chosen) >= params.max_block_txs:
                break
            if len(data) <= room and self._fits(data, accounts):
                chosen.append(data)
                room -= len(data)
        return chosen

    def process_proposal(self, txs: Sequence[bytes]) -> bool:
        """Whether a proposed block obeys the bounds and holds only well-formed, signed transactions in order."""
        params = self._state.params
        if len(txs) > params.max_block_txs or sum(map(len, txs)) > params.max_block_bytes:
            return False
        accounts: dict[str, Account] = {}
        return all(self._fits(data, accounts) for data in txs)

    # --- after a decision ---

    def finalize_block(self, request: FinalizeRequest) -> FinalizeResponse:
        """Apply a decided block. Nothing is kept until `commit`. Raises Corrupt where our own sums do not fit."""
        assert request.height == self._height + 1, f"block {request.height} after {self._height}"
        layer = self._state.above()
        block = Block(request.height, request.hash, request.time_ns, self.organization_of(request.proposer_address))
        context = Context(layer, block)
        begin_block(context, request.misbehavior)
        begin_events = len(context.events)
        results = [self._deliver(context, data) for data in request.txs]
        end_block(context, sum(result.fee_utlk for result in results))
        self._pending = self._sealed(request.height, layer)
        return FinalizeResponse(
            tuple(results),
            tuple(context.events),
            tuple(validator_updates(layer)),
            self._pending.app_hash,
            awaits_draw(layer),
            begin_events,
        )

    def commit(self) -> list[Change]:
        """Make the finalized block the state. Returns what changed, for the store."""
        pending = self._pending
        assert pending is not None, "finalize_block comes before commit"
        self._state.absorb(pending.layer)
        for module, key, value in pending.changes:
            self._modules[module].apply(key, value)
        self._trees = pending.trees
        self._height, self._app_hash = pending.height, pending.app_hash
        self._pending = None
        self._waiting.clear()
        return pending.changes

    # --- reading ---

    def query(self, module: str, key: str, prove: bool = False) -> QueryResult:
        """A committed value. Raises InvalidInput (code `unknown_module`)."""
        value = self._module(module).values.get(key)
        if not prove:
            return QueryResult(value, self._height, self._app_hash)
        roots = self.module_roots()
        return QueryResult(
            value,
            self._height,
            self._app_hash,
            roots[module],
            tree.prove(self._trees[module], key),
            tree.prove_module(roots, module),
        )

    def organization_of(self, address: bytes) -> str:
        """Whose consensus key has this address, former keys included; empty when it is no member's."""
        return names_by_address(self._state.organizations.all()).get(address, "")

    def tree_of(self, module: str) -> tree.Tree:
        """The committed tree of a module. Raises InvalidInput (code `unknown_module`)."""
        self._module(module)
        return self._trees[module]

    def list(
        self, module: str, prefix: str = "", after: str = "", limit: int = 100, reverse: bool = False
    ) -> tuple[list[tuple[str, bytes]], bool]:
        """Committed (key, value) pairs in key order, behind `after`, and whether there are more."""
        found = self._module(module)
        low = bisect_left(found.keys, prefix)
        high = bisect_left(found.keys, prefix + "\U0010ffff") if prefix else len(found.keys)
        if after and reverse:
            high = min(high, bisect_left(found.keys, after))
        elif after:
            low = max(low, bisect_right(found.keys, after))
        most = min(limit or 100, LIST_MAX)
        keys = found.keys[max(low, high - most) : high][::-1] if reverse else found.keys[low : min(high, low + most)]
        return [(key, found.values[key]) for key in keys], max(high - low, 0) > len(keys)

    # --- inside ---

    def _restore(self, entries: Sequence[tuple[str, str, bytes]], height: int) -> None:
        self._state = State()
        self._modules = {module: _Module() for module in State.MODULES}
        by_module: dict[str, dict[str, bytes | None]] = {module: {} for module in State.MODULES}
        sums = [0, 0, 0, 0]
        for module, key, value in entries:
            record = decode_record(module, value)
            self._state.table(module).put(key, record)
            by_module[module][key] = value
            self._modules[module].values[key] = value
            sums = [a + b for a, b in zip(sums, holdings(record), strict=True)]
        for each in self._modules.values():
            each.keys = sorted(each.values)
        self._trees = {module: tree.update(None, values) for module, values in by_module.items()}
        self._app_hash = _root(self._trees)
        self._height = height
        self._pending = None
        self._waiting.clear()
        self._check_sums(sums)

    def _check_sums(self, sums: Sequence[int]) -> None:
        supply = self._state.supplies.get("supply")
        if supply is None:
            raise Corrupt("the state has no supply record; it is not a ledger's state", code="state_mismatch")
        accounts, stake, escrow, unbonding = sums
        counted = replace(
            supply, accounts_utlk=accounts, stake_utlk=stake, escrow_utlk=escrow, unbonding_utlk=unbonding
        )
        check_supply(counted)
        if counted != supply:
            raise Corrupt("the supply record does not say what the other records hold", code="supply_mismatch")

    def _admit(self, data: bytes) -> Transaction:
        """Decode and verify once; remembered by hash. Raises InvalidInput (`bad_signature`, …), Exhausted."""
        key = hashlib.sha256(data).digest()
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        tx = decode_transaction(data, self._state.params.max_tx_bytes)
        if not PublicKey(tx.public_key).verify(tx.signature, tx.signed_bytes):
            raise InvalidInput(
                "the signature does not fit the transaction and its key; sign it again", code="bad_signature"
            )
        self._known[key] = tx
        if len(self._known) > KNOWN_TRANSACTIONS_MAX:
            self._known.popitem(last=False)
        return tx

    def _fits(self, data: bytes, accounts: dict[str, Account]) -> bool:
        """Whether a transaction may stand next in a block; `accounts` follows the senders so far."""
        try:
            tx = self._admit(data)
            check_terms(self._state, tx)
            accounts[tx.sender] = _after(tx, accounts.get(tx.sender) or account_of(self._state, tx.sender))
        except TalkooError:
            return False
        return True

    def _deliver(self, context: Context, data: bytes) -> TxResult:
        try:
            tx = self._admit(data)
        except TalkooError as error:
            return failed(hashlib.sha256(data).digest(), error)
        return apply_transaction(context, tx)

    def _sealed(self, height: int, layer: State) -> _Pending:
        changes: list[Change] = [
            (module, key, None if after is None else encode_record(module, after))
            for module, key, _, after in layer.changes()
        ]
        by_module: dict[str, dict[str, bytes | None]] = {}
        for module, key, value in changes:
            by_module.setdefault(module, {})[key] = value
        trees = dict(self._trees)
        for module, values in by_module.items():
            trees[module] = tree.update(trees[module], values)
        return _Pending(height, layer, changes, trees, _root(trees))

    def _module(self, name: str) -> _Module:
        module = self._modules.get(name)
        if module is None:
            raise InvalidInput(
                f"the state has no module {name!r}; the modules are {', '.join(State.MODULES)}", code="unknown_module"
            )
        return module


def replay(genesis: Genesis, blocks: Iterable[FinalizeRequest]) -> Application:
    """Genesis and log make the state: the same as the live application had after the same blocks."""
    application = Application()
    application.init_chain(genesis)
    for block in blocks:
        application.finalize_block(block)
        application.commit()
    return application


def _after(tx: Transaction, account: Account) -> Account:
    """The sender's account after nonce and fee of one more transaction. Raises Conflict, InsufficientFunds."""
    check_nonce(tx, account.nonce)
    check_fee(tx, account)
    return replace(account, balance_utlk=account.balance_utlk - tx.fee_utlk, nonce=account.nonce + 1)


def root_of(entries: Iterable[tuple[str, str, bytes]]) -> bytes:
    """The app hash of a state of these entries, whatever they hold. Raises Corrupt for an unknown module."""
    values: dict[str, dict[str, bytes | None]] = {module: {} for module in State.MODULES}
    for module, key, value in entries:
        if module not in values:
            raise Corrupt(f"a state has no module {module[:64]!r}", code="state_mismatch")
        values[module][key] = value
    return _root({module: tree.update(None, each) for module, each in values.items()})


def _root(trees: dict[str, tree.Tree]) -> bytes:
    return tree.app_hash({module: tree.root_of(each) for module, each in trees.items()})
