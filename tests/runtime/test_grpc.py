"""Real sockets, real certificates: who may come in, and how errors travel."""

from __future__ import annotations

import asyncio
import datetime
import gc
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from talkoo_api.ledger.v1 import service_pb2 as messages
from talkoo_api.ledger.v1 import service_pb2_grpc as services

from talkoo_core.errors import (
    FAMILIES,
    Conflict,
    Exhausted,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TalkooError,
    Unavailable,
)
from talkoo_runtime.grpc_client import (
    RECONNECT_MAX_MS,
    drop_closed_channels,
    error_from_rpc,
    first_status,
    service_channel,
)
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.identity import Identity, identity_of, parse_identity, require
from talkoo_runtime.metrics import serve_metrics
from talkoo_runtime.pki import Authority, ensure_authority, trust_bundle
from talkoo_runtime.telemetry import span, traceparent
from talkoo_sim.line import Line
from talkoo_sim.scraping import scrape

REFUSED_CALLS = 30


class Answers(services.LedgerServicer):
    """Stands in for a real service: the boundary around it is what is tested here."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.seen: Identity | None = None
        self.trace = ""

    async def GetStatus(self, request: Any, context: Any) -> messages.Status:  # noqa: N802
        self.seen, self.trace = identity_of(context), traceparent()
        if self.error is not None:
            raise self.error
        return messages.Status(height=7)

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[messages.BlockEvents]:  # noqa: N802
        self.seen, self.trace = identity_of(context), traceparent()
        yield messages.BlockEvents(height=1)
        raise Exhausted("read faster", code="slow_reader")


@pytest.fixture
async def served(town: Any) -> AsyncIterator[tuple[Answers, Any]]:
    answers, settings = Answers(), town.settings(town.north, "ledger", "north-ledger")
    server = make_server()
    services.add_LedgerServicer_to_server(answers, server)
    await start_server(server, settings)
    yield answers, settings
    await server.stop(0)


async def test_calls_are_counted_by_method_and_by_how_they_end(served: tuple[Answers, Any]) -> None:
    answers, settings = served
    server = serve_metrics("127.0.0.1:0")
    assert server is not None

    async def counted() -> dict[str, float]:
        scraped = await scrape(server.port)
        name, method = "talkoo_grpc_calls_total", "Ledger/GetStatus"
        statuses = ("ok", "conflict", "internal")
        found = {status: scraped.value(name, method=method, status=status) for status in statuses}
        return found | {
            "follow": scraped.value(name, method="Ledger/Follow", status="exhausted"),
            "timed": scraped.value("talkoo_grpc_call_seconds_count", method=method),
        }

    before = await counted()
    await ask(settings, settings.listen)
    for error in (Conflict("twice", code="twice"), RuntimeError("a bug")):
        answers.error = error
        with pytest.raises(TalkooError):
            await ask(settings, settings.listen)
    answers.error = None
    async with service_channel(settings, settings.listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in services.LedgerStub(channel).Follow(messages.FollowRequest(), timeout=5):
                pass
    after = await counted()
    server.close()
    rise = {name: after[name] - before[name] for name in after}
    assert rise == {"ok": 1, "conflict": 1, "internal": 1, "follow": 1, "timed": 3}


async def ask(settings: Any, target: str) -> messages.Status:
    async with service_channel(settings, target) as channel:
        try:
            return await services.LedgerStub(channel).GetStatus(messages.GetStatusRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


def issue_authority(organization: str, *, by: Authority, path_length: int | None) -> Authority:
    """What an honest authority never does: one below it, in another member's name."""
    issuer = x509.load_pem_x509_certificate(by.certificate_pem)
    issuer_key = serialization.load_pem_private_key(by.key_pem, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Authority(organization, certificate.public_bytes(serialization.Encoding.PEM), private)


async def test_a_member_comes_in_and_is_known_by_its_certificate(served: Any, town: Any) -> None:
    answers, settings = served
    caller = town.settings(town.south, "scheduler", "south-scheduler")
    assert (await ask(caller, settings.listen)).height == 7
    assert answers.seen == Identity("town", "south", "scheduler", "south-scheduler")


async def test_a_stranger_s_certificate_is_refused(served: Any, town: Any) -> None:
    answers, settings = served
    with pytest.raises(Unavailable):
        await ask(town.settings(town.stranger, "ledger", "stranger-ledger"), settings.listen)
    assert answers.seen is None


async def test_who_is_refused_and_dials_again_and_again_leaves_nothing_that_dials(served: Any, town: Any) -> None:
    _, settings = served
    stranger = town.settings(town.stranger, "ledger", "stranger-ledger")

    async def dial() -> None:
        async with service_channel(stranger, target) as channel:
            call = channel.stream_stream("/talkoo_api.ledger.v1.Consensus/Exchange")(say_and_wait())
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(anext(aiter(call)), 5)

    async def say_and_wait() -> AsyncIterator[bytes]:
        yield b""
        await over.wait()

    over, line = asyncio.Event(), Line(settings.listen)
    gc.disable()  # as in a process that looks for cycles seldom
    try:
        async with line.open() as target:
            for _ in range(20):
                await dial()
                drop_closed_channels()
            before = line.dialled
            await asyncio.sleep(1.5 * RECONNECT_MAX_MS / 1000)  # nothing is to happen
            assert before >= 20
            assert line.dialled == before
    finally:
        over.set()
        gc.enable()


async def test_a_far_or_busy_server_has_the_time_to_shake_hands(served: Any) -> None:
    """Half a second there and half back is worse than the other side of the Earth, and a busy machine's usual."""
    _, settings = served
    line = Line(settings.listen, late_s=0.5)
    async with line.open() as target:
        assert (await ask(settings, target)).height == 7
        assert line.dialled == 1


async def test_a_peer_without_a_certificate_is_refused(served: Any) -> None:
    answers, settings = served
    root = grpc.ssl_channel_credentials(Path(settings.trust_bundle).read_bytes())
    for channel in (grpc.aio.insecure_channel(settings.listen), grpc.aio.secure_channel(settings.listen, root)):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await services.LedgerStub(channel).GetStatus(messages.GetStatusRequest(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert answers.seen is None


async def test_an_authority_cannot_name_another_organization_s_services(served: Any, town: Any) -> None:
    _, settings = served
    impostor = town.settings(town.south, "ledger", "impostor", claims="north")
    with pytest.raises(PermissionDenied, match="not issued by north"):
        await ask(impostor, settings.listen)


@pytest.mark.parametrize("path_length", [0, None])
async def test_a_member_s_authority_named_like_another_member_is_refused(
    served: Any, town: Any, path_length: int | None
) -> None:
    """South's authority issues an authority called north, and that one a ledger of north's. TLS takes the chain."""
    answers, settings = served
    chained = issue_authority("north", by=town.south, path_length=path_length)
    impostor = town.settings(chained, "ledger", "impostor")
    with pytest.raises(PermissionDenied, match="not issued by the authority of north itself"):
        await ask(impostor, settings.listen)
    async with service_channel(impostor, settings.listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await services.LedgerStub(channel).Follow(messages.FollowRequest()).read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert answers.seen is None


async def test_two_authorities_of_one_name_are_not_trusted(town: Any, caplog: pytest.LogCaptureFixture) -> None:
    false_north = ensure_authority(town.folder / "false" / "ca", "north")
    settings = town.settings(town.north, "ledger", "north-ledger")
    good = town.bundle.read_bytes()
    town.bundle.write_bytes(good + false_north.certificate_pem)
    with pytest.raises(InvalidInput, match="two authorities of one name"):
        await start_server(make_server(), settings)
    town.bundle.write_bytes(good)
    server = make_server()
    services.add_LedgerServicer_to_server(Answers(), server)
    await start_server(server, settings)
    caller = town.settings(town.south, "ledger", "south-ledger")
    town.bundle.write_bytes(good + false_north.certificate_pem)
    assert (await ask(caller, settings.listen)).height == 7, "a bad rotation stopped a running server"
    assert "the old ones stay in use" in caplog.text
    await server.stop(0)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("certificate", b"garbage", "are not a certificate and its key"),
        ("private_key", b"garbage", "are not a certificate and its key"),
        ("trust_bundle", b"garbage", "holds no authorities"),
    ],
)
async def test_a_wrong_certificate_file_is_named(town: Any, file: str, content: bytes, said: str) -> None:
    settings = town.settings(town.north, "ledger", "north-ledger")
    path = Path(getattr(settings, file))
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        await start_server(make_server(), settings)
    assert str(path) in caught.value.message
    path.unlink()
    with pytest.raises(NotFound, match="talkoo up"):
        await start_server(make_server(), settings)


async def test_a_key_of_another_certificate_is_told(town: Any) -> None:
    settings = town.settings(town.north, "ledger", "north-ledger")
    other = town.settings(town.north, "ledger", "other")
    Path(settings.private_key).write_bytes(Path(other.private_key).read_bytes())
    with pytest.raises(InvalidInput, match="key values mismatch"):
        await start_server(make_server(), settings)


@pytest.mark.parametrize("message", ["x" * 20_000, "ä" * 20_000, "€" * 20_000])
async def test_a_long_message_is_cut_but_keeps_its_family(served: Any, town: Any, message: str) -> None:
    answers, settings = served
    answers.error = InvalidInput(message, code="narrow_code")
    with pytest.raises(InvalidInput) as caught:
        await ask(town.settings(town.south, "gateway", "south-gateway"), settings.listen)
    assert caught.value.code == "narrow_code"
    assert caught.value.message.endswith("…")
    assert message.startswith(caught.value.message[:-1])


@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_each_error_family_arrives_as_itself(served: Any, town: Any, family: str) -> None:
    answers, settings = served
    answers.error = FAMILIES[family]("what was wrong: ä", code="narrow_code")
    caller = town.settings(town.south, "gateway", "south-gateway")
    with pytest.raises(TalkooError) as caught:
        await ask(caller, settings.listen)
    assert type(caught.value) is FAMILIES[family]
    assert (caught.value.message, caught.value.code) == ("what was wrong: ä", "narrow_code")


async def test_a_fault_of_ours_leaks_nothing(served: Any, town: Any) -> None:
    answers, settings = served
    answers.error = ValueError("the secret")
    with pytest.raises(Internal) as caught:
        await ask(town.settings(town.south, "gateway", "south-gateway"), settings.listen)
    assert "secret" not in caught.value.message


async def test_errors_end_streams_too(served: Any, town: Any) -> None:
    _, settings = served
    async with service_channel(town.settings(town.south, "gateway", "g"), settings.listen) as channel:
        heights = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for block in services.LedgerStub(channel).Follow(messages.FollowRequest()):
                heights.append(block.height)
        assert heights == [1]
        error = error_from_rpc(caught.value)
        assert isinstance(error, Exhausted)
        assert error.code == "slow_reader"


async def test_a_certificate_is_rotated_without_a_restart(served: Any, town: Any) -> None:
    _, settings = served
    newcomer = ensure_authority(town.folder / "newcomer" / "ca", "newcomer")
    caller = town.settings(newcomer, "ledger", "newcomer-ledger")
    with pytest.raises(Unavailable):
        await ask(caller, settings.listen)
    town.bundle.write_bytes(trust_bundle([town.north, town.south, newcomer]))
    assert (await ask(caller, settings.listen)).height == 7


async def test_the_trace_goes_along(served: Any, town: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    answers, settings = served
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("outer"), span("inner"):
        here = traceparent()
        await ask(town.settings(town.south, "gateway", "south-gateway"), settings.listen)
        assert answers.trace.split("-")[1] == here.split("-")[1]
        answers.trace = ""
        async with service_channel(town.settings(town.south, "gateway", "g"), settings.listen) as channel:
            await services.LedgerStub(channel).Follow(messages.FollowRequest()).read()
        assert answers.trace.split("-")[1] == here.split("-")[1]


async def test_a_taken_port_is_said_plainly(served: Any, town: Any) -> None:
    _, settings = served
    with pytest.raises(Exhausted, match="another process has that port"):
        await start_server(make_server(), settings)


@pytest.mark.parametrize(
    "uri", ["", "spiffe://a/b/c", "spiffe://f/o/king/n", "https://f/o/ledger/n", "spiffe://f//ledger/n"]
)
def test_a_name_that_is_no_member_s_is_refused(uri: str) -> None:
    with pytest.raises(PermissionDenied):
        parse_identity(uri)


def test_roles_and_organizations_are_required() -> None:
    caller = Identity("town", "south", "agent", "south-1")
    require(caller, roles={"agent", "gateway"})
    require(caller, roles={"agent"}, organization="south")
    with pytest.raises(PermissionDenied, match="scheduler may"):
        require(caller, roles={"scheduler"})
    with pytest.raises(PermissionDenied, match="of north may"):
        require(caller, roles={"agent"}, organization="north")


def test_not_found_is_still_not_found_without_our_metadata() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
    assert isinstance(error_from_rpc(error), NotFound)


class Refuses(services.ConsensusServicer):
    """STAND-IN for a service that has heard enough after one message."""

    async def Exchange(self, request_iterator: Any, context: Any) -> AsyncIterator[messages.PeerMessage]:  # noqa: N802
        await anext(aiter(request_iterator))
        raise Exhausted("that is enough", code="slow_reader")
        yield  # makes it a stream of answers


@pytest.mark.parametrize("kept", [True, False])
async def test_a_refusal_that_overtakes_what_is_sent_is_no_fault_of_ours(town: Any, kept: bool) -> None:
    """Where nobody kept what the server said, another try is to tell (grpc/grpc#36066)."""
    settings = town.settings(town.north, "ledger", "north-ledger")
    server = make_server()
    services.add_ConsensusServicer_to_server(Refuses(), server)
    await start_server(server, settings)

    async def talk() -> AsyncIterator[messages.PeerMessage]:
        while True:
            yield messages.PeerMessage(txs=messages.TxBatch(txs=[b"x" * 65_536]))

    told: list[TalkooError] = []
    async with service_channel(town.settings(town.south, "ledger", "south-ledger"), settings.listen) as channel:
        for _ in range(REFUSED_CALLS):
            call = services.ConsensusStub(channel).Exchange(talk())
            with pytest.raises(grpc.aio.AioRpcError) as caught, first_status(call) if kept else nullcontext():
                await anext(aiter(call))
            told.append(error_from_rpc(caught.value))
    await server.stop(0)
    assert {error.code for error in told} <= ({"slow_reader"} if kept else {"slow_reader", "unreachable"})
