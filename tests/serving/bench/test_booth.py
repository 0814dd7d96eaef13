import io
import json
import os
import time
from pathlib import Path

import pytest
import torch

from model import checkpoint
from serving.bench import booth
from serving.bench.booth import Booth, BoothError, Timed, serve
from serving.bench.contestants import CHECKPOINT, Entrant, Seat
from serving.engine.decoding import Decoding

PYTORCH = Entrant("pytorch", "fp32")


def test_times_an_engine_in_a_process_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.save(checkpoint.load(tiny_checkpoint).model, tmp_path / CHECKPOINT)
    one = Booth(PYTORCH, Seat(tmp_path, "cpu", threads=1, rows=4))
    try:
        timed = one.measure([([[4, 5, 3], [4, 3]], Decoding(max_tokens=6, min_tokens=6))] * 3)
        assert timed.tokens == 3 * 2 * 6
        assert timed.seconds > 0
        assert one.measure([([[4, 5, 3]], Decoding(max_tokens=5, min_tokens=5))]).tokens == 5
    finally:
        one.close()


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BoothError, match=r"pytorch fp32 failed: FileNotFoundError: .*checkpoint\.pt"):
        Booth(PYTORCH, Seat(tmp_path, "cpu", threads=1, rows=4))


def test_an_engine_that_fails_at_work_says_why_and_so_does_one_that_is_gone(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    torch.save(checkpoint.load(tiny_checkpoint).model, tmp_path / CHECKPOINT)
    one = Booth(PYTORCH, Seat(tmp_path, "cpu", threads=1, rows=4))
    try:
        with pytest.raises(BoothError, match="pytorch fp32 failed: ValueError: 5 sentences at a time"):
            one.measure([([[4, 3]] * 5, Decoding(max_tokens=2))])
        with pytest.raises(BoothError, match="pytorch fp32 ended with status 1"):
            one.measure([([[4, 3]], Decoding(max_tokens=2))])
    finally:
        one.close()


def test_an_engine_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / CHECKPOINT)  # whoever reads it waits for a writer
    monkeypatch.setattr(booth, "ANSWERS", 0.1)
    with pytest.raises(BoothError, match="pytorch fp32 did not answer"):
        Booth(PYTORCH, Seat(tmp_path, "cpu", threads=1, rows=4))


class Spinning:
    """Leaves threads behind that compute a little longer, by the clock: real ones might not get a core."""

    until, setting = 0.0, "spinning"

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        self.until = time.monotonic() + 0.3
        return [[1] * decoding.max_tokens for _ in sources]


class Watched(io.StringIO):
    """Notes for each answer whether a thread still computed."""

    def __init__(self, spinning: Spinning) -> None:
        super().__init__()
        self.spinning, self.computing = spinning, list[bool]()

    def flush(self) -> None:
        self.computing.append(time.monotonic() < self.spinning.until)


def test_answers_only_when_its_threads_are_at_rest_and_does_not_count_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    spinning = Spinning()
    monkeypatch.setattr(time, "process_time", lambda: min(time.monotonic(), spinning.until))
    answers = Watched(spinning)
    asked = io.StringIO(json.dumps([[[[4, 3]], {"max_tokens": 2}]]) + "\n")
    serve(spinning, asked, answers)
    _, answer = answers.getvalue().splitlines()
    timed = Timed(**json.loads(answer))
    assert (timed.tokens, timed.setting) == (2, "spinning")
    assert timed.seconds < 0.3
    assert answers.computing == [False, False]


def test_threads_that_never_rest_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booth, "PATIENCE", 0.05)
    # A thread of ours that spins might not get a core on a busy machine.
    monkeypatch.setattr(time, "process_time", time.monotonic)
    with pytest.raises(RuntimeError, match="go on computing"):
        booth._rest()
