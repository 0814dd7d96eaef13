import time
from typing import Any

import pytest

from serving.engine.decoding import Decoding
from serving.engine.jobs import encoding, inspection, translation
from serving.engine.scheduler import translation_cost

SOURCE = [4, 9, 8, 7, 3]


def test_a_translation_is_charged_for_what_it_writes_and_takes_a_row_a_hypothesis() -> None:
    decoding = Decoding(7, beam_size=4)
    job = translation(SOURCE, decoding, 1.0)
    assert job.cost == translation_cost(len(SOURCE), decoding)
    assert (job.source_tokens, job.rows, job.deadline) == (5, 4, 1.0)


def test_what_writes_nothing_is_charged_what_it_reads_and_takes_no_rows() -> None:
    read, seen = encoding(SOURCE, 1.0), inspection(SOURCE, [2, 9, 9], 1.0)
    assert (read.cost, read.source_tokens, read.rows) == (5, 5, 0)
    assert (seen.cost, seen.source_tokens, seen.rows) == (8, 8, 0)


def test_nobody_can_listen_to_a_beam() -> None:
    listener: Any = object()
    with pytest.raises(ValueError, match="no token of a beam is final before the last"):
        translation(SOURCE, Decoding(9, beam_size=2), 1.0, listener)
    assert translation(SOURCE, Decoding(9), 1.0, listener).listener is listener


def test_stages_are_the_times_between_arrival_admission_encoding_and_now() -> None:
    job = translation(SOURCE, Decoding(9), 1.0)
    assert job.arrived <= time.monotonic()
    job.arrived, job.admitted, job.encoded = 1.0, 3.5, 4.0
    found = job.timings()
    assert (found.queue, found.encode) == (2.5, 0.5)
    assert found.decode == pytest.approx(time.monotonic() - 4.0, abs=5)


def test_nobody_waits_for_what_is_cancelled_or_late() -> None:
    job = translation(SOURCE, Decoding(9), 5.0)
    assert [job.gone(now) for now in (4.9, 5.0)] == [False, True]
    job.cancelled = True
    assert job.gone(0.0)
