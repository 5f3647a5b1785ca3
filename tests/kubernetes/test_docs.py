"""The pages for users of a cluster name every field, reason and condition, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from talkoo_ledger import bounds

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kubernetes-tasks.md").read_text(encoding="utf-8")
OPERATOR = ROOT / "operator" / "talkoo_operator"


def test_the_reference_is_what_the_schemas_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_crd_docs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_reason_of_a_task_is_explained() -> None:
    documented = set(re.findall(r"`([A-Z][A-Za-z]+)`", PAGE[PAGE.index("## By reason") : PAGE.index("## For adm")]))
    modules = ("tasks.py", "endings.py", "status.py", "plan.py")
    text = "".join((OPERATOR / name).read_text(encoding="utf-8") for name in modules)
    words = set(re.findall(r'"([A-Z][a-z]+(?:[A-Z][a-z]+)*)"', text))
    others = {
        *("Pending", "Running", "Verifying", "Succeeded", "Failed", "True", "False", "Unknown"),  # phases, values
        *("Accepted", "Funded", "Placed", "Verified", "Ready"),  # conditions, the last of other kinds
        *("InEscrow", "AllSegmentsAccepted", "SegmentsOpen", "NoPause", "NotSuspended"),  # reasons of one condition
        *("Normal", "Warning", "Submitted", "ModelVersion"),  # events, a kind
    }
    assert words - others <= documented, words - others - documented
    kinds = {"".join(part.capitalize() for part in kind.split("_")) for kind in bounds.FAILURE_KINDS}
    assert kinds <= documented, kinds - documented
    assert documented <= words | kinds, documented - words - kinds
