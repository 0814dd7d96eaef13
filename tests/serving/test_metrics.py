import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from os import getpid
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import totals
from serving.metrics import CONTENT_TYPE, REFRESH_SECONDS, Metrics
from serving.pipeline import Pipeline
from serving.settings import Settings
from serving.totals_file import Number
from tests.service import fetch
from tests.serving.conftest import Api, answering, wait_until

OWN = (("host", gethostname()), ("process", str(getpid())))


@pytest.fixture
def fresh(tiny_bundle: Path) -> Iterator[Api]:
    with answering(tiny_bundle, rows=8, queue_tokens=900) as found:
        yield found


def figures(api: Api) -> dict[str, float]:
    answer = fetch(f"{api.url}/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
    families = text_string_to_metric_families(answer.content.decode())
    # Those of requests have a test of their own (api/test_app.py).
    samples = [each for family in families for each in family.samples if each.name != "dragoman_requests_total"]
    for each in samples:
        assert each.labels == ({} if each.name.endswith("_total") else dict(OWN)), "counters are the service's"
    assert len({each.name for each in samples}) == len(samples) == 8
    return {each.name.removeprefix("dragoman_"): each.value for each in samples}


def translate(api: Api, **body: Any) -> Any:
    answer = fetch(f"{api.url}/v1/translate", json.dumps(body).encode())
    assert answer.status == 200
    return answer.json


def test_figures_rise_by_exactly_what_a_request_takes(fresh: Api) -> None:
    before = figures(fresh)
    assert (before["rows"], before["queue_tokens"]) == (8, 900)
    assert before["rows_in_use"] == before["waiting_tokens"] == 0
    texts = ["One cat.", "A far longer sentence than that one, with a good many words in it."]
    sources = [fresh.pipeline.tokenizer.source(text, "de") for text in texts]
    found = translate(fresh, text=texts, min_tokens=7, max_tokens=7, beam_size=2)
    assert [each["tokens"] for each in found["translations"]] == [7, 7]
    wait_until(lambda: figures(fresh)["rows_in_use"] == 0)
    after = figures(fresh)
    risen = {name: after[f"{name}_total"] - before[f"{name}_total"] for name in ("source_tokens", "steps")}
    assert risen["source_tokens"] == sum(map(len, sources))
    assert sum(map(len, sources)) <= after["padded_tokens_total"] - before["padded_tokens_total"]
    # Side by side or, where one was encoded first, one after the other; in the first step a beam has one row yet.
    assert 7 <= risen["steps"] <= 14
    assert after["decoded_rows_total"] - before["decoded_rows_total"] == 2 * (1 + 6 * 2)
    assert figures(fresh) == after


def test_requests_are_counted_by_route_method_and_status_and_no_stranger_adds_series(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as metrics:
        for status in (200, 200, 413):
            metrics.count_request("/v1/translate", "POST", status)
        for method in ("BREW", "post", "\n"):
            metrics.count_request("other", method, 405)
        # What another version has counted, in a folder that is kept.
        metrics._totals.counter("requests", path="/v1/translate").add()
        metrics._totals.counter("steps", engine="old").add()
        [requests] = [
            family
            for family in text_string_to_metric_families(metrics.exposition().decode())
            if "requests" in family.name
        ]
    counted = {
        tuple(each.labels[name] for name in ("route", "method", "status")): each.value for each in requests.samples
    }
    assert counted == {
        ("/v1/translate", "POST", "200"): 2,
        ("/v1/translate", "POST", "413"): 1,
        ("other", "other", "405"): 3,
    }
    assert requests.type == "counter"


def test_gauges_are_those_of_every_replica_that_is_ready(tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=8))
    with closing(pipeline), closing(Metrics(tmp_path)) as ready, closing(Metrics(tmp_path)) as starting:
        ready.watch([pipeline.engine])
        starting.watch([pipeline.engine])
        found = totals.read(tmp_path).gauges
        assert found == {}
        keeping = asyncio.new_event_loop()
        with closing(keeping):
            task = keeping.create_task(ready.keep_fresh())
            keeping.run_until_complete(asyncio.sleep(0))
            assert [(each.name, value) for each, value in totals.read(tmp_path).gauges.items()][:1] == [("rows", 8)]
            pipeline.engine.rows = 5
            keeping.run_until_complete(asyncio.sleep(2 * REFRESH_SECONDS))
            assert totals.read(tmp_path).gauges[Number("rows", OWN)] == 5
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                keeping.run_until_complete(task)


def test_encoding_counts_as_source_tokens_alone(fresh: Api) -> None:
    before = figures(fresh)
    answer = fetch(f"{fresh.url}/v1/encode", json.dumps({"text": "One cat."}).encode())
    assert answer.status == 200
    after = figures(fresh)
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed.pop("source_tokens_total") == len(answer.json["encodings"][0]["tokens"])
    assert list(changed) == ["padded_tokens_total"]


def test_what_is_under_way_can_be_seen(slow_api: Api) -> None:
    """One decodes in the only row and the others wait; all is let go when the client hangs up."""
    import http.client

    client = http.client.HTTPConnection("127.0.0.1", slow_api.port, timeout=20)
    client.request("POST", "/v1/translate", json.dumps({"text": ["Hello there."] * 3, "min_tokens": 100}))
    wait_until(lambda: figures(slow_api)["rows_in_use"] == 1)
    assert figures(slow_api)["waiting_tokens"] > 0
    assert slow_api.pipeline.engine.load == 3
    client.close()
    wait_until(lambda: figures(slow_api)["rows_in_use"] == figures(slow_api)["waiting_tokens"] == 0)
    assert slow_api.pipeline.engine.load == 0
