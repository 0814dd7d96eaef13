"""Answers of two services to one question, compared byte for byte but for the times in them."""

import http.client
import re
from typing import NamedTuple

from loadtest.timings import server_timing
from serving.bench.questions import Question

PATIENCE = 120.0
"""Seconds after which an answer is given up."""
CONTEXT = 60
"""Bytes that are shown before and after the first that differs."""
_DELTA = re.compile(rb'(event: delta\ndata: \{.*"text": ?")(.*)("\})', re.DOTALL)
_TIMINGS = re.compile(rb'("timings": ?\{)([^}]*)\}')
_VALUE = re.compile(rb"(:)[^,]*")


class Answer(NamedTuple):
    """What is compared of an answer."""

    status: str
    """Or what became of the connection instead."""
    content_type: str
    stages: str
    """The names in ``Server-Timing``."""
    content: bytes
    """The body without its times."""


class Difference(NamedTuple):
    """Two answers to one question that are not alike."""

    question: Question
    old: Answer
    new: Answer

    def __str__(self) -> str:
        lines = [f"{self.question}"]
        for name in ("status", "content_type", "stages"):
            old, new = getattr(self.old, name), getattr(self.new, name)
            if old != new:
                lines.append(f"  {name}: old {old!r}, new {new!r}")
        old, new = self.old.content, self.new.content
        if old != new:
            same = zip(old, new, strict=False)
            at = next((number for number, (one, other) in enumerate(same) if one != other), min(len(old), len(new)))
            part = slice(max(0, at - CONTEXT), at + CONTEXT)
            lines += [
                f"  body at byte {at}: old {old[part]!r}",
                f"  {'':{len(f'body at byte {at}:')}} new {new[part]!r}",
            ]
        elif self.old == self.new:
            lines.append(f"  neither answers: {self.old.status}")
        return "\n".join(lines)


def ask(port: int, question: Question) -> Answer:
    """The answer of the service on this machine's ``port``, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(question.method, question.route, question.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        return Answer(f"{type(error).__name__}: {error}", "", "", b"")
    finally:
        connection.close()
    content_type = response.getheader("Content-Type", "")
    stages = ", ".join(server_timing(response.getheader("Server-Timing", "")))
    if content_type.startswith("text/event-stream"):
        content = without_times(content)
    return Answer(str(response.status), content_type, stages, content)


def compare(question: Question, old: Answer, new: Answer) -> Difference | None:
    """What differs; None when the answers are alike. Two that never came are not."""
    return None if old == new and old.status.isdigit() else Difference(question, old, new)


def without_times(stream: bytes) -> bytes:
    """A stream of server-sent events without what time decides.

    How a text is cut into deltas depends on time: those of each index are joined. The numbers in ``timings`` are left
    out, and their names stay.
    """
    deltas: dict[tuple[bytes, bytes], bytes] = {}
    others = list[bytes]()
    for event in stream.split(b"\n\n"):
        delta = None if others else _DELTA.fullmatch(event)
        if delta:
            frame = delta[1], delta[3]
            deltas[frame] = deltas.get(frame, b"") + delta[2]
        else:
            others.append(_TIMINGS.sub(lambda match: match[1] + _VALUE.sub(rb"\1", match[2]) + b"}", event))
    joined = [begin + text + end for (begin, end), text in sorted(deltas.items())]
    return b"\n\n".join([*joined, *others])
