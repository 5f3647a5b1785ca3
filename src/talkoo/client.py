"""The SDK without `await`: `talkoo.Client` and the tasks it gives.

One background thread runs the asyncio core; calls from any thread are answered in turn. What the methods return are the
messages of `proto/talkoo_api`, whose files say what each field means.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from talkoo_api.ledger.v1 import state_pb2

from talkoo.client_async import ENDED, AsyncClient
from talkoo.profile import Profile
from talkoo.submission import least_escrow_utlk
from talkoo.watching import Sight, watch
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import Failed, Unavailable

if TYPE_CHECKING:
    from talkoo_api.agent.v1 import agent_pb2
    from talkoo_api.gateway.v1 import gateway_pb2
    from talkoo_api.ledger.v1 import service_pb2
    from talkoo_api.scheduler.v1 import scheduler_pb2
    from talkoo_api.validator.v1 import validator_pb2

    from talkoo.answers import Answer
    from talkoo.submission import Prepared
    from talkoo.taskfile import TaskFile
    from talkoo.verification.report import Report

T = TypeVar("T")
UNREACHABLE = "unreachable"
"""Code of a call that met nobody, from `talkoo_runtime.grpc_errors`."""
CLOSE_TIMEOUT_S = 5.0


class Client:
    """A user's connection to the gateway of an organization.

        client = talkoo.Client()
        task = client.submit("task.yaml")
        task.wait()

    Without arguments the home is found as the command line finds it: `TALKOO_HOME`, `./.talkoo`, `~/.talkoo`. `user`
    names another user of that home. `profile` says everything directly (see `talkoo.Profile.direct`).
    """

    def __init__(
        self, home: str | Path | None = None, *, user: str | None = None, profile: Profile | None = None
    ) -> None:
        self.core = AsyncClient(home, user=user, profile=profile)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="talkoo-client", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._thread, self.core)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread. Doing it twice is fine."""
        self._finalizer()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the core to its end; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except Unavailable as error:
            if error.code != UNREACHABLE:
                raise
            raise _away(self.profile.gateway, error) from error
        except BaseException:
            future.cancel()
            raise

    def iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """Read an asynchronous stream of the core; leaving the loop ends the stream."""
        try:
            while True:
                try:
                    yield self.run(_next(stream))
                except StopAsyncIteration:
                    return
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None and not self._loop.is_closed():
                self.run(close())

    @property
    def profile(self) -> Profile:
        return self.core.profile

    @property
    def address(self) -> str:
        """The caller's own account."""
        return self.core.address

    # -- the ledger --------------------------------------------------------------------------------------------------

    def status(self) -> service_pb2.Status:
        return self.run(self.core.status())

    def supply(self) -> state_pb2.Supply:
        return self.run(self.core.supply())

    def params(self) -> state_pb2.Params:
        return self.run(self.core.params())

    def genesis(self) -> str:
        """The genesis file, canonical JSON."""
        return self.run(self.core.genesis())

    def accounts(self) -> list[state_pb2.Account]:
        return self.run(self.core.accounts())

    def account(self, name: str = "") -> state_pb2.Account:
        """By address, beginning of it, or label; without a name the caller's own."""
        return self.run(self.core.account(name))

    def organizations(self) -> list[state_pb2.Organization]:
        return self.run(self.core.organizations())

    def nodes(self) -> list[state_pb2.Node]:
        return self.run(self.core.nodes())

    def node(self, name: str) -> state_pb2.Node:
        return self.run(self.core.node(name))

    def payments(self, name: str = "") -> list[state_pb2.Payment]:
        """All, or those of a task or of an account."""
        return self.run(self.core.payments(name))

    def models(self) -> list[state_pb2.ModelVersion]:
        return self.run(self.core.models())

    def model(self, name: str) -> state_pb2.ModelVersion:
        """By version (`digits@1`), or the newest of a model (`digits`)."""
        return self.run(self.core.model(name))

    def blocks(self, from_height: int = 1, to_height: int = 0) -> Iterator[service_pb2.RawBlock]:
        """Raw decided blocks with their commits; `to_height` 0: up to the newest."""
        return self.iterate(self.core.blocks(from_height, to_height))

    def block_events(self, from_height: int = 0, to_height: int = 0) -> Iterator[service_pb2.BlockEvents]:
        """What happened in each block; ends after `to_height`, or never when it is 0."""
        return self.iterate(self.core.block_events(from_height, to_height))

    def transfer(self, to: str, amount: int | str, memo: str = "") -> service_pb2.TxResult:
        """Pay an address or a label; an integer is utlk, a text like `1.5 TLK` is read."""
        return self.run(self.core.transfer(to, parse_tlk(amount) if isinstance(amount, str) else amount, memo))

    def blob(self, sha256: str) -> bytes:
        """Download a blob and check it against its hash."""
        return self.run(self.core.blob(sha256))

    def put_blob(self, content: bytes | Path) -> str:
        return self.run(self.core.put_blob(content))

    # -- tasks -------------------------------------------------------------------------------------------------------

    def prepare(self, task: str | Path | Mapping[str, Any] | TaskFile, flops_per_sample: int | None = None) -> Prepared:
        """Check a task file (or the same as a dict) and everything that it names; sends nothing."""
        return self.run(self.core.prepare(task, flops_per_sample))

    def submit(self, task: str | Path | Mapping[str, Any] | TaskFile, flops_per_sample: int | None = None) -> Task:
        """A task file, its path, or the same as a dict, to a funded task on the ledger."""
        return Task(self, self.run(self.core.submit(task, flops_per_sample)))

    def send_task(self, prepared: Prepared) -> Task:
        """Upload and fund what `prepare` gave."""
        return self.task(self.run(self.core.create_task(prepared)))

    def least_escrow(self, prepared: Prepared) -> int:
        """The least budget (utlk) that the ledger takes for a prepared task."""
        return least_escrow_utlk(prepared.spec, self.params())

    def tasks(self) -> list[Task]:
        """Oldest first."""
        return [Task(self, record) for record in self.run(self.core.tasks())]

    def task(self, name: str) -> Task:
        """By id, beginning of it, or name (the newest of that name)."""
        return Task(self, self.run(self.core.task(name)))

    def offers(self) -> scheduler_pb2.ListOffersResponse:
        return self.run(self.core.offers())

    def audits(self, task_id: str = "") -> list[validator_pb2.Audit]:
        return self.run(self.core.audits(task_id))

    # -- models ------------------------------------------------------------------------------------------------------

    def quote(self, model: str) -> gateway_pb2.Quote:
        """Which node would answer for a model, and what it costs."""
        return self.run(self.core.quote(model))

    def request(self, model: str, inputs: list[Any], *, most: int | str | None = None) -> Answer:
        """Pay for one request to a model and get its checked answer; `most` is the highest price you accept."""
        most_utlk = parse_tlk(most) if isinstance(most, str) else most
        return self.run(self.core.request(model, inputs, most_utlk=most_utlk))


class Task:
    """One task on the ledger. Its fields are as of the last `refresh`, `wait` or creation."""

    def __init__(self, client: Client, record: state_pb2.Task) -> None:
        self._client = client
        self.record = record
        """The whole entry of the ledger (`state.proto`, Task)."""

    def __repr__(self) -> str:
        return f"<talkoo.Task {self.id} {self.name!r} {self.phase}>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.spec.name

    @property
    def phase(self) -> str:
        """pending, running, verifying, completed, failed or cancelled."""
        from talkoo_runtime.plain import enum_word

        return enum_word(state_pb2.TaskPhase.DESCRIPTOR, self.record.phase)

    @property
    def model_version(self) -> str:
        """`<model>@<number>` once it is completed, else empty."""
        return self.record.model_version

    @property
    def ended(self) -> bool:
        return self.record.phase in ENDED

    def refresh(self) -> Task:
        self.record = self._client.run(self._client.core.ledger.task(self.id))
        return self

    def wait(self) -> Task:
        """Until it has ended. Raises Failed (exit status 10) when it failed or was cancelled."""
        self.record = self._client.run(self._client.core.wait(self.id))
        self.check()
        return self

    def check(self) -> None:
        """Raises Failed with the reason when the task failed or was cancelled."""
        if self.record.phase == state_pb2.TASK_PHASE_FAILED:
            raise Failed(f"task {self.name} failed: {self.record.failure}", code=self.record.failure_kind or None)
        if self.record.phase == state_pb2.TASK_PHASE_CANCELLED:
            raise Failed(f"task {self.name} was cancelled", code="cancelled")

    def watch(self) -> Iterator[Sight]:
        """Everything that happens to the task, as it happens, until it has ended."""
        return self._client.iterate(watch(self._client.core, self.id))

    def progress(self) -> Iterator[agent_pb2.ProgressUpdate]:
        """Steps and losses as its nodes report them."""
        return self._client.iterate(self._client.core.progress(self.id))

    def logs(self, *, follow: bool = False, tail: int = 0) -> Iterator[agent_pb2.LogLine]:
        """Lines of all its nodes, merged; `tail` 0: all that are kept."""
        return self._client.iterate(self._client.core.logs(self.id, follow=follow, tail=tail))

    def explain(self) -> scheduler_pb2.Explanation:
        """Why it waits, runs where it runs, or failed."""
        return self._client.run(self._client.core.explain(self.id))

    def segments(self) -> list[state_pb2.Segment]:
        return self._client.run(self._client.core.segments(self.id))

    def payments(self) -> list[state_pb2.Payment]:
        return self._client.payments(self.id)

    def cancel(self) -> Task:
        """Stop it; what is left in escrow returns to its owner."""
        self._client.run(self._client.core.cancel(self.id))
        return self.refresh()

    def verify(self, *, recompute: bool = False) -> Report:
        """Check every proof of the task from the ledger's blocks (see `talkoo.verification`)."""
        from talkoo.verification import verify_task_via

        return verify_task_via(self._client, self.id, recompute)


def _away(gateway: str, error: Unavailable) -> Unavailable:
    """gRPC names the address that it could not reach: the gateway's own, or one behind it."""
    if gateway in error.message:
        said = f"the gateway at {gateway} cannot be reached; start the federation with `talkoo up`"
    else:
        said = f"the gateway at {gateway} gets no answer from a service behind it"
    return Unavailable(f"{said}, or see `talkoo doctor` ({error.message})", code=UNREACHABLE)


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, core: AsyncClient) -> None:
    """Close the core on its own thread, then end the thread."""
    if loop.is_closed():
        return
    if thread.is_alive():
        asyncio.run_coroutine_threadsafe(_close(core), loop).result(CLOSE_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_TIMEOUT_S)
    loop.close()


async def _close(core: AsyncClient) -> None:
    """Cancel what still runs, such as a stream nobody reads, then close the connection."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await core.close()
    await asyncio.get_running_loop().shutdown_asyncgens()
