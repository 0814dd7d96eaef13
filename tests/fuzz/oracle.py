"""What is wrong with how an attempt ended."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fuzz.answers import Answer
from tests.fuzz.attempt import MARKER, Attempt, Outcome

__all__ = ["Limits", "judge"]

PROBLEM = {"type": str, "title": str, "status": int, "detail": str}
EARLY = 0.9
"""Of the service's time-out: before that, nothing has timed out."""
LATE = (408, 504)


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    timeout: float
    """The service's own: a request stops after it."""
    hang: float
    """In which everything has ended."""


def judge(attempt: Attempt, outcome: Outcome, limits: Limits) -> list[str]:
    """A sentence for each fault, none if all is well."""
    faults: list[str] = []
    if outcome.end == "hung":
        faults.append(f"the service neither answered nor ended the connection within {limits.hang:g} s")
        if outcome.rest:
            faults.append("what was received last is no whole answer")
    if outcome.end == "refused":
        faults.append("the service took no connection")
    if outcome.malformed:
        faults.append(f"the answer is no HTTP: {outcome.malformed}")
    elif outcome.rest and outcome.end in ("closed", "reset"):
        faults.append("the answer breaks off")
    faults += _count(attempt, outcome)
    for number, answer in enumerate(outcome.answers):
        faults += _answer(attempt, answer, attempt.allowed(number))
        if answer.status in LATE and outcome.seconds < EARLY * limits.timeout:
            faults.append(f"status {answer.status} came before the time-out")
    return list(dict.fromkeys(faults))


def _count(attempt: Attempt, outcome: Outcome) -> list[str]:
    """Faults in the number of answers, and in what is after the last of them."""
    faults, count = [], len(outcome.answers)
    if attempt.methods is None:
        # Every request's head ends with a blank line; what is no request may be answered once.
        if count > len(re.findall(rb"\n\r?\n", attempt.sent)) + 1:
            faults.append("there are more answers than requests")
    else:
        if count > len(attempt.methods) or (not attempt.methods and outcome.received):
            faults.append("there are more answers than requests")
        refused = count > 0 and outcome.answers[-1].closes and outcome.answers[-1].status >= 400
        ended = attempt.end == "wait" and outcome.end in ("closed", "reset", "open") and not outcome.malformed
        if ended and not refused and count < len(attempt.methods):
            faults.append("the connection ended without an answer to a request")
    if any(each.closes for each in outcome.answers[:-1]):
        faults.append("an answer came after one that said that the connection closes")
    if attempt.old and count and outcome.end == "open":
        faults.append("the connection of HTTP/1.0 did not end with the answer")
    return faults


def _answer(attempt: Attempt, answer: Answer, allowed: frozenset[int] | None) -> list[str]:
    faults, status = [], answer.status
    if allowed is not None and status not in allowed | {429, 504}:
        faults.append(f"status {status} where {_listed(allowed)} is right")
    if _wrong(status):
        faults.append(f"status {status}")
    if any(each != 100 for each in answer.informational):
        faults.append(f"status {answer.informational}, and nobody asked for it")
    # A client that sends no more is asked in this way whether it is there: every client may be sent it.
    asked = attempt.end == "half-close" or re.search(rb"expect", attempt.sent, re.IGNORECASE)
    if answer.informational and not asked:
        faults.append("status 100, and nobody asked for it")
    if attempt.old and answer.header("transfer-encoding"):
        faults.append("an answer to HTTP/1.0 has a Transfer-Encoding")
    if attempt.hidden and MARKER in answer.body:
        faults.append("a request that was hidden in a body was answered")
    if status == 405 and not answer.header("allow"):
        faults.append("status 405 without Allow")
    if (
        status == 415
        and re.search(rb"content-encoding", attempt.sent, re.IGNORECASE)
        and not answer.header("accept-encoding")
    ):
        faults.append("status 415 without Accept-Encoding")
    if answer.head and answer.body:
        faults.append("an answer to HEAD has a body")
    return faults + (_problem(attempt, answer) if status >= 400 else _content(answer))


def _wrong(status: int) -> bool:
    """Whether a service that is alone and well never answers so."""
    return (status >= 500 and status not in (501, 504, 505)) or status < 200 or 300 <= status < 400


def _listed(statuses: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(statuses)))


def _type(answer: Answer) -> str:
    return (answer.header("content-type") or "none").partition(";")[0].strip().lower()


def _parsed(content: bytes | str) -> Any:
    """The value of JSON that any reader takes; ValueError."""

    def refused(name: str) -> None:
        raise ValueError(name)

    return json.loads(content, parse_constant=refused)


def _problem(attempt: Attempt, answer: Answer) -> list[str]:
    """What an error lacks to be a problem (RFC 9457)."""
    if _type(answer) != "application/problem+json":
        return [f"status {answer.status} is {_type(answer)}, not application/problem+json"]
    if answer.head:
        return []
    try:
        problem = _parsed(answer.body)
    except ValueError as error:
        return [f"a problem is no JSON: {error}"]
    faults = _problem_faults(problem, answer.status)
    if not faults and answer.status == 404 and attempt.names and attempt.names not in problem["detail"]:
        faults.append("status 404 does not name the path")
    return faults


def _problem_faults(problem: Any, status: int | None) -> list[str]:
    if not isinstance(problem, dict):
        return ["a problem is no object"]
    faults = [f"a problem has no {name}" for name, kind in PROBLEM.items() if not isinstance(problem.get(name), kind)]
    if status and problem.get("status") != status:
        faults.append("a problem's status is not the answer's")
    return faults


def _content(answer: Answer) -> list[str]:
    """What is wrong with the body of an answer that is no error."""
    read: dict[str, Callable[[bytes], object]] = {
        "application/json": _parsed, "text/event-stream": _events, "text/plain": bytes.decode,
    }  # fmt: skip
    if answer.head or answer.status == 204:
        return []
    if _type(answer) not in read:
        return [f"status {answer.status} is {_type(answer)}"]
    try:
        read[_type(answer)](answer.body)
    except ValueError as error:
        return [f"the body is no {_type(answer)}: {error}"]
    return []


def _events(body: bytes) -> None:
    """ValueError unless ``body`` is events of a translation, the last of them its result or a problem."""
    blocks = body.decode().split("\n\n")
    if blocks.pop():
        raise ValueError("the last event has no end")
    names = []
    for block in blocks:
        name, _, data = block.partition("\ndata: ")
        names.append(name.removeprefix("event: "))
        value = _parsed(data)
        if names[-1] == "error" and (faults := _problem_faults(value, None)):
            raise ValueError(faults[0])
        if names[-1] == "error" and _wrong(value["status"]):
            raise ValueError(f"an error event of status {value['status']}")
    if not names or names[-1] not in ("result", "error") or set(names[:-1]) - {"delta"}:
        raise ValueError(f"its events are {', '.join(names)[:200]}")
