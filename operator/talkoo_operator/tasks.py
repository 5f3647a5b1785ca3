"""TrainingTasks: one step after the other, as `plan` decides, until there is nothing to do."""

from __future__ import annotations

import base64
import logging
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import state_pb2

from talkoo.client_async import AsyncClient
from talkoo_core.errors import (
    Conflict,
    Corrupt,
    Exhausted,
    Failed,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TalkooError,
    Unavailable,
)
from talkoo_operator.accounts import Accounts
from talkoo_operator.api import GROUP, VERSION, KubernetesApi
from talkoo_operator.following import Following
from talkoo_operator.inputs import KIND, fetch_inputs, task_file
from talkoo_operator.plan import ENDED, FINALIZER, Do, Seen, next_step
from talkoo_operator.queue import Key
from talkoo_operator.status import SUSPENDED, of_task, refused, timestamp, waiting
from talkoo_operator.wire import ledger_task

log = logging.getLogger(__name__)
Object = dict[str, Any]
MAX_STEPS_AT_ONCE = 12
WAIT_FUNDS_S, WAIT_INPUTS_S, REVIEW_S = 30.0, 10.0, 15.0
REASONS: dict[type[TalkooError], str] = {
    InsufficientFunds: "InsufficientFunds",
    NotFound: "InputsMissing",
    Unavailable: "LedgerUnavailable",
    Exhausted: "TooLarge",
    PermissionDenied: "NotPermitted",
    Conflict: "Conflict",
}


class TaskController:
    """`work` is called with the key of an object whenever something may have changed."""

    def __init__(self, api: KubernetesApi, accounts: Accounts, following: Following, now: Callable[[], float]) -> None:
        self._api = api
        self._accounts = accounts
        self._following = following
        self._now = now

    async def work(self, key: Key) -> float | None:
        for _ in range(MAX_STEPS_AT_ONCE):
            try:
                task = await self._api.task(*key)
            except NotFound:
                self._following.forget(key)
                return None
            step = next_step(self._seen(task))
            if step.do is Do.REST:
                return step.again_s
            log.debug("%s/%s: %s (%s)", *key, step.do.value, step.reason)
            done = await self._do(step.do, task)
            if done is not None:
                return done
        return 0.0

    def _seen(self, task: Object) -> Seen:
        meta, status, spec = task["metadata"], task.get("status", {}), task.get("spec", {})
        deleted = meta.get("deletionTimestamp")
        ttl = spec.get("ttlSecondsAfterFinished")
        finished = status.get("finishedAt")
        return Seen(
            generation=meta["generation"],
            finalizer=FINALIZER in meta.get("finalizers", ()),
            deleted_for_s=None if deleted is None else max(0.0, self._now() - _seconds(deleted)),
            suspended=bool(spec.get("suspend")),
            expires_in_s=None if ttl is None or finished is None else _seconds(finished) + ttl - self._now(),
            status=status,
        )

    async def _do(self, do: Do, task: Object) -> float | None:
        """Seconds until the next look, or None: look at once."""
        match do:
            case Do.CLAIM:
                await self._finalizers(task, [*task["metadata"].get("finalizers", ()), FINALIZER])
            case Do.RELEASE:
                await self._finalizers(task, [f for f in task["metadata"].get("finalizers", ()) if f != FINALIZER])
                self._following.forget(_key(task))
            case Do.HOLD:
                generation, now = task["metadata"]["generation"], timestamp(self._now())
                held = waiting(task.get("status", {}), SUSPENDED, "spec.suspend is true", generation, now)
                await self._write(task, held)
                return REVIEW_S
            case Do.SUBMIT:
                return await self._guarded(task, self._submit)
            case Do.RESUME:
                return await self._guarded(task, self._resume)
            case Do.FOLLOW:
                return await self._follow(task)
            case Do.CANCEL:
                await self._cancel(task)
            case Do.REGISTER:
                await self._register(task)
            case Do.EXPIRE:
                await self._api.delete_task(*_key(task))
                return REVIEW_S
            case Do.REST:
                raise AssertionError("resting is no step")
        return None

    async def _finalizers(self, task: Object, wanted: list[str]) -> None:
        """With the version that was seen: nobody else's finalizer is lost."""
        meta = task["metadata"]
        change = {"metadata": {"finalizers": wanted, "resourceVersion": meta["resourceVersion"]}}
        try:
            await self._api.patch_task(meta["namespace"], meta["name"], change)
        except (Conflict, NotFound) as error:
            log.debug("%s changed meanwhile: %s", meta["name"], error)

    # -- to the ledger -----------------------------------------------------------------------------------------------

    async def _guarded(self, task: Object, do: Callable[[Object], Any]) -> float | None:
        """What stands in the way is written where its owner looks."""
        generation, now = task["metadata"]["generation"], timestamp(self._now())
        status = task.get("status", {})
        try:
            await do(task)
            return None
        except (InvalidInput, Failed, Corrupt) as error:
            await self._write(task, refused(status, error.message, generation, now))
            return None
        except TalkooError as error:
            reason = REASONS.get(type(error), "Waiting")
            if error.code == "no_account":
                reason = "NoAccount"
            await self._write(task, waiting(status, reason, error.message, generation, now))
            return WAIT_FUNDS_S if isinstance(error, InsufficientFunds) else WAIT_INPUTS_S

    async def _submit(self, task: Object) -> None:
        namespace, _ = _key(task)
        client = await self._accounts.of(namespace)
        with tempfile.TemporaryDirectory(prefix="talkoo-task-") as folder:
            inputs = await fetch_inputs(self._api, namespace, task_file(task), Path(folder))
            prepared = await client.prepare_in(inputs, Path(folder))

            async def record(signed: bytes) -> None:
                """In the object before it is on its way: whoever comes after a crash resumes these very bytes."""
                submission = {"transaction": base64.b64encode(signed).decode(), "account": client.address}
                task["status"] = {**task.get("status", {}), "submission": submission}
                task["metadata"] = (await self._patch(task, task["status"], exact=True))["metadata"]

            task_id = await client.create_task(prepared, record)
        await self._submitted(task, task_id)

    async def _resume(self, task: Object) -> None:
        namespace, _ = _key(task)
        client = await self._accounts.of(namespace)
        signed = base64.b64decode(task["status"]["submission"]["transaction"])
        try:
            result = await client.ledger.resume(signed)
        except Conflict as error:
            if error.code != "superseded":
                raise
            await self._write(task, {**task["status"], "submission": None})
            return
        except (InvalidInput, InsufficientFunds):
            await self._write(task, {**task["status"], "submission": None})
            raise
        await self._submitted(task, str(result.born_id))

    async def _submitted(self, task: Object, task_id: str) -> None:
        sent = {**task["status"]["submission"], "transaction": None}
        await self._write(task, {**task["status"], "taskId": task_id, "submission": sent})
        await self._event(task, "Normal", "Submitted", f"{task_id} stands on the ledger, its budget is in escrow")

    async def _cancel(self, task: Object) -> None:
        namespace, _ = _key(task)
        client = await self._accounts.of(namespace)
        task_id = task["status"]["taskId"]
        try:
            await client.cancel(task_id)
        except (Conflict, NotFound, Failed) as error:  # it ended by itself meanwhile
            log.info("%s is not cancelled: %s", task_id, error)
        await self._follow(task)

    # -- from the ledger ---------------------------------------------------------------------------------------------

    async def _follow(self, task: Object) -> float | None:
        key, status = _key(task), task["status"]
        client = await self._accounts.of(key[0])
        record = await client.ledger.task(status["taskId"])
        self._following.add(key, record, client)
        names = await self._following.names(client)
        view = ledger_task(record, names, await _waits_for(client, record))
        generation = task["metadata"]["generation"]
        made = of_task(status, view, self._following.progress(key), generation, timestamp(self._now()))
        await self._write(task, made)
        if made["phase"] in ENDED and status.get("phase") not in ENDED:
            kind = "Normal" if made["phase"] == "Succeeded" else "Warning"
            await self._event(task, kind, made["reason"], made["message"])
            return None
        return REVIEW_S

    async def _register(self, task: Object) -> None:
        namespace, name = _key(task)
        version = task["status"]["modelVersion"]
        client = await self._accounts.of(namespace)
        model = await client.model(version)
        await self._api.ensure_model(
            namespace,
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "ModelVersion",
                "metadata": {"name": version.replace("@", "-"), "labels": {f"{GROUP}/task": name}},
                "spec": {
                    "version": version,
                    "model": model.model,
                    "number": model.number,
                    "taskId": model.task_id,
                    "paramsSha256": model.params_sha256,
                    "licence": model.licence,
                    "heldout": {"correct": model.heldout_correct, "total": model.heldout_total},
                },
            },
        )
        await self._write(task, {**task["status"], "registeredModel": version})

    # -- to the API server -------------------------------------------------------------------------------------------

    async def _write(self, task: Object, status: Object) -> None:
        """Only what differs is sent; what the object no longer has is somebody else's news."""
        if status == task.get("status"):
            return
        try:
            await self._patch(task, status)
        except NotFound:
            log.debug("%s is gone", task["metadata"]["name"])

    async def _patch(self, task: Object, status: Object, *, exact: bool = False) -> Object:
        """`exact`: raises Conflict when the object is not the one that was seen."""
        meta = task["metadata"]
        version = meta["resourceVersion"] if exact else ""
        return await self._api.patch_task_status(meta["namespace"], meta["name"], status, version)

    async def _event(self, task: Object, kind: str, reason: str, message: str) -> None:
        about = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": task["metadata"]}
        try:
            await self._api.event(about, kind, reason, message)
        except TalkooError as error:  # an event is a courtesy; the status has said it
            log.warning("an event about %s was not taken: %s", task["metadata"]["name"], error)


async def _waits_for(client: AsyncClient, task: state_pb2.Task) -> str:
    if task.phase != state_pb2.TASK_PHASE_PENDING:
        return ""
    try:
        return str((await client.explain(task.id)).summary)
    except TalkooError as error:
        return f"the scheduler does not say why: {error.message}"


def _key(task: Object) -> Key:
    return task["metadata"]["namespace"], task["metadata"]["name"]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
