"""A gRPC server with mutual TLS: callers must show a member's certificate; our errors go out as status and metadata."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from talkoo_core.errors import Exhausted, Internal, InvalidInput, TalkooError
from talkoo_runtime.admission import Admission, check_certificate_files
from talkoo_runtime.grpc_client import OPTIONS
from talkoo_runtime.grpc_errors import abort_with
from talkoo_runtime.grpc_metrics import count_call
from talkoo_runtime.identity import Identity, certificate_of, identity_of
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.telemetry import TRACEPARENT, continue_from, follow

__all__ = ["Identity", "identity_of", "make_server", "start_server"]

log = logging.getLogger(__name__)
MAX_CONCURRENT_CALLS = 1000
STOP_GRACE_S = 3.0
OK, CANCELLED = "ok", "cancelled"
"""How a call ended, beside the families of errors."""
_admissions: WeakKeyDictionary[grpc.aio.Server, Admission] = WeakKeyDictionary()
SERVER_OPTIONS = (
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


def make_server() -> grpc.aio.Server:
    """A server without ports; add servicers, then `start_server`."""
    admission = Admission()
    server = grpc.aio.server(
        interceptors=[_Boundary(admission)], options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS
    )
    _admissions[server] = admission
    return server


async def start_server(server: grpc.aio.Server, settings: ServiceSettings) -> None:
    """Bind the settings' address with mutual TLS and serve. Raises Exhausted when the port is taken, NotFound or
    InvalidInput for certificate files that are missing or wrong.

    The certificate files are read again for every handshake after they changed, so a rotation needs no restart.
    """
    files = _CertificateFiles(settings, _admissions[server])
    credentials = grpc.dynamic_ssl_server_credentials(
        files.current(), files.if_changed, require_client_authentication=True
    )
    try:
        port = server.add_secure_port(settings.listen, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise Exhausted(
            f"cannot listen on {settings.listen}: another process has that port, or it is no host:port of this "
            "machine; stop it or change `listen`",
            code="port_taken",
        )
    await server.start()


class _CertificateFiles:
    """Hands gRPC the certificates, anew when a file has changed."""

    def __init__(self, settings: ServiceSettings, admission: Admission) -> None:
        self._paths = [Path(settings.certificate), Path(settings.private_key), Path(settings.trust_bundle)]
        self._admission = admission
        check_certificate_files(*self._paths)
        self._seen = self._times()

    def current(self) -> Any:
        check_certificate_files(*self._paths)
        certificate, key, bundle = (path.read_bytes() for path in self._paths)
        self._admission.trust(bundle)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=bundle)

    def if_changed(self) -> Any:
        """Called by gRPC at each handshake; None keeps what it has."""
        try:
            times = self._times()
            if times == self._seen:
                return None
            configuration = self.current()
        except (OSError, TalkooError) as error:
            log.warning("changed certificates cannot be used (%s); the old ones stay in use", error)
            return None
        self._seen = times
        return configuration

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._paths]


class _Boundary(grpc.aio.ServerInterceptor):
    """Every call: its trace is continued, our errors are answered as such, and other exceptions leak nothing.

    Only those whom `admission` lets in reach a servicer.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        parent = next((str(value) for key, value in details.invocation_metadata if key == TRACEPARENT), "")
        method = details.method
        if handler.response_streaming:
            wrapped: Any = _stream(handler.unary_stream or handler.stream_stream, method, parent, self._admission)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            wrapped = _unary(handler.unary_unary or handler.stream_unary, method, parent, self._admission)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        read = _readable(handler.request_deserializer, method, in_stream=handler.request_streaming)
        return make(wrapped, read, handler.response_serializer)


def _readable(deserialize: Callable[[bytes], Any], method: str, *, in_stream: bool) -> Callable[[bytes], Any]:
    """Bytes that are no message of the call are the caller's mistake.

    In a stream they are raised to whoever reads it; a single request is given to the call, which raises it.
    """

    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            name = method.rpartition("/")[2]
            error = InvalidInput(f"{len(raw)} bytes that are no message of {name}", code="malformed")
            if in_stream:
                raise error from None
            return error

    return read


def _unary(behaviour: Any, method: str, parent: str, admission: Admission) -> Any:
    async def call(request: Any, context: Any) -> Any:
        began, status = time.monotonic(), OK
        try:
            admission.check(certificate_of(context))
            _check_read(request)
            with continue_from(parent):
                return await behaviour(request, context)
        except TalkooError as error:
            status = error.family
            await abort_with(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            status = CANCELLED
            raise
        except Exception:
            status = Internal.family
            await abort_with(context, _unexpected(method))
        finally:
            count_call(method, status, began)

    return call


def _stream(behaviour: Any, method: str, parent: str, admission: Admission) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        status = OK
        try:
            admission.check(certificate_of(context))
            _check_read(request)
            follow(parent)  # not taken back: the call's task ends with the stream, maybe in another context
            async for answer in behaviour(request, context):
                yield answer
        except TalkooError as error:
            status = error.family
            await abort_with(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            status = CANCELLED
            raise
        except Exception:
            status = Internal.family
            await abort_with(context, _unexpected(method))
        finally:
            count_call(method, status)

    return call


def _check_read(request: Any) -> None:
    if isinstance(request, InvalidInput):
        raise request


def _unexpected(method: str) -> Internal:
    log.exception("a call to %s failed in our own code", method)
    return Internal(f"{method} failed inside the service; its log has the details")
