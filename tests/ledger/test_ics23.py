"""State proofs are ICS-23: checked by our own reading of it and by cosmos/ics23, which knows nothing of us."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_api.ics23.v1 import ics23_pb2 as pb
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.ics23 import state_proof_ops, verify_state
from talkoo_ledger.query import answer
from talkoo_ledger.state import State

from talkoo_core.errors import Corrupt
from talkoo_sim.ledger_chain import LedgerChain, address, make_genesis

CHECKER = Path(__file__).parent / "ics23"
BUILD_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def chain() -> LedgerChain:
    """Accounts enough for paths of different depths; modules with one entry and with none."""
    grown = LedgerChain(make_genesis())
    for number in range(60):
        grown.send("alice", tx_pb2.Transfer(to=address(f"receiver {number}"), amount_utlk=1))
    return grown


def questions(chain: LedgerChain) -> Iterator[tuple[str, str, bytes | None]]:
    """Everything that is there, and as much that is not."""
    for module, key, value in chain.application.snapshot():
        yield module, key, value
    for module in State.MODULES:
        for number in range(12):
            yield module, f"absent {number}", None


def is_empty(chain: LedgerChain, module: str) -> bool:
    return chain.application.tree_of(module) is None


def test_every_value_and_every_absence_is_proven(chain: LedgerChain) -> None:
    app_hash = chain.application.info().app_hash
    asked = list(questions(chain))
    for module, key, value in asked:
        verify_state(app_hash, module, key, value, state_proof_ops(chain.application, module, key))
    assert any(is_empty(chain, module) for module, _, _ in asked)
    assert len(asked) > 200


def test_a_proof_proves_nothing_else(chain: LedgerChain) -> None:
    app_hash = chain.application.info().app_hash
    here, there = address("alice"), address("bob")
    value = chain.application.query("accounts", here).value
    assert value is not None
    ops = state_proof_ops(chain.application, "accounts", here)
    absent = state_proof_ops(chain.application, "accounts", "nobody")
    for wrong in (
        lambda: verify_state(app_hash, "accounts", here, None, ops),
        lambda: verify_state(app_hash, "accounts", here, value + b"\0", ops),
        lambda: verify_state(app_hash, "accounts", there, value, ops),
        lambda: verify_state(app_hash, "nodes", here, value, ops),
        lambda: verify_state(bytes(32), "accounts", here, value, ops),
        lambda: verify_state(app_hash, "accounts", here, value, ops[:1]),
        lambda: verify_state(app_hash, "accounts", here, value, ops[::-1]),
        lambda: verify_state(app_hash, "accounts", here, value, [replace(ops[0], data=b"\xff"), ops[1]]),
        lambda: verify_state(app_hash, "accounts", here, value, [replace(ops[0], data=bytes(70_000)), ops[1]]),
        lambda: verify_state(app_hash, "accounts", "nobody", value, absent),
        lambda: verify_state(app_hash, "accounts", here, None, [replace(absent[0], key=here.encode()), absent[1]]),
        lambda: verify_state(app_hash, "models", "absent", None, state_proof_ops(chain.application, "nodes", "absent")),
    ):
        with pytest.raises(Corrupt) as caught:
            wrong()
        assert caught.value.code == "bad_proof"


def test_neighbours_that_are_not_next_to_each_other_prove_no_absence(chain: LedgerChain) -> None:
    """What stands between two leaves cannot be hidden by leaving it out."""
    application = chain.application
    app_hash = application.info().app_hash
    keys = [key for key, _ in application.list("accounts", limit=1_000)[0]]
    dice = random.Random(7)
    tried = 0
    for _ in range(300):
        hidden, left, right = dice.sample(keys, 3)
        proofs = {
            key: pb.CommitmentProof.FromString(state_proof_ops(application, "accounts", key)[0].data).exist
            for key in (left, right)
        }
        forged = pb.CommitmentProof(
            nonexist=pb.NonExistenceProof(key=hidden.encode(), left=proofs[left], right=proofs[right])
        )
        ops = state_proof_ops(application, "accounts", hidden)
        with pytest.raises(Corrupt):
            verify_state(app_hash, "accounts", hidden, None, [replace(ops[0], data=forged.SerializeToString()), ops[1]])
        tried += 1
    assert tried == 300


@settings(max_examples=200, deadline=None, derandomize=True)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255), step=st.integers(0, 1), there=st.booleans())
def test_no_changed_byte_leads_to_the_same_statement(place: int, flip: int, step: int, there: bool) -> None:
    application = CHAIN.application
    key = address("alice") if there else "nobody"
    value = application.query("accounts", key).value
    ops = list(state_proof_ops(application, "accounts", key))
    data = bytearray(ops[step].data)
    data[place % len(data)] ^= flip
    ops[step] = replace(ops[step], data=bytes(data))
    with pytest.raises(Corrupt):
        verify_state(application.info().app_hash, "accounts", key, value, ops)


CHAIN = LedgerChain(make_genesis())


def test_a_query_over_abci_or_rpc_carries_the_proof(chain: LedgerChain) -> None:
    application = chain.application
    found = answer(application, "/store/accounts/key", address("bob").encode(), 0, True)
    assert [op.type for op in found.proof_ops] == ["ics23:smt", "ics23:simple"]
    verify_state(application.info().app_hash, "accounts", address("bob"), found.value, found.proof_ops)
    assert answer(application, "/store/accounts/key", address("bob").encode(), 0, False).proof_ops == ()


@pytest.fixture
def judge(go: Path, tmp_path: Path) -> Callable[[list[dict[str, object]]], list[bool]]:
    """cosmos/ics23: whether each proof holds."""
    binary = tmp_path / "ics23-check"
    subprocess.run(
        [str(go), "build", "-o", str(binary), "."],
        cwd=CHECKER,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )

    def holds(lines: list[dict[str, object]]) -> list[bool]:
        text = "\n".join(map(json.dumps, lines))
        ran = subprocess.run([str(binary)], input=text, capture_output=True, text=True, check=True, timeout=60)
        return [line == "true" for line in ran.stdout.split()]

    return holds


def question(chain: LedgerChain, module: str, key: str, value: bytes | None) -> dict[str, object]:
    ops = state_proof_ops(chain.application, module, key)
    return {
        "app_hash": chain.application.info().app_hash.hex(),
        "module": module,
        "root": chain.application.module_roots()[module].hex(),
        "key": key,
        "value": None if value is None else value.hex(),
        "smt": ops[0].data.hex(),
        "simple": ops[1].data.hex(),
    }


def test_cosmos_ics23_accepts_our_proofs(
    chain: LedgerChain, judge: Callable[[list[dict[str, object]]], list[bool]]
) -> None:
    asked = [each for each in questions(chain) if not (each[2] is None and is_empty(chain, each[0]))]
    assert judge([question(chain, *each) for each in asked]) == [True] * len(asked)


def test_cosmos_ics23_refuses_what_is_wrong(
    chain: LedgerChain, judge: Callable[[list[dict[str, object]]], list[bool]]
) -> None:
    value = chain.application.query("accounts", address("alice")).value
    assert value is not None
    good = question(chain, "accounts", address("alice"), value)
    absent = question(chain, "accounts", "nobody", None)
    wrong = [
        good | {"value": (value + b"\0").hex()},
        good | {"value": None},
        good | {"key": address("bob")},
        good | {"module": "nodes"},
        good | {"app_hash": "00" * 32},
        absent | {"value": value.hex()},
        absent | {"key": address("alice")},
    ]
    assert judge([good, absent, *wrong]) == [True, True] + [False] * len(wrong)
