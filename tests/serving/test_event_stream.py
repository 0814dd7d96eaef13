import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.service import fetch
from tests.serving.conftest import Api, answering, wait_until

TEXT = "The file could not be opened."
LONG = "Wait for it. " * 8


WORDS = {"no_repeat_ngram": 1}
"""Lets a model of random weights write something else again and again."""


def post(api: Api, **body: Any) -> Any:
    return fetch(f"{api.url}/v1/translate", json.dumps(body).encode())


@contextmanager
def connection(api: Api, **body: Any) -> Iterator[socket.socket]:
    """A connection over which ``body`` was sent; closed at the end, without a word."""
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", api.port)) as opened:
        opened.sendall(b"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        yield opened


def events(content: bytes) -> list[tuple[str, Any]]:
    """Names and data of a stream of server-sent events."""
    found = []
    *blocks, rest = content.decode().split("\n\n")
    assert rest == ""
    for block in blocks:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def told(found: list[tuple[str, Any]], texts: int) -> list[str]:
    """What the deltas add up to."""
    return [
        "".join(data["text"] for name, data in found if name == "delta" and data["index"] == index)
        for index in range(texts)
    ]


@pytest.mark.parametrize("settings", [{}, WORDS, {"sampling": {"seed": 5, "temperature": 1.5}}])
def test_deltas_add_up_to_the_answer_that_is_not_streamed(
    api: Api, sentences: list[str], settings: dict[str, Any]
) -> None:
    texts = [f"  {TEXT}\r\n\r\n\t{TEXT} 日本 😀.  And more. \n", *sentences[60:72], "😀"]
    body = {"text": texts, "log_probabilities": True, "max_tokens": 40} | settings
    answer = post(api, **body, stream=True)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    found = events(answer.content)
    assert [name for name, _ in found[:-1]] == ["delta"] * (len(found) - 1)
    name, result = found[-1]
    timings = result.pop("timings")
    assert name == "result"
    assert set(timings) == {"tokenise", "queue", "encode", "decode", "detokenise", "total"}
    assert result == post(api, **body).json
    assert told(found, len(texts)) == [each["text"] for each in result["translations"]]


def test_each_token_is_told_before_the_next_one_is_there(slow_api: Api) -> None:
    with connection(slow_api, text=TEXT, stream=True, max_tokens=12, **WORDS) as opened:
        steps = []
        while b"event: result" not in opened.recv(65536):
            steps.append(slow_api.steps)
    assert len(set(steps)) > 4


@pytest.mark.parametrize(
    ("body", "status", "mentioned"),
    [
        ({"beam_size": 2}, 422, "stream: takes a beam_size of 1, not 2"),
        ({"text": " "}, 422, "text: is blank"),
        ({"text": "q" * 5000}, 413, "tokens in one sentence"),
    ],
)
def test_what_is_wrong_from_the_start_is_an_ordinary_problem(api: Api, body: Any, status: int, mentioned: str) -> None:
    answer = post(api, **({"text": TEXT, "stream": True} | body))
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert mentioned in answer.json["detail"]


def test_a_deadline_in_the_queue_is_a_problem_and_one_in_mid_stream_an_event(tiny_bundle: Path) -> None:
    with answering(tiny_bundle, rows=1, timeout=1.5) as api:
        api.slow_down(0.05)
        with connection(api, text=LONG, stream=True, **WORDS) as first:
            wait_until(lambda: api.running == 1)
            assert post(api, text=TEXT, stream=True).status == 504
            content = b""
            while part := first.recv(65536):
                content += part
                if b"event: error" in content:
                    break
    assert content.startswith(b"HTTP/1.1 200")
    assert b"event: delta" in content
    [problem] = [json.loads(line[6:]) for line in content.decode().splitlines() if line.startswith('data: {"type"')]
    assert problem["status"] == 504
    assert "not done within 1.5 s" in problem["detail"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row_within_a_step(slow_api: Api, stream: bool) -> None:
    with connection(slow_api, text=LONG, stream=stream, max_tokens=100, **WORDS) as opened:
        if stream:
            assert opened.recv(1) == b"H"
        wait_until(lambda: slow_api.running == 1)
    steps = slow_api.steps
    wait_until(lambda: slow_api.running == 0)
    # One is under way, and the next may begin before word has come.
    assert slow_api.steps - steps <= 2
    assert slow_api.pipeline.engine.waiting_tokens == 0
    assert post(slow_api, text="Hi.", max_tokens=2).status == 200
    assert slow_api.steps - steps <= 4


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(slow_api: Api) -> None:
    engine = slow_api.pipeline.engine
    with connection(slow_api, text=TEXT, max_tokens=100):
        wait_until(lambda: slow_api.running == 1)
        for stream in (True, False):
            with connection(slow_api, text=TEXT, stream=stream):
                wait_until(lambda: engine.waiting_tokens > 0)
            steps = slow_api.steps
            wait_until(lambda: engine.waiting_tokens == 0)
            assert slow_api.steps - steps <= 2


def test_an_engine_that_breaks_in_mid_stream_says_so_in_an_event(slow_api: Api) -> None:
    batch = slow_api.pipeline.engine._batch
    working = batch.step

    def breaking(*arguments: Any) -> Any:
        if slow_api.steps == 5:
            raise RuntimeError("out of memory")
        return working(*arguments)

    batch.step = breaking  # type: ignore[method-assign]
    found = events(post(slow_api, text=TEXT, stream=True, **WORDS).content)
    assert {name for name, _ in found[:-1]} == {"delta"}
    name, problem = found[-1]
    assert (name, problem["status"], problem["title"]) == ("error", 503, "Not ready")
