"""TrainingTasks: one step after the other, as `plan` decides, until there is nothing to do."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo.client_async import AsyncClient
from talkoo.submission import Packed, Prepared, prepared_of
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
from talkoo_operator.api import API_SERVER_AWAY, GROUP, MODELS, TASKS, VERSION, KubernetesApi
from talkoo_operator.chain import Chain
from talkoo_operator.endings import begun_again, ended_before_the_ledger, lost, with_failure
from talkoo_operator.following import Following
from talkoo_operator.inputs import KIND, fetch_inputs, task_file
from talkoo_operator.known import Known
from talkoo_operator.limits import Limits
from talkoo_operator.objects import Objects, Outrun
from talkoo_operator.plan import ENDED, FINALIZER, Do, Seen, Step, next_step
from talkoo_operator.queue import Key
from talkoo_operator.quota import HOPELESS, LOWER_PRIORITY, QUOTA, WAITS_ITS_TURN
from talkoo_operator.reviews import REVIEW_S, Reviews
from talkoo_operator.status import (
    estimated_start,
    held,
    of_task,
    refused,
    waiting,
    with_condition,
    with_suspension,
)
from talkoo_operator.wire import busy_and_fitting, ledger_task

log = logging.getLogger(__name__)
Object = dict[str, Any]
MAX_STEPS_AT_ONCE = 12
WAIT_FUNDS_S, WAIT_INPUTS_S = 30.0, 10.0
UNHEARD_S = 3600.0
"""Nothing is known to come: what happens will wake it."""
FIRST_LOOK_S = 0.5
"""After a task was submitted: so soon the scheduler has said something about it."""
MAX_PACKED = 32
WAITING = ("WaitingForPlacement", "Preempted")
"""Reasons whose message is the scheduler's."""
SILENT_SCHEDULER = "the scheduler does not say why"
LOGS_TIMEOUT_S, LOG_LINES = 5.0, 20
REASONS: dict[type[TalkooError], str] = {
    InsufficientFunds: "InsufficientFunds",
    NotFound: "InputsMissing",
    Unavailable: "LedgerUnavailable",
    Exhausted: "TooLarge",
    PermissionDenied: "NotPermitted",
    Conflict: "Conflict",
}
REASONS_BY_CODE = {
    "no_account": "NoAccount",
    "budget_too_small": "BudgetTooSmall",
    "dataset_not_ready": "DatasetNotReady",
    QUOTA: "QuotaExceeded",
    HOPELESS: "QuotaExceeded",
    LOWER_PRIORITY: "WaitsForPriority",
}


class TaskController:
    """`work` gets the key of an object whenever something may have changed; `now` is the API server's time."""

    def __init__(
        self,
        api: KubernetesApi,
        accounts: Accounts,
        following: Following,
        now: Callable[[], float],
        limits: Limits,
        known: Known,
    ) -> None:
        self._api = api
        self._known = known
        self._accounts = accounts
        self._following = following
        self._now = now
        self._limits = limits
        self._reviews = Reviews(time.monotonic, random.random)
        self._born: dict[Key, tuple[str, str]] = {}
        """Recorded transactions that are final, and the ids of their tasks, until these are in the objects."""
        self._packed: dict[str, Packed] = {}
        """By digest of what was packed."""
        self._chain = Chain(accounts.reader)
        self._objects = Objects(api, TASKS, KIND, now, known)

    async def work(self, key: Key) -> float | None:
        for _ in range(MAX_STEPS_AT_ONCE):
            task = await self._objects.read(key)
            if task is None:
                self._known.drop(key)
                self._forget(key)
                return None
            step = next_step(self._seen(task))
            if step.do is Do.REST:
                return step.again_s
            log.debug("%s/%s: %s (%s)", *key, step.do.value, step.reason)
            try:
                done = await self._do(step, task)
            except Outrun:
                continue
            if done is not None:
                return done
        return 0.0

    def _seen(self, task: Object) -> Seen:
        meta, status, spec = task["metadata"], task.get("status", {}), task.get("spec", {})
        now = self._now()

        def left(since: str | None, more_s: float | None = 0.0) -> float | None:
            return None if since is None or more_s is None else _seconds(since) + more_s - now

        deleted = left(meta.get("deletionTimestamp"))
        return Seen(
            generation=meta["generation"],
            finalizer=FINALIZER in meta.get("finalizers", ()),
            deleted_for_s=None if deleted is None else max(0.0, -deleted),
            suspended=bool(spec.get("suspend")),
            expires_in_s=left(status.get("finishedAt"), spec.get("ttlSecondsAfterFinished")),
            status=status,
            cancelled=bool(spec.get("cancel")),
            deadline_in_s=left(meta["creationTimestamp"], spec.get("deadlineSeconds")),
            retry_in_s=left(status.get("retryAt")),
        )

    async def _do(self, step: Step, task: Object) -> float | None:
        """Seconds until the next look, or None: look at once."""
        match step.do:
            case Do.CLAIM:
                await self._objects.finalizers(task, [*task["metadata"].get("finalizers", ()), FINALIZER])
            case Do.RELEASE:
                others = [each for each in task["metadata"].get("finalizers", ()) if each != FINALIZER]
                await self._objects.finalizers(task, others)
                self._forget(_key(task))
            case Do.HOLD:
                self._limits.settled(_key(task))
                await self._objects.write(task, held(task.get("status", {}), *self._objects.when(task)))
                return UNHEARD_S if step.again_s is None else max(step.again_s, 0.0)
            case Do.SUBMIT:
                return await self._guarded(task, self._submit)
            case Do.RESUME:
                if not self._born_id(task):
                    hindered_s = await self._guarded(task, self._resume)
                    if hindered_s is not None or not self._born_id(task):
                        return hindered_s
                return await self._begin_following(task)
            case Do.FOLLOW:
                return _sooner(await self._follow(task, task["status"]), step.again_s)
            case Do.END:
                await self._end(task, step.reason)
            case Do.CANCEL:
                return await self._cancel(task)
            case Do.REGISTER:
                await self._register(task)
            case Do.EXPIRE:
                await self._expire(task)
                return REVIEW_S
            case Do.REST:
                raise AssertionError("resting is no step")
        return None

    def _forget(self, key: Key) -> None:
        self._born.pop(key, None)
        self._following.forget(key)
        self._reviews.forget(key)
        self._limits.settled(key)

    # -- to the ledger -----------------------------------------------------------------------------------------------

    async def _guarded(self, task: Object, do: Callable[[Object], Awaitable[float | None]]) -> float | None:
        """What stands in the way is written where its owner looks."""
        key = _key(task)
        try:
            pause_s = await do(task)
            self._limits.settled(key)
            return pause_s
        except (InvalidInput, Failed, Corrupt) as error:
            self._limits.settled(key)
            await self._hinder(task, refused(task.get("status", {}), error.message, *self._objects.when(task)))
            return None
        except TalkooError as error:
            if error.code == API_SERVER_AWAY:
                raise
            if error.code in WAITS_ITS_TURN:
                self._limits.waits(key, int(task["spec"].get("priority", 0)))
            reason = REASONS_BY_CODE.get(error.code) or REASONS.get(type(error), "Waiting")
            await self._hinder(task, waiting(task.get("status", {}), reason, error.message, *self._objects.when(task)))
            return WAIT_FUNDS_S if isinstance(error, InsufficientFunds) else WAIT_INPUTS_S

    async def _hinder(self, task: Object, made: Object) -> None:
        """An event when the reason is new."""
        before = task.get("status", {}).get("reason")
        await self._objects.write(task, made)
        if made["reason"] != before:
            await self._objects.event(task, "Warning", made["reason"], made["message"])

    async def _submit(self, task: Object) -> float:
        """What became of it is written together with the scheduler's first word, which comes a moment later."""
        key = _key(task)
        client = await self._accounts.of(key[0])
        async with self._limits.turn(key, task, client) as reservation:
            prepared = await self._prepared(task, client)
            chain = await self._chain.name()

            async def record(signed: bytes) -> None:
                """In the object before it is on its way: whoever comes after a crash resumes these very bytes."""
                reservation.signed(signed)
                transaction = base64.b64encode(signed).decode()
                submission = {"transaction": transaction, "account": client.address, "chain": chain}
                await self._objects.write(task, {**task.get("status", {}), "submission": submission})

            account = await self._accounts.account(client)
            task_id = await client.create_task(prepared, record, account)
        self._born[key] = task["status"]["submission"]["transaction"], task_id
        return FIRST_LOOK_S

    async def _prepared(self, task: Object, client: AsyncClient) -> Prepared:
        """What many tasks have in common is checked and packed once, unless somebody has to count with it."""
        inputs = await fetch_inputs(self._api, client, _key(task)[0], task_file(task))
        digest, flops_per_sample = inputs.digest(), inputs.task.flops_per_sample
        known = self._packed.get(digest)
        if known is not None and flops_per_sample:
            return prepared_of(inputs.task, known, inputs.data, flops_per_sample)
        with tempfile.TemporaryDirectory(prefix="talkoo-task-") as folder:
            try:
                laid_out = await inputs.lay_out(Path(folder))
                prepared = await client.prepare_in(laid_out, Path(folder))
            except TalkooError as error:  # its message does not name the folder, which is another each time
                raise type(error)(error.message.replace(f"{folder}/", ""), code=error.code) from None
        data = prepared.spec.data
        if len(self._packed) >= MAX_PACKED:
            self._packed.clear()
        self._packed[digest] = Packed(prepared.code, inputs.data_name, data.sha256, data.size_bytes)
        return replace(prepared, data=inputs.data)

    async def _resume(self, task: Object) -> None:
        """Its task's id is known afterwards, or its record is gone."""
        submission = task["status"]["submission"]
        client = await self._accounts.owner_of(_key(task)[0], submission.get("account", ""))
        try:
            result = await client.ledger.resume(base64.b64decode(submission["transaction"]))
        except Conflict as error:
            if error.code != "superseded":
                raise
            await self._objects.write(task, {**task["status"], "submission": None})
            return
        except (InvalidInput, InsufficientFunds):
            await self._objects.write(task, {**task["status"], "submission": None})
            raise
        self._born[_key(task)] = submission["transaction"], str(result.born_id)

    def _born_id(self, task: Object) -> str:
        """Of the task that the recorded transaction has created; empty where this process does not know it yet."""
        transaction, task_id = self._born.get(_key(task), ("", ""))
        return task_id if task.get("status", {}).get("submission", {}).get("transaction") == transaction else ""

    async def _begin_following(self, task: Object) -> float | None:
        key, task_id = _key(task), self._born_id(task)
        sent = {name: value for name, value in task["status"]["submission"].items() if name != "transaction"}
        pause_s = await self._follow(task, {**task["status"], "taskId": task_id, "submission": sent})
        self._born.pop(key, None)
        await self._objects.event(
            task, "Normal", "Submitted", f"{task_id} stands on the ledger, its budget is in escrow"
        )
        step = next_step(self._seen(task))
        return _sooner(pause_s, step.again_s) if step.do is Do.FOLLOW else None

    async def _end(self, task: Object, why: str) -> None:
        """Written down before anything is sent, so that whoever sees it cancelled knows what it was for."""
        status = task.get("status", {})
        if status.get("taskId"):
            await self._objects.write(task, {**status, "ending": why})
            return
        made = ended_before_the_ledger(status, why, *self._objects.when(task))
        await self._objects.write(task, made)
        self._limits.settled(_key(task))
        await self._objects.event(task, "Warning", made["reason"], made["message"])

    async def _cancel(self, task: Object) -> float | None:
        status = task["status"]
        try:
            client = await self._accounts.owner_of(_key(task)[0], status.get("submission", {}).get("account", ""))
            await client.cancel(status["taskId"])
        except (Conflict, Failed) as error:  # it ended by itself meanwhile
            log.info("%s is not cancelled: %s", status["taskId"], error)
        except TalkooError as error:
            if "deletionTimestamp" in task["metadata"] or error.code == API_SERVER_AWAY:
                raise
            await self._objects.write(task, {**status, "message": f"cannot be cancelled yet: {error.message}"})
            return WAIT_INPUTS_S
        return await self._follow(task, task["status"])

    # -- from the ledger ---------------------------------------------------------------------------------------------

    async def _follow(self, task: Object, status: Object) -> float | None:
        """Seconds until the next look; None: look at once. `status`: as it is to be, before the ledger was asked."""
        key, when = _key(task), self._objects.when(task)
        reader = self._accounts.reader
        try:
            record, explained = await self._look_up(key, status)
        except NotFound as error:
            return await self._unknown(task, status, error)
        self._following.add(key, record, reader)
        nodes = await self._following.nodes(reader)
        waits_for, starts_at = await self._why_pending(record, nodes, key, status, explained)
        view = ledger_task(record, {node.id: node.name for node in nodes.values()}, waits_for, starts_at)
        made = of_task(status, view, self._following.progress(key), *when)
        until = made.get("estimatedEnd")
        self._following.occupied(key, view.workers, _seconds(until) if until else None)
        made = with_suspension(made, bool(task["spec"].get("suspend")), *when)
        ended = made["phase"] in ENDED and status.get("phase") not in ENDED
        if ended and made["phase"] == "Failed":
            made = with_failure(made, view.reporter, view.failure_kind, await _last_lines(reader, record.id))
        deleted = "deletionTimestamp" in task["metadata"]
        final = made if deleted or not ended else begun_again(status, made, task["spec"], *when)
        await self._objects.write(task, final)
        if ended:
            kind = "Normal" if made["phase"] == "Succeeded" else "Warning"
            await self._objects.event(task, kind, final["reason"], final["message"])
        return None if ended else self._reviews.pause_s(key)

    async def _look_up(self, key: Key, status: Object) -> tuple[state_pb2.Task, scheduler_pb2.Explanation | None]:
        """The task's record, and why it waits where that is to be asked anyway: one call gives both."""
        waits = status.get("phase", "Pending") == "Pending"
        if waits and self._reviews.due(key, status.get("attempt", 0), _told(status)):
            explained = await self._explain(status["taskId"])
            if explained.HasField("task"):
                return explained.task, explained
        else:
            explained = None
        return await self._following.task(status["taskId"], self._accounts.reader), explained

    async def _explain(self, task_id: str) -> scheduler_pb2.Explanation:
        """With the task's record in it, unless the scheduler does not answer: then that is the explanation."""
        try:
            return await self._accounts.reader.explain(task_id)
        except TalkooError as error:
            return scheduler_pb2.Explanation(summary=f"{SILENT_SCHEDULER}: {error.message}")

    async def _why_pending(
        self,
        task: state_pb2.Task,
        nodes: Mapping[str, state_pb2.Node],
        key: Key,
        status: Object,
        explained: scheduler_pb2.Explanation | None,
    ) -> tuple[str, float | None]:
        """The scheduler's reason and when the task may start, if known; as the status has them until it is due."""
        if task.phase != state_pb2.TASK_PHASE_PENDING:
            self._reviews.forget(key)
            return "", None
        told = _told(status) and status.get("attempt") == task.attempt
        if explained is None and not self._reviews.due(key, task.attempt, told):
            start = status.get("estimatedStart")
            return status["message"], _seconds(start) if start else None
        explained = explained or await self._explain(task.id)
        self._reviews.answered(key, task.attempt, has_spoken(explained.summary))
        fit, busy = busy_and_fitting(explained, task.spec, nodes)
        start = estimated_start(task.spec.min_nodes, fit, busy, self._following.free_at())
        return str(explained.summary), start

    async def _unknown(self, task: Object, status: Object, error: NotFound) -> float | None:
        """A node that is catching up does not know the task yet; a chain that began anew never will."""
        when = self._objects.when(task)
        now_on = await self._chain.name(fresh=True)
        made_for = status.get("submission", {}).get("chain", now_on)
        if made_for != now_on:
            words = f"{status['taskId']} was on the ledger {made_for}; now there is {now_on}, which does not know it"
            await self._objects.write(task, lost(status, words, *when))
            await self._objects.event(task, "Warning", "LedgerReplaced", words)
            return None
        words = f"the ledger node does not know {status['taskId']} now, it may be catching up: {error.message}"
        generation, now = when
        made = with_condition(
            status, "Funded", holds=None, reason="LedgerBehind", message=words, generation=generation, now=now
        )
        await self._objects.write(task, made | {"reason": "LedgerBehind", "message": words})
        return REVIEW_S

    async def _expire(self, task: Object) -> None:
        try:
            await self._api.delete_task(task)
        except Conflict:
            self._known.drop(_key(task))
            raise Outrun from None

    async def _register(self, task: Object) -> None:
        namespace, name = _key(task)
        version = task["status"]["modelVersion"]
        model = await self._accounts.reader.model(version)
        await self._api.ensure_object(
            MODELS,
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
        await self._objects.write(task, {**task["status"], "registeredModel": version})


async def _last_lines(client: AsyncClient, task_id: str) -> list[str]:
    """Of the nodes of the last placement, oldest first; what cannot be had in a moment is left out."""
    lines: list[agent_pb2.LogLine] = []
    try:
        async with asyncio.timeout(LOGS_TIMEOUT_S):
            async for line in client.logs(task_id, tail=LOG_LINES):
                lines.append(line)
    except (TalkooError, TimeoutError) as error:
        log.info("the last lines of %s cannot be had: %s", task_id, error)
    lines.sort(key=lambda line: line.time_ns)
    return [f"{line.node}: {line.text}" for line in lines[-LOG_LINES:]]


def _key(task: Object) -> Key:
    return task["metadata"]["namespace"], task["metadata"]["name"]


def _told(status: Object) -> bool:
    """Whether it has what the scheduler has said."""
    waits = status.get("phase") == "Pending" and status.get("reason") in WAITING
    return waits and has_spoken(status.get("message", ""))


def has_spoken(summary: str) -> bool:
    """Whether the scheduler has decided: until then it says that none leads, or has looked."""
    return bool(summary) and SILENT_SCHEDULER not in summary and "no scheduler" not in summary


def _sooner(pause_s: float | None, again_s: float | None) -> float | None:
    """None as a pause is: at once; as the other: never."""
    return pause_s if pause_s is None or again_s is None else max(min(pause_s, again_s), 0.0)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
