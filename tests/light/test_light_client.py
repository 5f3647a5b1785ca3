"""`talkoo light` against servers over real HTTP that tell the truth, and that lie in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from talkoo_consensus.light import TrustExpired, TrustOptions

from talkoo.light import provider, store
from talkoo.light.client import LightClient
from talkoo.light.provider import Provider
from talkoo.light.store import LightStore
from talkoo_core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from talkoo_sim.ledger_chain import key_of
from talkoo_sim.light_chain import BLOCK_NS, START_NS, LightChain, validator
from talkoo_sim.light_server import LightServer

FOUR = ("a", "b", "c", "d")
HOUR_NS = 3_600 * 10**9
NOW_NS = START_NS + 100 * BLOCK_NS


@pytest.fixture(scope="module")
def chain() -> LightChain:
    grown = LightChain(FOUR)
    grown.grow(30)
    return grown


@pytest.fixture
def serve() -> Iterator[Callable[[LightChain], LightServer]]:
    with ExitStack() as stack:
        yield lambda chain: stack.enter_context(LightServer(chain))


def client_of(tmp_path: Path, primary: LightServer, *witnesses: LightServer, now_ns: int = NOW_NS) -> LightClient:
    folder = tmp_path / "light"
    providers = [Provider(each.url) for each in witnesses]
    return LightClient(
        Provider(primary.url), providers, LightStore(folder), TrustOptions(HOUR_NS), folder, now_ns=lambda: now_ns
    )


def test_a_chain_is_followed_from_a_trusted_header_and_remembered(tmp_path: Path, serve: Any) -> None:
    chain = LightChain(FOUR)
    chain.grow(10)
    primary, witness = serve(chain), serve(chain)
    client = client_of(tmp_path, primary, witness)
    client.begin(3, chain.at(3).hash)
    assert client.update().height == 10
    chain.grow(5)
    again = client_of(tmp_path, primary, witness)  # a new process: what was verified is on disk
    assert again.update().hash == chain.at(15).hash
    assert again.update(2).hash == chain.at(2).hash
    assert again.update(12).height == 12


def test_nothing_is_believed_before_something_is_trusted(tmp_path: Path, chain: LightChain, serve: Any) -> None:
    with pytest.raises(NotFound, match="--trusted-height"):
        client_of(tmp_path, serve(chain)).update()


def test_another_header_than_the_trusted_one_is_refused(tmp_path: Path, chain: LightChain, serve: Any) -> None:
    with pytest.raises(Conflict, match="check the height and the hash") as caught:
        client_of(tmp_path, serve(chain)).begin(3, chain.at(4).hash)
    assert caught.value.code == "wrong_trusted_hash"


def test_a_trust_that_is_too_old_ends_it(tmp_path: Path, chain: LightChain, serve: Any) -> None:
    server = serve(chain)
    client = client_of(tmp_path, server, now_ns=NOW_NS + HOUR_NS)
    client.begin(3, chain.at(3).hash)
    with pytest.raises(TrustExpired, match="get a newer one"):
        client.update()


def flip(document: dict[str, Any], name: str) -> None:
    text = document[name]
    document[name] = ("0" if text[0] != "0" else "1") + text[1:]


def forge_signature(_: str, result: Any) -> None:
    for each in result.get("signed_header", {}).get("commit", {}).get("signatures", ()):
        each["signature"] = "A" * 86 + "=="


def forge_state(_: str, result: Any) -> None:
    if "signed_header" in result:
        flip(result["signed_header"]["header"], "app_hash")


def forge_validators(_: str, result: Any) -> None:
    for each in result.get("validators", ())[:1]:
        each["voting_power"] = "1000"


def drop_signatures(_: str, result: Any) -> None:
    if "signed_header" in result:
        result["signed_header"]["commit"]["signatures"] = []


def other_height(_: str, result: Any) -> None:
    if "signed_header" in result:
        result["signed_header"]["header"]["height"] = "29"


def other_chain(_: str, result: Any) -> None:
    if "signed_header" in result:
        result["signed_header"]["header"]["chain_id"] = "light-2"


def from_the_future(_: str, result: Any) -> None:
    if "signed_header" in result:
        result["signed_header"]["header"]["time"] = "2200-01-01T00:00:00Z"


def wrong_types(_: str, result: Any) -> None:
    result.clear()
    result["signed_header"] = {"header": 5, "commit": []}


def no_total(_: str, result: Any) -> None:
    if "validators" in result:
        result["total"] = "99999999999"


LIES = [
    forge_signature,
    forge_state,
    forge_validators,
    drop_signatures,
    other_height,
    other_chain,
    from_the_future,
    wrong_types,
    no_total,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_primary_that_lies_is_replaced_by_a_witness(
    tmp_path: Path, chain: LightChain, serve: Any, lie: Callable[[str, Any], None]
) -> None:
    liar, honest = serve(chain), serve(chain)
    client = client_of(tmp_path, liar, honest)
    client.begin(3, chain.at(3).hash)
    liar.lie = lie
    assert client.update(30).hash == chain.at(30).hash
    assert client.primary.url == honest.url


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_without_a_witness_a_lie_is_told_and_not_believed(
    tmp_path: Path, chain: LightChain, serve: Any, lie: Callable[[str, Any], None]
) -> None:
    liar = serve(chain)
    client = client_of(tmp_path, liar)
    client.begin(3, chain.at(3).hash)
    liar.lie = lie
    with pytest.raises(Unavailable, match="no witness to take its place"):
        client.update(30)
    newest = client.store.newest()
    assert newest is not None
    assert newest.height == 3


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b"{}", b'{"result": 1}', b"\xff\xfe", b'{"error": {"data": "no"}}'])
def test_what_is_no_rpc_is_replaced(tmp_path: Path, chain: LightChain, serve: Any, raw: bytes) -> None:
    odd, honest = serve(chain), serve(chain)
    client = client_of(tmp_path, odd, honest)
    client.begin(3, chain.at(3).hash)
    odd.raw = raw
    assert client.update(30).height == 30


def test_an_answer_without_end_and_one_that_drips_are_given_up(
    tmp_path: Path, chain: LightChain, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "ANSWER_DEADLINE_S", 1.0)
    monkeypatch.setattr(provider, "MAX_ANSWER_BYTES", 100_000)
    huge, slow, honest = serve(chain), serve(chain), serve(chain)
    client = client_of(tmp_path, huge, slow, honest)
    client.begin(3, chain.at(3).hash)
    huge.raw = b" " * 10_000_000
    slow.drip = True
    assert client.update(30).height == 30
    assert client.primary.url == honest.url
    slow.drip = False


def test_a_witness_that_is_gone_is_passed_over(tmp_path: Path, chain: LightChain, serve: Any) -> None:
    primary = serve(chain)
    with LightServer(chain) as gone:
        client = client_of(tmp_path, primary, gone)
        client.begin(3, chain.at(3).hash)
    assert client.update(30).height == 30


def test_a_witness_that_cannot_prove_its_difference_is_dropped(tmp_path: Path, chain: LightChain, serve: Any) -> None:
    primary, witness = serve(chain), serve(chain)
    client = client_of(tmp_path, primary, witness)
    client.begin(3, chain.at(3).hash)
    witness.lie = forge_state
    assert client.update(30).height == 30
    assert client.witnesses == []


def test_two_signed_chains_are_an_attack_and_the_evidence_names_the_guilty(tmp_path: Path, serve: Any) -> None:
    honest = LightChain(FOUR)
    honest.grow(10)
    other = honest.fork(6)
    other.grow(5, tx=b"another", signers=("a", "b", "c"))
    client = client_of(tmp_path, serve(honest), serve(other))
    client.begin(3, honest.at(3).hash)
    client.update(5)
    with pytest.raises(Conflict, match="this is an attack") as caught:
        client.update(8)
    assert caught.value.code == "light_client_attack"
    written = json.loads((tmp_path / "light" / "attack-8.json").read_text())
    assert written["attack"] == "lunatic"  # from height 7 on the states differ as well
    assert set(written["faulty_validators"]) == {key_of(name).public.address.hex() for name in ("a", "b", "c")}
    assert client.store.at(8) is None
    with pytest.raises(Conflict):
        client.update(6)
    assert json.loads((tmp_path / "light" / "attack-6.json").read_text())["attack"] == "equivocation"


def test_changed_validators_are_followed_by_way_of_headers_in_between(tmp_path: Path, serve: Any) -> None:
    names = [f"v{number}" for number in range(12)]
    chain = LightChain(names, {name: 10 if index < 4 else 0 for index, name in enumerate(names)})
    for number in range(8):
        chain.grow(5, updates=[validator(names[number], 0), validator(names[number + 4], 10)])
    server = serve(chain)
    client = client_of(tmp_path, server)
    client.begin(1, chain.at(1).hash)
    assert client.update().height == 40
    asked = {line for line in server.asked if line.startswith("commit")}
    assert 3 <= len(asked) < 20


def test_the_store_is_bounded_and_a_damaged_file_is_refused(
    tmp_path: Path, chain: LightChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KEPT_BLOCKS", 5)
    kept = LightStore(tmp_path)
    for height in range(1, 21):
        kept.save(chain.at(height))
    assert len(list(tmp_path.iterdir())) == 5
    newest = sorted(tmp_path.iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[100] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match="remove it") as caught:
        kept.newest()
    assert caught.value.code == "light_store_damaged"


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("node:26657", "ftp://node", "http://", "http://node?x=1"):
        with pytest.raises(InvalidInput, match="looks like http://host:26657"):
            Provider(url)


# The command


def talkoo(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "talkoo", "light", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"HOME": str(home)}, check=False
    )


def fresh_chain(blocks: int) -> LightChain:
    """One whose headers are of the last minutes, with room for more."""
    chain = LightChain(FOUR)
    chain.states[0] = replace(chain.states[0], last_time_ns=time.time_ns() - (blocks + 100) * BLOCK_NS)
    chain.grow(blocks)
    return chain


def test_the_command_follows_once_and_then_without_naming_the_trust_again(tmp_path: Path, serve: Any) -> None:
    chain = fresh_chain(12)
    server, witness = serve(chain), serve(chain)
    where = ["--primary", server.url, "--witness", witness.url]
    first = talkoo(*where, "--trusted-height", "2", "--trusted-hash", chain.at(2).hash.hex(), "--once", home=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"verified 12  {chain.at(12).hash.hex()}")
    chain.grow()
    second = talkoo(*where, "--once", "-o", "json", home=tmp_path)
    assert json.loads(second.stdout)["height"] == 13


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--once"], 2, "--primary"),
        (["--primary", "nonsense", "--once"], 2, "looks like http://host:26657"),
        (["--primary", "http://127.0.0.1:1", "--once"], 7, "does not answer"),
        (["--primary", "http://127.0.0.1:1", "--trust-period", "1y"], 2, "takes a number with s, m, h or d"),
        (["--primary", "http://127.0.0.1:1", "--trust-level", "1/4"], 2, "it takes 1/3 to 1"),
        (["--primary", "http://127.0.0.1:1", "--trust-level", "x"], 2, "takes a fraction"),
        (["--primary", "http://127.0.0.1:1", "--trusted-hash", "00" * 32], 2, "needs --trusted-height"),
        (["--primary", "http://127.0.0.1:1", "--trusted-height", "5", "--trusted-hash", "xyz"], 2, "64 hex digits"),
        (["account", "--primary", "http://127.0.0.1:1"], 2, "name what is to be checked"),
        (["model", "digits", "--primary", "http://127.0.0.1:1"], 2, "one looks like digits@1"),
    ],
)
def test_wrong_input_is_one_line_and_a_status(tmp_path: Path, arguments: list[str], status: int, says: str) -> None:
    ran = talkoo(*arguments, home=tmp_path)
    assert ran.returncode == status, ran.stderr
    assert says in " ".join(ran.stderr.split())


def test_a_kill_while_storing_leaves_what_was_verified_before(tmp_path: Path, serve: Any) -> None:
    chain = fresh_chain(30)
    server, folder = serve(chain), tmp_path / ".talkoo" / "light"
    where = ["--primary", server.url, "--sequential"]
    trust = ["--trusted-height", "2", "--trusted-hash", chain.at(2).hash.hex()]
    assert talkoo(*where, *trust, "--once", home=tmp_path).returncode == 0
    for _ in range(3):
        chain.grow(20)
        process = subprocess.Popen(
            [sys.executable, "-m", "talkoo", "light", *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(tmp_path)},
        )
        before = max(path.name for path in folder.glob("*.light"))
        while max(path.name for path in folder.glob("*.light")) <= before:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    ended = talkoo(*where, "--once", home=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"verified {len(chain.blocks)}" in ended.stdout
