"""The two services that are compared, as processes; and how the other one is best run."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.arrivals import arrivals
from loadtest.compare.measure import measure
from loadtest.compare.models import Model
from loadtest.figures import processes
from loadtest.request import Request
from loadtest.servers import START_SECONDS, Server, StartFailed, dragoman, free_port, running
from serving.cores import cores

BATCHES = (1, 4, 8, 16, 32, 64)
SWEEP_REQUESTS = 96
"""That come at once, to find how fast a setting is."""
FINALISTS = 3
FINAL_ROUNDS = 2
"""Each finalist's best counts."""
FINAL_REQUESTS = 150
"""In a round."""
BUSY = 0.7
"""Of what the fastest setting does at most: the load under which the finalists' latency is compared, not far below the
highest rates that are looked for."""


@dataclass(frozen=True)
class Setting:
    """How CTranslate2 is run behind FastAPI; see `loadtest.compare.peer`."""

    processes: int
    inter_threads: int
    intra_threads: int
    max_batch: int


@contextmanager
def ours(model: Model, replicas: int = 1, cpus: int | None = None) -> Iterator[Server]:
    """This service with ``model``, each replica on as many cores, on all unless given."""
    given = ["--replicas", str(replicas), "--cpus", str(cpus or cores())]
    with dragoman(free_port(), "--bundle", str(model.bundle), *given) as server:
        _complete(server, replicas)
        yield server


@contextmanager
def peer(model: Model, setting: Setting) -> Iterator[Server]:
    """FastAPI and CTranslate2 with ``model``."""
    port = free_port()
    command = [sys.executable, "-m", "loadtest.compare.peer", "--port", str(port)]
    command += ["--model", str(model.peer), "--tokenizer", str(model.tokenizer), "--language", str(model.language)]
    for name, value in asdict(setting).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with running(command, f"http://127.0.0.1:{port}") as server:
        _complete(server, setting.processes)
        yield server


def _complete(server: Server, replicas: int) -> None:
    """Return when the last of its ``replicas`` is there; the first that is ready has said so for all.

    StartFailed when it does not come.
    """
    deadline = time.monotonic() + START_SECONDS
    while (found := len(processes(server.url))) < replicas:
        if time.monotonic() > deadline:
            raise StartFailed(f"{server.url}: {found} of {replicas} replicas are there")
        time.sleep(0.1)


def sweep(
    model: Model, beam_size: int, seed: int, told: Callable[[dict[str, Any]], None]
) -> tuple[Setting, list[dict[str, Any]]]:
    """The peer's best setting, and all that were tried, each of which ``told`` is told.

    First how many tokens a second it answers when everything comes at once, for every way to share out the cores and
    every batch. The fastest are then compared, in turn, by their p99 under `BUSY` of the fastest's load.
    """
    tried: list[dict[str, Any]] = []

    def answer(setting: Setting, requests: Sequence[Request], figure: str) -> float:
        with peer(model, setting) as server:
            measure(server, model.requests(beam_size, [0.0] * 8, seed))
            found = measure(server, requests)
        value = found.tokens_per_second if figure == "tokens_per_second" else 1000 * found.latency.p99
        tried.append({**asdict(setting), figure: round(value, 1) if math.isfinite(value) else None})
        told(tried[-1])
        return value

    at_once = model.requests(beam_size, [0.0] * SWEEP_REQUESTS, seed)
    divisors = [number for number in range(1, cores() + 1) if cores() % number == 0]
    settings = [
        Setting(processes, inter, cores() // processes // inter, batch)
        for processes, inter, batch in itertools.product(divisors, divisors, BATCHES)
        if cores() % (processes * inter) == 0
    ]
    speeds = {setting: answer(setting, at_once, "tokens_per_second") for setting in settings}
    finalists = sorted(speeds, key=lambda setting: -speeds[setting])[:FINALISTS]
    if not speeds[finalists[0]]:
        raise ValueError("FastAPI with CTranslate2 answers nothing")
    rate = BUSY * speeds[finalists[0]] / model.mean_tokens
    slowest = dict.fromkeys(finalists, math.inf)
    for number in range(FINAL_ROUNDS):
        busy = model.requests(beam_size, arrivals("steady", rate, FINAL_REQUESTS / rate, seed + number), seed + number)
        for setting in finalists:
            slowest[setting] = min(slowest[setting], answer(setting, busy, "p99_ms"))
    return min(slowest, key=lambda setting: slowest[setting]), tried
