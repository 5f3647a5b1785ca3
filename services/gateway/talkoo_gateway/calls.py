"""One HTTP call as a handler sees it: its path, its checked query, its bounded body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from talkoo_core.errors import Exhausted, InvalidInput
from talkoo_gateway.desk import Desk

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """`query` is an instance of the operation's query model."""

    desk: Desk
    request: Request
    path: Mapping[str, str]
    query: BaseModel

    async def body(self, most_bytes: int) -> bytes:
        """The whole body. Raises Exhausted (code `too_large`)."""
        return b"".join([part async for part in self.body_parts(most_bytes)])

    async def body_parts(self, most_bytes: int) -> AsyncIterator[bytes]:
        """The body as it arrives; refused at once when its declared length is over the bound."""
        declared = self.request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most_bytes:
            raise _too_large(most_bytes)
        size = 0
        async for part in self.request.stream():
            size += len(part)
            if size > most_bytes:
                raise _too_large(most_bytes)
            if part:
                yield part


def read_query(model: type[M], request: Request) -> M:
    """Raises InvalidInput with the first thing that is wrong."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid(error, "query") from None


def read_json(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, "body") from None


def invalid(error: ValidationError, where: str) -> InvalidInput:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return InvalidInput(
        f"the {where} is wrong{f' at {place}' if place else ''}: {message}; see /openapi.json", code="bad_request"
    )


def _too_large(most_bytes: int) -> Exhausted:
    return Exhausted(f"the body is over {most_bytes / (1 << 20):g} MiB; send less", code="too_large")
