"""The bearer token of writes over REST: random, made once, readable by the gateway's user only."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from starlette.requests import Request

from talkoo_core.errors import Corrupt, PermissionDenied

TOKEN_FILE = "rest.token"  # noqa: S105  # a file's name
TOKEN_BYTES = 32


def ensure_token(state_dir: Path) -> str:
    """Read `<state_dir>/rest.token`, or make it with mode 0600."""
    path = state_dir / TOKEN_FILE
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="ascii").strip()
        if len(token) < TOKEN_BYTES:
            raise Corrupt(f"{path} does not hold a token; remove the file and start the gateway again") from None
        return token
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


def require_token(request: Request, token: str) -> None:
    """Raises PermissionDenied (codes `no_token`, `wrong_token`)."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise PermissionDenied(
            f"this call needs `Authorization: Bearer …` with the token in the gateway's {TOKEN_FILE}", code="no_token"
        )
    if not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise PermissionDenied(f"the bearer token is not this gateway's; its {TOKEN_FILE} holds it", code="wrong_token")
