import pytest

from serving.engine.throughput import Throughput


def test_before_anything_is_known_a_rate_is_supposed() -> None:
    assert Throughput().rate == Throughput.PRIOR[0]


def test_a_steady_flow_is_soon_known_whatever_the_length_of_the_turns() -> None:
    throughput = Throughput()
    for turn in range(200):
        seconds = 0.005 if turn % 2 else 0.1
        throughput.add(round(9000 * seconds), seconds)
    assert throughput.rate == pytest.approx(9000, rel=0.05)


def test_jobs_that_are_let_in_by_the_handful_count_as_much_as_a_steady_flow() -> None:
    throughput = Throughput()
    for turn in range(2000):
        throughput.add(4000 if turn % 40 == 0 else 0, 0.02)
    assert throughput.rate == pytest.approx(4000 / 0.8, rel=0.1)


def test_what_was_long_ago_is_forgotten() -> None:
    throughput = Throughput()
    for rate in (500, 5000):
        for _ in range(400):
            throughput.add(rate // 10, 0.1)
    assert throughput.rate == pytest.approx(5000, rel=0.05)
