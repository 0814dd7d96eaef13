import pytest

from loadtest.timings import percentile, server_timing


def test_timings_are_read_from_the_header() -> None:
    assert server_timing("tokenise;dur=0.25, queue;dur=3") == {"tokenise": 0.25, "queue": 3.0}
    assert server_timing("") == {}
    assert server_timing("cache;desc=hit") == {}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1, 100), (0.001, 1)])
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected
    assert percentile([7.0], share) == 7.0
