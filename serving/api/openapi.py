"""The OpenAPI document, from routes and the models of their bodies."""

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serving.api.dialect import Operation

VERSION = "3.1.0"
"""Of OpenAPI."""
REFERENCE = "#/components/schemas/{model}"


def document(title: str, version: str, routes: Iterable[Operation], problem: type[BaseModel]) -> dict[str, Any]:
    """What ``routes`` take and give; whatever goes wrong is a ``problem``."""
    described = [
        (body, mode)
        for route in routes
        for body, mode in (
            (route.takes, "validation"),
            *((given, "serialization") for given in (route.gives, *route.events.values())),
        )
        if body
    ]
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [*described, (problem, "serialization")]  # type: ignore[list-item]
    references, definitions = models_json_schema(wanted, ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references, problem)
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(route: Operation, references: dict[Any, Any], problem: type[BaseModel]) -> dict[str, Any]:
    content: dict[str, Any] = {route.media_type: {}}
    if route.gives:
        content = {route.media_type: {"schema": references[route.gives, "serialization"]}}
    if route.events:
        names = ", ".join(f"`{name}` (with a {body.__name__})" for name, body in route.events.items())
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"Events: {names}."}}
    wrong = {"application/problem+json": {"schema": references[problem, "serialization"]}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0],
        "responses": {
            "200": {"description": "The answer", "content": content},
            "default": {"description": "What went wrong", "content": wrong},
        },
    }
    if route.takes:
        schema = references[route.takes, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
