"""Requests made from the service's own description, valid and invalid, by schemathesis."""

import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
)

from tests.fuzz.answers import Answer
from tests.fuzz.attempt import Attempt

__all__ = ["Described"]

BASE = "http://127.0.0.1"
TAME = 0.4
"""Of the valid bodies: so many ask for what the model has, so that they are translated."""
DRESSED = 0.3
"""Of all: so many come with a query, header fields or a method that nobody describes."""
OTHERS = ("Content-Length", "X-Schemathesis-TestCaseId")
"""Header fields that are not sent as they are made: the second is another in every run."""
UNKNOWN = ("source", "target", "alternatives", "min_tokens", "layer", "head", "prefix", "model", "glossary")


@dataclass(frozen=True)
class _Operation:
    """A route with one method, and how its requests are made."""

    name: str
    strategy: Any
    negative: bool


class Described:
    """All operations of an OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._operations: list[_Operation] = []
        self._empty: set[str] = set()
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = result.ok()
            for mode in GenerationMode:
                name = f"schema: {operation.method.upper()} {operation.path} {mode.value}"
                strategy = operation.as_strategy(generation_mode=mode)
                self._operations.append(_Operation(name, strategy, mode.is_negative))

    def attempts(self, seed: int, count: int) -> Iterator[Attempt]:
        """About ``count`` attempts, the same for the same seed; operations that take a body are most of them."""
        chance = random.Random(f"described {seed}")
        bodies = [each for each in self._operations if "POST" in each.name]
        others = [each for each in self._operations if each not in bodies]
        for operation in bodies:
            yield from self._made(operation, seed, max(1, count * 4 // 5 // len(bodies)), chance)
        for operation in others:
            yield from self._made(operation, seed, max(1, count // 5 * 2 // len(others)), chance)

    def _made(self, operation: _Operation, seed: int, count: int, chance: random.Random) -> Iterator[Attempt]:
        if operation.name in self._empty:
            return
        cases: list[Any] = []
        phases, quiet = [Phase.generate], Verbosity.quiet

        @seeded(seed)
        @settings(
            max_examples=count,
            phases=phases,
            verbosity=quiet,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.strategy)
        def collect(case: Any) -> None:
            cases.append(case)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                collect()
        except Unsatisfiable:
            self._empty.add(operation.name)  # what takes nothing can be given nothing wrong
            return
        # An operation that takes nothing has one case, which is sent as often, differently dressed.
        for number in range(count if len(cases) == 1 else min(count, len(cases))):
            case = cases[number % len(cases)]
            if not operation.negative and chance.random() < TAME:
                _tame(case)
            yield _attempt(operation.name, case, chance)

    @staticmethod
    def faults(attempt: Attempt, answer: Answer) -> list[str]:
        """Where an answer is not what the description says."""
        request = requests.Request(**attempt.case.as_transport_kwargs(base_url=BASE)).prepare()
        headers: dict[str, list[str]] = {}
        for name, value in answer.headers:
            headers.setdefault(name, []).append(value)
        response = schemathesis.Response(answer.status, headers, answer.body, request, 0.0, False)
        checks = [content_type_conformance]
        if answer.header("content-type") and "event-stream" not in (answer.header("content-type") or ""):
            # A stream is described as a string; schemathesis would hold each of its events to that.
            checks.append(response_schema_conformance)
        if 200 <= answer.status < 300:
            checks.append(negative_data_rejection)
        try:
            attempt.case.validate_response(response, checks=checks)
        except (Failure, FailureGroup) as error:
            return [f"an answer is not as described: {_said(error)}"]
        return []


def _said(group: BaseException) -> str:
    """The first failure of a group, without the request that it belongs to."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return " ".join(str(group).split("\n\n")[0].split())[:300]


def _tame(case: Any) -> None:
    if isinstance(case.body, dict):
        for name in UNKNOWN:
            case.body.pop(name, None)
        if isinstance(case.body.get("beam_size"), int | float):
            case.body["beam_size"] = 1
        if isinstance(case.body.get("max_tokens"), int | float):
            case.body["max_tokens"] = min(30, case.body["max_tokens"])


def _attempt(name: str, case: Any, chance: random.Random) -> Attempt:
    prepared = requests.Request(**case.as_transport_kwargs(base_url=BASE)).prepare()
    parts = urlsplit(prepared.url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    method, body = prepared.method, prepared.body or b""
    body = body.encode() if isinstance(body, str) else body
    fields = {name: value for name, value in prepared.headers.items() if name not in OTHERS}
    given_length = body or method == "POST"
    if chance.random() < DRESSED:
        case = None
        draw = chance.random()
        if draw < 0.4:
            target += ("&" if "?" in target else "?") + chance.choice(["a=1", "%", "text=x", "a[]=%00", "stream=true"])
        elif draw < 0.7:
            fields |= {
                chance.choice(["Accept", "X-Request-ID", "X-A", "Cookie"]): chance.choice(["x", "*/*", "\xe4", ""])
            }
        else:
            method = chance.choice(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
    fields |= {"Host": "127.0.0.1"} | ({"Content-Length": str(len(body))} if given_length else {})
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {_text(value)}" for name, value in fields.items()), "", ""]
    sent = "\r\n".join(lines).encode("latin-1", "replace") + body
    return Attempt(name, (sent,), methods=(method,), case=case)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def document(content: bytes) -> dict[str, Any]:
    """An OpenAPI document as it was answered."""
    found = json.loads(content)
    assert isinstance(found, dict)
    return found
