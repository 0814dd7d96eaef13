"""Where the engines of these tests compute."""

from collections.abc import Iterator

import pytest

from tests.serving.engine.engines import RUNTIMES, cpu_runtime, fake_runtime


@pytest.fixture(scope="module", params=["cpu", pytest.param("fake device", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything that an engine does is done on the CPU and, in ``make test-all``, on the fake device."""
    RUNTIMES.append(cpu_runtime if request.param == "cpu" else fake_runtime)
    yield request.param
    RUNTIMES.pop()
