import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from loadtest.growth import HEIGHT, WARM_SECONDS, WIDTH, WINDOW, Growth, plot

SVG = "{http://www.w3.org/2000/svg}"
MIB = 2**20


def series(memory: list[int], step: float = 1.0) -> Growth:
    found = Growth()
    for index, each in enumerate(memory):
        found.add(index * step, each)
    return found


def test_growth_is_from_after_the_first_minute_to_the_end() -> None:
    """What is allocated in the first minute is no growth, however much it is."""
    found = series([100 * MIB] * 60 + [200 * MIB] * 60 + [150 * MIB] * 20 + [210 * MIB] * 21)
    assert found.after_the_first_minute == 200 * MIB
    assert found.at_the_end == 210 * MIB
    assert found.share == pytest.approx(0.05)


def test_memory_that_shrinks_or_stays_has_grown_by_no_more_than_nothing() -> None:
    assert series([7 * MIB] * 200).share == 0
    assert series([8 * MIB] * 100 + [6 * MIB] * 100).share == pytest.approx(-0.25)


def test_a_single_moment_does_not_count() -> None:
    memory = [100 * MIB] * 200
    memory[-1] = memory[-2] = memory[65] = memory[70] = 900 * MIB
    assert series(memory).share == 0


def test_the_windows_are_as_long_as_they_say_and_hold_nothing_else() -> None:
    inside, outside = 5, 1000
    times = [value / 2 for value in range(400)]
    end = times[-1]
    found = Growth()
    for seconds in times:
        within = WARM_SECONDS <= seconds <= WARM_SECONDS + WINDOW or seconds >= end - WINDOW
        found.add(seconds, inside if within else outside)
    assert {found.around(seconds, seconds) for seconds in (WARM_SECONDS, WARM_SECONDS + WINDOW, end - WINDOW)} == {5.0}
    assert (found.after_the_first_minute, found.at_the_end) == (inside, inside)
    assert found.around(WARM_SECONDS + WINDOW + 0.1, end - WINDOW - 0.1) == outside


@pytest.mark.parametrize("length", [1, 2, 30, 100])
def test_of_a_series_hardly_longer_than_the_first_minute_growth_is_not_known(length: int) -> None:
    found = series([100] * length)
    assert (found.after_the_first_minute, found.at_the_end, found.share) == (100, 100, None)
    assert series([10, 20, 30]).after_the_first_minute == 20


@pytest.mark.parametrize(
    "growth",
    [series([MIB, 5 * MIB, 3 * MIB, 9 * MIB]), series([700 * MIB + number for number in range(600)]), series([MIB])],
    ids=["short", "long", "one sample"],
)
def test_the_plot_draws_every_sample_within_its_bounds(growth: Growth) -> None:
    root = ElementTree.fromstring(plot(growth))
    assert (float(root.get("width", "")), float(root.get("height", ""))) == (WIDTH, HEIGHT)
    [line] = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in line.get("points", "").split()]
    assert len(places) == len(growth.memory)
    for x, y in places:
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert all(before[0] <= after[0] for before, after in pairwise(places))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "")) <= WIDTH
        assert 0 <= float(text.get("y", "")) <= HEIGHT


def test_the_plot_begins_at_zero_and_more_memory_is_higher() -> None:
    root = ElementTree.fromstring(plot(series([0, 50 * MIB, 100 * MIB], step=30)))
    [line] = root.iter(f"{SVG}polyline")
    heights = [float(place.split(",")[1]) for place in line.get("points", "").split()]
    labels = {
        text.text: float(text.get("y", "")) for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"
    }
    assert heights[0] == labels["0"] - 4
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert labels["110"] < heights[2] + 4
    minutes = [text.text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    assert (minutes[0], minutes[-1]) == ("0.0", "1.0")
