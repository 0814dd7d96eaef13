"""How a client behaves on its connection: it leaves, is slow, asks several things at once, or says nothing."""

import random
import struct
from dataclasses import replace

from tests.fuzz.attempt import Attempt
from tests.fuzz.valid import post, valid

__all__ = ["KINDS", "TIMEOUT"]

TIMEOUT = 3
"""Seconds, the service's while it is tried."""
DRIPS = 9


def as_it_should_be(chance: random.Random) -> Attempt:
    return valid(chance).attempt()


def pipelined(chance: random.Random) -> Attempt:
    """Several requests at once: as many answers, in order."""
    requests = [valid(chance) for _ in range(chance.randint(2, 5))]
    return Attempt(
        "",
        (b"".join(each.wire() for each in requests),),
        methods=tuple(each.method for each in requests),
        turns=tuple(each.statuses for each in requests),
    )


def pipelined_with_bad(chance: random.Random) -> Attempt:
    """After what is no request, nothing is answered."""
    sent = (
        valid(chance).wire()
        + chance.choice([b"\0\0\r\n\r\n", b"GET\r\n\r\n", b"x" * 50 + b"\r\n\r\n"])
        + valid(chance).wire()
    )
    return Attempt("", (sent,))


def half_closed(chance: random.Random) -> Attempt:
    """A client that has said all it wants to say, and listens."""
    return valid(chance).attempt(end="half-close")


def half_closed_early(chance: random.Random) -> Attempt:
    wire = valid(chance).wire()
    return Attempt("", (wire[: chance.randrange(1, len(wire))],), end="half-close")


def slow(chance: random.Random) -> Attempt:
    """In small parts, but in time."""
    request = valid(chance)
    wire, count = request.wire(), chance.randint(2, 12)
    places = sorted({0, *(chance.randrange(len(wire)) for _ in range(count))})
    parts = tuple(wire[begin:end] for begin, end in zip(places, [*places[1:], len(wire)], strict=True))
    return request.attempt(parts=parts, pause=0.4 / len(parts))


def body_that_never_ends(chance: random.Random) -> Attempt:
    """It is answered with 408."""
    wire = post(chance).wire()
    return Attempt("", (wire[: -chance.randint(1, 5)],), methods=("POST",), statuses=frozenset({408}))


def dripping(chance: random.Random) -> Attempt:
    """There is always a little more, past the time-out, which counts from the first byte: 408."""
    wire = post(chance).wire()
    places = sorted(chance.sample(range(1, len(wire)), DRIPS))
    parts = tuple(wire[begin:end] for begin, end in zip([0, *places], [*places, len(wire)], strict=True))
    return Attempt("", parts, pause=1.5 * TIMEOUT / DRIPS, methods=("POST",), statuses=frozenset({408}))


def one_after_another(chance: random.Random) -> Attempt:
    """Several requests on a connection, each perhaps before the one before it is answered."""
    requests = [valid(chance) for _ in range(chance.randint(2, 5))]
    return Attempt(
        "",
        tuple(each.wire() for each in requests),
        pause=chance.choice([0.01, 0.1]),
        methods=tuple(each.method for each in requests),
        turns=tuple(each.statuses for each in requests),
    )


def reset(chance: random.Random) -> Attempt:
    wire = valid(chance).wire()
    return Attempt("", (wire[: chance.choice([1, len(wire) // 2, len(wire)])],), end="reset")


def gone(chance: random.Random) -> Attempt:
    """It asks and does not wait for the answer."""
    wire = post(chance).wire() * chance.randint(1, 3)
    return Attempt("", (wire[: chance.choice([len(wire) // 2, len(wire), len(wire)])],), end="leave")


def silent(chance: random.Random) -> Attempt:
    """Nothing is asked, nothing is answered."""
    return Attempt("", (chance.choice([b"", b"", b"\r\n", b"\r\n\r\n"]),), methods=())


def trickled_noise(chance: random.Random) -> Attempt:
    wire = bytearray(valid(chance).wire())
    wire[chance.randrange(len(wire))] ^= 0x20
    middle = chance.randrange(len(wire))
    return Attempt("", (bytes(wire[:middle]), bytes(wire[middle:])), pause=0.05)


def h2_preface_after(chance: random.Random) -> Attempt:
    """A client that is told nothing of HTTP/2 and speaks it all the same."""
    frame = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + struct.pack(">HI", 3, 100)
    sent = replace(valid(chance), method="GET", body=b"").wire() + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame
    return Attempt("", (sent,))


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        as_it_should_be, pipelined, pipelined_with_bad, half_closed, half_closed_early, slow, body_that_never_ends, dripping,
        one_after_another, reset,
        gone, silent, trickled_noise, h2_preface_after,
    )
}  # fmt: skip
"""What makes an attempt, by name."""
