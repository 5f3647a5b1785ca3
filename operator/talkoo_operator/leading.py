"""Leader election by a Lease: of several replicas one works, the others wait until its Lease runs out.

Whoever loses the Lease ends its process: nothing of it can go on working beside the new leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import ClientError
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from talkoo_core.errors import Unavailable
from talkoo_operator.api import KubernetesApi
from talkoo_operator.metrics import LEADER
from talkoo_operator.settings import OperatorSettings

if TYPE_CHECKING:
    from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord

log = logging.getLogger(__name__)
LEASE_S, RENEW_S, RETRY_S = 15, 10, 2
"""As Kubernetes' own components: how long a Lease holds, how long its holder tries to renew it, how often."""


class _Lock(LeaseLock):
    """The library's (37.0.2) asks for `pretty=True` when it creates the Lease, which its own validation refuses."""

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """False when another candidate was quicker."""
        lease = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            log.info("the Lease was not created: %s", error.reason)
            return False
        return True


async def lead(settings: OperatorSettings, work: Callable[[], Awaitable[None]]) -> None:
    """Wait for the Lease, then work until it is lost. Raises Unavailable then, and whatever `work` raises at once."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def started() -> None:
        log.info("this replica leads")
        LEADER.set(1)
        try:
            await work()
        except Exception as error:
            if not outcome.done():
                outcome.set_exception(error)

    async def stopped() -> None:
        LEADER.set(0)
        if not outcome.done():
            outcome.set_exception(Unavailable("the Lease was lost: another replica leads", code="lease_lost"))

    async with KubernetesApi() as api:
        lock = _Lock(f"{settings.release}-operator", settings.namespace, settings.name, api.client)
        election = asyncio.create_task(_elect(Config(lock, LEASE_S, RENEW_S, RETRY_S, started, stopped)))
        try:
            await asyncio.wait({election, outcome}, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done():
                outcome.result()
            election.result()
        finally:
            election.cancel()
            await asyncio.gather(election, return_exceptions=True)


async def _elect(config: Config) -> None:
    """An API server that is away for a moment costs a candidate nothing; the leader has to win again."""
    while True:
        election = LeaderElection(config)
        try:
            await election.run()
            return
        except (ClientError, TimeoutError, OSError) as error:
            held = election.observed_record
            if held is not None and held.holder_identity == config.lock.identity:
                raise Unavailable(f"the Lease cannot be renewed: {error}", code="lease_lost") from None
            log.warning("the API server cannot be asked for the Lease: %s", error)
        await asyncio.sleep(RETRY_S)
