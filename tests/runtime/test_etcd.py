"""Against a real etcd server with mutual TLS, killed and started again."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from talkoo_core.errors import Unavailable
from talkoo_runtime.etcd import PAGE, Change, EtcdStore


async def test_values_are_written_swapped_listed_and_removed(etcd: Any) -> None:
    async with etcd.store() as store:
        await store.put("/a/1", b"one")
        assert (await store.get("/a/1")).data == b"one"
        assert await store.get("/a/2") is None
        assert not await store.swap("/a/1", b"lost", 0)
        revision = (await store.get("/a/1")).mod_revision
        assert await store.swap("/a/1", b"two", revision)
        assert not await store.swap("/a/1", b"three", revision)
        assert await store.swap("/a/2", b"new", 0)
        assert {key: value.data for key, value in (await store.list("/a/")).items()} == {"/a/1": b"two", "/a/2": b"new"}
        assert await store.delete("/a/1")
        assert not await store.delete("/a/1")


async def test_a_prefix_of_more_keys_than_an_answer_holds_is_listed_whole(etcd: Any) -> None:
    async with etcd.store() as store:
        values = {f"/many/{number:03d}": str(number).encode() for number in range(2 * PAGE + 1)}
        await store.replace_for("/many/", values, 60)
        await store.put("/many0", b"behind the prefix")
        assert {key: value.data for key, value in (await store.list("/many/")).items()} == values


async def test_many_values_are_written_read_and_removed_together(etcd: Any) -> None:
    async with etcd.store() as store:
        values = {f"/much/{number:03d}": str(number).encode() for number in range(2 * PAGE + 1)}
        await store.put_all(values)
        assert {key: value.data for key, value in (await store.list("/much/")).items()} == values
        found = await store.get_all("/much/000", "/much/none", "/much/200")
        assert {key: value.data for key, value in found.items()} == {"/much/000": b"0", "/much/200": b"200"}
        assert found["/much/000"] == await store.get("/much/000")
        *most, last = values
        await store.delete_all(*most, "/much/none")
        assert list(await store.list("/much/")) == [last]


async def test_what_is_too_large_for_one_request_or_answer_is_written_and_found(etcd: Any) -> None:
    """Why a task waits takes 150 KB with a thousand nodes; etcd takes 1.5 MiB at once, and an answer holds 4 MiB."""
    async with etcd.store() as store:
        values = {f"/large/{number:02d}": bytes(150_000) for number in range(30)}
        await store.put_all(values)
        assert await store.keys("/large/") == list(values)
        last = (await store.get_all("/large/29"))["/large/29"]
        assert len(last.data) == 150_000


async def test_what_stands_under_a_prefix_is_replaced_and_runs_out(etcd: Any, eventually: Any) -> None:
    async with etcd.store() as store:
        await store.replace_for("/of/east/", {"/of/east/1": b"one", "/of/east/2": b"two"}, 60)
        await store.put("/of/eastern", b"another's")
        await store.replace_for("/of/east/", {"/of/east/2": b"zwei", "/of/east/3": b"drei"}, 1)
        left = {key: value.data for key, value in (await store.list("/of/")).items()}
        assert left == {"/of/east/2": b"zwei", "/of/east/3": b"drei", "/of/eastern": b"another's"}

        async def gone() -> bool:
            return not await store.list("/of/east/")

        await eventually(gone, "values that were not written again to be gone")
        await store.replace_for("/of/", {}, 1)
        assert not await store.list("/of/")


async def test_a_leased_key_lives_as_long_as_its_lease_is_kept(etcd: Any, eventually: Any) -> None:
    async with etcd.store() as store:
        lease = await store.lease(1)
        await store.put("/offer", b"here", lease)
        await asyncio.sleep(2.5)  # more than two lives of the lease: only renewal keeps the key
        assert await store.get("/offer") is not None
        await lease.release()
        assert await store.get("/offer") is None


async def test_a_dead_owner_s_key_disappears(etcd: Any, eventually: Any) -> None:
    async with etcd.store() as store:
        lease = await store.lease(1)
        await store.put("/offer", b"here", lease)
        lease._keeper.cancel()  # as a killed process: it renews no more

        async def gone() -> bool:
            return await store.get("/offer") is None

        await eventually(gone, "the key of a dead owner is gone")


async def test_a_lease_that_ran_out_is_given_back_quietly_and_takes_no_more_writes(etcd: Any, eventually: Any) -> None:
    """A process stopped for longer than the TTL finds its lease gone: the end of a term, not of the process."""
    async with etcd.store() as store:
        lease = await store.lease(1)
        await store.put("/term", b"mine", lease)
        lease._keeper.cancel()  # as a process that is stopped: it renews no more

        async def gone() -> bool:
            return await store.get("/term") is None

        await eventually(gone, "the lease has run out")
        with pytest.raises(Unavailable, match="lease not found"):
            await store.put("/term", b"late", lease)
        with pytest.raises(Unavailable, match="lease not found"):
            await store.swap("/term", b"late", 0, lease)
        await lease.release()
        assert lease.lost.is_set()


async def test_a_lease_is_lost_no_later_than_the_server_forgets_it(etcd: Any) -> None:
    """The server hangs (SIGSTOP): whoever leads must know before another can be elected."""
    ttl_s = 3
    async with etcd.store() as store:
        lease = await store.lease(ttl_s)
        await asyncio.sleep(ttl_s / 2)  # at least one renewal has gone through
        etcd.process.send_signal(signal.SIGSTOP)
        try:
            stopped = asyncio.get_running_loop().time()
            await asyncio.wait_for(lease.lost.wait(), ttl_s + 0.2)
            assert asyncio.get_running_loop().time() - stopped <= ttl_s + 0.1
        finally:
            etcd.process.send_signal(signal.SIGCONT)


async def test_one_leader_at_a_time_with_growing_tokens(etcd: Any) -> None:
    async with etcd.store() as first, etcd.store() as second:
        term = await first.campaign("/leader", "north", 2)
        waiting = asyncio.create_task(second.campaign("/leader", "south", 2))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        assert await second.leader("/leader") == "north"
        await term.resign()
        next_term = await asyncio.wait_for(waiting, 10)
        assert await first.leader("/leader") == "south"
        assert next_term.token > term.token
        assert term.lost.is_set()
        await next_term.resign()


async def test_a_watch_goes_on_after_the_server_was_killed(etcd: Any) -> None:
    async with etcd.store() as store, etcd.store() as writer:
        seen: asyncio.Queue[Change] = asyncio.Queue()

        async def watch() -> None:
            async for changes in store.watch("/w/"):
                for change in changes:
                    seen.put_nowait(change)

        watching = asyncio.create_task(watch())
        await _written(writer, "/w/ready", seen)
        etcd.kill()
        with pytest.raises(Unavailable):
            await writer.get("/w/ready")
        etcd.start()
        await etcd.answers(writer)
        assert (await writer.get("/w/ready")) is not None, "a value was lost with the server"
        await writer.put("/w/after", b"x")
        assert (await asyncio.wait_for(seen.get(), 15)).key == "/w/after"
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _written(store: EtcdStore, key: str, seen: asyncio.Queue[Change]) -> None:
    """Write until the watch has seen it: from then on it misses nothing."""
    for _ in range(100):
        await store.put(key, b"x")
        try:
            await asyncio.wait_for(seen.get(), 0.2)
        except TimeoutError:
            continue
        while not seen.empty():
            seen.get_nowait()
        return
    raise AssertionError("the watch never saw a write")


async def test_a_stranger_without_a_certificate_is_refused(etcd: Any, town: Any) -> None:
    from pathlib import Path

    stranger = town.settings(town.stranger, "scheduler", "stranger-scheduler")
    store = EtcdStore([etcd.endpoint], Path(stranger.certificate), Path(stranger.private_key), town.bundle)
    async with store:
        with pytest.raises(Unavailable):
            await store.get("/a")
