"""The main job, once, for real: fund, place, train, prove, verify, pay, register, serve. Then the report."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo.client import Client
from talkoo.client_async import AsyncClient
from talkoo.demo.accounting import (
    MJ_PER_WH,
    Books,
    Table,
    held_utlk,
    issued_utlk,
    node_table,
    organization_table,
    payment_table,
    token_table,
)
from talkoo.demo.example import example_folder, heldout_samples
from talkoo.demo.report import Report, draw_curve, write_report
from talkoo.demo.scene import Scene
from talkoo.demo.story import Story
from talkoo.federation.plan import default_plan
from talkoo.federation.runner import Federation
from talkoo.verification import Report as VerificationReport
from talkoo.verification import verify_task_via
from talkoo_core.amounts import format_tlk
from talkoo_core.errors import Failed
from talkoo_math.transcript import decode_transcript

FORGER, FORGES_FROM_SEGMENT = "west-1", 1
REQUESTS = 3
TRAINING_TIMEOUT_S = 280.0
WANTED_ACCURACY = 0.95
_MOODS = {
    "verdict": {"forged": "bad", "honest": "good"},
    "slashed": {"": "bad"},
    "segment_discarded": {"": "bad"},
    "task_failed": {"": "bad"},
    "model_registered": {"": "good"},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo ended with."""

    task: state_pb2.Task
    model: state_pb2.ModelVersion
    report: Path
    curve: Path
    right_answers: int


async def run_demo(folder: Path, scene: Scene) -> Outcome:
    """Run everything below `folder`. Raises Failed when any part of the loop did not do its job."""
    async with AsyncExitStack() as stack:
        scene.chapter("Four organizations start a federation")
        federation = Federation(folder / "home", default_plan({FORGER: FORGES_FROM_SEGMENT}))
        await stack.enter_async_context(federation)
        await federation.ready(lambda service: scene.progress("starting", *federation.counted(), service))
        scene.no_progress()
        scene.say(f"{len(federation.services)} processes serve, over gRPC with mutual TLS", "good")
        alice = await stack.enter_async_context(AsyncClient(folder / "home", user="alice"))
        bob = await stack.enter_async_context(AsyncClient(folder / "home", user="bob"))
        await federation.takes_tasks(alice)
        await _introduce(alice, scene)
        task = await _train(alice, scene)
        model = await alice.model(task.model_version)
        right = await _ask(bob, model, scene)
        return await _settle(alice, scene, task, model, right, folder)


async def _introduce(client: AsyncClient, scene: Scene) -> None:
    offers = (await client.offers()).offers
    for offer in sorted(offers, key=lambda o: -o.speed_flops):
        scene.say(
            f"{offer.name} of {offer.organization} offers {offer.speed_flops / 1e9:.2f} GFLOP/s and "
            f"{offer.free_memory_bytes >> 20} MiB for {format_tlk(offer.price_utlk_per_gflop)} per GFLOP"
        )


async def _names(client: AsyncClient) -> dict[str, str]:
    names = {account.address: account.label for account in await client.accounts() if account.label}
    return names | {node.id: node.name for node in await client.nodes()}


async def _train(client: AsyncClient, scene: Scene) -> state_pb2.Task:
    scene.chapter("A task is funded, placed, trained, proven and paid")
    height = (await client.status()).height
    task = await client.submit(example_folder() / "task.yaml")
    teller = asyncio.create_task(_tell(client, scene, task.id, height))
    progress = asyncio.create_task(_show_progress(client, scene, task.id))
    try:
        async with asyncio.timeout(TRAINING_TIMEOUT_S):
            task = await client.wait(task.id)
            await teller
    except TimeoutError:
        explanation = await client.explain(task.id)
        raise Failed(f"the task did not end in {TRAINING_TIMEOUT_S:.0f} s: {explanation.summary}") from None
    finally:
        for running in (teller, progress):
            running.cancel()
        await asyncio.gather(teller, progress, return_exceptions=True)
        scene.no_progress()
    if task.phase != state_pb2.TASK_PHASE_COMPLETED:
        raise Failed(f"the task failed ({task.failure_kind}): {task.failure}")
    return task


async def _tell(client: AsyncClient, scene: Scene, task_id: str, from_height: int) -> None:
    """Tell the ledger's events of the task until it has ended."""
    story = Story(await _names(client))
    async for block in client.block_events(from_height):
        for event in block.events:
            if not _concerns(event, task_id):
                continue
            line = story.tell(event)
            if line:
                scene.say(line, _mood(event))
            if event.type in ("task_completed", "task_failed") and event.subject == task_id:
                return


def _concerns(event: service_pb2.Event, task_id: str) -> bool:
    return event.subject == task_id or any(a.value == task_id for a in event.attributes)


def _mood(event: service_pb2.Event) -> str:
    by_outcome = _MOODS.get(event.type, {})
    outcome = next((a.value for a in event.attributes if a.key == "outcome"), "")
    return by_outcome.get(outcome, "")


async def _show_progress(client: AsyncClient, scene: Scene, task_id: str) -> None:
    async for update in client.progress(task_id):
        detail = f"step {update.step}/{update.steps}  loss {update.loss:.3f}" if update.step else update.stage
        scene.progress("training", update.step, update.steps or 1, detail)


async def _ask(client: AsyncClient, model: state_pb2.ModelVersion, scene: Scene) -> int:
    scene.chapter(f"bob pays for {REQUESTS} requests to {model.version}")
    right = 0
    for sample in heldout_samples(example_folder(), REQUESTS):
        quote = await client.quote(model.version)
        answer = await client.request(model.version, [sample.pixels])
        said = answer.outputs[0]["digit"]
        right += said == sample.digit
        scene.say(
            f"{quote.node_name} answers {said} (chance {answer.outputs[0]['chance']:.2f}) for "
            f"{format_tlk(quote.price_utlk)}; the picture shows {sample.digit}",
            "good" if said == sample.digit else "bad",
        )
    return right


async def _settle(
    client: AsyncClient,
    scene: Scene,
    task: state_pb2.Task,
    model: state_pb2.ModelVersion,
    right: int,
    folder: Path,
) -> Outcome:
    """Re-check every proof, count everything, write the report, and refuse to call a broken loop a success."""
    scene.chapter("Every proof is checked again, from the blocks alone")
    checked = await asyncio.to_thread(_verify, folder / "home", task.id)
    checks = Table(
        "Proofs re-checked from the blocks",
        ("check", "count", "result", "detail"),
        tuple((c.name, str(c.count), "ok" if c.ok else "WRONG", c.detail) for c in checked.checks),
    )
    scene.say(checked.verdict, "good" if checked.ok else "bad")
    books = Books(
        await client.accounts(),
        await client.organizations(),
        await client.nodes(),
        await client.payments(),
        await client.supply(),
    )
    names = await _names(client)
    tables = [node_table(books), organization_table(books), token_table(books)]
    for table in tables:
        scene.table(table)
    curve, redone = await _curve(client, task)
    accuracy = model.heldout_correct / model.heldout_total if model.heldout_total else 0.0
    page, picture = write_report(
        Report(
            title="Talkoo: one task, from escrow to answers",
            lead=f"{task.spec.name}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, task {task.id}",
            facts=_facts(task, model, books, right, scene.seconds),
            story=scene.lines,
            tables=[*tables, payment_table(books, names, task.id)],
            checks=checks,
            curve_png=draw_curve(curve, redone, f"{model.version}: {accuracy:.1%} right on held-out digits"),
        ),
        folder,
    )
    _insist(accuracy >= WANTED_ACCURACY, f"only {accuracy:.1%} of the held-out digits are right")
    _insist(right == REQUESTS, f"{right} of {REQUESTS} answers were right")
    _insist(any(node.slashed_utlk for node in books.nodes), "the forger was not found")
    _insist(checked.ok, checked.verdict)
    _insist(held_utlk(books) == issued_utlk(books.supply), "tokens were lost or made")
    return Outcome(task, model, page, picture, right)


def _verify(home: Path, task_id: str) -> VerificationReport:
    with Client(home) as client:
        return verify_task_via(client, task_id)


def _insist(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(f"the demo ran, but {otherwise}; the logs and the report are in the run's folder")


def _facts(
    task: state_pb2.Task, model: state_pb2.ModelVersion, books: Books, right: int, seconds: float
) -> list[tuple[str, str]]:
    energy_wh = sum(node.energy_mj for node in books.nodes) / MJ_PER_WH
    return [
        ("model", model.version),
        ("held-out digits right", f"{model.heldout_correct}/{model.heldout_total}"),
        ("requests answered right", f"{right}/{REQUESTS}"),
        ("forgers slashed", str(sum(1 for node in books.nodes if node.slashed_utlk))),
        ("segments discarded", str(task.discarded_segments)),
        ("paid for the task", format_tlk(task.spent_utlk)),
        ("electricity", f"{energy_wh:.3f} Wh"),
        ("whole demo", f"{seconds:.0f} s"),
    ]


async def _curve(client: AsyncClient, task: state_pb2.Task) -> tuple[list[tuple[int, float]], list[tuple[int, int]]]:
    """Loss of the global batch at each accepted step, from the committed transcripts, and the step ranges redone."""
    points: list[tuple[int, float]] = []
    redone: set[tuple[int, int]] = set()
    for segment in await client.segments(task.id):
        if segment.phase == state_pb2.SEGMENT_PHASE_DISCARDED:
            redone.add((segment.first_step, segment.first_step + segment.steps))
        if segment.phase == state_pb2.SEGMENT_PHASE_ACCEPTED:
            points += await _segment_losses(client, segment)
    return sorted(points), sorted(redone)


async def _segment_losses(client: AsyncClient, segment: state_pb2.Segment) -> Iterable[tuple[int, float]]:
    losses: dict[int, float] = {}
    batch = sum(shard.samples for shard in segment.shards)
    for commitment, shard in zip(segment.commitments, segment.shards, strict=True):
        transcript = decode_transcript(await client.blob(commitment.segment.transcript_sha256))
        for leaf in transcript.leaves:
            own = _float32(leaf.loss)
            losses[leaf.step] = losses.get(leaf.step, 0.0) + own * shard.samples / batch
    return losses.items()


def _float32(raw: bytes) -> float:
    import struct

    value = struct.unpack("<f", raw)[0]
    assert isinstance(value, float)
    return value


def outcome_json(outcome: Outcome) -> bytes:
    """The result for programs: `talkoo demo --json`."""
    model = outcome.model
    return msgspec.json.encode(
        {
            "task": outcome.task.id,
            "model": model.version,
            "heldout_correct": model.heldout_correct,
            "heldout_total": model.heldout_total,
            "right_answers": outcome.right_answers,
            "discarded_segments": outcome.task.discarded_segments,
            "report": str(outcome.report),
            "curve": str(outcome.curve),
        }
    )
