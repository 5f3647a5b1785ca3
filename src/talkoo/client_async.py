"""The SDK's core: everything a user can do, over one gateway, in asyncio.

`talkoo.client.Client` is the same without `await`. Both raise `talkoo_core.errors.TalkooError` and nothing else for
what the other side answers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_api.validator.v1 import validator_pb2

from talkoo.answers import Answer, check_answer
from talkoo.names import resolve
from talkoo.profile import Profile, load_profile
from talkoo.submission import Prepared, check_means, count_here, has_torch, prepare
from talkoo.task_trace import task_trace
from talkoo.taskfile import TaskFile, canonical_json, read_task_file, read_task_mapping
from talkoo_core.amounts import format_tlk
from talkoo_core.errors import Corrupt, Failed, InsufficientFunds, InvalidInput, NotFound, Unavailable
from talkoo_core.ids import is_address
from talkoo_core.signing import PrivateKey
from talkoo_runtime.blobs import CHUNK_BYTES, MAX_GATEWAY_BLOB_BYTES
from talkoo_runtime.grpc_client import answer_of, open_channel, raise_from_rpc
from talkoo_runtime.keys import address_of, load_key
from talkoo_runtime.ledger_client import LedgerClient

READ_TIMEOUT_S = 15.0
BLOB_TIMEOUT_S = 300.0
COUNT_TIMEOUT_S = 200.0
INFER_TIMEOUT_S = 140.0
"""The gateway gives up a little earlier."""
INFER_PATIENCE_S = 30.0
"""How long a paid request is offered to a node that does not see the payment yet, or starts the model."""
RETRY_S = 0.2
UPLOADED_FOR_S, MAX_UPLOADED = 60.0, 1024
"""A blob that was uploaded is taken to be there for so long, of so many."""
MAX_INPUT_BYTES = 1 << 20
ENDED = (state_pb2.TASK_PHASE_COMPLETED, state_pb2.TASK_PHASE_FAILED, state_pb2.TASK_PHASE_CANCELLED)

T = TypeVar("T")


class AsyncClient:
    """A user's connection to the gateway of an organization.

    Give a `home` (and a `user` in it), a `Profile`, or nothing: then the home is found as the command line finds it.
    `key`: the account's, where it is not read from the profile's key file.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        user: str | None = None,
        profile: Profile | None = None,
        key: PrivateKey | None = None,
    ) -> None:
        self.profile = profile if profile is not None else load_profile(home, user)
        self._key = key
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._ledger: LedgerClient | None = None
        self._uploaded: dict[str, float] = {}
        """When, by hash."""

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. A closed client opens it again at the next call."""
        channel, self._channel, self._stub, self._ledger = self._channel, None, None, None
        if channel is not None:
            await channel.close()

    @property
    def stub(self) -> Any:
        """The gateway's gRPC stub, for calls that this class does not wrap."""
        if self._stub is None:
            self._channel = open_channel(
                self.profile.gateway, self.profile.certificate, self.profile.private_key, self.profile.trust_bundle
            )
            self._stub = gateway_pb2_grpc.GatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        return self._stub

    @property
    def key(self) -> PrivateKey:
        if self._key is None:
            self._key = load_key(self.profile.account_key)
        return self._key

    @property
    def ledger(self) -> LedgerClient:
        """Reads and signs over the gateway."""
        if self._ledger is None:
            self._ledger = LedgerClient(self.stub, self.key)
        return self._ledger

    @property
    def address(self) -> str:
        """The caller's own account."""
        return address_of(self.key)

    # -- the ledger --------------------------------------------------------------------------------------------------

    async def status(self) -> service_pb2.Status:
        return await self.ledger.status()

    async def supply(self) -> state_pb2.Supply:
        return await translated(self.stub.GetSupply(service_pb2.GetSupplyRequest(), timeout=READ_TIMEOUT_S))

    async def params(self) -> state_pb2.Params:
        return await self.ledger.params()

    async def genesis(self) -> str:
        """The genesis file, canonical JSON."""
        answer = await translated(self.stub.GetGenesis(service_pb2.GetGenesisRequest(), timeout=READ_TIMEOUT_S))
        return str(answer.json)

    async def accounts(self) -> list[state_pb2.Account]:
        return await self.ledger.list("accounts", state_pb2.Account)

    async def account(self, name: str = "") -> state_pb2.Account:
        """By address, beginning of it, or label; without a name the caller's own."""
        if not name or is_address(name):
            return await self.ledger.account(name or self.address)
        accounts = await self.accounts()
        return resolve("account", name, accounts, id_of=lambda a: a.address, name_of=lambda a: a.label)

    async def organizations(self) -> list[state_pb2.Organization]:
        return await self.ledger.list("organizations", state_pb2.Organization)

    async def nodes(self) -> list[state_pb2.Node]:
        return await self.ledger.list("nodes", state_pb2.Node)

    async def node(self, name: str) -> state_pb2.Node:
        return resolve("node", name, await self.nodes(), id_of=lambda n: n.id, name_of=lambda n: n.name)

    async def tasks(self) -> list[state_pb2.Task]:
        """Oldest first."""
        tasks = await self.ledger.list("tasks", state_pb2.Task)
        return sorted(tasks, key=lambda task: (task.created_height, task.id))

    async def task(self, name: str) -> state_pb2.Task:
        """By id, beginning of it, or name (the newest of that name)."""
        try:
            return await self.ledger.task(name)
        except NotFound:
            return resolve(
                "task",
                name,
                await self.tasks(),
                id_of=lambda task: task.id,
                name_of=lambda task: task.spec.name,
                newest=lambda task: task.created_height,
            )

    async def segments(self, task_id: str) -> list[state_pb2.Segment]:
        """Of every attempt, in order."""
        return await self.ledger.list("segments", state_pb2.Segment, prefix=f"{task_id}/")

    async def payments(self, name: str = "") -> list[state_pb2.Payment]:
        """All, or those of a task or of an account (id, label, node name)."""
        payments = await self.ledger.list("payments", state_pb2.Payment)
        if not name:
            return payments
        wanted = await self._party(name)
        return [p for p in payments if wanted in (p.task_id, p.destination, p.source, p.source.partition(":")[2])]

    async def _party(self, name: str) -> str:
        for find in (self.task, self.node):
            try:
                return str((await find(name)).id)
            except NotFound:
                continue
        return str((await self.account(name)).address)

    async def models(self) -> list[state_pb2.ModelVersion]:
        return await self.ledger.list("models", state_pb2.ModelVersion)

    async def model(self, name: str) -> state_pb2.ModelVersion:
        """By version (`digits@1`), or the newest of a model (`digits`)."""
        return resolve(
            "model",
            name,
            await self.models(),
            id_of=lambda m: m.version,
            name_of=lambda m: m.model,
            newest=lambda m: m.number,
        )

    async def blocks(self, from_height: int = 1, to_height: int = 0) -> AsyncIterator[service_pb2.RawBlock]:
        """Raw decided blocks with their commits; `to_height` 0: up to the newest."""
        request = service_pb2.BlocksRequest(from_height=from_height, to_height=to_height)
        async for block in streamed(self.stub.Blocks(request)):
            yield block

    async def block_events(self, from_height: int = 0, to_height: int = 0) -> AsyncIterator[service_pb2.BlockEvents]:
        """What happened in each block; ends after `to_height`, or never when it is 0."""
        async for block in self.ledger.follow(from_height):
            yield block
            if to_height and block.height >= to_height:
                return

    async def send(
        self, message: Any, memo: str = "", record: Callable[[bytes], Awaitable[None]] | None = None
    ) -> service_pb2.TxResult:
        """Sign any transaction, send it and wait until it is final. Raises the ledger's typed error."""
        try:
            return await self.ledger.submit(message, memo=memo, record=record)
        except NotFound as error:
            if error.message and "account" not in error.message:
                raise
            raise InsufficientFunds(
                f"the account {self.address} holds nothing; have tokens transferred to it first", code="no_account"
            ) from None

    async def transfer(self, to: str, amount_utlk: int, memo: str = "") -> service_pb2.TxResult:
        """Pay an address, or an account by its exact label: a beginning is not enough where money goes."""
        if amount_utlk <= 0:
            raise InvalidInput("the amount must be more than nothing", code="bad_amount")
        address = to if is_address(to) else (await self._exact_account(to)).address
        return await self.send(tx_pb2.Transfer(to=address, amount_utlk=amount_utlk), memo)

    async def _exact_account(self, label: str) -> state_pb2.Account:
        found = await self.account(label)
        if label not in (found.label, found.address):
            raise NotFound(f"there is no account {label!r}; write its whole label or address (`talkoo accounts`)")
        return found

    # -- blobs -------------------------------------------------------------------------------------------------------

    async def put_blob(self, content: bytes | Path) -> str:
        """Upload bytes or a file; returns its SHA-256 (hex), checked against what the gateway stored."""
        digest = hashlib.sha256()

        async def chunks() -> AsyncIterator[gateway_pb2.BlobChunk]:
            async for data in _pieces(content):
                digest.update(data)
                yield gateway_pb2.BlobChunk(data=data)

        info = await translated(answer_of(self.stub.PutBlob(chunks(), timeout=BLOB_TIMEOUT_S)))
        if info.sha256 != digest.hexdigest():
            raise Corrupt("the gateway stored other bytes than were sent; send them again")
        return str(info.sha256)

    async def blob(self, sha256: str) -> bytes:
        """Download a blob and check it against its hash. Raises NotFound or Corrupt."""
        parts: list[bytes] = []
        size = 0
        call = self.stub.GetBlob(gateway_pb2.GetBlobRequest(sha256=sha256), timeout=BLOB_TIMEOUT_S)
        async for chunk in streamed(call):
            size += len(chunk.data)
            if size > MAX_GATEWAY_BLOB_BYTES:
                raise Corrupt(f"the blob {sha256[:16]}… is larger than {MAX_GATEWAY_BLOB_BYTES >> 20} MiB")
            parts.append(chunk.data)
        content = b"".join(parts)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Corrupt(f"the gateway sent other bytes than {sha256[:16]}… names; ask another organization's gateway")
        return content

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def prepare(
        self, task: str | Path | Mapping[str, Any] | TaskFile, flops_per_sample: int | None = None
    ) -> Prepared:
        """Check a task file (or the same as a dict) and everything that it names; no money moves.

        Operations of one sample are counted here where torch is, else by the organization's validator, which gets the
        program and the data for it.
        """
        folder = Path()
        if isinstance(task, str | Path):
            folder = Path(task).parent
            task = read_task_file(Path(task))
        elif not isinstance(task, TaskFile):
            task = read_task_mapping(task)
        return await self.prepare_in(task, folder, flops_per_sample)

    async def prepare_in(self, task: TaskFile, folder: Path, flops_per_sample: int | None = None) -> Prepared:
        """The same for a checked task whose paths are relative to `folder`."""
        known = flops_per_sample or task.flops_per_sample

        async def given(_task: TaskFile, _code: bytes, _data: Path) -> int:
            return known

        if known:
            return await prepare(task, folder, given)
        return await prepare(task, folder, count_here if has_torch() else self._count_there)

    async def _count_there(self, task: TaskFile, code: bytes, data: Path) -> int:
        request = validator_pb2.CountFlopsRequest(
            code_sha256=await self.put_blob(code),
            data_sha256=await self.put_blob(data),
            data_name=data.name,
            module=task.module,
            config_json=task.config_json,
        )
        answer = await translated(self.stub.CountFlops(request, timeout=COUNT_TIMEOUT_S))
        return int(answer.flops_per_sample)

    async def create_task(
        self,
        prepared: Prepared,
        record: Callable[[bytes], Awaitable[None]] | None = None,
        account: state_pb2.Account | None = None,
    ) -> str:
        """Upload, pay into escrow, and wait until the task stands on the ledger; returns its id.

        `record` gets the signed transaction before it is sent (`LedgerClient.submit`). `account`: the client's own, if
        it was just read.
        Raises InsufficientFunds before anything is uploaded when the account or the budget is too small.
        """
        params = await self.params()
        if account is None:
            try:
                account = await self.account()
            except NotFound:
                account = state_pb2.Account(address=self.address)
        check_means(prepared, account.balance_utlk, account.label or account.address, params)
        with task_trace(self.profile.home, prepared.spec.name) as memo:
            await self._upload(prepared.code, prepared.spec.code.sha256)
            await self._upload(prepared.data, prepared.spec.data.sha256)
            message = tx_pb2.CreateTask(spec=prepared.spec, escrow_utlk=prepared.budget_utlk)
            return str((await self.send(message, memo, record)).born_id)

    async def _upload(self, content: bytes | Path, wanted: str) -> None:
        """Unless this client has done so a moment ago: the same program often has many tasks."""
        now = asyncio.get_running_loop().time()
        if now - self._uploaded.get(wanted, float("-inf")) < UPLOADED_FOR_S:
            return
        if await self.put_blob(content) != wanted:
            raise Corrupt(f"{content if isinstance(content, Path) else 'the program'} changed while it was submitted")
        if len(self._uploaded) >= MAX_UPLOADED:
            self._uploaded.clear()
        self._uploaded[wanted] = now

    async def submit(
        self, task: str | Path | Mapping[str, Any] | TaskFile, flops_per_sample: int | None = None
    ) -> state_pb2.Task:
        """A task file, its path, or the same as a dict, to a funded task on the ledger."""
        task_id = await self.create_task(await self.prepare(task, flops_per_sample))
        return await self.ledger.task(task_id)

    async def cancel(self, task_id: str) -> service_pb2.TxResult:
        return await self.send(tx_pb2.CancelTask(task_id=task_id))

    async def wait(self, task_id: str) -> state_pb2.Task:
        """Until the task has ended, however it ended."""
        height = (await self.status()).height
        task = await self.ledger.task(task_id)
        if task.phase in ENDED:
            return task
        async for block in self.ledger.follow(height + 1):  # read before the task: no block lies between the two
            if any(event.subject == task_id for event in block.events):
                task = await self.ledger.task(task_id)
            if task.phase in ENDED:
                break
        return task

    async def logs(self, task_id: str, *, follow: bool = False, tail: int = 0) -> AsyncIterator[agent_pb2.LogLine]:
        request = agent_pb2.LogsRequest(task_id=task_id, follow=follow, tail_lines=tail)
        async for line in streamed(self.stub.Logs(request)):
            yield line

    async def progress(self, task_id: str) -> AsyncIterator[agent_pb2.ProgressUpdate]:
        async for update in streamed(self.stub.Progress(agent_pb2.ProgressRequest(task_id=task_id))):
            yield update

    async def explain(self, task_id: str) -> scheduler_pb2.Explanation:
        return await translated(
            self.stub.Explain(scheduler_pb2.ExplainRequest(task_id=task_id), timeout=READ_TIMEOUT_S)
        )

    async def offers(self) -> scheduler_pb2.ListOffersResponse:
        return await translated(self.stub.ListOffers(scheduler_pb2.ListOffersRequest(), timeout=READ_TIMEOUT_S))

    async def audits(self, task_id: str = "") -> list[validator_pb2.Audit]:
        request = validator_pb2.ListAuditsRequest(task_id=task_id)
        return list((await translated(self.stub.ListAudits(request, timeout=READ_TIMEOUT_S))).audits)

    # -- models ------------------------------------------------------------------------------------------------------

    async def quote(self, model: str) -> gateway_pb2.Quote:
        """Which node would answer for a model, and what it costs."""
        return await translated(
            self.stub.QuoteModel(gateway_pb2.QuoteModelRequest(version=model), timeout=READ_TIMEOUT_S)
        )

    async def request(self, model: str, inputs: list[Any], *, most_utlk: int | None = None) -> Answer:
        """Pay for one request to a model and get its checked answer: one output for each input.

        Raises InsufficientFunds when it costs more than `most_utlk`, and Corrupt when the node's signature or the
        answer's hash is wrong. An unanswered request is refunded by the ledger.
        """
        try:
            input_json = canonical_json(inputs).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the inputs must be JSON values ({error})") from None
        if len(input_json) > MAX_INPUT_BYTES:
            raise InvalidInput(f"the inputs are over {MAX_INPUT_BYTES >> 20} MiB; send fewer at a time")
        quote = await self.quote(model)
        if most_utlk is not None and quote.price_utlk > most_utlk:
            raise InsufficientFunds(
                f"a request to {quote.version} costs {format_tlk(quote.price_utlk)}, more than the "
                f"{format_tlk(most_utlk)} you allow",
                code="price_too_high",
            )
        message = tx_pb2.RequestModel(
            version=quote.version,
            node_id=quote.node_id,
            input_sha256=hashlib.sha256(input_json).digest(),
            price_utlk=quote.price_utlk,
        )
        request_id = (await self.send(message)).born_id
        response = await self._infer(request_id, quote.version, input_json)
        return check_answer(request_id, quote, response)

    async def _infer(self, request_id: str, version: str, input_json: bytes) -> agent_pb2.InferResponse:
        """The node sees the payment when its own ledger node has the block: until then it answers Unavailable."""
        request = agent_pb2.InferRequest(request_id=request_id, version=version, input_json=input_json)
        now = asyncio.get_running_loop().time
        deadline = now() + INFER_PATIENCE_S
        while True:
            try:
                return await translated(self.stub.Infer(request, timeout=INFER_TIMEOUT_S))
            except Failed as error:
                raise Failed(
                    f"{error.message}; the ledger returns the price after the request's deadline", code=error.code
                ) from None
            except (Unavailable, NotFound) as error:
                if now() >= deadline:
                    raise Unavailable(
                        f"the node did not answer the paid request {request_id} ({error.message}); "
                        "the ledger refunds it after its deadline",
                        code="no_answer",
                    ) from None
            await asyncio.sleep(RETRY_S)

    async def model_request(self, request_id: str) -> state_pb2.ModelRequest:
        return await self.ledger.get("requests", request_id, state_pb2.ModelRequest)


async def translated(call: Awaitable[T]) -> T:
    """Await a call; a gRPC status becomes our error family again."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)


async def streamed(call: Any) -> AsyncIterator[Any]:
    """The messages of a streaming call; cancelled when the reader stops."""
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)
    finally:
        call.cancel()


async def _pieces(content: bytes | Path) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]
        return
    with await asyncio.to_thread(content.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data
