"""Measure this service against FastAPI with CTranslate2 under load: the same weights, machine and requests, in turn.

Prints a line of JSON a scenario; all of it, and a plot, are written into the output folder.
"""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from export.bundle import MANIFEST, locate
from loadtest.arrivals import arrivals
from loadtest.compare.climb import following, highest
from loadtest.compare.contestants import Setting, ours, peer, sweep
from loadtest.compare.measure import beside_bulk, measure, one_by_one
from loadtest.compare.models import DESCRIPTION, PAPER, SMALL, Model
from loadtest.compare.point import Point
from loadtest.compare.report import JSON, LIMITS, PLOT, overview, point, show, write
from loadtest.payloads import SENTENCES
from loadtest.request import Request
from loadtest.servers import Server, StartFailed, clean_environment, end_on_sigterm
from serving.cores import cores

console = Console(stderr=True, highlight=False)
FIRST_SHARE = 0.5
"""Of the requests a second that a service answers when all come at once: the first rate."""
MIX_SHARE = 0.5
"""Of the highest rate with a p99 under one second: what comes while somebody sends long lists."""
WARM_UP = 32
"""Requests that come at once, before a service is measured."""
AT_ONCE = 192
"""Requests that come at once: how much a service does at most."""
ALONE = 100
"""Requests that come one by one: how fast it is at best."""
TRIES = 2
"""Of both, and beside a bulk job; whatever disturbs a service makes it slower, so the better one counts."""
LEAST_REQUESTS = 300
"""In a measurement of a rate: three of them are above its p99."""
OURS, PER_CORE, PEER = "dragoman", "dragoman, a replica a core", "fastapi+ctranslate2"


@dataclass(frozen=True)
class Scenario:
    """What is asked of which model."""

    model: str
    beam_size: int

    def __str__(self) -> str:
        return f"{self.model}, {'greedy' if self.beam_size == 1 else f'beam {self.beam_size}'}"


SCENARIOS = (Scenario(PAPER, 1), Scenario(PAPER, 4), Scenario(SMALL, 1))


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 when everything was measured."""
    options = _parse(arguments)
    end_on_sigterm()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {"machine": _machine(), "scenarios": []}
        panels: dict[str, Mapping[str, Sequence[Point]]] = {}
        for scenario in (each for each in SCENARIOS if str(each) in options.scenarios):
            found, panels[str(scenario)] = _scenario(scenario, options)
            document["scenarios"].append(found)
            write(options.output, document, panels)  # what is known is not lost with what comes after it
            overview(console, found)
            print(json.dumps({"machine": document["machine"], **found}), flush=True)
    except (StartFailed, OSError, ValueError, subprocess.CalledProcessError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    console.print(f"written: {options.output / JSON}, {options.output / PLOT}", markup=False)
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
    """Figures of ``scenario`` for JSON; and by service its curve, with nobody else there first."""
    model = _model(scenario.model, options.output / "models", options.data)
    setting, tried = sweep(model, scenario.beam_size, options.seed, lambda each: _say(scenario, f"peer {each}"))
    _say(scenario, f"the peer with {setting}")
    services = _services(model, setting)

    @contextmanager
    def warm(name: str, what: str) -> Iterator[Server]:
        """The service, and no other beside it: those that only wait take a part of the machine too."""
        with console.status(f"{scenario}: {name}, {what}"), services[name]() as server:
            measure(server, model.requests(scenario.beam_size, [0.0] * WARM_UP, options.seed))
            yield server

    def said(name: str, what: str, found: Point) -> Point:
        p99 = f"p99 {1000 * found.latency.p99:,.0f} ms"
        _say(scenario, f"{name}, {what}: {p99}, {found.tokens_per_second:,.0f} tokens/s")
        return found

    at_once = model.requests(scenario.beam_size, [0.0] * AT_ONCE, options.seed + 1)
    offline = 0.0
    saturated: dict[str, Point] = {}
    alone: dict[str, Point] = {}
    for _ in range(TRIES):
        offline = max(offline, _offline(model, at_once))
        _say(scenario, f"without a server {offline:,.0f} tokens/s")
        for name in services:
            with warm(name, "all at once, and one by one") as server:
                most = said(name, "all at once", measure(server, at_once))
                best = said(name, "one by one", one_by_one(server, at_once[:ALONE]))
            saturated[name] = max(most, saturated.get(name, most), key=lambda each: each.tokens_per_second)
            alone[name] = min(best, alone.get(name, best), key=lambda each: each.latency.p99)
    first = {name: FIRST_SHARE * found.tokens_per_second / model.mean_tokens for name, found in saturated.items()}
    if not all(first.values()):
        raise ValueError(f"a service answered nothing when {AT_ONCE} requests came at once")

    curves: dict[str, list[Point]] = {name: [] for name in services}
    for number in itertools.count():
        due = {name: _following(curve, alone[name], first[name]) for name, curve in curves.items()}
        if not any(due.values()):
            break
        for name in reversed(services) if number % 2 else services:
            if rate := due[name]:
                # By the rate: a second try gets the same requests.
                times = arrivals("steady", rate, max(options.seconds, LEAST_REQUESTS / rate), options.seed)
                requests = model.requests(scenario.beam_size, times, options.seed)
                with warm(name, f"{rate:.1f} requests a second") as server:
                    curves[name].append(said(name, f"{rate:.1f}/s", measure(server, requests, rate)))
    show(console, str(scenario), curves)

    rates = {
        name: {limit: _highest(curves[name], alone[name], seconds) for limit, seconds in LIMITS.items()}
        for name in services
    }
    mixes = {}
    for name in services:
        rate = MIX_SHARE * (rates[name]["1s"] or first[name])
        with warm(name, f"{rate:.1f} requests a second beside a bulk job") as server:
            mixes[name] = _mix(server, model, scenario.beam_size, rate, options)
        _say(scenario, f"{name}, beside a bulk job: {mixes[name]}")
    return {
        "scenario": str(scenario),
        "model": scenario.model,
        "beam_size": scenario.beam_size,
        "offline_tokens_per_second": round(offline, 1),
        "servers": {
            name: {
                "curve": [point(measured) for measured in sorted(curve)],
                **{f"highest_rate_p99_{limit}": rate for limit, rate in rates[name].items()},
                "saturated": point(saturated[name]),
                "alone": point(alone[name]),
                "beside_bulk": mixes[name],
            }
            for name, curve in curves.items()
        },
        "peer_setting": asdict(setting),
        "peer_sweep": tried,
    }, {name: [alone[name], *curve] for name, curve in curves.items()}


def _services(model: Model, setting: Setting) -> dict[str, Callable[[], AbstractContextManager[Server]]]:
    """Everything that is measured, by name; each starts when it is entered and ends afterwards."""
    return {
        OURS: lambda: ours(model),
        PER_CORE: lambda: ours(model, cores(), 1),
        PEER: lambda: peer(model, setting),
    }


def _mix(
    server: Server, model: Model, beam_size: int, rate: float, options: argparse.Namespace
) -> dict[str, float | None]:
    """p99 of requests at ``rate``, with and without somebody who sends long lists, and what the lists get.

    In turn, the better of two tries each.
    """
    times = arrivals("steady", rate, max(options.seconds, LEAST_REQUESTS / rate), options.seed)
    requests = model.requests(beam_size, times, options.seed)
    without, beside = [], []
    for _ in range(TRIES):
        without.append(measure(server, requests, rate).latency)
        beside.append(beside_bulk(server, requests, model.bulk(options.seed)))
    latency, bulk_speed = min(beside, key=lambda each: each[0].p99)
    return {
        "rate": round(rate, 2),
        "without_p99_ms": min(without, key=lambda each: each.p99).milliseconds()["p99_ms"],
        "p99_ms": latency.milliseconds()["p99_ms"],
        "bulk_tokens_per_second": round(bulk_speed, 1),
    }


def _say(scenario: Scenario, what: str) -> None:
    console.print(f"{scenario}: {what}", markup=False, soft_wrap=True)


def _taken(curve: Sequence[Point]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for measured in curve:
        found.setdefault(measured.rate, []).append(measured.latency.p99)
    return found


def _highest(curve: Sequence[Point], alone: Point, limit: float) -> float | None:
    """None too when the service does not keep to ``limit`` with nobody else there: it is not searched for then."""
    rate = highest(_taken(curve), limit) if alone.latency.p99 < limit else None
    return rate and round(rate, 2)


def _following(curve: Sequence[Point], alone: Point, first: float) -> float | None:
    """The rate to measure next, until the highest is known for every limit that holds when nobody else is there."""
    limits = [limit for limit in LIMITS.values() if alone.latency.p99 < limit]
    if not limits:
        return None if curve else first
    rates = (following(_taken(curve), limit, first) for limit in limits)
    return next((rate for rate in rates if rate is not None), None)


def place_of(name: str, folder: Path, data: Path) -> Path:
    """Where the model ``name`` stands: another for other sentences, and for another version of what ships."""
    digest = hashlib.sha256(data.read_bytes() + (locate(SMALL) / MANIFEST).read_bytes())
    return folder / f"{name}-{digest.hexdigest()[:12]}"


def _model(name: str, folder: Path, data: Path) -> Model:
    """The model ``name``, written if it is not there yet."""
    place = place_of(name, folder, data)
    if not (place / DESCRIPTION).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", "loadtest.compare.prepare", name, temporary, str(data)]
            said = f"writing the model {name} for both services, once"
            with (
                console.status(said) as status,
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as preparing,
            ):
                assert preparing.stdout
                for stage in preparing.stdout:
                    status.update(f"{said}: {stage.strip()}")
                    if not console.is_terminal:
                        console.print(f"{name}: {stage.strip()}", markup=False)
            if preparing.returncode:
                raise subprocess.CalledProcessError(preparing.returncode, command)
            # Only what is complete stands under its name.
            Path(temporary).rename(place)
            Path(temporary).mkdir()
    return Model.load(place)


def _offline(model: Model, requests: Sequence[Request]) -> float:
    """Target tokens a second of this engine in a process of its own, given all of ``requests`` at once."""
    command = [sys.executable, "-m", "loadtest.compare.offline", str(model.bundle)]
    bodies = json.dumps([request.body for request in requests])
    done = subprocess.run(command, input=bodies, stdout=subprocess.PIPE, text=True, check=True, env=clean_environment())
    return float(done.stdout)


def _machine() -> dict[str, Any]:
    from serving.bench.machine import describe  # only now: ONNX Runtime takes a second to load

    return asdict(describe([], ("onnxruntime", "ctranslate2", "ray", "fastapi", "uvicorn", "locust")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
