"""Waiting for a process that `subprocess` started, without a thread.

Services run on uvloop, whose own way to start a process forks and runs the fork handlers of everything loaded. Seen
of gRPC's: the child hangs on a lock, or aborts on a failed check, before it becomes the program asked for. `subprocess`
uses vfork and exec and runs no handlers.
"""

from __future__ import annotations

import asyncio
import os
import subprocess


async def exit_status(process: subprocess.Popen[bytes]) -> int:
    """When it has ended: its status, negative for a signal. May be awaited again."""
    ended = asyncio.Event()
    if process.poll() is None:
        watch = os.pidfd_open(process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(watch, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(watch)
            os.close(watch)
    return process.wait()
