"""Measure this service against FastAPI with CTranslate2 under load: the same weights, machine and requests, in turn."""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.compare.climb import following, highest
from loadtest.compare.measure import at_once, at_rate
from loadtest.compare.models import BASE, DESCRIPTION, SHIPPED, Model
from loadtest.compare.point import Point
from loadtest.compare.report import JSON, PLOT, point, show, write
from loadtest.payloads import SENTENCES
from loadtest.servers import Server, StartFailed, end_on_sigterm, running

console = Console(stderr=True, highlight=False)
LIMITS = {"1s": 1.0, "250ms": 0.25}
"""Of the p99, in seconds."""
FIRST_SHARE = 0.5
"""Of the requests a second that a service answers when all come at once: the first rate."""
OURS, PEER = "dragoman", "fastapi+ctranslate2"


@dataclass(frozen=True)
class Scenario:
    """What is asked of which model."""

    model: str
    beam_size: int

    def __str__(self) -> str:
        return f"{self.model}, {'greedy' if self.beam_size == 1 else f'beam {self.beam_size}'}"


SCENARIOS = (Scenario(BASE, 1), Scenario(BASE, 4), Scenario(SHIPPED, 1))


@dataclass(frozen=True)
class Setting:
    """How CTranslate2 is run behind FastAPI."""

    inter_threads: int
    intra_threads: int
    max_batch: int


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 when everything was measured."""
    options = _parse(arguments)
    end_on_sigterm()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        found = [_scenario(scenario, options) for scenario in SCENARIOS if str(scenario) in options.scenarios]
    except (StartFailed, OSError, ValueError, subprocess.CalledProcessError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    document: dict[str, Any] = {"machine": _machine(), "scenarios": [each for each, _ in found]}
    write(options.output, document, {each["scenario"]: curves for each, curves in found})
    console.print(f"written: {options.output / JSON}, {options.output / PLOT}", markup=False)
    print(json.dumps(document))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dragoman loadtest --compare", description=__doc__)
    names = [str(scenario) for scenario in SCENARIOS]
    parser.add_argument("--scenarios", nargs="+", choices=names, default=names, metavar="…", help="; ".join(names))
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement, at least (20)")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences, one a line; the project's own")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and of what they ask (0)")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder (runs/compare)")
    return parser.parse_args(arguments)


def _scenario(scenario: Scenario, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[Point]]]:
    """Figures of ``scenario`` for JSON, and the curves themselves."""
    model = _model(scenario.model, options.output / "models", options.data)
    setting, sweep = _sweep(model, scenario.beam_size, options.seed)
    curves: dict[str, list[Point]] = {OURS: [], PEER: []}
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(_ours(model)), PEER: stack.enter_context(_peer(model, setting))}
        most = {name: _warm(server, model, scenario.beam_size, options.seed) for name, server in servers.items()}
        mean = sum(line.tokens for line in model.lines) / len(model.lines)
        first = {name: FIRST_SHARE * each.tokens_per_second / mean for name, each in most.items()}
        for number in itertools.count():
            due = {name: rate for name, curve in curves.items() if (rate := _following(curve, first[name])) is not None}
            if not due:
                break
            for name, rate in due.items():
                with console.status(f"{scenario}: {name}, {rate:.1f} requests a second"):
                    measured = at_rate(
                        servers[name], model, scenario.beam_size, rate, options.seconds, options.seed + number
                    )
                curves[name].append(measured)
                p99 = 1000 * measured.latency.p99
                console.print(f"{scenario}: {name}, {rate:.1f}/s: p99 {p99:,.0f} ms", markup=False)
    show(console, str(scenario), curves)
    return {
        "scenario": str(scenario),
        "model": scenario.model,
        "beam_size": scenario.beam_size,
        "servers": {
            name: {
                "curve": [point(measured) for measured in sorted(curve)],
                **{f"highest_rate_p99_{limit}": highest(_p99(curve), LIMITS[limit]) for limit in LIMITS},
                "saturated": point(most[name]),
            }
            for name, curve in curves.items()
        },
        "peer_setting": asdict(setting),
        "peer_sweep": sweep,
    }, curves


def _p99(curve: Sequence[Point]) -> dict[float, float]:
    return {measured.rate: measured.latency.p99 for measured in curve}


def _following(curve: Sequence[Point], first: float) -> float | None:
    """The rate to measure next, until the highest is known for every limit."""
    rates = (following(_p99(curve), limit, first) for limit in LIMITS.values())
    return next((rate for rate in rates if rate is not None), None)


def _model(name: str, folder: Path, data: Path) -> Model:
    """The model ``name``, written if it is not there yet for these sentences."""
    place = folder / f"{name}-{data.stem}"
    if not (place / DESCRIPTION).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", "loadtest.compare.prepare", name, temporary, str(data)]
            with console.status(f"writing the model {name} for both services (minutes, once)"):
                subprocess.run(command, check=True)
            # Only what is complete stands under its name.
            Path(temporary).rename(place)
            Path(temporary).mkdir()
    return Model.load(place)


def _sweep(model: Model, beam_size: int, seed: int) -> tuple[Setting, list[dict[str, Any]]]:
    """The peer's setting that answers most tokens a second when everything comes at once; and all that were tried."""
    cores = len(os.sched_getaffinity(0))
    threads = dict.fromkeys([(1, cores), (cores, 1)])
    tried: list[tuple[float, Setting]] = []
    for (inter, intra), batch in itertools.product(threads, (1, 4, 8, 16, 32, 64)):
        setting = Setting(inter, intra, batch)
        with console.status(f"{model.name}: sweep of the peer, {setting}"), _peer(model, setting) as server:
            at_once(server, model, beam_size, 8, seed)
            tried.append((at_once(server, model, beam_size, 96, seed).tokens_per_second, setting))
    best = max(tried, key=lambda each: each[0])[1]
    return best, [{**asdict(setting), "tokens_per_second": round(speed, 1)} for speed, setting in tried]


def _warm(server: Server, model: Model, beam_size: int, seed: int) -> Point:
    """Take ``server`` through a first load, and then measure how much it does when everything comes at once."""
    at_once(server, model, beam_size, 32, seed)
    return at_once(server, model, beam_size, 192, seed + 1)


@contextmanager
def _ours(model: Model) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(port), "--bundle", str(model.bundle)]
    with running(command, f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def _peer(model: Model, setting: Setting) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "loadtest.compare.peer", "--port", str(port)]
    command += ["--model", str(model.peer), "--tokenizer", str(model.tokenizer), "--language", str(model.language)]
    for name, value in asdict(setting).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with running(command, f"http://127.0.0.1:{port}") as server:
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _machine() -> dict[str, Any]:
    from serving.bench.machine import describe  # only now: ONNX Runtime takes a second to load

    return asdict(describe([], ("onnxruntime", "ctranslate2", "ray", "fastapi", "uvicorn", "locust")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
