import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rich.console import Console

from loadtest.compare.point import Point
from loadtest.compare.report import overview, plot, point, show, write
from loadtest.latency import Latency

SVG = "{http://www.w3.org/2000/svg}"


def measured(rate: float, p99: float = 0.3, shed: int = 0) -> Point:
    return Point(rate, Latency(200, shed, 1, 0.05, 0.1, p99), 345.678, 0.12345, 1.234, 7 << 20)


def test_a_point_is_in_milliseconds_and_what_never_came_is_null() -> None:
    found = point(measured(12.345, math.inf, shed=50))
    assert found == {
        "rate": 12.35,
        "requests": 200,
        "p50_ms": 50.0,
        "p90_ms": 100.0,
        "p99_ms": None,
        "shed_share": 0.25,
        "failures": 1,
        "tokens_per_second": 345.7,
        "padding_share": 0.1235,
        "cores": 1.23,
        "memory_bytes": 7 << 20,
    }
    assert point(measured(math.inf))["rate"] is None


def test_each_service_has_a_table_with_its_rates_in_order() -> None:
    console = Console(record=True, width=80)
    show(console, "paper, greedy", {"ours": [measured(20.0), measured(10.0)], "peer": [measured(10.0, 2.5, shed=2)]})
    text = console.export_text()
    assert text.index("paper, greedy: ours") < text.index("paper, greedy: peer")
    rows = [line.split() for line in text.splitlines() if "346" in line]
    assert [row[0] for row in rows] == ["10.0", "20.0", "10.0"]
    assert [row[3] for row in rows] == ["300", "300", "2,500"]
    assert [row[4] for row in rows] == ["0.0%", "0.0%", "1.0%"]
    assert {tuple(row[6:]) for row in rows} == {("346", "12.3%", "1.23", "7")}


def test_the_overview_says_what_a_service_holds_and_what_it_does_not() -> None:
    mix = {"rate": 5.0, "without_p99_ms": 100.4, "p99_ms": None, "bulk_tokens_per_second": 9.0}
    rates = {"highest_rate_p99_1s": 1234.56, "highest_rate_p99_250ms": None}
    parts = {"saturated": point(measured(math.inf)), "alone": point(measured(0.0)), "beside_bulk": mix}
    console = Console(record=True, width=140)
    found = {"scenario": "paper, greedy", "offline_tokens_per_second": 9876.5, "servers": {"ours": {**rates, **parts}}}
    overview(console, found)
    text = console.export_text()
    [row] = [line for line in text.splitlines() if "ours" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["ours", "1234.6", "–", "346", "50", "300", "100 → –", "7"]
    assert "9,876 tokens/s" in text


def test_the_plot_has_a_panel_a_scenario_and_two_lines_a_service_all_within_it() -> None:
    panels = {
        "paper <greedy>": {"ours": [measured(10.0), measured(40.0, 0.9)], "peer": [measured(10.0, math.inf)]},
        "small": {"ours": [measured(7.0)], "peer": []},
    }
    root = ElementTree.fromstring(plot(panels, "a & b"))
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"paper <greedy>", "small", "ours", "peer", "250 ms"} <= set(texts)
    lines = [line.get("points", "") for line in root.iter(f"{SVG}polyline")]
    assert len(lines) == 8
    for line in lines:
        for place in line.split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    first, last = (tuple(map(float, place.split(","))) for place in lines[0].split())
    assert first[0] < last[0]
    assert first[1] > last[1], "slower is higher"


def test_of_a_rate_that_was_measured_twice_the_better_is_drawn() -> None:
    def lines(curve: list[Point]) -> list[str]:
        root = ElementTree.fromstring(plot({"paper": {"ours": curve}}, "any"))
        return [line.get("points", "") for line in root.iter(f"{SVG}polyline")]

    better, worse = measured(10.0, 0.2), measured(10.0, 2.0)
    assert lines([measured(20.0), worse, better]) == lines([better, measured(20.0)]) != lines([worse, measured(20.0)])


def test_json_and_plot_are_written(tmp_path: Path) -> None:
    document = {"machine": {"cpu": "some"}, "scenarios": []}
    write(tmp_path, document, {"paper": {"ours": [measured(1.0)]}})
    assert json.loads((tmp_path / "compare.json").read_text()) == document
    assert "<svg" in (tmp_path / "compare.svg").read_text()
