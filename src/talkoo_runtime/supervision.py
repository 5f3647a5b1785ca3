"""Running a service: its background work is watched, signals stop it in order, and a crash says why."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from talkoo_core.errors import InvalidInput, TalkooError
from talkoo_runtime.logs import setup_logging
from talkoo_runtime.parent_death import die_with_parent
from talkoo_runtime.process_metrics import watch_process
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.settings import load_settings
from talkoo_runtime.telemetry import setup_tracing

log = logging.getLogger(__name__)
S = TypeVar("S", bound=ServiceSettings)

OUR_FAULT = 70
RESTART_FIRST_S = 0.2
RESTART_MAX_S = 5.0
STEADY_S = 30.0
"""Work that went well so long begins with the first pause again."""
STOP_TIMEOUT_S = 5.0
"""From the signal to the end of the process, whatever still runs in it."""


class Background:
    """A service's named background tasks. One that crashes ends the service, unless it may be restarted."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run until it ends; an exception ends the whole service."""
        task = asyncio.create_task(self._watched(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def start_restarting(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run again after a failure that is somebody else's (our error families), with growing pauses."""
        return self.start(name, self._again(name, make))

    async def crashed(self) -> None:
        """Wait for a crash and raise it."""
        raise await asyncio.shield(self._crashed)

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._crashed.done():
            self._crashed.exception()

    async def _watched(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.error("%s stopped: %s", name, error, exc_info=not isinstance(error, TalkooError))
            if not self._crashed.done():
                self._crashed.set_result(error)

    async def _again(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause = RESTART_FIRST_S
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                await make()
                return
            except TalkooError as error:
                pause = RESTART_FIRST_S if now() - began > STEADY_S else pause
                log.warning("%s failed (%s); again in %.1f s", name, error, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_MAX_S)


def run_service(
    role: str, settings_type: type[S], serve: Callable[[S, Background], Awaitable[Callable[[], Awaitable[None]]]]
) -> int:
    """Entry point of every service's `__main__`: read settings, serve until SIGTERM or SIGINT, stop in order.

    `serve` starts everything and returns the coroutine function that stops it. Returns the exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m talkoo_{role}")
    parser.add_argument("--settings", type=Path, required=True, help="TOML file with this process's settings")
    arguments = parser.parse_args()
    try:
        settings = load_settings(settings_type, arguments.settings, os.environ)
        setup_logging(settings.name, settings.log_level)
        _make_folder(settings.state_dir)
        setup_tracing(settings.name, settings.traces_dir)
        watch_process(settings.metrics_listen, settings.certificate, settings.state_dir)
        die_with_parent()
        return _run(_serve_until_signal(role, settings, serve))
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        log.exception("%s ended by a fault in our own code", role)
        return _exit_status_of(error)


def _make_folder(state_dir: str) -> None:
    try:
        Path(state_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"state_dir {state_dir} cannot be made: {error.strerror}; name a folder this user may write",
            code="bad_settings",
        ) from None


def _run(main: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(main)


async def _serve_until_signal(
    role: str, settings: S, serve: Callable[[S, Background], Awaitable[Callable[[], Awaitable[None]]]]
) -> int:
    """A signal or a crash ends it even while it still starts; leaving takes at most `STOP_TIMEOUT_S`."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    background = Background()
    told = asyncio.create_task(stop.wait())
    crash = asyncio.create_task(background.crashed())
    starting = asyncio.ensure_future(serve(settings, background))
    status = OUR_FAULT
    try:
        await asyncio.wait({starting, told, crash}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            sys.stdout.write(f"ready {role} {settings.name} {settings.listen}\n")
            sys.stdout.flush()
            await asyncio.wait({told, crash}, return_when=asyncio.FIRST_COMPLETED)
        status = _exit_status_of(crash.exception()) if crash.done() else 0
        return status
    finally:
        leave_in_time(settings.name, status)
        for task in (told, crash, starting):
            task.cancel()
        outcomes = await asyncio.gather(starting, told, crash, return_exceptions=True)
        if not isinstance(outcomes[0], BaseException):
            await outcomes[0]()
        await background.stop()


def leave_in_time(name: str, status: int) -> None:
    """End the process after `STOP_TIMEOUT_S` though a stop, a cleanup or a thread hangs; a hung stop is a failure."""

    def leave() -> None:
        log.error("%s did not stop in %.0f s and leaves as it is", name, STOP_TIMEOUT_S)
        os._exit(status or OUR_FAULT)

    timer = threading.Timer(STOP_TIMEOUT_S, leave)
    timer.daemon = True
    timer.start()


def _exit_status_of(error: BaseException | None) -> int:
    if isinstance(error, TalkooError):
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
    return OUR_FAULT
