"""Valid requests whose bytes are changed by chance: nobody knows then what they mean."""

import random
from collections.abc import Callable

from tests.fuzz.attempt import Attempt
from tests.fuzz.valid import valid

__all__ = ["KINDS"]


def flipped(chance: random.Random, data: bytearray) -> bytes:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def overwritten(chance: random.Random, data: bytearray) -> bytes:
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.choice(b'\0\r\n\t :;,/\x7f\x80\xff%"')
    return bytes(data)


def inserted(chance: random.Random, data: bytearray) -> bytes:
    place = chance.randrange(len(data) + 1)
    data[place:place] = chance.randbytes(chance.randint(1, 30))
    return bytes(data)


def cut(chance: random.Random, data: bytearray) -> bytes:
    """Without its end: the rest never arrives."""
    return bytes(data[: chance.randrange(1, len(data))])


def hole(chance: random.Random, data: bytearray) -> bytes:
    begin = chance.randrange(len(data))
    return bytes(data[:begin] + data[begin + chance.randint(1, 40) :])


def doubled(chance: random.Random, data: bytearray) -> bytes:
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.randint(1, 100))
    return bytes(data[:end] + data[begin:end] * chance.randint(1, 5) + data[end:])


def dropped_line(chance: random.Random, data: bytearray) -> bytes:
    lines = bytes(data).split(b"\r\n")
    del lines[chance.randrange(len(lines))]
    return b"\r\n".join(lines)


def swapped_lines(chance: random.Random, data: bytearray) -> bytes:
    lines = bytes(data).split(b"\r\n")
    chance.shuffle(lines)
    return b"\r\n".join(lines)


def bare_lf(chance: random.Random, data: bytearray) -> bytes:
    return bytes(data).replace(b"\r\n", b"\n", chance.choice([-1, 1, 2, 3]))


def bare_cr(chance: random.Random, data: bytearray) -> bytes:
    return bytes(data).replace(b"\r\n", b"\r", chance.choice([-1, 1, 2]))


def nul(chance: random.Random, data: bytearray) -> bytes:
    place = chance.randrange(len(data) + 1)
    data[place:place] = bytes(chance.randint(1, 5))
    return bytes(data)


def spliced(chance: random.Random, data: bytearray) -> bytes:
    """The beginning of one request and the end of another."""
    other = valid(chance).wire()
    return bytes(data[: chance.randrange(1, len(data))]) + other[chance.randrange(len(other)) :]


def random_bytes(chance: random.Random, data: bytearray) -> bytes:
    return chance.randbytes(chance.randint(1, 400))


def other_protocol(chance: random.Random, data: bytearray) -> bytes:
    return chance.choice(
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            b"GET /healthz\r\n",
            b"GET /healthz\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"EHLO x\r\nMAIL FROM:<a@b>\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\r\n\r\n\r\n" + bytes(data),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + bytes(data),
            b"\xef\xbb\xbf" + bytes(data),
        ]
    )


MUTATIONS: list[Callable[[random.Random, bytearray], bytes]] = [
    flipped, overwritten, inserted, cut, hole, doubled, dropped_line, swapped_lines, bare_lf, bare_cr, nul, spliced,
    random_bytes, other_protocol,
]  # fmt: skip


def _kind(mutation: Callable[[random.Random, bytearray], bytes]) -> Callable[[random.Random], Attempt]:
    def made(chance: random.Random) -> Attempt:
        sent = mutation(chance, bytearray(valid(chance).wire()))
        return Attempt("noise", (sent,), end=chance.choice(["wait", "wait", "half-close"]))

    return made


KINDS = {mutation.__name__.replace("_", " "): _kind(mutation) for mutation in MUTATIONS}
"""What makes an attempt, by name."""
