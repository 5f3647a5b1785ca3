"""The main job in a real federation, in order: each test goes on where the one before it ended."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from talkoo_sim.scraping import Scraped, scrape

pytestmark = pytest.mark.federation
SHORTER = {"steps: 240": "steps: 150"}
READS = 50
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"


def test_the_forger_is_found_its_work_redone_and_the_model_registered(home: Any, program: Callable[..., Path]) -> None:
    said = home.run("submit", str(program(SHORTER)), "--watch")
    assert said.status == 0, said.err + said.out
    task = home.task("digits")
    assert task["phase"] == "completed"
    assert task["discarded_segments"] >= 1
    nodes = {node["name"]: node for node in home.json("nodes")}
    assert nodes["west-1"]["slashed_utlk"] > 0
    assert nodes["west-1"]["forged_segments"] >= 1
    assert all(node["slashed_utlk"] == 0 for name, node in nodes.items() if name != "west-1")
    model = home.json("models", "digits")
    assert model["heldout_correct"] >= 0.95 * model["heldout_total"]
    assert model["params_sha256"]
    assert model["task_id"] == task["id"]
    earned = [node for node in nodes.values() if node["earned_utlk"] > 0]
    assert len(earned) >= 3
    assert all(node["energy_mj"] > 0 for node in earned)


def test_each_payment_names_its_proof_and_nothing_is_lost(home: Any) -> None:
    payments = home.json("payments", "digits")
    assert {"escrow", "compute", "validation", "slash", "refund"} <= {payment["kind"] for payment in payments}
    assert all(payment["proof"] for payment in payments)
    assert "tokens      held equals issued" in home.run("doctor").out


async def test_accounts_stakes_and_escrows_sum_to_what_was_issued(home: Any) -> None:
    """Counted here from the records themselves, at one height."""
    from talkoo.client_async import AsyncClient

    async with AsyncClient(home.folder) as client:
        for _ in range(READS):
            before, supply = (await client.status()).height, await client.supply()
            held = sum(account.balance_utlk for account in await client.accounts())
            held += sum(organization.stake_utlk for organization in await client.organizations())
            held += sum(node.stake_utlk for node in await client.nodes())
            held += supply.escrow_utlk + supply.unbonding_utlk
            if (await client.status()).height == before:
                break
        else:
            pytest.fail(f"the height changed during each of {READS} readings")
    assert held == supply.genesis_utlk + supply.emitted_utlk - supply.burned_utlk


async def test_the_metrics_of_all_processes_tell_the_same_story(home: Any) -> None:
    pages: dict[str, dict[str, Scraped]] = defaultdict(dict)
    for target in json.loads((home.folder / "prometheus-targets.json").read_text()):
        port = int(target["targets"][0].rpartition(":")[2])
        pages[target["labels"]["job"]][target["labels"]["process"]] = await scrape(port)
    assert {job: len(found) for job, found in pages.items()} == {
        "talkoo-ledger": 4,
        "talkoo-scheduler": 4,
        "talkoo-validator": 4,
        "talkoo-gateway": 4,
        "talkoo-agent": 6,
    }

    def total(job: str, name: str, **labels: str) -> float:
        return sum(page.total(name, **labels) for page in pages[job].values())

    nodes = {node["name"]: node for node in home.json("nodes")}
    assert total("talkoo-scheduler", "talkoo_scheduler_leader") == 1
    assert total("talkoo-scheduler", "talkoo_scheduler_leader_known") == 4
    assert total("talkoo-scheduler", "talkoo_scheduler_placed_total") == home.task("digits")["attempt"]
    assert total("talkoo-scheduler", "talkoo_scheduler_agents", state="offering") == len(nodes)
    assert total("talkoo-validator", "talkoo_validator_audits_total", verdict="forged") >= 1
    assert total("talkoo-validator", "talkoo_validator_audits_total", verdict="honest") >= 1
    assert total("talkoo-validator", "talkoo_validator_cache_bytes") > 0
    for name, page in pages["talkoo-ledger"].items():
        assert page.value("talkoo_ledger_events_total", type="slashed") >= 1, name
    for name, page in pages["talkoo-agent"].items():
        own = [p for p in home.json("payments") if p["destination"] == nodes[name]["id"] and p["kind"] == "compute"]
        paid_tlk = sum(int(payment["amount_utlk"]) for payment in own) / 1e6
        assert page.value("talkoo_agent_earned_tlk_total", kind="compute") == pytest.approx(paid_tlk), name
        assert page.value("talkoo_agent_jailed") == nodes[name]["jailed"]
    assert total("talkoo-agent", "talkoo_agent_steps_total") >= 150
    assert total("talkoo-agent", "talkoo_agent_segments_committed_total") >= home.task("digits")["accepted_segments"]
    assert total("talkoo-gateway", "talkoo_grpc_calls_total", status="ok") > 0


def test_three_requests_are_paid_and_answered_right(home: Any) -> None:
    before = home.balance("bob")
    pictures = json.loads((EXAMPLE / "three.json").read_text())
    digits = []
    for picture in pictures:
        answer = json.loads(home.ok("request", "digits", "--input", json.dumps([picture]), user="bob"))
        digits.append(answer[0]["digit"])
    assert digits == [4, 9, 6]
    assert home.balance("bob") < before


def test_every_proof_holds_when_checked_from_the_blocks_and_by_computing_again(home: Any) -> None:
    assert "proofs hold" in home.ok("verify", "digits")
    assert "proofs hold" in home.ok("verify", "digits", "--recompute")


def test_people_and_programs_can_read_everything(home: Any) -> None:
    assert "completed" in home.ok("explain", "digits")
    assert "segment" in home.ok("logs", "digits")
    for what in ("tasks", "nodes", "models", "accounts", "payments", "blocks"):
        assert home.ok(what).strip()
        assert home.ok(what, "-o", "yaml").strip()
        assert home.json(what)


def test_one_trace_runs_from_submit_to_payment(home: Any) -> None:
    names: dict[str, set[str]] = defaultdict(set)
    services: dict[str, set[str]] = defaultdict(set)
    for path in (home.folder / "traces").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            span = json.loads(line)
            names[span["trace_id"]].add(span["name"])
            services[span["trace_id"]].add(path.stem)
    wanted = {
        "task.submit",
        "task.place",
        "shard.start",
        "shard.segment",
        "segment.commit",
        "audit.recompute",
        "verdict.commit",
        "verdict.reveal",
        "block.finalize",
        "payment",
    }
    whole = [trace for trace, seen in names.items() if wanted <= seen]
    assert whole, dict(names)
    through = services[whole[0]]
    assert any(name.endswith("-scheduler") for name in through)
    assert {"north-ledger", "north-validator"} <= through
    assert len(through & {node["name"] for node in home.json("nodes")}) >= 3
