import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.figures import figures, processes
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


def test_the_processes_are_those_that_labels_name() -> None:
    with serving(TWO_PROCESSES + "dragoman_steps_total 3\n") as url:
        assert processes(url) == {11, 12}
    with serving(BARE) as url:
        assert processes(url) == set()


@contextmanager
def serving(exposition: str, status: int = 200) -> Iterator[str]:
    """A service that says ``exposition``."""

    class Said(Stub):
        def get(self) -> None:
            assert self.path == "/metrics"
            self.answer(status, exposition.encode())

    with served(Said) as url:
        yield url


def found(exposition: str, status: int = 200) -> dict[str, float]:
    with serving(exposition, status) as url:
        return figures(url)
