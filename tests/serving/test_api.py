import json
import socket
import urllib.parse
from typing import Any

import pytest

from loadtest.figures import figures
from tests.service import Answer, fetch
from tests.serving.conftest import wait_until
from tests.serving.test_event_stream import events, told

TEXT = "The file could not be opened."


def post(service: str, route: str, body: Any) -> Answer:
    return fetch(f"{service}{route}", body if isinstance(body, bytes) else json.dumps(body).encode())


def assert_problem(answer: Answer, status: int, *mentioned: str) -> None:
    assert answer.status == status, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert problem["title"]
    for words in mentioned:
        assert words in problem["detail"]


def assert_serves(service: str) -> None:
    """The next request is served normally."""
    assert post(service, "/v1/translate", {"text": TEXT}).status == 200


def test_translates_a_string_and_says_how_sure_and_how_long(service: str) -> None:
    answer = post(service, "/v1/translate", {"text": TEXT})
    assert answer.status == 200
    [found] = answer.json["translations"]
    assert found["text"].strip()
    assert found["score"] < 0
    assert found["mean_score"] == pytest.approx(found["score"] / found["tokens"])
    assert found["finish_reason"] == "stop"
    assert (answer.json["source"], answer.json["target"]) == ("en", "de")
    *stages, total = ("tokenise", "queue", "encode", "decode", "detokenise", "total")
    assert set(answer.stages) == {*stages, total}
    assert answer.stages[total] >= max(answer.stages[stage] for stage in stages)


def test_a_list_comes_back_in_its_order_and_as_each_text_alone(service: str, sentences: list[str]) -> None:
    texts = sentences[40:60]
    together = post(service, "/v1/translate", {"text": texts, "source": "en", "target": "de"}).json["translations"]
    alone = [post(service, "/v1/translate", {"text": text}).json["translations"][0] for text in texts]
    assert together == alone


def test_source_and_target_choose_the_direction(service: str) -> None:
    there = post(service, "/v1/translate", {"text": "Open the file."}).json
    german = there["translations"][0]["text"]
    by_source, by_target = (
        post(service, "/v1/translate", {"text": german, **chosen}).json
        for chosen in ({"source": "de"}, {"target": "en"})
    )
    assert (there["source"], there["target"]) == ("en", "de")
    assert (by_source["source"], by_source["target"]) == ("de", "en")
    assert by_source["translations"] == by_target["translations"]
    assert "Datei" in german
    assert "file" in by_source["translations"][0]["text"]


def test_a_translation_that_ran_into_its_limit_says_so(service: str) -> None:
    [found] = post(service, "/v1/translate", {"text": TEXT, "max_tokens": 2}).json["translations"]
    assert (found["tokens"], found["finish_reason"]) == (2, "length")


def test_a_beam_gives_alternatives_best_first(service: str) -> None:
    body = {"text": [TEXT, f"{TEXT} {TEXT}"], "beam_size": 6, "alternatives": 4}
    found = post(service, "/v1/translate", body).json["translations"]
    for each in found:
        alternatives = each.pop("alternatives")
        assert alternatives[0] == each
        assert len({alternative["text"] for alternative in alternatives}) == len(alternatives) == 4
    assert "alternatives" not in post(service, "/v1/translate", {"text": TEXT, "beam_size": 6}).json["translations"][0]


def test_a_drawn_translation_can_be_drawn_again_with_the_seed_it_names(service: str) -> None:
    body = {"text": [TEXT] * 8, "sampling": {"temperature": 1.5}}
    first = post(service, "/v1/translate", body).json
    assert len({each["text"] for each in first["translations"]}) > 1
    body["sampling"] = {"temperature": 1.5, "seed": first["seed"]}
    assert post(service, "/v1/translate", body).json == first
    assert "seed" not in post(service, "/v1/translate", {"text": TEXT}).json


def test_tokens_come_with_their_log_probabilities(service: str) -> None:
    body = {"text": f"{TEXT} {TEXT}", "log_probabilities": True, "beam_size": 2, "alternatives": 2}
    [found] = post(service, "/v1/translate", body).json["translations"]
    for each in (found, *found["alternatives"]):
        assert len(each["pieces"]) == len(each["log_probabilities"]) == each["tokens"]
        assert sum(each["log_probabilities"]) == pytest.approx(each["score"])
        assert each["pieces"].count("</s>") == 2


def test_a_translation_begins_as_it_is_told_to(service: str) -> None:
    body = {"text": [TEXT, TEXT], "prefix": ["Leider", ""]}
    told, free = post(service, "/v1/translate", body).json["translations"]
    assert told["text"].startswith("Leider ")
    assert [free] == post(service, "/v1/translate", {"text": TEXT}).json["translations"]


def test_streams_what_it_would_answer_at_once(service: str, sentences: list[str]) -> None:
    body = {"text": [f"{TEXT} {TEXT}", *sentences[20:30]]}
    streamed = post(service, "/v1/translate", body | {"stream": True})
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    *deltas, result = events(streamed.content)
    assert result[0] == "result"
    assert {name for name, _ in deltas} == {"delta"}
    assert result[1].pop("timings")
    assert result[1] == post(service, "/v1/translate", body).json
    assert told(deltas, 11) == [each["text"] for each in result[1]["translations"]]


def test_line_breaks_between_sentences_survive(service: str) -> None:
    [found] = post(service, "/v1/translate", {"text": f"{TEXT}\r\n\r\n  {TEXT}\n"}).json["translations"]
    first, blank, second, end = found["text"].split("\n")
    assert blank == "\r"
    assert second.strip() == first.strip()
    assert second.startswith("  ")
    assert end == ""


@pytest.mark.parametrize(
    "text", ["a\x00b", "😀 👨‍👩‍👧", "日本語 и русский", "\u202eabc", "e\u0301", "<2de> </s> <pad>", "%s {x} $1"]
)
def test_unusual_text_is_text(service: str, text: str) -> None:
    assert post(service, "/v1/translate", {"text": text}).status == 200


@pytest.mark.parametrize("pooling", [{}, {"pooling": "attention"}, {"pooling": "mean"}])
def test_encodes_one_vector_a_text_of_length_one(service: str, pooling: dict[str, str]) -> None:
    answer = post(service, "/v1/encode", {"text": [TEXT, "Hello."]} | pooling)
    assert answer.json["pooling"] == pooling.get("pooling", "attention")
    for encoding in answer.json["encodings"]:
        assert sum(value * value for value in encoding["vector"]) == pytest.approx(1, abs=1e-4)
        assert "vectors" not in encoding
    assert {"tokenise", "queue", "encode"} <= set(answer.stages)


def test_encodes_one_vector_a_token(service: str) -> None:
    [encoding] = post(service, "/v1/encode", {"text": TEXT, "pooling": "none"}).json["encodings"]
    assert encoding["tokens"][0] == "<2de>"
    assert len(encoding["vectors"]) == len(encoding["tokens"])
    assert "vector" not in encoding


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_attention_rows_sum_to_one_over_the_tokens_it_names(service: str, kind: str) -> None:
    answer = post(service, "/v1/attention", {"text": TEXT, "kind": kind}).json
    heads = answer["heads"]
    assert [head["head"] for head in heads] == list(range(len(heads)))
    assert len(heads) > 1
    for head in heads:
        assert len(head["weights"]) == len(head["scores"]) == len(answer["queries"])
        for row in head["weights"]:
            assert len(row) == len(answer["keys"])
            assert sum(row) == pytest.approx(1, abs=1e-4)
    if kind == "decoder":
        assert all(weight == 0 for number, row in enumerate(heads[0]["weights"]) for weight in row[number + 1 :])


def test_attention_takes_a_translation_a_layer_and_a_head(service: str) -> None:
    body = {"text": TEXT, "translation": "Guten Tag.", "layer": 0, "head": 2}
    answer = post(service, "/v1/attention", body).json
    assert [head["head"] for head in answer["heads"]] == [2]
    assert answer["layer"] == 0
    assert answer["queries"][0] == "<s>"
    assert "".join(answer["queries"][1:]).replace("▁", " ").strip() == "Guten Tag."


def test_says_what_is_loaded_and_that_it_is_alive_and_ready(service: str) -> None:
    [model] = fetch(f"{service}/v1/models").json["models"]
    assert model["parity"]["passed"]
    assert model["precision"] == "int8"
    assert fetch(f"{service}/healthz").json == {"status": "alive"}
    assert fetch(f"{service}/readyz").json == {"status": "ready"}


def test_describes_its_bodies_in_openapi(service: str) -> None:
    document = fetch(f"{service}/openapi.json").json
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/translate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = schemas[body["$ref"].removeprefix("#/components/schemas/")]
    assert {
        *("text", "model", "source", "target", "prefix", "stream", "log_probabilities"),
        *("beam_size", "alternatives", "length_penalty", "min_tokens", "max_tokens", "no_repeat_ngram", "sampling"),
    } == set(schema["properties"])
    assert all("description" in field for field in schema["properties"].values())
    sampling, _ = schema["properties"]["sampling"]["anyOf"]
    sampling = schemas[sampling["$ref"].removeprefix("#/components/schemas/")]
    assert set(sampling["properties"]) == {"temperature", "top_k", "top_p", "seed"}


@pytest.mark.parametrize(
    ("body", "status", "mentioned"),
    [
        (b"", 400, "body"),
        (b'{"text": "cut off', 400, "body"),
        (b'{"text": "\xff"}', 400, "body"),
        (b'{"text": "\\ud800"}', 400, "body"),
        (b"[]", 422, "body"),
        (b"null", 422, "body"),
        ({}, 422, "text"),
        ({"text": None}, 422, "text"),
        ({"text": 5}, 422, "text: Input should be a string or a list of strings"),
        ({"text": [TEXT, 5]}, 422, "text.1"),
        ({"text": []}, 422, "text"),
        ({"text": ""}, 422, "text: is blank"),
        ({"text": " \n\t"}, 422, "text: is blank"),
        ({"text": [TEXT, " "]}, 422, "text.1: is blank"),
        ({"text": TEXT, "beam": 4}, 422, "beam"),
        ({"text": TEXT, "source": "xx"}, 422, "source: 'xx' is not a source language; this model reads de, en"),
        ({"text": TEXT, "target": "xx"}, 422, "target: 'xx' is not a target language; this model writes de, en"),
        (
            {"text": TEXT, "source": "en", "target": "en"},
            *(422, "target: 'en' is not a target language; this model writes de"),
        ),
        ({"text": TEXT, "target": 1}, 422, "target"),
        ({"text": TEXT, "max_tokens": 0}, 422, "max_tokens"),
        ({"text": TEXT, "max_tokens": "5"}, 422, "max_tokens"),
        ({"text": TEXT, "max_tokens": 10**9}, 422, "max_tokens: is 1000000000; the limit is 256"),
        ({"text": TEXT, "beam_size": 0}, 422, "beam_size: Input should be greater than or equal to 1"),
        ({"text": TEXT, "beam_size": 17}, 422, "beam_size: is 17; the limit is 16"),
        ({"text": TEXT, "beam_size": 10**30}, 422, "beam_size: is 1000000000000000000000000000000; the limit is 16"),
        ({"text": TEXT, "alternatives": 2}, 422, "alternatives: is 2; the limit is beam_size, 1: widen the beam"),
        ({"text": TEXT, "length_penalty": 5.5}, 422, "length_penalty: Input should be less than or equal to 5"),
        (b'{"text": "a", "length_penalty": NaN}', 422, "length_penalty"),
        ({"text": TEXT, "min_tokens": 9, "max_tokens": 8}, 422, "min_tokens: is 9; the limit is max_tokens, 8"),
        ({"text": TEXT, "min_tokens": 257}, 422, "min_tokens: is 257; the limit is 256"),
        ({"text": TEXT, "no_repeat_ngram": 11}, 422, "no_repeat_ngram: Input should be less than or equal to 10"),
        ({"text": TEXT, "prefix": 5}, 422, "prefix: Input should be a string or a list of strings"),
        ({"text": TEXT, "prefix": ["a", "b"]}, 422, "prefix: has 2 for 1 texts: give one a text, blank for none"),
        ({"text": [TEXT, TEXT], "prefix": "a"}, 422, "prefix: has 1 for 2 texts"),
        ({"text": TEXT, "prefix": "a b c", "max_tokens": 3}, 422, "leaves none to go on with: shorten it"),
        ({"text": TEXT, "prefix": "x" * 1_000_000}, 413, "prefix has 1,000,000 characters; the limit is 20,000"),
        ({"text": TEXT, "sampling": True}, 422, "sampling"),
        ({"text": TEXT, "sampling": {"temperature": 0}}, 422, "sampling.temperature: Input should be greater than"),
        ({"text": TEXT, "sampling": {"top_k": 257}}, 422, "sampling.top_k: Input should be less than or equal to 256"),
        ({"text": TEXT, "sampling": {"top_p": 0}}, 422, "sampling.top_p: Input should be greater than 0"),
        ({"text": TEXT, "sampling": {"seed": 2**63}}, 422, "sampling.seed: Input should be less than"),
        ({"text": TEXT, "sampling": {}, "beam_size": 2}, 422, "sampling: takes a beam_size of 1, not 2"),
        ({"text": TEXT, "stream": True, "beam_size": 2}, 422, "stream: takes a beam_size of 1, not 2"),
        ({"text": TEXT, "stream": 1}, 422, "stream"),
        ({"text": [1] * 500_000}, 422, "text.0: Input should be a valid string"),
        ({str(number): number for number in range(100_000)}, 422, "body: has 100000 members"),
        ({"text": ["x"] * 10_000}, 413, "text has 10,000 texts; the limit is 1,000"),
        ({"text": "x" * 1_000_000}, 413, "text has 1,000,000 characters; the limit is 20,000"),
        ({"text": "x" * 3_000_000}, 413, "body has 3,000,012 bytes; the limit is 2,000,000"),
        ({"text": [TEXT, "qz" * 5000]}, 413, "text.1 has"),
        ({"text": "qz" * 5000}, 413, "tokens in one sentence; the limit is 256"),
    ],
)
def test_bad_translation_requests_are_named_and_harm_nobody(
    service: str, body: Any, status: int, mentioned: str
) -> None:
    answer = post(service, "/v1/translate", body)
    assert_problem(answer, status, mentioned)
    assert len(answer.content) < 10_000
    assert_serves(service)


@pytest.mark.parametrize(
    ("route", "body", "status", "mentioned"),
    [
        ("/v1/encode", {"text": " "}, 422, "text: is blank"),
        ("/v1/encode", {"text": TEXT, "pooling": "max"}, 422, "pooling"),
        ("/v1/encode", {"text": "word " * 400}, 413, "tokens in one sentence; the limit is 256"),
        (
            "/v1/encode",
            {"text": [TEXT] * 500, "pooling": "none"},
            413,
            "tokens to encode one by one; the limit is 2,048",
        ),
        ("/v1/attention", {"text": [TEXT]}, 422, "text"),
        ("/v1/attention", {"text": TEXT, "kind": "sideways"}, 422, "kind"),
        ("/v1/attention", {"text": TEXT, "layer": 99}, 422, "layer: is 99"),
        ("/v1/attention", {"text": TEXT, "layer": -1}, 422, "layer"),
        ("/v1/attention", {"text": TEXT, "head": 99}, 422, "head: is 99"),
        ("/v1/attention", {"text": TEXT, "translation": ""}, 422, "translation: is blank"),
        ("/v1/attention", {"text": "word " * 200}, 413, "text has"),
        ("/v1/attention", {"text": TEXT, "translation": "Wort " * 200}, 413, "translation has"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
        ("/healthz", {}, 405, "takes GET"),
    ],
)
def test_other_bad_requests_are_named_too(service: str, route: str, body: Any, status: int, mentioned: str) -> None:
    assert_problem(post(service, route, body), status, mentioned)
    assert_serves(service)


@pytest.mark.parametrize(
    "sent",
    [
        b'POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"text": "cut',
        b'POST /v1/translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"text": "cut',
        b"\x16\x03\x01 not HTTP at all\r\n\r\n",
    ],
)
def test_a_connection_that_breaks_off_harms_nobody(service: str, sent: bytes) -> None:
    address = urllib.parse.urlsplit(service)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(sent)
    assert_serves(service)


@pytest.mark.parametrize("header", ["Content-Length: 3000000", "Transfer-Encoding: chunked"])
def test_a_large_body_that_does_not_end_is_refused_in_the_end(service: str, header: str) -> None:
    address = urllib.parse.urlsplit(service)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(f"POST /v1/translate HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        part = b"x" * 2_100_000
        connection.sendall(part if "Length" in header else b"%x\r\n%b\r\n" % (len(part), part))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_go_away_make_room_for_others(service: str, stream: bool) -> None:
    # Ten thousand sentences of two hundred tokens would take minutes.
    content = json.dumps({"text": [f"{TEXT} " * 10] * 1000, "min_tokens": 200, "stream": stream}).encode()
    address = urllib.parse.urlsplit(service)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = b"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
        connection.sendall(head + content)
        wait_until(lambda: short(service) == 429)
    # The service itself would give up after a minute.
    wait_until(lambda: short(service) == 200)
    wait_until(lambda: set(under_way(service).values()) == {0})


def short(service: str) -> int:
    """The status of the answer to a short question."""
    return post(service, "/v1/translate", {"text": TEXT, "max_tokens": 5}).status


def under_way(service: str) -> dict[str, float]:
    """Rows and queue of the engine."""
    found = figures(service)
    return {name: found[name] for name in ("rows_in_use", "waiting_tokens")}
