"""The application as a consensus engine and a mempool see it."""

from __future__ import annotations

import msgspec
import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger import tree, wire
from talkoo_ledger.application import Application
from talkoo_ledger.genesis import parse_genesis
from talkoo_ledger.state import State

from talkoo_core.errors import Corrupt, InvalidInput
from talkoo_core.signing import PublicKey
from talkoo_sim.ledger_chain import CHAIN_ID, LedgerChain, address, key_of, make_genesis, task_spec


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis())


def pay(chain: LedgerChain, ahead: int = 0, amount_utlk: int = 1) -> bytes:
    return chain.signed("alice", tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk), ahead=ahead)


def test_several_transactions_of_one_sender_wait_together(chain: LedgerChain) -> None:
    check = chain.application.check_tx
    assert [check(pay(chain, ahead)).code for ahead in (0, 1, 2)] == [0, 0, 0]
    assert check(pay(chain, 4)).error_code == "nonce_gap"
    assert check(pay(chain, 1)).error_code == "nonce_too_low"
    chain.block(pay(chain, 0), pay(chain, 1))
    assert check(pay(chain, 1)).error_code == "nonce_gap"  # the mempool checks anew what it still holds, in order
    assert check(pay(chain, 0)).code == 0


def test_a_signature_is_computed_once_whatever_becomes_of_its_transaction(
    chain: LedgerChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it comes, in a proposal, in a block: a batch that was verified costs nothing again."""
    computed = []
    verify = PublicKey.verify

    def counting(key: PublicKey, signature: bytes, message: bytes) -> bool:
        computed.append(signature)
        return verify(key, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counting)
    txs = [pay(chain, ahead) for ahead in range(5)]
    application = chain.application
    assert all(application.check_tx(tx).code == 0 for tx in txs)
    assert application.prepare_proposal(txs, 1 << 20) == txs
    assert application.process_proposal(txs)
    chain.block(*txs)
    assert len(computed) == len(set(computed)) == len(txs)


def test_waiting_fees_cannot_be_more_than_the_account_holds(chain: LedgerChain) -> None:
    chain.send("alice", tx_pb2.Transfer(to=address("poor"), amount_utlk=1_500))
    message = tx_pb2.Transfer(to=address("bob"), amount_utlk=1)
    assert chain.application.check_tx(chain.signed("poor", message)).code == 0
    assert chain.application.check_tx(chain.signed("poor", message, ahead=1)).error_code == "insufficient_funds"


def signed(body: bytes, key_name: str = "alice") -> bytes:
    key = key_of(key_name)
    signature = key.sign(b"talkoo/tx/v1\n" + body)
    return tx_pb2.SignedTx(body=body, public_key=key.public.raw, signature=signature).SerializeToString()


def body(**changes: object) -> bytes:
    transfer = tx_pb2.Transfer(to=address("bob"), amount_utlk=1)
    values: dict[str, object] = {"chain_id": CHAIN_ID, "fee_utlk": 1_000, "transfer": transfer}
    return tx_pb2.TxBody(**(values | changes)).SerializeToString()  # type: ignore[arg-type]


def forged_signature() -> bytes:
    proto = tx_pb2.SignedTx.FromString(signed(body()))
    proto.signature = bytes(64)
    return proto.SerializeToString()


def reordered() -> bytes:
    """The same fields in another order: the same transaction to a careless reader, under another hash."""
    proto = tx_pb2.SignedTx.FromString(signed(body()))
    last = tx_pb2.SignedTx(body=proto.body).SerializeToString()
    proto.ClearField("body")
    return proto.SerializeToString() + last


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (b"\xff" * 40, "malformed"),
        (signed(b"\xff\xff"), "malformed"),
        (b"x" * 70_000, "tx_too_large"),
        (forged_signature(), "bad_signature"),
        (reordered(), "not_canonical"),
        (tx_pb2.SignedTx(body=body(), public_key=b"k", signature=bytes(64)).SerializeToString(), "malformed"),
        (signed(body(transfer=None)), "no_message"),
        (signed(body() + b"\xf8\x07\x01"), "unknown_field"),
        (signed(body(transfer=None) + b"\x52\x05\x12\x00\x98\x06\x01"[:2] + b"\x98\x06\x01\x00\x00"), "malformed"),
        (signed(body(chain_id="other-1")), "wrong_chain"),
        (signed(body(fee_utlk=99)), "fee_too_low"),
        (signed(body(fee_utlk=1 << 63)), "bad_field"),
        (signed(body(nonce=1)), "nonce_gap"),
        (signed(body(memo="m" * 257)), "bad_field"),
        (signed(body(), "stranger"), "insufficient_funds"),
        (signed(body(transfer=tx_pb2.Transfer(to="tlk1nobody", amount_utlk=1))), "bad_address"),
        (signed(body(transfer=tx_pb2.Transfer(to=address("bob").upper(), amount_utlk=1))), "bad_address"),
        (signed(body(transfer=tx_pb2.Transfer(to=address("bob")))), "bad_field"),
        (signed(body(transfer=tx_pb2.Transfer(to=address("bob"), amount_utlk=1 << 63))), "bad_field"),
    ],
)
def test_malformed_transaction_is_refused_everywhere_and_changes_nothing(
    chain: LedgerChain, data: bytes, code: str
) -> None:
    before = chain.application.info().app_hash
    assert chain.application.check_tx(data).error_code == code
    assert chain.application.prepare_proposal([data], 1 << 20) == []
    assert not chain.application.process_proposal([data])
    [result] = chain.block(data).tx_results
    assert (result.error_code, result.fee_utlk) == (code, 0)
    assert result.message
    assert chain.application.info().app_hash == before


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "diloco"},
        {"module": "../digits"},
        {"data_name": "a/b"},
        {"config_json": "[1]"},
        {"config_json": "{"},
        {"config_json": '{"a":' + "[" * 5_000},
        {"config_json": '{"a":' * 40 + "1" + "}" * 40},
        {"optimizer": tx_pb2.Optimizer(name="magic")},
        {"code": tx_pb2.BlobRef(sha256="00", size_bytes=1)},
        {"steps": 0},
        {"steps_per_segment": 0},
        {"steps": 10_000_000, "steps_per_segment": 1},
        {"min_nodes": 0},
        {"min_nodes": 5},
        {"max_nodes": 65},
        {"global_batch": 1},
        {"flops_per_sample": 0},
        {"flops_per_sample": 1 << 60},
        {"audit_rate_ppm": 1_000_001},
        {"model_name": "No Name"},
        {"licence": "x" * 300},
    ],
)
def test_task_spec_out_of_bounds_is_refused(chain: LedgerChain, changes: dict[str, object]) -> None:
    message = tx_pb2.CreateTask(spec=task_spec(**changes), escrow_utlk=1)
    result = chain.application.check_tx(chain.signed("alice", message))
    assert result.family == "invalid_input"
    assert result.error_code in ("bad_field", "bad_name")


def test_double_spend_in_one_block_fails_the_second_and_takes_its_fee(chain: LedgerChain) -> None:
    all_of_it = chain.balance("alice") - 2_000
    first, second = chain.block(pay(chain, 0, all_of_it), pay(chain, 1, all_of_it)).tx_results
    assert (first.code, second.error_code, second.fee_utlk) == (0, "insufficient_funds", 1_000)
    assert chain.balance("alice") == 0


def test_replayed_transaction_is_refused(chain: LedgerChain) -> None:
    data = pay(chain)
    assert chain.block(data).tx_results[0].code == 0
    assert chain.block(data).tx_results[0].error_code == "nonce_too_low"
    assert not chain.application.process_proposal([data])


def test_proposal_is_cut_at_the_bounds_and_accepted_by_others(chain: LedgerChain) -> None:
    txs = [pay(chain, ahead) for ahead in range(20)]
    size = len(txs[1])
    chosen = chain.application.prepare_proposal(txs, 5 * size + 4)
    assert chosen == txs[:5]
    other = LedgerChain(chain.genesis).application
    assert other.process_proposal(chosen)
    assert not other.process_proposal(txs[1:3])
    small = LedgerChain(make_genesis(max_block_txs=3)).application
    assert len(small.prepare_proposal(txs, 1 << 20)) == 3
    assert not small.process_proposal(txs[:4])


def test_state_is_restored_from_what_commits_returned() -> None:
    chain = LedgerChain(make_genesis())
    stored = {(module, key): value for module, key, value in chain.application.snapshot()}
    chain.register("north-1")
    chain.skip(25)
    replica = Application()
    replica.init_chain(chain.genesis)
    for block in chain.blocks:
        replica.finalize_block(block)
        for module, key, value in replica.commit():
            if value is None:
                del stored[module, key]
            else:
                stored[module, key] = value
    info = chain.application.info()
    restored = Application()
    restored.load([(module, key, value) for (module, key), value in stored.items()], info.height, info.app_hash)
    assert restored.info() == info
    block = pay(chain)
    for application in (restored, replica):
        chain_block = chain.blocks[-1]
        request = type(chain_block)(info.height + 1, b"h" * 32, 1, chain_block.proposer_address, [block])
        application.finalize_block(request)
        application.commit()
    assert restored.info() == replica.info()


def test_damaged_store_is_refused(chain: LedgerChain) -> None:
    info = chain.application.info()
    entries = list(chain.application.snapshot())
    with pytest.raises(Corrupt):
        Application().load(entries[1:], info.height, info.app_hash)
    with pytest.raises(Corrupt):
        Application().load(entries, info.height, bytes(32))
    with pytest.raises(Corrupt):
        Application().load([("nowhere", "k", b"")], info.height, info.app_hash)
    with pytest.raises(Corrupt):
        Application().load([], 0, info.app_hash)


def test_values_and_their_absence_are_proved_over_the_wire(chain: LedgerChain) -> None:
    chain.register()
    application = chain.application
    for module, key in (
        ("accounts", address("alice")),
        ("accounts", "nobody"),
        ("tasks", "task-0"),
        ("chain", "chain"),
    ):
        result = application.query(module, key, prove=True)
        proof = wire.state_proof_proto(key, result)
        app_hash = application.info().app_hash
        wire.verify_state_proof(app_hash, module, key, result.value, proof)
        with pytest.raises(Corrupt):
            wire.verify_state_proof(app_hash, module, key, b"another value", proof)
        with pytest.raises(Corrupt):
            wire.verify_state_proof(tree.sha256(app_hash), module, key, result.value, proof)
    with pytest.raises(InvalidInput):
        application.query("nowhere", "k")


def test_list_pages_through_a_module_in_both_directions(chain: LedgerChain) -> None:
    chain.register()
    application = chain.application
    everything, more = application.list("accounts", limit=1_000)
    assert not more
    keys = [key for key, _ in everything]
    assert keys == sorted(keys) == list(chain.state.accounts.keys())
    for reverse in (False, True):
        found: list[str] = []
        more = True
        while more:
            page, more = application.list("accounts", after=found[-1] if found else "", limit=7, reverse=reverse)
            found += [key for key, _ in page]
        assert found == (keys[::-1] if reverse else keys)
    page, more = application.list("payments", prefix="0000", limit=2, reverse=True)
    newest = chain.state.chain.payments
    assert ([int(key) for key, _ in page], more) == ([newest, newest - 1], True)
    assert application.list("payments", prefix="zzz") == ([], False)


def test_block_without_transactions_asks_for_another_only_when_a_draw_is_due(chain: LedgerChain) -> None:
    assert not chain.block().more_work
    chain.register("north-1", "east-1")
    task_id = chain.create()
    chain.place(task_id, "north-1", "east-1")
    assert chain.commit_all(task_id, ("north-1", "east-1")).more_work
    assert not chain.block().more_work


def test_results_do_not_depend_on_what_the_mempool_saw(chain: LedgerChain) -> None:
    other = LedgerChain(chain.genesis)
    first, second = pay(chain, 0), pay(chain, 1)
    for data in (first, second, pay(chain, 2)):
        chain.application.check_tx(data)
    chain.block(first, second)
    other.block(first, second)
    assert chain.application.info() == other.application.info()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: {**g, "surprise": 1}, "surprise"),
        (lambda g: {**g, "chain_id": ""}, "chain_id"),
        (lambda g: {**g, "initial_height": 5}, "initial_height"),
        (lambda g: {**g, "params": {**g["params"], "surprise": 1}}, "surprise"),
        (lambda g: {**g, "params": {k: v for k, v in g["params"].items() if k != "slash_ppm"}}, "slash_ppm"),
        (lambda g: {**g, "params": {**g["params"], "slash_ppm": 1_000_001}}, "slash_ppm"),
        (lambda g: {**g, "params": {**g["params"], "audit_floor_ppm": 0}}, "audit_floor_ppm"),
        (lambda g: {**g, "params": {**g["params"], "unbonding_blocks": 10}}, "unbonding_blocks"),
        (lambda g: {**g, "params": {**g["params"], "emission_compute_ppm": 900_000}}, "emission"),
        (lambda g: {**g, "params": {**g["params"], "max_tx_bytes": 2 << 20}}, "max_tx_bytes"),
        (lambda g: {**g, "organizations": []}, "organizations"),
        (lambda g: {**g, "organizations": [g["organizations"][0]] * 2}, "own name"),
        (lambda g: {**g, "organizations": [{**g["organizations"][0], "owner_key": "zz"}]}, "public key"),
        (lambda g: {**g, "accounts": [g["accounts"][0]] * 2}, "twice"),
        (lambda g: {**g, "accounts": [{**g["accounts"][0], "balance_utlk": 10**18}]}, "tokens"),
        (lambda g: {**g, "accounts": [{**g["accounts"][0], "balance_utlk": -1}]}, "negative"),
    ],
)
def test_wrong_genesis_is_refused_with_the_field_that_is_wrong(change: object, words: str) -> None:
    plain = msgspec.to_builtins(make_genesis())
    data = msgspec.json.encode(change(plain))  # type: ignore[operator]
    with pytest.raises(InvalidInput, match=words):
        Application().init_chain(parse_genesis(data))


def test_genesis_decides_the_first_root() -> None:
    first, again = Application(), Application()
    assert first.init_chain(make_genesis()) == again.init_chain(parse_genesis(make_genesis().canonical_json()))
    assert first.init_chain(make_genesis()) != again.init_chain(make_genesis(slash_ppm=1))
    assert set(State.MODULES) == {module for module, _, _ in first.snapshot()} | {
        "accusations",
        "applications",
        "models",
        "nodes",
        "payments",
        "requests",
        "segments",
        "tasks",
        "unbonding",
    }
