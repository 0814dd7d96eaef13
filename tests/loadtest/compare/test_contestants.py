"""How the other service's setting is chosen, by a stubbed one; in a process of its own: gevent patches it."""

import json
from typing import Any

from tests.loadtest.stub import PATCHED, program

SWEEP = f"""{PATCHED}
import contextlib, json, math, os, pathlib
import loadtest.compare.contestants as c
from loadtest.compare.models import Line, Model
from loadtest.compare.point import Point
from loadtest.latency import Latency

os.sched_getaffinity = lambda _: set(range(CORES))
calls, told, current, finals = [], [], [], []

@contextlib.contextmanager
def peer(model, setting):
    current.append(setting)
    assert len(current) == 1, "only one runs at a time"
    yield setting
    current.pop()

def measure(server, requests, rate=math.inf):
    calls.append([len(requests), requests[-1].due, requests[0].body.get("beam_size")])
    # Many workers in one process and a batch of 16 are fastest; then 8, which answers soonest, and 4.
    speed = 1000 + 100 * server.inter_threads - abs(server.max_batch - 15)
    late = 0.2 if server.max_batch == 8 else 0.3
    if math.isfinite(rate) or requests[-1].due:
        late += 0.15 * (len(finals) >= 3)  # later everyone is disturbed, and the best of a setting counts
        finals.append(server)
    return Point(rate, Latency(len(requests), 0, 0, 0.1, 0.1, late), speed, 0.0, 1.0, 1)

c.peer, c.measure = peer, measure
model = Model("any", pathlib.Path("x"), 4, False, [Line("One.", 10), Line("Two.", 30)])
setting, tried = c.sweep(model, 4, 0, told.append)
print(json.dumps([c.asdict(setting), tried, told, calls]))
"""


def sweep(cores: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[list[Any]]]:
    done = program(SWEEP.replace("CORES", str(cores)))
    assert done.returncode == 0, done.stderr
    setting, tried, told, calls = json.loads(done.stdout)
    assert tried == told
    return setting, tried, calls


def test_the_fastest_are_compared_by_their_latency_under_load_and_the_soonest_is_chosen() -> None:
    setting, tried, calls = sweep(cores=4)
    assert setting == {"processes": 1, "inter_threads": 4, "intra_threads": 1, "max_batch": 8}
    speeds = [each for each in tried if "tokens_per_second" in each]
    shares = ((1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1))
    assert [tuple(each[name] for name in setting) for each in speeds] == [
        (*share, batch) for share in shares for batch in (1, 4, 8, 16, 32, 64)
    ]
    finals = [each for each in tried if "p99_ms" in each]
    assert speeds + finals == tried
    assert [(each["inter_threads"], each["max_batch"], each["p99_ms"]) for each in finals] == [
        (4, 16, 300.0),
        (4, 8, 200.0),
        (4, 4, 300.0),
        (4, 16, 450.0),
        (4, 8, 350.0),
        (4, 4, 450.0),
    ]
    warm, real = calls[::2], calls[1::2]
    assert [each[1:] for each in warm] == [[0.0, 4]] * 42, "everyone is warmed up, with the same kind"
    assert [each[:2] for each in real[:36]] == [[96, 0.0]] * 36
    rounds = [{tuple(each) for each in real[begin : begin + 3]} for begin in (36, 39)]
    assert [len(each) for each in rounds] == [1, 1], "all are asked the same"
    assert rounds[0] != rounds[1]
    rate = 0.5 * 1399 / 20
    for number, last, beam in rounds[0] | rounds[1]:
        assert beam == 4
        assert 0.7 * 150 < number < 1.3 * 150
        assert 0.7 * 150 / rate < last <= 150 / rate


def test_on_one_core_no_setting_is_tried_twice() -> None:
    _, tried, _ = sweep(cores=1)
    assert len(tried) == 6 + 2 * 3
    assert {(each["inter_threads"], each["intra_threads"]) for each in tried} == {(1, 1)}
