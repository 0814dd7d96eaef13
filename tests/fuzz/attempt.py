"""What one client does on a connection of its own, and how that ended."""

import ast
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tests.fuzz.answers import Answer

__all__ = ["MARKER", "Attempt", "Outcome", "load", "save"]

MARKER = b"smuggled"
"""It stands in the path of requests that are hidden in a body: no answer may name it."""


@dataclass(frozen=True)
class Attempt:
    """What a client sends, and what it may expect."""

    kind: str
    parts: tuple[bytes, ...]
    """Sent one after another."""
    pause: float = 0.0
    """Seconds between two parts."""
    end: Literal["wait", "half-close", "reset", "leave"] = "wait"
    """What the client does when all is sent."""
    methods: tuple[str, ...] | None = None
    """Of the requests that it makes, each of which must be answered; None where the bytes were mutated, so that nobody
    knows."""
    statuses: frozenset[int] | None = None
    """One of these is the status of every answer; None for all that is not an error of the service."""
    turns: tuple[frozenset[int], ...] = ()
    """The same for each of several answers, in their order."""
    old: bool = False
    """It speaks HTTP/1.0."""
    hidden: bool = False
    """A request is hidden in its body, which must not be answered."""
    names: str = ""
    """What the detail of a problem must name."""
    case: Any = field(default=None, compare=False, repr=False)
    """The case of the schema that it was made from, if any."""

    @property
    def sent(self) -> bytes:
        return b"".join(self.parts)

    def allowed(self, number: int) -> frozenset[int] | None:
        """The statuses of the answer of that number, from 0 on."""
        return self.turns[number] if number < len(self.turns) else self.statuses


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    received: bytes
    answers: tuple[Answer, ...]
    """Those that are complete."""
    end: Literal["open", "closed", "reset", "left", "hung", "refused"]
    """"open": everything was answered and the connection could be used again; "left": the client went."""
    seconds: float
    malformed: str = ""
    """Why what was received is no HTTP."""
    rest: bytes = b""
    """What was received after the last complete answer."""


def save(attempt: Attempt, faults: list[str], outcome: Outcome, folder: Path) -> Path:
    """Write an attempt as a Python literal, so that `load` reads it; returns the file."""
    members = asdict(replace(attempt, case=None))
    members.pop("case")  # what was sent is in its parts
    members["statuses"] = None if attempt.statuses is None else sorted(attempt.statuses)
    members["turns"] = [sorted(each) for each in attempt.turns]
    told = {"attempt": members, "faults": faults, "end": outcome.end, "received": outcome.received[:10_000]}
    name = "-".join(re.findall(r"\w+", attempt.kind))
    file = folder / f"{name}-{time.monotonic_ns()}.txt"
    file.write_text(f"{told!r}\n", encoding="utf-8")
    return file


def load(file: Path) -> Attempt:
    """The attempt that `save` wrote."""
    members = ast.literal_eval(file.read_text(encoding="utf-8"))["attempt"]
    members["statuses"] = None if members["statuses"] is None else frozenset(members["statuses"])
    members["turns"] = tuple(map(frozenset, members["turns"]))
    return Attempt(**members)
