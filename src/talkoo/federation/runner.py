"""Starting a local federation and keeping it alive: etcd first, then every organization's services and agents."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from talkoo.client_async import AsyncClient
from talkoo.federation.plan import FederationPlan
from talkoo.federation.provision import Provisioned, Service, provision
from talkoo_core.errors import Conflict, TalkooError, Unavailable
from talkoo_runtime.child_process import ChildProcess
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.etcd_server import etcd_arguments

LOCK_FILE = "up.lock"
LOG_FILE = "service.log"
START_TIMEOUT_S = 90.0
POLL_S = 0.1
NEED_ETCD = ("scheduler",)
"""The roles that are started once etcd answers; all others start beside it."""
QUIET_TORCH = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Federation:
    """A running federation. Use as `async with Federation(home, plan)`; then wait for `ready`.

    `on_crash` gets a sentence for each child that ended by itself and is started again.
    """

    def __init__(
        self,
        home: Path,
        plan: FederationPlan | None = None,
        on_crash: Callable[[str], None] | None = None,
        *,
        metrics: bool = False,
    ) -> None:
        self.home = home
        self.children: dict[str, ChildProcess] = {}
        self._plan = plan
        self._metrics = metrics
        self._on_crash = on_crash
        self._lock: IO[str] | None = None
        self._made: Provisioned | None = None

    @property
    def services(self) -> tuple[Service, ...]:
        return self.made.services

    @property
    def made(self) -> Provisioned:
        assert self._made is not None, "the federation has not been entered"
        return self._made

    async def __aenter__(self) -> Federation:
        self._take_lock()
        try:
            self._made = await asyncio.to_thread(provision, self.home, self._plan, metrics=self._metrics)
            etcd = asyncio.create_task(self._start_etcd())
            try:
                for service in self.services:
                    if service.role not in NEED_ETCD:
                        self._start(service)
            finally:
                await etcd
            for service in self.services:
                if service.role in NEED_ETCD:
                    self._start(service)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Agents first, then services, etcd last: nobody loses what it still wants to write."""
        order = ("agent", "gateway", "validator", "scheduler", "ledger")
        for role in order if self._made is not None else ():
            names = [s.name for s in self.services if s.role == role]
            await asyncio.gather(*(self.children[name].stop() for name in names if name in self.children))
        if "etcd" in self.children:
            await self.children["etcd"].stop()
        self._release_lock()

    def counted(self) -> tuple[int, int]:
        """How many services serve, and how many there are."""
        return sum(1 for s in self.services if self.children[s.name].ready.is_set()), len(self.services)

    async def ready(self, on_change: Callable[[str], None] | None = None) -> None:
        """Wait until every service serves; `on_change` is told the name of each. Raises Unavailable after a bound."""
        waiting = {asyncio.ensure_future(self.children[s.name].ready.wait()): s.name for s in self.services}
        pending = set(waiting)
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while pending:
            left = max(deadline - asyncio.get_running_loop().time(), 0.0)
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if on_change is not None:
                    on_change(waiting[task])
            if not done:
                silent = ", ".join(sorted(waiting[task] for task in pending))
                for task in pending:
                    task.cancel()
                raise Unavailable(
                    f"not ready after {START_TIMEOUT_S:.0f} s: {silent}; read the {LOG_FILE} in their folders under "
                    f"{self.home}/organizations",
                    code="start_timeout",
                )

    async def takes_tasks(self, client: AsyncClient) -> None:
        """Wait until blocks are decided and every node has spoken: it offers itself, or says why it does not."""
        wanted = len(self.made.plan.node_names())
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        seen = 0
        while asyncio.get_running_loop().time() < deadline:
            try:
                if (await client.status()).height > 0:
                    seen = len((await client.offers()).offers)
                    if seen >= wanted:
                        return
            except TalkooError as error:
                reason = error.message
            else:
                reason = f"{seen} of {wanted} nodes have spoken"
            await asyncio.sleep(POLL_S)
        raise Unavailable(f"the federation does not take tasks after {START_TIMEOUT_S:.0f} s: {reason}")

    def _start(self, service: Service) -> None:
        arguments = [sys.executable, "-m", service.module, "--settings", str(service.settings)]
        child = ChildProcess(
            service.name,
            arguments,
            service.folder / LOG_FILE,
            environment=QUIET_TORCH if service.role in ("agent", "validator") else None,
            on_crash=self._on_crash,
        )
        self.children[service.name] = child
        child.start()

    async def _start_etcd(self) -> None:
        made = self.made
        folder = made.home / "etcd"
        arguments = etcd_arguments(
            folder / "data",
            made.plan.etcd_port,
            made.plan.etcd_peer_port,
            made.etcd_certificate,
            made.etcd_key,
            made.trust_bundle,
        )
        child = ChildProcess("etcd", arguments, folder / LOG_FILE, on_crash=self._on_crash)
        self.children["etcd"] = child
        child.start()
        async with EtcdStore([made.etcd_endpoint], made.etcd_certificate, made.etcd_key, made.trust_bundle) as store:
            await _answers(store)

    def _take_lock(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        file = (self.home / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise Conflict(
                f"a federation already runs in {self.home} (process {owner}); use it, stop it, or give another --home",
                code="already_up",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._lock = file

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


async def _answers(store: EtcdStore) -> None:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        try:
            await store.get("/talkoo")
            return
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(POLL_S)
