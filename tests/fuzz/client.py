"""A client that sends bytes as they are."""

import contextlib
import re
import socket
import struct
import time
from typing import Literal

from tests.fuzz.answers import NotHTTP, read
from tests.fuzz.attempt import Attempt, Outcome

__all__ = ["perform"]

QUIET = 0.2
"""Seconds without a byte after which no further answer to mutated bytes is waited for."""
LINGER = 0.02
"""The same where everything was answered: what comes now answers no request."""
SILENCE = 0.3
"""Seconds for which a client that has asked nothing listens."""


def perform(address: tuple[str, int], attempt: Attempt, limit: float) -> Outcome:
    """Do what ``attempt`` says; it hangs when it has not ended within ``limit`` seconds of the last byte sent."""
    begin = time.monotonic()
    try:
        client = socket.create_connection(address, timeout=limit)
    except OSError:
        return Outcome(b"", (), "refused", time.monotonic() - begin)
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What a server that has heard enough said before it cut us off can still be read.
        with contextlib.suppress(OSError):
            for number, part in enumerate(attempt.parts):
                if number:
                    time.sleep(attempt.pause)
                client.sendall(part)
            if attempt.end == "half-close":
                client.shutdown(socket.SHUT_WR)
        if attempt.end in ("reset", "leave"):
            if attempt.end == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Outcome(b"", (), "left", time.monotonic() - begin)
        return _listen(client, attempt, begin, time.monotonic() + limit)


def _listen(client: socket.socket, attempt: Attempt, begin: float, deadline: float) -> Outcome:
    """Read until everything is answered, the connection has ended, or ``deadline``."""
    received = bytearray()
    sent = attempt.sent
    asked, head = bool(sent.strip()), re.search(rb"HEAD", sent, re.IGNORECASE) is not None
    end: Literal["open", "closed", "reset", "hung"] = "hung"
    answers, rest, malformed = (), b"", ""
    last = time.monotonic()
    while (now := time.monotonic()) < deadline:
        complete = bool(answers) and not rest
        every = attempt.methods is None or len(answers) >= len(attempt.methods)
        until = deadline
        if not asked:
            until = last + SILENCE
        elif complete and every and not answers[-1].closes and not attempt.old:
            until = last + (QUIET if attempt.methods is None else LINGER)
        if now >= until:
            end = "open"
            break
        client.settimeout(min(until, deadline) - now)
        try:
            part = client.recv(2**18)
        except TimeoutError:
            continue
        except OSError:
            end = "reset"
        else:
            end = "hung" if part else "closed"
        last = time.monotonic()
        received += part if end == "hung" else b""
        try:
            answers, rest = read(bytes(received), attempt.methods, end != "hung", head)
        except NotHTTP as error:
            malformed = str(error)
        if end != "hung" or malformed:
            break
    if malformed and end == "hung":
        end = "open"
    return Outcome(bytes(received), answers, end, time.monotonic() - begin, malformed, rest)
