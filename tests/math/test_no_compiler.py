"""The stand-in for torch's compiler, in a process of its own, since an import happens once."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from talkoo_math.determinism import make_deterministic
make_deterministic()
import torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.Adam([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
assert "sympy" not in sys.modules, "an optimizer step has loaded the compiler"
from torch._dynamo.utils import is_compile_supported
assert torch._dynamo.config.cache_size_limit > 0, "whoever asks for the compiler gets the real one"
assert "sympy" in sys.modules
weight.sum().backward()
optimizer.step()
"""


def test_the_compiler_stays_out_until_somebody_asks_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
