"""Talkoo: train together, prove the training, be paid on a shared ledger.

    import talkoo

    client = talkoo.Client()
    task = client.submit("task.yaml")
    print(task.wait().model_version)

Importing the package is light; gRPC is loaded when a client is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from talkoo.version import __version__

if TYPE_CHECKING:
    from talkoo.client import Client, Task
    from talkoo.client_async import AsyncClient
    from talkoo.profile import Profile
    from talkoo_core.errors import TalkooError

__all__ = ["AsyncClient", "Client", "Profile", "TalkooError", "Task", "__version__"]

_HOMES = {
    "AsyncClient": "talkoo.client_async",
    "Client": "talkoo.client",
    "Profile": "talkoo.profile",
    "TalkooError": "talkoo_core.errors",
    "Task": "talkoo.client",
}


def __getattr__(name: str) -> Any:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module 'talkoo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
