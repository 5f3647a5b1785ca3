"""What ABCI's Query and the RPC's abci_query answer: a committed value of the state, with its proof.

Path `/store/<module>/key`, data: the key. The proof leads from the value, or its absence, to the state root, which
stands in the header of the block behind `height`.
"""

from __future__ import annotations

from dataclasses import dataclass

from talkoo_core.errors import InvalidInput, TalkooError
from talkoo_ledger.application import Application
from talkoo_ledger.ics23 import ProofOp, state_proof_ops
from talkoo_ledger.transition import failed

MAX_PATH_LENGTH = 128
MAX_KEY_BYTES = 256


@dataclass(frozen=True, slots=True)
class AbciAnswer:
    """`code` 0: the value as of `height`, empty where there is none; else `log` says what was wrong."""

    code: int
    log: str
    key: bytes
    value: bytes
    height: int
    proof_ops: tuple[ProofOp, ...] = ()


def answer(application: Application, path: str, data: bytes, height: int, prove: bool) -> AbciAnswer:
    """`height` 0: the last committed one, which is the only one that is kept. Raises nothing that is the asker's."""
    try:
        module, key = _place(application, path, data, height)
        found = application.query(module, key)
    except TalkooError as error:
        code = failed(b"", error).code
        return AbciAnswer(code, str(error), data[:MAX_KEY_BYTES], b"", application.info().height)
    log = "exists" if found.value is not None else "does not exist"
    ops = state_proof_ops(application, module, key) if prove else ()
    return AbciAnswer(0, log, data, found.value or b"", found.height, ops)


def _place(application: Application, path: str, data: bytes, height: int) -> tuple[str, str]:
    """Module and key that are asked for."""
    last = application.info().height
    if height not in (0, last):
        raise InvalidInput(
            f"only the state of the last block, {last}, can be asked for, not that of {height}", code="bad_height"
        )
    parts = path.split("/") if len(path) <= MAX_PATH_LENGTH else []
    if len(parts) != 4 or parts[0] or parts[1] != "store" or parts[3] != "key":
        raise InvalidInput(f"the path {path[:MAX_PATH_LENGTH]!r} is not /store/<module>/key", code="bad_path")
    if not 0 < len(data) <= MAX_KEY_BYTES:
        raise InvalidInput(f"a key has 1 to {MAX_KEY_BYTES} bytes and is given as data", code="bad_key")
    try:
        key = data.decode()
    except UnicodeDecodeError:
        raise InvalidInput("a key of the state is a text in UTF-8", code="bad_key") from None
    return parts[2], key
