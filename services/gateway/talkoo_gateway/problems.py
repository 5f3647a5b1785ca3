"""Errors over HTTP: RFC 9457 problem details that keep the family and the code."""

from __future__ import annotations

import json
import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from talkoo_core.errors import TalkooError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:talkoo:problem:"
_STATUS = {
    "invalid_input": 400,
    "insufficient_funds": 402,
    "permission_denied": 403,
    "not_found": 404,
    "conflict": 409,
    "corrupt": 422,
    "failed": 422,
    "exhausted": 429,
    "internal": 500,
    "unavailable": 503,
}
_STATUS_OF_CODE = {"no_token": 401, "too_large": 413}
_FAMILY_OF_STATUS = {404: "not_found", 405: "invalid_input", 413: "exhausted"}


def problem(family: str, code: str, detail: str) -> dict[str, object]:
    """The members of the document."""
    status = _STATUS_OF_CODE.get(code) or _STATUS.get(family, 500)
    title = family.replace("_", " ").capitalize()
    return {
        "type": TYPE_PREFIX + family,
        "title": title,
        "status": status,
        "detail": detail,
        "family": family,
        "code": code,
    }


def problem_response(family: str, code: str, detail: str, status: int = 0) -> Response:
    document = problem(family, code, detail)
    if status:
        document["status"] = status
    headers = {}
    if document["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if family == "unavailable":
        headers["Retry-After"] = "1"
    body = json.dumps(document, ensure_ascii=False)
    return Response(body, int(str(document["status"])), headers, CONTENT_TYPE)


async def on_talkoo_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TalkooError)
    return problem_response(error.family, error.code, error.message)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    family = _FAMILY_OF_STATUS.get(error.status_code, "invalid_input")
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /openapi.json lists what there is"
    elif error.status_code == 405:
        detail = f"{request.url.path} does not take {request.method}; /openapi.json says what it takes"
    return problem_response(family, family, detail, error.status_code)


async def on_fault(request: Request, error: Exception) -> Response:
    """Our own fault: the caller learns that, the log learns why."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response("internal", "internal", "this is a fault of the gateway; its log says more")
