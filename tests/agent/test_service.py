"""Two agents over mutual TLS with real trainers and the production ledger application behind a gRPC server.

STAND-INS: one process decides blocks (no consensus), and the scheduler only listens to offers. The real ones are met in
tests/e2e.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from talkoo_api.agent.v1 import agent_pb2, node_pb2
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.records import SegmentPhase, TaskPhase

from talkoo_core.errors import InvalidInput, PermissionDenied
from talkoo_core.signing import PublicKey
from talkoo_math.determinism import make_deterministic
from talkoo_math.flops import flops_per_sample
from talkoo_math.program import load_program
from talkoo_math.step import StateRecipe, make_state
from talkoo_runtime.bundle import pack_folder
from talkoo_runtime.grpc_client import raise_from_rpc
from talkoo_runtime.node_files import ORDERS_FILE, PODS_FILE, REPORT_FILE, read_message, write_message
from talkoo_sim.agent_process import AgentProcess
from talkoo_sim.agent_town import Town
from talkoo_sim.ledger_chain import address, verdict_of
from talkoo_sim.ports import free_port
from talkoo_sim.scraping import scrape
from talkoo_sim.stand_in_nvml import H100, StandInDriver

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
DEADLINE_S = 120.0
GANG = ("north-1", "east-1")


async def until(condition: Callable[[], Any], what: str) -> None:
    """Poll with a deadline: the parts under test are processes of their own."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.05)


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # measured here, whatever the machine remembers
    town = Town(tmp_path)
    await town.open()
    try:
        yield town
    finally:
        await town.close()


async def digits_task(town: Town, folder: Path, **changes: Any) -> str:
    """Submit the program in `folder` with the digits' data; FLOPs counted as the command line counts them."""
    make_deterministic()
    program = load_program(DIGITS, "digits")
    state = make_state(program, StateRecipe({"channels": 4}, "sgd", '{"lr":"0"}', 0), torch.device("cpu"))
    flops = flops_per_sample(state, program.open_data(DIGITS / "digits.npz", "train"))
    data = (DIGITS / "digits.npz").read_bytes()
    code = await town.blobs.put(pack_folder(folder))
    spec: dict[str, Any] = {
        "code": tx_pb2.BlobRef(sha256=code, size_bytes=1000),
        "data": tx_pb2.BlobRef(sha256=await town.blobs.put(data), size_bytes=len(data)),
        "config_json": '{"channels":4}',
        "global_batch": 64,
        "steps": 10,
        "steps_per_segment": 5,
        "flops_per_sample": flops,
    }
    return town.chain.sim.create(**(spec | changes))


def place(town: Town, task_id: str, *names: str) -> None:
    town.chain.send("north-scheduler", town.chain.sim.placement(task_id, *names or GANG))


def judge_what_is_audited(town: Town, task_id: str) -> None:
    """The validators' part, done by the test: everything is found honest."""
    sim = town.chain.sim
    town.chain.decide()
    for number in range(2):
        segment = sim.segment(task_id, 1, number)
        if segment.phase is SegmentPhase.AUDITED:
            sim.judge(verdict_of(segment, correct=350, total=359))
    town.chain.decide()


async def test_agents_measure_train_commit_serve_and_report(town: Town, tmp_path: Path) -> None:
    await town.agent("north-1")
    await until(lambda: "north-1" in town.listener.offers, "the first offer, after measuring")
    await town.agent("east-1")
    await until(lambda: "east-1" in town.listener.offers, "the second offer")
    offer = town.listener.offers["north-1"]
    assert (offer.state, offer.node_id) == ("ready", address("north-1"))
    assert offer.speed_flops > 10**8

    task_id = await digits_task(town, DIGITS)
    place(town, task_id)
    sim = town.chain.sim
    await until(lambda: sim.task(task_id).phase is TaskPhase.VERIFYING, "all segments")
    judge_what_is_audited(town, task_id)
    assert sim.task(task_id).phase is TaskPhase.COMPLETED
    assert all(sim.state.nodes[address(name)].earned_utlk > 0 for name in GANG)
    assert all(one.segment.energy_mj > 0 for one in sim.segment(task_id, 1, 1).commitments)
    await until(lambda: not town.listener.offers["north-1"].running_tasks, "the free slot")
    await the_log_tells(town, task_id)
    await a_paid_request_is_answered_once(town, sim.task(task_id).model_version)
    await a_nan_loss_ends_the_task(town, tmp_path)
    await a_killed_trainer_costs_only_its_open_segment(town)


async def the_log_tells(town: Town, task_id: str) -> None:
    stub = town.stub("north-1", "gateway")
    lines = [line.text async for line in stub.Logs(agent_pb2.LogsRequest(task_id=task_id, follow=True))]
    assert any("all 2 ranks have met" in line for line in lines)
    progress = [update async for update in stub.Progress(agent_pb2.ProgressRequest(task_id=task_id))]
    assert [update.step for update in progress if update.stage == "training"] == list(range(1, 11))
    assert progress[-1].stage == "done"


async def a_paid_request_is_answered_once(town: Town, version: str) -> None:
    picture = [[0.0] * 64]
    body = json.dumps(picture).encode()
    paid = tx_pb2.RequestModel(
        version=version,
        node_id=address("east-1"),
        input_sha256=hashlib.sha256(body).digest(),
        price_utlk=1_000_000,
    )
    request_id = town.chain.send("alice", paid).born_id
    stub = town.stub("east-1", "gateway")
    ask = agent_pb2.InferRequest(request_id=request_id, version=version, input_json=body)
    answer = await stub.Infer(ask, timeout=DEADLINE_S)
    assert 0 <= json.loads(answer.output_json)[0]["digit"] <= 9
    signed = b"talkoo/answer/v1\n" + request_id.encode() + b"\n" + answer.output_sha256
    assert PublicKey(answer.public_key).verify(answer.signature, signed)
    assert town.chain.sim.state.requests[request_id].output_sha256 == answer.output_sha256
    assert await stub.Infer(ask, timeout=DEADLINE_S) == answer
    with pytest.raises(PermissionDenied):
        await refused(town.stub("north-1", "gateway").Infer(ask, timeout=5))
    with pytest.raises(PermissionDenied):
        await refused(stub.Rendezvous(agent_pb2.RendezvousRequest(task_id="x", attempt=1), timeout=5))


async def refused(call: Any) -> None:
    import grpc

    try:
        await call
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)


async def a_nan_loss_ends_the_task(town: Town, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    text = (DIGITS / "digits.py").read_text()
    (folder / "digits.py").write_text(
        text.replace("cross_entropy(model(pictures), labels)", "cross_entropy(model(pictures).log(), labels)")
    )
    task_id = await digits_task(town, folder)
    place(town, task_id)
    sim = town.chain.sim
    await until(lambda: sim.task(task_id).phase is TaskPhase.FAILED, "the failure of the task")
    assert sim.task(task_id).failure_kind == "loss_nan"
    assert "lower the learning rate" in sim.task(task_id).failure
    await until(lambda: len(town.listener.reports) == 2, "both reports to the scheduler")


async def a_killed_trainer_costs_only_its_open_segment(town: Town) -> None:
    """The gang says that a node was lost, and the next attempt goes on from the last checkpoint."""
    task_id = await digits_task(town, DIGITS, steps=600, steps_per_segment=300)
    place(town, task_id)
    sim = town.chain.sim
    await until(lambda: sim.task(task_id).next_segment == 1, "the first segment")
    start = sim.task(task_id).start_params_sha256
    trainers = [child for child in psutil.Process().children() if "talkoo_agent.trainer" in child.cmdline()]
    busy = max(trainers, key=lambda child: child.cpu_times().user)
    busy.kill()
    await until(lambda: sim.task(task_id).phase is TaskPhase.PENDING, "the report of a lost node")
    assert sim.task(task_id).next_segment == 1
    place(town, task_id)
    await until(lambda: sim.task(task_id).phase is TaskPhase.VERIFYING, "the second attempt's segment")
    resumed = sim.segment(task_id, 2, 1)
    assert resumed.start_params_sha256 == start


async def test_a_node_that_cannot_be_dialled_trains_with_another_organizations(town: Town) -> None:
    """Through rank 0's agent, which lets in nobody but the gang; the work is as honest as any."""
    await town.agent("north-1")
    await town.agent("east-1", outbound_only=True)
    await until(lambda: town.listener.offers.keys() == set(GANG), "the offers")
    assert [town.listener.offers[name].outbound_only for name in GANG] == [False, True]
    task_id = await digits_task(town, DIGITS, steps=300, steps_per_segment=150)
    place(town, task_id)
    sim = town.chain.sim
    await until(lambda: sim.task(task_id).next_segment == 1, "the first segment")

    async def chunks() -> AsyncIterator[agent_pb2.RelayChunk]:
        yield agent_pb2.RelayChunk(to=agent_pb2.RendezvousRequest(task_id=task_id, attempt=1), data=b"hello")

    with pytest.raises(PermissionDenied, match="has no part in"):
        await refused(anext(aiter(town.stub("north-1", "agent").Relay(chunks(), timeout=DEADLINE_S))))

    await until(lambda: sim.task(task_id).phase is TaskPhase.VERIFYING, "all segments")
    judge_what_is_audited(town, task_id)
    assert sim.task(task_id).phase is TaskPhase.COMPLETED
    assert all(sim.state.nodes[address(name)].earned_utlk > 0 for name in GANG)
    stub = town.stub("east-1", "gateway")
    lines = [line.text async for line in stub.Logs(agent_pb2.LogsRequest(task_id=task_id, follow=True))]
    assert any("meets rank 0 of north through its agent" in line for line in lines)


def report(folder: Path) -> node_pb2.NodeReport:
    return read_message(folder / REPORT_FILE, node_pb2.NodeReport) or node_pb2.NodeReport()


async def test_a_drained_node_hands_its_shard_back_and_takes_none_until_it_may(town: Town, tmp_path: Path) -> None:
    """Nothing that is committed is lost: the next attempt begins with the last segment's parameters."""
    folder = tmp_path / "shared"
    await town.agent("north-1", node_folder=str(folder))
    await town.agent("east-1")
    await until(lambda: len(town.listener.offers) == 2, "both offers")
    task_id = await digits_task(town, DIGITS, steps=6000, steps_per_segment=150)
    place(town, task_id)
    sim = town.chain.sim
    await until(lambda: sim.task(task_id).next_segment == 1, "the first segment")
    assert [(shard.task_id, shard.attempt) for shard in report(folder).shards] == [(task_id, 1)]
    orders = node_pb2.NodeOrders(drain="the node is cordoned", hand_back=True, price_utlk_per_gflop=90_000)
    write_message(folder / ORDERS_FILE, orders)
    await until(lambda: sim.task(task_id).phase is TaskPhase.PENDING, "the shard handed back")
    done = sim.task(task_id).next_segment
    assert 1 <= done < 40
    assert sim.task(task_id).fruitless_attempts <= 1
    await until(lambda: town.listener.offers["north-1"].state == "draining", "the offer withdrawn")
    assert town.listener.offers["north-1"].reason == "the node is cordoned"
    await until(lambda: not report(folder).shards and report(folder).reason == "Draining", "the report")
    await until(lambda: sim.state.nodes[address("north-1")].price_utlk_per_gflop == 90_000, "the price on the ledger")

    start = sim.task(task_id).start_params_sha256
    write_message(folder / ORDERS_FILE, node_pb2.NodeOrders())
    await until(lambda: town.listener.offers["north-1"].state == "ready", "the node offered again")
    place(town, task_id)
    await until(lambda: sim.task(task_id).next_segment == done + 1, "the next segment of the second attempt")
    assert sim.segment(task_id, 2, done).start_params_sha256 == start


async def test_shards_survive_an_upgrade_of_the_agent(town: Town, tmp_path: Path) -> None:
    """As a DaemonSet's rolling update does it: preStop hook, SIGTERM, a new process with the node's folder."""
    folder = tmp_path / "shared"
    agent = AgentProcess(town.settings("north-1", node_folder=str(folder)))
    await town.agent("east-1")
    agent.start()
    try:
        await until(lambda: len(town.listener.offers) == 2, "both offers")
        task_id = await digits_task(town, DIGITS, steps=6000, steps_per_segment=150)
        place(town, task_id)
        sim = town.chain.sim
        await until(lambda: sim.task(task_id).next_segment == 1, "the first segment")

        hook = [sys.executable, "-m", "talkoo_agent.leave", "--folder", str(folder), "--wait-s", "60"]
        done = await asyncio.to_thread(subprocess.run, hook, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stdout) == (0, "all shards are handed back\n")
        assert await asyncio.to_thread(agent.end) == 0
        assert "north-1" not in town.listener.offers
        task = sim.task(task_id)
        assert (task.phase, sim.segment(task_id, 1, 0).phase) == (TaskPhase.PENDING, SegmentPhase.AUDITED)

        shutil.rmtree(folder)  # it is the old pod's
        agent.start()
        await until(lambda: "north-1" in town.listener.offers, "the new agent's offer")
        place(town, task_id)
        await until(lambda: sim.task(task_id).next_segment == task.next_segment + 1, "the next segment")
        assert sim.segment(task_id, 2, task.next_segment).start_params_sha256 == task.start_params_sha256
    finally:
        await asyncio.to_thread(agent.end)


async def test_a_node_without_a_gpu_says_so_and_offers_nothing_unless_allowed(town: Town, tmp_path: Path) -> None:
    await town.agent("north-1", node_folder=str(tmp_path / "shared"), allow_cpu=False)
    await town.agent("east-1")
    await until(lambda: "east-1" in town.listener.offers, "the offer of the node that may")
    await until(lambda: report(tmp_path / "shared").reason == "NoGPU", "the report")
    assert report(tmp_path / "shared").state == "off"
    assert "north-1" not in town.listener.offers
    assert town.chain.sim.state.nodes.get(address("north-1")) is None


async def test_two_shards_train_at_once_where_two_slots_are_offered(town: Town, tmp_path: Path) -> None:
    await town.agent("north-1", node_folder=str(tmp_path / "shared"), slots=2)
    await until(lambda: "north-1" in town.listener.offers, "the offer")
    offers, sim = town.listener.offers, town.chain.sim
    assert (offers["north-1"].state, offers["north-1"].slots) == ("ready", 2)
    first, second = [await digits_task(town, DIGITS, steps=6000, steps_per_segment=150, min_nodes=1) for _ in range(2)]
    place(town, first, "north-1")
    await until(lambda: sim.task(first).next_segment == 1, "the first task's segment")
    assert offers["north-1"].state == "ready"
    place(town, second, "north-1")
    begun = sim.task(first).next_segment
    await until(lambda: sim.task(second).next_segment == 1, "the second task's segment")
    await until(lambda: sim.task(first).next_segment > begun, "the first goes on beside it")
    assert (offers["north-1"].state, offers["north-1"].reason) == ("busy", "2 of 2 slots are taken")
    assert {(shard.task_id, shard.card) for shard in report(tmp_path / "shared").shards} == {(first, ""), (second, "")}


async def test_each_shard_has_a_card_of_its_own_and_a_faulty_card_none(
    town: Town, tmp_path: Path, driver: StandInDriver
) -> None:
    """The agent and its trainers are real; the driver is a STAND-IN without CUDA, so that trainers fail on their cards.

    What they were let to see is what the driver tells.
    """
    folder, program = tmp_path / "shared", tmp_path / "program"
    first_card, other_card = str(H100["uuid"]), "GPU-2"
    driver.cards(H100, H100 | {"uuid": "GPU-L4", "name": "NVIDIA L4"}, H100 | {"uuid": other_card})
    program.mkdir()
    (program / "digits.py").write_text((DIGITS / "digits.py").read_text() + "\n\ntorch.cuda.is_available()\n")
    agent = AgentProcess(town.settings("north-1", node_folder=str(folder), warm_trainer=False), driver.environment)
    agent.start()
    try:
        await until(lambda: "north-1" in town.listener.offers, "the offer of the node with two equal GPUs")
        offers, sim = town.listener.offers, town.chain.sim
        assert (offers["north-1"].state, offers["north-1"].slots) == ("ready", 2)
        assert [cards for _, cards in driver.seen] == [other_card], "it was measured on a card that is lent"
        tasks = [await digits_task(town, program, min_nodes=1) for _ in range(2)]
        for task_id in tasks:
            place(town, task_id, "north-1")
        held = dict(zip(tasks, (first_card, other_card), strict=True))
        await until(lambda: {s.task_id: s.card for s in report(folder).shards} == held, "both shards in the report")
        assert [gpu.lent for gpu in report(folder).gpus] == [True, False, True]
        await until(lambda: all(sim.task(task_id).phase is TaskPhase.PENDING for task_id in tasks), "both failures")
        assert sorted(cards for _, cards in driver.seen[1:]) == sorted([first_card, other_card])
        await until(lambda: offers["north-1"].state == "ready", "both cards given back")

        driver.event(0, 79)
        driver.cards(H100, H100 | {"uuid": "GPU-L4", "name": "NVIDIA L4"}, H100 | {"uuid": other_card})
        await until(lambda: offers["north-1"].slots == 1, "one card less")
        assert (offers["north-1"].state, offers["north-1"].reason) == ("ready", "not lent for its fault: gpu-0: XID 79")
        place(town, tasks[0], "north-1")
        await until(lambda: [s.card for s in report(folder).shards] == [other_card], "the shard on the other card")
    finally:
        await asyncio.to_thread(agent.end)


async def test_an_agent_with_more_slots_than_cards_that_it_may_lend_ends_at_once(
    town: Town, driver: StandInDriver
) -> None:
    driver.cards(H100, H100 | {"uuid": "GPU-2"})
    environment = driver.environment | {"CUDA_VISIBLE_DEVICES": "1"}
    agent = AgentProcess(town.settings("north-1", slots=2), environment)
    agent.start()
    try:
        assert agent.process is not None
        assert await asyncio.to_thread(agent.process.wait, DEADLINE_S) == InvalidInput("").exit_status
    finally:
        await asyncio.to_thread(agent.end)


async def test_a_faulty_gpu_is_reported_and_its_node_takes_no_work(
    town: Town, tmp_path: Path, driver: StandInDriver
) -> None:
    """The agent is real, and so are pynvml's bindings; the driver below them is a STAND-IN."""
    folder = tmp_path / "shared"
    driver.cards(H100, {**H100, "uuid": "GPU-2"})
    settings = town.settings("north-1", node_folder=str(folder), allow_cpu=False, warm_trainer=False)
    port = free_port()
    settings = msgspec.structs.replace(settings, metrics_listen=f"127.0.0.1:{port}")
    agent = AgentProcess(settings, driver.environment | {"CUDA_VISIBLE_DEVICES": "0"})
    agent.start()
    try:
        await until(lambda: "north-1" in town.listener.offers, "the offer of the node with a GPU")
        assert town.chain.sim.state.nodes[address("north-1")].device == H100["name"]
        await until(lambda: report(folder).state == "ready", "the report")
        assert [(gpu.uuid, list(gpu.faults)) for gpu in report(folder).gpus] == [(H100["uuid"], []), ("GPU-2", [])]
        pods = node_pb2.GpuPods(by_device={str(H100["uuid"]): node_pb2.GpuPods.Holder(namespace="lab", pod="trainer")})
        write_message(folder / PODS_FILE, pods)
        driver.event(0, 79)
        driver.cards({**H100, "energy_mj": 5_002_500}, {**H100, "uuid": "GPU-2"})
        await until(lambda: town.listener.offers["north-1"].state == "draining", "the offer withdrawn")
        assert "XID 79" in town.listener.offers["north-1"].reason
        await until(lambda: report(folder).reason == "GPUFault", "the report")
        assert list(report(folder).gpus[0].faults) == ["XID 79"]
        page = await scrape(port)
        held = {"gpu": "0", "uuid": str(H100["uuid"]), "pod": "trainer", "namespace": "lab"}
        free = {"gpu": "1", "uuid": "GPU-2", "pod": "", "namespace": ""}
        assert (page.value("talkoo_gpu_power_watts", **held), page.value("talkoo_gpu_power_watts", **free)) == (
            512.3,
        ) * 2
        assert page.value("talkoo_gpu_utilization_ratio", **free) == 0.87
        assert (page.value("talkoo_gpu_healthy", **held), page.value("talkoo_gpu_healthy", **free)) == (0, 1)
        assert page.total("talkoo_gpu_xid_errors_total", uuid=held["uuid"], xid="79") == 1
        assert page.total("talkoo_gpu_energy_joules_total", uuid=held["uuid"]) == 2.5
    finally:
        await asyncio.to_thread(agent.end)
