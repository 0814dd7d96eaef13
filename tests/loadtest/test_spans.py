from loadtest.request import Outcome
from loadtest.spans import Span, report

SPANS = [Span(0.0, 2), Span(5.04, 1), Span(5.5, 0), Span(9.0, 2)]


def outcome(due: float, status: int = 200, seconds: float = 0.25) -> Outcome:
    return Outcome("any", due, seconds, status)


def test_outcomes_count_when_they_were_due() -> None:
    outcomes = [outcome(0.0), outcome(4.9, 0), outcome(5.1), outcome(9.0), outcome(99.0, seconds=1.5)]
    found = report(outcomes, SPANS, [2, 1, 0, 2], lost=(5.0, 5.04))
    assert found["faults"] == []
    assert (found["requests"], found["statuses"]) == (5, {"no answer": 1, "200": 4})
    first, second, third, fourth = found["spans"]
    assert first == {
        "begin": 0.0,
        "replicas": 2,
        "requests": 2,
        "shed": 0,
        "failures": 1,
        "p50_ms": 250.0,
        "p90_ms": None,
        "p99_ms": None,
    }
    assert (second["begin"], second["requests"], second["shed"], second["failures"]) == (5.0, 1, 0, 0)
    assert third == {"begin": 5.5, "replicas": 0, "requests": 0}
    assert (fourth["requests"], fourth["p50_ms"], fourth["p99_ms"]) == (2, 250.0, 1500.0)


def test_what_was_under_way_when_a_replica_died_may_have_had_no_answer_and_nothing_else() -> None:
    outcomes = [
        outcome(1.0),
        outcome(4.0, 0, 1.0),
        outcome(5.7, 0),
        outcome(6.1, 0),
        outcome(2.0, 0, 1.0),
        outcome(4.9, 500),
        outcome(6.0, 429),
    ]
    assert report(outcomes, SPANS[:2], [2, 1], lost=(5.0, 5.4))["faults"] == ["2 × no answer", "1 × 500", "1 × 429"]
    assert report(outcomes[:2], SPANS[:1], [2])["faults"] == ["1 × no answer"]


def test_replicas_that_stay_away_are_a_fault_and_so_is_a_service_that_answers_nobody() -> None:
    assert report([outcome(1.0)], SPANS[:2], [2, 1, 2])["faults"] == ["replicas: 2, 1, not 2, 1, 2"]
    assert report([outcome(5.0, 0)], SPANS[:1], [2], lost=(5.0, 5.0))["faults"] == ["nothing was answered"]
