"""A booth: one engine in a process of its own, blocked on a pipe while others are measured.

In a process of its own an engine has its own thread settings, and none of its threads can be in another's way: before
it answers, a booth waits until its threads have stopped spinning.

A line of JSON goes in, one comes out, on pipes; what a library prints goes to standard error. An engine that fails
says why in its line, and its process ends.
"""

import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from serving.bench.contestants import Contestant, Entrant, Seat, enter
from serving.engine.decoding import Decoding

CALM = 0.01
"""Seconds in which the process must use less than a tenth of a core to count as quiet."""
PATIENCE = 5.0
"""Seconds threads may go on spinning before that is an error."""

ANSWERS = 300.0
"""Seconds in which an engine must answer, loading and compiling included; one that takes longer has failed."""

Batch = tuple[list[list[int]], Decoding]


class BoothError(RuntimeError):
    """An engine's process ended or failed; the message has what it said."""


@dataclass(frozen=True)
class Timed:
    """One pass over some batches."""

    seconds: float
    """Of all batches together, one after the other; nothing else."""
    tokens: int
    """Target tokens written."""
    setting: str = ""
    """How the engine computed, where there was a choice."""


class Booth:
    """The near end: starts the process, loads the engine, asks for measurements."""

    def __init__(self, entrant: Entrant, seat: Seat) -> None:
        self.name = entrant.name
        arguments = [entrant.engine, entrant.precision, json.dumps(asdict(seat), default=str)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.bench.booth", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(seat.threads)},
            start_new_session=True,  # a Ctrl-C is for the near end, which then closes this one
        )
        try:
            self._receive()
        except BoothError:
            self.close()
            raise

    def measure(self, batches: Sequence[Batch]) -> Timed:
        """Translate ``batches`` one after the other; BoothError when that fails."""
        assert self._process.stdin
        asked = [[sources, asdict(decoding)] for sources, decoding in batches]
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and the line it did not write says so
        return Timed(**self._receive())

    def _receive(self) -> Any:
        assert self._process.stdout
        # An answer is one line, so nothing of it can be in the buffer already.
        if not select.select([self._process.stdout], [], [], ANSWERS)[0]:
            self._process.kill()
            raise BoothError(f"{self.name} did not answer for {ANSWERS:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise BoothError(f"{self.name} ended with status {self._process.wait()}; what it said stands above")
        answer = json.loads(line)
        if "error" in answer:
            raise BoothError(f"{self.name} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin and self._process.stdout:
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
        self._process.wait()


def serve(contestant: Contestant, asked: TextIO, answers: TextIO) -> None:
    """The far end: answer until ``asked`` ends."""
    _say(answers, {})
    for line in asked:
        batches = [(sources, Decoding(**decoding)) for sources, decoding in json.loads(line)]
        begin = time.perf_counter()
        written = [contestant.translate(sources, decoding) for sources, decoding in batches]
        seconds = time.perf_counter() - begin
        tokens = sum(len(tokens) for batch in written for tokens in batch)
        _say(answers, asdict(Timed(seconds, tokens, contestant.setting)))


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    _rest()
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _rest() -> None:
    """Wait until no thread of this process computes any more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        used, begin = time.process_time(), time.monotonic()
        time.sleep(CALM)
        if time.process_time() - used < 0.1 * (time.monotonic() - begin):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"threads go on computing {PATIENCE:.0f} s after the work is done")


def main(arguments: Sequence[str]) -> int:
    """Run the far end with the arguments that `Booth` gives; returns the exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine, precision, seat = arguments
    given = json.loads(seat)
    try:
        serve(enter(Entrant(engine, precision), Seat(**given | {"folder": Path(given["folder"])})), sys.stdin, answers)
    except Exception as error:
        traceback.print_exc()
        # One line, and no more of it than a table's footnote can take.
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        answers.write(json.dumps({"error": said}) + "\n")
        answers.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
