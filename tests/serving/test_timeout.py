import json
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.figures import figures
from tests.service import fetch
from tests.serving.conftest import answering, wait_until

LONG = "Wait for it. " * 8


@pytest.mark.parametrize("body", [{"text": LONG}, {"text": [LONG] * 5, "beam_size": 3}])
def test_what_is_not_done_in_time_is_answered_with_504_and_leaves_nothing(tiny_bundle: Path, body: Any) -> None:
    """One sentence that is decoded when its time is up; lists of which some still wait then."""
    with answering(tiny_bundle, rows=4, timeout=1) as api:
        api.slow_down(0.3)
        begun = time.monotonic()
        answer = fetch(f"{api.url}/v1/translate", json.dumps(body | {"min_tokens": 100}).encode())
        # It is the engine that keeps the time, and not what stands behind it in case it hangs.
        assert 1 <= time.monotonic() - begun < 30
        assert (answer.status, answer.headers["Content-Type"]) == (504, "application/problem+json")
        assert answer.json["detail"] == "not done within 1 s"
        assert api.steps > 1, "it was worked on"
        wait_until(lambda: api.pipeline.engine.load == 0)
        left = figures(api.url)
        assert (left["rows_in_use"], left["waiting_tokens"]) == (0, 0)
        short = fetch(f"{api.url}/v1/translate", json.dumps({"text": "Hi.", "max_tokens": 1}).encode())
        assert short.status == 200
