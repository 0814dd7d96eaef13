import json
from typing import Any

import pytest

from serving.bench.answers import Answer, ask, compare, without_times
from serving.bench.questions import Question, acceptance
from tests.loadtest.stub import Stub, served
from tests.serving.bench.stubs import port_of
from tests.serving.conftest import Api

QUESTION = Question("POST", "/v1/translate", b'{"text": "Hi."}')


def event(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def stream(*deltas: tuple[int, str], text: str = "Gut.", **timings: float) -> bytes:
    told = b"".join(event("delta", index=index, text=part) for index, part in deltas)
    return told + event("result", translations=[{"text": text}], timings=timings)


STREAM = stream((0, "Gu"), (1, 'Ja "so"'), (0, "t."), queue=1.25, total=3)


@pytest.mark.parametrize(
    "other",
    [
        stream((0, "Gut."), (1, "Ja "), (1, '"so"'), queue=0.5, total=1e-05),
        stream((1, 'Ja "so"'), (0, "G"), (0, "ut."), queue=2, total=3),
    ],
)
def test_how_a_stream_is_cut_and_how_long_it_took_makes_no_difference(other: bytes) -> None:
    assert without_times(other) == without_times(STREAM)


@pytest.mark.parametrize(
    "other",
    [
        stream((0, "Gut!"), (1, 'Ja "so"'), queue=1, total=3),
        stream((1, "Gut."), (0, 'Ja "so"'), queue=1, total=3),
        stream((0, "Gut."), (1, 'Ja "so"'), queue=1),
        stream((0, "Gut."), (1, 'Ja "so"'), text="Gut", queue=1, total=3),
        STREAM.replace(b'{"index":1,', b'{"index":1,"more":2,'),
        STREAM.replace(b"event: result", b"event: end"),
        STREAM + event("delta", index=0, text="more"),
        STREAM[:-1],
        b"",
    ],
)
def test_all_else_in_a_stream_does(other: bytes) -> None:
    assert without_times(other) != without_times(STREAM)


class Telling(Stub):
    """Answers with what a subclass says."""

    status, kind, stages, content = 200, "application/json", "queue;dur=1.5, total;dur=2", b'{"text": "Gut."}'

    def post(self) -> None:
        self.body()
        self.send_response(self.status)
        for name, value in (("Content-Type", self.kind), ("Server-Timing", self.stages)):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)


def told(**said: Any) -> Answer:
    with served(type("Saying", (Telling,), said)) as url:
        return ask(port_of(url), QUESTION)


def test_other_times_are_the_same_answer() -> None:
    assert compare(QUESTION, told(), told(stages="queue;dur=0.25, total;dur=7")) is None


@pytest.mark.parametrize(
    ("planted", "shown"),
    [
        ({"status": 422}, "status: old '200', new '422'"),
        ({"kind": "application/problem+json"}, "content_type: old 'application/json', new 'application/problem+json'"),
        ({"stages": "total;dur=2"}, "stages: old 'queue, total', new 'total'"),
        ({"content": b'{"text": "Gut!"}'}, "body at byte 13: old"),
        ({"content": b'{"text": "Gut."} '}, "body at byte 16: old"),
    ],
)
def test_a_planted_difference_is_found_and_shown(planted: dict[str, Any], shown: str) -> None:
    found = compare(QUESTION, told(), told(**planted))
    assert found
    assert str(QUESTION) in str(found)
    assert shown in str(found)


def test_two_answers_that_never_came_are_not_alike() -> None:
    class Gone(Stub):
        def post(self) -> None:
            self.close_connection = True

    with served(Gone) as url:
        found = compare(QUESTION, *(ask(port_of(url), QUESTION) for _ in range(2)))
    assert found
    assert "neither answers: RemoteDisconnected" in str(found)


def test_the_service_answers_the_acceptance_set_alike_twice(api: Api, sentences: list[str]) -> None:
    questions = acceptance(sentences[:4])
    answers = [(ask(api.port, each), ask(api.port, each)) for each in questions]
    assert [str(found) for each, pair in zip(questions, answers, strict=True) if (found := compare(each, *pair))] == []
    assert {one.status for one, _ in answers} == {"200", "400", "413", "422"}
    assert {one.content_type.partition(";")[0] for one, _ in answers} == {
        *("application/json", "application/problem+json", "text/event-stream")
    }
