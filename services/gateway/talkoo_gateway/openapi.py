"""The OpenAPI 3.1 document, from the table of operations and the pydantic models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from talkoo_gateway.operations import BINARY, Operation
from talkoo_gateway.problems import CONTENT_TYPE
from talkoo_gateway.schemas import Problem

TEMPLATE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{(\w+)}")


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole document as a plain value."""
    models: set[type[BaseModel]] = {Problem}
    models |= {operation.gives for operation in operations if operation.gives}
    models |= {operation.body for operation in operations if operation.body}
    ordered = sorted(models, key=lambda model: model.__name__)
    references, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=TEMPLATE)
    by_model = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_model)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Talkoo gateway",
            "version": version,
            "description": "Everything that the command line does, over HTTPS. Integers are exact; bytes are hex.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, references: Mapping[Any, Any]) -> dict[str, Any]:
    schema = references[operation.gives] if operation.gives else {}
    content = {operation.media: {"schema": schema}} if operation.gives or operation.media != BINARY else {BINARY: {}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identity(operation),
        "parameters": _parameters(operation),
        "responses": {
            str(operation.status): {"description": operation.summary, "content": content},
            "default": {
                "description": "What was wrong and what to do.",
                "content": {CONTENT_TYPE: {"schema": references[Problem]}},
            },
        },
    }
    bodies: dict[str, Any] = {}
    if operation.body:
        bodies["application/json"] = {"schema": references[operation.body]}
    if operation.binary_body:
        bodies[BINARY] = {}
    if bodies:
        described["requestBody"] = {"required": True, "content": bodies}
    if operation.token:
        described["security"] = [{"token": []}]
    return described


def _identity(operation: Operation) -> str:
    words = re.findall(r"[a-z]+", operation.path.replace("/v1/", "/"))
    return "_".join([operation.method.lower(), *words])


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    properties = operation.query.model_json_schema(by_alias=True).get("properties", {})
    for name, schema in properties.items():
        found.append({"name": name, "in": "query", "required": False, "schema": schema})
    return found
