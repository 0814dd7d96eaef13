from xml.etree import ElementTree

import pytest

from serving.bench.plot import _ticks, plot
from serving.bench.rounds import Result

SPACE = "{http://www.w3.org/2000/svg}"


def result(engine: str, rows: int, threads: int, speed: float, model: str = "small") -> Result:
    return Result(
        engine, "int8", model, "greedy", rows, threads, "cpu", 100, speed, 1.0, None, None, None, "", (speed,)
    )


def test_a_panel_for_each_number_of_threads_and_a_point_for_each_result() -> None:
    results = [
        result(engine, rows, threads, 10.0 * rows)
        for engine in ("dragoman", "ctranslate2")
        for rows in (1, 8, 64)
        for threads in (1, 2)
    ]
    drawn = ElementTree.fromstring(plot(results, "a <CPU> & more"))
    texts = [text.text for text in drawn.iter(f"{SPACE}text")]
    assert {"small, greedy, 1 thread", "small, greedy, 2 threads", "dragoman int8", "64"} <= set(texts)
    assert texts[0] == "Target tokens a second. a <CPU> & more"
    assert len(list(drawn.iter(f"{SPACE}circle"))) == len(results)
    assert len(list(drawn.iter(f"{SPACE}polyline"))) == 2 * 2 + 2


def test_faster_stands_higher_and_more_rows_further_right() -> None:
    drawn = ElementTree.fromstring(plot([result("dragoman", 1, 1, 100), result("dragoman", 8, 1, 900)], ""))
    slow, fast = ((float(point.attrib["cx"]), float(point.attrib["cy"])) for point in drawn.iter(f"{SPACE}circle"))
    assert fast[0] > slow[0]
    assert fast[1] < slow[1]


@pytest.mark.parametrize(
    ("lowest", "highest", "ticks"),
    [(30, 450, [20, 50, 100, 200, 500]), (100, 100, [100, 200]), (0.1, 0.5, [1, 2]), (1, 1.5, [1, 2])],
)
def test_ticks_enclose_the_values(lowest: float, highest: float, ticks: list[int]) -> None:
    assert _ticks(lowest, highest) == ticks


def test_nothing_measured_is_drawn_too() -> None:
    ElementTree.fromstring(plot([], "nothing"))
