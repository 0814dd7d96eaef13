import itertools
import urllib.error

import pytest

from loadtest.figures import figures
from tests.loadtest.stub import Stub, served

TWO_PROCESSES = """\
# HELP dragoman_rows_in_use Hypotheses being decoded
# TYPE dragoman_rows_in_use gauge
dragoman_rows_in_use{process="11"} 3.0
dragoman_rows_in_use{process="12"} 4.5
# HELP dragoman_source_tokens_total Source tokens encoded
# TYPE dragoman_source_tokens_total counter
dragoman_source_tokens_total{process="11"} 1.5e+06
dragoman_source_tokens_total{process="12"} 7.0
"""
BARE = "peer_source_tokens_total 12\npeer_padded_tokens_total 40\n"


def test_the_figures_of_all_processes_are_added_up_under_names_without_the_prefix() -> None:
    assert found(TWO_PROCESSES) == {"rows_in_use": 7.5, "source_tokens_total": 1_500_007.0}


def test_figures_without_types_are_read_too_and_by_the_same_names() -> None:
    assert found(BARE) == {"source_tokens_total": 12.0, "padded_tokens_total": 40.0}


def test_a_service_without_figures_is_an_error_and_not_zero() -> None:
    with pytest.raises(urllib.error.HTTPError):
        found("", status=404)
    assert "rows_in_use" not in found("# nothing\n")


def test_replicas_that_answer_in_turn_are_added_up_and_each_counts_once() -> None:
    asked = itertools.count()

    class Turns(Stub):
        def get(self) -> None:
            process = next(asked) % 2
            self.answer(200, f'any_rows{{process="{process}"}} {10 + process}\n'.encode())

    with served(Turns) as url:
        assert figures(url) == {"rows": 10}
        assert figures(url, 2) == {"rows": 21}
    assert next(asked) == 3


def found(exposition: str, status: int = 200) -> dict[str, float]:
    class Said(Stub):
        def get(self) -> None:
            assert self.path == "/metrics"
            self.answer(status, exposition.encode())

    with served(Said) as url:
        return figures(url)
