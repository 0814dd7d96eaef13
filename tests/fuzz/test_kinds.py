"""What is sent: the same for the same seed, of every kind, and valid where it says so."""

import random
from pathlib import Path

import h11
import pytest

from tests.fuzz.attempt import Attempt, Outcome, load, save
from tests.fuzz.campaign import attempts
from tests.fuzz.described import Described
from tests.fuzz.kinds import KINDS, raw
from tests.fuzz.valid import valid

pytestmark = pytest.mark.slow

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "x", "version": "1"},
    "paths": {
        "/healthz": {
            "get": {"responses": {"200": {"description": "x", "content": {"application/json": {"schema": {}}}}}}
        },
        "/v1/encode": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Asked"}}},
                },
                "responses": {
                    "200": {
                        "description": "x",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Told"}}},
                    }
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Asked": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "beam_size": {"type": "integer", "minimum": 1}},
                "required": ["text"],
                "additionalProperties": False,
            },
            "Told": {"type": "object", "properties": {"tokens": {"type": "integer"}}, "required": ["tokens"]},
        }
    },
}


def test_every_kind_makes_the_same_bytes_for_the_same_seed() -> None:
    for number in range(3 * len(KINDS)):
        assert raw(7, number) == raw(7, number)
    assert {raw(7, number).kind for number in range(len(KINDS))} == set(KINDS)
    assert sum(raw(7, number).sent != raw(8, number).sent for number in range(len(KINDS))) > len(KINDS) / 2


def test_a_valid_request_is_http() -> None:
    chance = random.Random(1)
    for _ in range(200):
        request = valid(chance)
        server = h11.Connection(h11.SERVER)
        server.receive_data(request.wire())
        head = server.next_event()
        assert isinstance(head, h11.Request)
        assert head.method.decode() == request.method
        body = bytearray()
        while isinstance(event := server.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert bytes(body) == request.body


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("noise")])
def test_noise_changes_the_bytes(name: str) -> None:
    whole = {valid(random.Random(f"3 {number}")).wire() for number in range(5 * len(KINDS))}
    made = [raw(3, list(KINDS).index(name) + turn * len(KINDS)) for turn in range(5)]
    assert sum(each.sent not in whole for each in made) >= 4
    assert all(each.methods is None and each.statuses is None for each in made)


def test_an_attempt_is_read_as_it_was_written(tmp_path: Path) -> None:
    for number in range(2 * len(KINDS)):
        attempt = raw(5, number)
        file = save(attempt, ["a fault"], Outcome(b"", (), "closed", 0.1), tmp_path)
        assert load(file) == attempt


def test_described_requests_are_the_same_for_the_same_seed() -> None:
    first, second = (list(Described(DOCUMENT).attempts(3, 60)) for _ in range(2))
    assert [each.sent for each in first] == [each.sent for each in second]
    kinds = {each.kind for each in first}
    assert kinds == {
        f"schema: {name}" for name in ("GET /healthz positive", "POST /v1/encode positive", "POST /v1/encode negative")
    }
    assert len({each.sent for each in first}) > 30


def test_an_answer_that_is_not_as_described_is_told() -> None:
    made = [each for each in Described(DOCUMENT).attempts(4, 60) if each.case is not None]
    positive = next(each for each in made if each.kind == "schema: POST /v1/encode positive")
    negative = next(each for each in made if each.kind == "schema: POST /v1/encode negative")
    assert told(positive, b'{"tokens": 3}') == []
    assert "not as described" in told(positive, b'{"tokens": "3"}')[0]
    assert "not as described" in told(positive, b'{"tokens": 3}', "text/html")[0]
    assert "not as described" in told(negative, b'{"tokens": 3}')[0]


def told(attempt: Attempt, body: bytes, kind: str = "application/json") -> list[str]:
    from tests.fuzz.answers import Answer

    return Described.faults(attempt, Answer(200, (("content-type", kind),), body))


def test_a_run_has_as_many_attempts_as_asked_for() -> None:
    for count in (1, 199, 200, 450):
        batches = list(attempts(1, count, Described(DOCUMENT)))
        assert sum(map(len, batches)) == count
    assert sum(each.kind.startswith("schema") for batch in batches for each in batch) > 150
