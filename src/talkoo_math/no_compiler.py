"""Keep torch's graph compiler out of processes that never compile.

torch's optimizers and DDP import `torch._dynamo` (with sympy and a thousand modules more) only to tell a compiler that
is not there to leave them alone. Measured with torch 2.13 on one core: 6 to 8 s of processor time in each trainer
before its first step. So a stand-in answers the few calls they make. Whatever else is asked of it loads the real
module, so that a user's program which does need it still works.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

NAME = "torch._dynamo"


def _disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    """`torch._dynamo.disable` without a compiler: the function itself."""
    return function


def _nothing() -> None:
    return None


class _NoCompiler(ModuleType):
    def __init__(self) -> None:
        super().__init__(NAME)
        self.disable = _disable
        self.graph_break = _nothing
        self.utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
        self.trace_rules = SimpleNamespace(clear_lru_cache=_nothing)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # a path is asked for by an import from inside the package
            raise AttributeError(name)
        return getattr(_real(), name)


def _real() -> ModuleType:
    if isinstance(sys.modules.get(NAME), _NoCompiler):
        import torch

        del sys.modules[NAME]
        del torch._dynamo  # torch looks it up by itself while the real one is being loaded
    return importlib.import_module(NAME)


def leave_compiler_out() -> None:
    """Call before the first optimizer or DDP is made. Does nothing when the compiler is loaded already."""
    if NAME in sys.modules:
        return
    import torch

    stand_in = _NoCompiler()
    sys.modules[NAME] = stand_in
    torch._dynamo = stand_in
