import asyncio
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from export.bundle import locate
from loadtest.compare import offline
from tests.conftest import SMALL

BODIES = [
    {"text": "The file could not be opened.", "min_tokens": number, "max_tokens": number} for number in (3, 7, 12)
]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_every_target_token_counts_once(monkeypatch: pytest.MonkeyPatch, beam_size: int) -> None:
    clock = itertools.count(0, 2)
    monkeypatch.setattr(offline, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    bodies = [{**body, "beam_size": beam_size} for body in BODIES * 2]
    assert asyncio.run(offline.tokens_per_second(locate(SMALL), bodies)) == 2 * (3 + 7 + 12) / 2


def test_it_prints_a_figure_and_nothing_else() -> None:
    command = [sys.executable, "-m", "loadtest.compare.offline", str(locate(SMALL))]
    done = subprocess.run(
        command, input=json.dumps(BODIES * 40), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 10
