"""Real validators killed again and again: at random moments and at every persistence point in turn.

    python -m talkoo_sim.crashes --kills 300 --json

Four processes of `python -m talkoo_ledger` decide blocks of transfers. In turn one of them is killed -9 at a random
moment, started again so that it kills itself at its k-th persistence point (`dying_node`), and started once more in
good health, until it has what the others have. At the end `Outcome.broken` says what must never have happened: two
signatures for one place, one that its validator has forgotten, an acknowledged transaction that is lost, a fork,
tokens that came from nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, tx_pb2
from talkoo_ledger.genesis import Genesis, GenesisOrganization
from talkoo_ledger.sign_state import Signer

from talkoo_core.errors import TalkooError
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_sim.dying_node import Plan
from talkoo_sim.ledger_chain import ORGANIZATIONS, address, key_of, make_genesis
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.wire_recorder import WireRecorder

RECORDER = "watch"
HEALTHY = ("-m", "talkoo_ledger")
HOW = ("before", "after", "during")
KINDS = ("", "pwrite", "fdatasync", "COMMIT")
"""Points are counted over all calls (most are of the block store), and over those of log, sign state and decision."""
RANDOM_WAIT_S = 0.4
DIES_WITHIN_S = 60.0
REJOIN_DEADLINE_S = 60.0
LOOK_EVERY_S = 0.02
SETTLED_HEIGHTS = 2
RETRY_S = 0.05


@dataclass(slots=True)
class Outcome:
    """`rejoin_s`: from the start of a process until it had the height that the others had at that time."""

    kills: int = 0
    points: int = 0
    """Different persistence points, counted by place and way of killing."""
    by_call: dict[str, int] = field(default_factory=dict)
    heights: int = 0
    acknowledged: int = 0
    signatures_heard: int = 0
    seconds: float = 0.0
    rejoin_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        rejoin = sorted(self.rejoin_s)
        quantiles = {f"rejoin_p{q}_s": round(rejoin[(len(rejoin) - 1) * q // 100], 3) for q in (50, 95, 100)}
        return {k: v for k, v in asdict(self).items() if k != "rejoin_s"} | quantiles


def genesis_with_recorder() -> Genesis:
    """Four validators, and a member without stake that listens."""
    genesis = make_genesis()

    def key(name: str) -> str:
        return key_of(f"{RECORDER}{name}").public.raw.hex()

    listener = GenesisOrganization(RECORDER, key(""), key("-consensus"), key("-scheduler"), key("-validator"), 0)
    return msgspec.structs.replace(genesis, organizations=[*genesis.organizations, listener])


def plans(first_point: int) -> Iterator[tuple[str, Plan]]:
    """Without end: whom to kill next, and where. Every point is struck in all three ways before the next one's turn."""
    cycle = 0
    while True:
        turn, kind = divmod(cycle, len(KINDS))
        victim = ORGANIZATIONS[(cycle + turn) % len(ORGANIZATIONS)]
        yield victim, Plan("kill", HOW[turn % len(HOW)], first_point + turn // len(HOW), KINDS[kind])
        cycle += 1


class CrashRun:
    """One federation in `folder`; `run` kills `kills` times and returns what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.ledgers = Ledgers(folder, genesis_with_recorder())
        self.recorder = WireRecorder(self.ledgers, RECORDER)
        self.outcome = Outcome()
        self._chance = random.Random(seed)  # noqa: S311  # a seeded test, no secret
        self._final: list[service_pb2.TxResult] = []
        self._clients: dict[str, LedgerClient] = {}

    async def run(self, kills: int, first_point: int = 1) -> Outcome:
        """Each cycle has one random kill and one at a persistence point, those in their order."""
        began = time.monotonic()
        self._start(*ORGANIZATIONS)
        await self.ledgers.reach(1, *ORGANIZATIONS)
        work = [
            asyncio.create_task(self.recorder.run(*ORGANIZATIONS)),
            asyncio.create_task(self._transfer("alice", "north")),
            asyncio.create_task(self._transfer("bob", "east")),
        ]
        for victim, plan in plans(first_point):
            if self.outcome.kills >= kills:
                break
            await self._random_kill(victim)
            await self._kill_at(victim, plan)
            await self._rejoin(victim)
        for task in work:
            task.cancel()
        for ended in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        await self._check()
        self.outcome.seconds = round(time.monotonic() - began, 1)
        return self.outcome

    def _start(self, *names: str, launcher: tuple[str, ...] = HEALTHY) -> None:
        self.ledgers.launcher = launcher
        self.ledgers.start(*names)

    async def _random_kill(self, victim: str) -> None:
        await asyncio.sleep(self._chance.random() * RANDOM_WAIT_S)
        self.ledgers.stop(victim)
        self._count_kill("at random")

    async def _kill_at(self, victim: str, plan: Plan) -> None:
        """Start it so that it kills itself at the planned point, and wait until it has."""
        self._start(victim, launcher=("-m", "talkoo_sim.dying_node", plan.encoded()))
        process = self.ledgers.processes[victim]

        async def died() -> bool:
            return process.poll() is not None

        await self.ledgers.eventually(died, f"{victim} is {plan}", DIES_WITHIN_S)
        if process.returncode != -9:
            self.outcome.broken.append(f"{victim} ended with {process.returncode} instead of being {plan}")
            return
        last = next(line for line in reversed(self.ledgers.log(victim).splitlines()) if line.startswith("killed "))
        self.outcome.points += 1
        self._count_kill(last.split()[2].rstrip(","))

    def _count_kill(self, where: str) -> None:
        self.outcome.kills += 1
        self.outcome.by_call[where] = self.outcome.by_call.get(where, 0) + 1

    async def _rejoin(self, victim: str) -> None:
        """Start it in good health, and measure until it stands where the others stand."""
        self._check_memory(victim)
        began = time.monotonic()
        self._start(victim)
        while time.monotonic() - began < REJOIN_DEADLINE_S:
            with contextlib.suppress(TalkooError):
                others = max([await self._height(name) for name in ORGANIZATIONS if name != victim])
                await self._listens(victim)
                if await self._height(victim, anew=True) >= others:
                    self.outcome.rejoin_s.append(time.monotonic() - began)
                    return
            await asyncio.sleep(LOOK_EVERY_S)
        self.outcome.broken.append(f"{victim} was not back in {REJOIN_DEADLINE_S:.0f} s")

    def _check_memory(self, victim: str) -> None:
        """What a dead validator was heard to sign must stand in its sign state."""
        key = key_of(f"{victim}-consensus")
        signer = Signer(key, self.ledgers.genesis.chain_id, FolderDisk(self.ledgers.folder / victim / "state"))
        heard = self.recorder.last(key.public.address)
        if heard > signer.last:
            self.outcome.broken.append(f"{victim} was heard for {heard} and remembers {signer.last}")

    async def _listens(self, name: str) -> None:
        """Wait for its port: a gRPC channel would wait longer with each attempt, and that would be measured too."""
        process = self.ledgers.processes[name]
        while process.poll() is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.ledgers.ports[name])
            except OSError:
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            writer.close()
            await writer.wait_closed()
            return

    async def _height(self, name: str, *, anew: bool = False) -> int:
        if anew or name not in self._clients:
            self._clients[name] = self.ledgers.client(name)
        return (await self._clients[name].status()).height

    async def _transfer(self, user: str, organization: str) -> None:
        """One transfer after the other, forever; each that is acknowledged is remembered."""
        to = address("north")
        client = self.ledgers.client(organization, user)
        while True:
            try:
                self._final.append(await client.submit(tx_pb2.Transfer(to=to, amount_utlk=1), timeout_s=20))
            except TalkooError:
                await asyncio.sleep(RETRY_S)  # its node is down; the next attempt reads the nonce anew

    async def _check(self) -> None:
        """Everything that must hold at the end, with all nodes up."""
        outcome, broken = self.outcome, self.outcome.broken
        goal = max([await self._height(name, anew=True) for name in ORGANIZATIONS]) + SETTLED_HEIGHTS
        await self.ledgers.reach(goal, *ORGANIZATIONS)
        chains = {name: await self.ledgers.blocks(name) for name in ORGANIZATIONS}
        outcome.heights = min(map(len, chains.values()))
        outcome.acknowledged, outcome.signatures_heard = len(self._final), self.recorder.heard
        broken += [f"signed twice: {twice}" for twice in self.recorder.twice()]
        broken += [f"{name} says: {line}" for name in ORGANIZATIONS for line in self._told_of_twice(name)]
        for same in zip(*chains.values(), strict=False):
            if len({(raw.block, *(r.SerializeToString() for r in raw.results)) for raw in same}) != 1:
                broken.append(f"the chain forks at height {same[0].height}")
        for name, chain in chains.items():
            held = {result.hash: raw.height for raw in chain for result in raw.results if result.code == 0}
            lost = [result.hash.hex() for result in self._final if held.get(result.hash) != result.height]
            broken += [f"{name} lost the acknowledged transaction {tx}" for tx in lost]
        for name in ORGANIZATIONS:
            broken += await self._supply_of(name)
        if not self._final or not self.recorder.heard:
            broken.append("nothing was acknowledged or heard; this run proves nothing")

    def _told_of_twice(self, name: str) -> list[str]:
        return [line for line in self.ledgers.log(name).splitlines() if "voted twice" in line]

    async def _supply_of(self, name: str) -> list[str]:
        """Tokens are where the supply record says, and none but genesis and emission made them."""
        stub = service_pb2_grpc.LedgerStub(self.ledgers.channel(name))  # type: ignore[no-untyped-call]
        supply = await stub.GetSupply(service_pb2.GetSupplyRequest())
        held = supply.accounts_utlk + supply.stake_utlk + supply.escrow_utlk + supply.unbonding_utlk
        made = supply.genesis_utlk + supply.emitted_utlk - supply.burned_utlk
        return [] if held == made else [f"{name}: {held} utlk are held, {made} utlk were made"]

    async def close(self) -> None:
        await self.ledgers.close()


async def run_crashes(folder: Path, kills: int, seed: int, first_point: int = 1) -> Outcome:
    run = CrashRun(folder, seed)
    try:
        return await run.run(kills, first_point)
    finally:
        await run.close()


@click.command()
@click.option("--kills", default=300, show_default=True, help="How often a validator is killed in all.")
@click.option("--seed", default=1, show_default=True, help="Of the random moments.")
@click.option("--first-point", default=1, show_default=True, help="The persistence point to begin with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(kills: int, seed: int, first_point: int, as_json: bool) -> None:
    """Kill real validators at random and at every persistence point."""
    with tempfile.TemporaryDirectory(prefix="talkoo-crashes-") as folder:
        outcome = asyncio.run(run_crashes(Path(folder), kills, seed, first_point))
    summary = outcome.summary()
    click.echo(json.dumps(summary) if as_json else "\n".join(f"{key}: {value}" for key, value in summary.items()))
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
