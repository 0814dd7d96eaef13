"""The acceptance set: what a service is asked when its answers are compared with another version's.

Left out is what a version may change on purpose without another answer to what a client asks today: /v1/models,
/openapi.json, /metrics, and paths and methods that no route takes.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

TEXT = "The file could not be opened."
TRANSLATE, ENCODE, ATTENTION = "/v1/translate", "/v1/encode", "/v1/attention"
KINDS = ("encoder", "decoder", "encoder-decoder")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"target": "de", "log_probabilities": True},
    {"beam_size": 4},
    {"beam_size": 4, "alternatives": 3, "log_probabilities": True},
    {"beam_size": 3, "length_penalty": 0.2, "no_repeat_ngram": 2},
    {"sampling": {"seed": 7}},
    {"sampling": {"seed": 8, "temperature": 1.5, "top_k": 20, "top_p": 0.9}, "log_probabilities": True},
    {"prefix": "Leider"},
    {"max_tokens": 5},
    {"min_tokens": 12, "max_tokens": 40},
)
STREAMS: tuple[dict[str, Any], ...] = (
    {},
    {"log_probabilities": True},
    {"sampling": {"seed": 9, "temperature": 1.2}},
    {"prefix": "Leider", "no_repeat_ngram": 3},
)
UNUSUAL = (
    *("a\x00b", "😀 👨‍👩‍👧", "日本語 и русский", "\u202eabc", "e\u0301", "<2de> </s> <pad>", "%s {x} $1"),
    f"{TEXT}\r\n\r\n  {TEXT}\n",
    f"  {TEXT}\r\n\r\n\t{TEXT} 日本 😀.  And more. \n",
)
BAD_BYTES = (b"", b'{"text": "cut off', b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[]", b"null", b'"text"')
BAD_NUMBER = b'{"text": "a", "length_penalty": NaN}'
BAD_TRANSLATIONS: tuple[Any, ...] = (
    {},
    {"text": None},
    {"text": 5},
    {"text": [TEXT, 5]},
    {"text": []},
    {"text": ""},
    {"text": " \n\t"},
    {"text": [TEXT, " "]},
    {"text": TEXT, "beam": 4},
    {"text": TEXT, "source": "xx"},
    {"text": TEXT, "source": ""},
    {"text": TEXT, "target": "xx"},
    {"text": TEXT, "source": "en", "target": "en"},
    {"text": TEXT, "target": 1},
    {"text": TEXT, "max_tokens": 0},
    {"text": TEXT, "max_tokens": "5"},
    {"text": TEXT, "max_tokens": 10**9},
    {"text": TEXT, "beam_size": 0},
    {"text": TEXT, "beam_size": 17},
    {"text": TEXT, "beam_size": 10**30},
    {"text": TEXT, "alternatives": 2},
    {"text": TEXT, "length_penalty": 5.5},
    {"text": TEXT, "min_tokens": 9, "max_tokens": 8},
    {"text": TEXT, "min_tokens": 257},
    {"text": TEXT, "no_repeat_ngram": 11},
    {"text": TEXT, "prefix": 5},
    {"text": TEXT, "prefix": ["a", "b"]},
    {"text": [TEXT, TEXT], "prefix": "a"},
    {"text": TEXT, "prefix": "a b c", "max_tokens": 3},
    {"text": TEXT, "prefix": "x" * 1_000_000},
    {"text": TEXT, "sampling": True},
    {"text": TEXT, "sampling": {"temperature": 0}},
    {"text": TEXT, "sampling": {"top_k": 257}},
    {"text": TEXT, "sampling": {"top_p": 0}},
    {"text": TEXT, "sampling": {"seed": 2**63}},
    {"text": TEXT, "sampling": {"seed": 1}, "beam_size": 2},
    {"text": TEXT, "stream": True, "beam_size": 2},
    {"text": " ", "stream": True},
    {"text": "qz" * 5000, "stream": True},
    {"text": TEXT, "stream": 1},
    {"text": 5, "beam_size": 0, "stream": 1, "beam": 4},
    {"text": [1] * 500_000},
    {str(number): number for number in range(100_000)},
    {"text": ["x"] * 10_000},
    {"text": "x" * 1_000_000},
    {"text": "x" * 3_000_000},
    {"text": [TEXT, "qz" * 5000]},
    {"text": "qz" * 5000},
)
BAD_OTHERS: tuple[tuple[str, Any], ...] = (
    (ENCODE, {}),
    (ENCODE, {"text": " "}),
    (ENCODE, {"text": TEXT, "pooling": "max"}),
    (ENCODE, {"text": TEXT, "source": "xx"}),
    (ENCODE, {"text": "word " * 400}),
    (ENCODE, {"text": [TEXT] * 500, "pooling": "none"}),
    (ATTENTION, {"text": [TEXT]}),
    (ATTENTION, {"text": TEXT, "kind": "sideways"}),
    (ATTENTION, {"text": TEXT, "layer": 99}),
    (ATTENTION, {"text": TEXT, "layer": -1}),
    (ATTENTION, {"text": TEXT, "head": 99}),
    (ATTENTION, {"text": TEXT, "translation": ""}),
    (ATTENTION, {"text": "word " * 200}),
    (ATTENTION, {"text": TEXT, "translation": "Wort " * 200}),
)


class Question(NamedTuple):
    """A request."""

    method: str
    route: str
    body: bytes = b""

    def __str__(self) -> str:
        text = f"{self.body[:200]!r}{'…' if len(self.body) > 200 else ''}" if self.body else ""
        return f"{self.method} {self.route} {text}".strip()


def acceptance(sentences: Sequence[str]) -> list[Question]:
    """What is asked: about ``sentences``, and what must be refused; some two thousand for three hundred."""
    questions = [Question("POST", route, json.dumps(body).encode()) for route, body in (*_good(sentences), *_bad())]
    raw = [Question("POST", route, body) for route in (TRANSLATE, ENCODE, ATTENTION) for body in BAD_BYTES]
    health = [Question("GET", route) for route in ("/healthz", "/readyz")]
    return [*health, *questions, *raw, Question("POST", TRANSLATE, BAD_NUMBER)]


def _good(sentences: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for text in sentences:
        yield TRANSLATE, {"text": text}
        yield ENCODE, {"text": text}
    for text in (*sentences[::5], "Die Datei konnte nicht geöffnet werden.", "Öffnen Sie das Menü."):
        yield TRANSLATE, {"text": text, "source": "de"}
        yield TRANSLATE, {"text": text, "source": "de", "target": "en", "stream": True}
    for text in sentences[::10]:
        for pooling in ("attention", "mean", "none"):
            yield ENCODE, {"text": text, "source": "de", "pooling": pooling}
        for kind in KINDS:
            yield ATTENTION, {"text": text, "kind": kind}
    for text in (*sentences[::15], f"{TEXT} {TEXT}"):
        for options in OPTIONS:
            yield TRANSLATE, {"text": text, **options}
        for options in STREAMS:
            yield TRANSLATE, {"text": text, "stream": True, **options}
    for text in UNUSUAL:
        yield TRANSLATE, {"text": text}
        yield TRANSLATE, {"text": text, "stream": True}
        yield ENCODE, {"text": text}
    for kind in KINDS:
        yield ATTENTION, {"text": TEXT, "translation": "Guten Tag.", "kind": kind, "layer": 0, "head": 2}
    texts = list(sentences)
    yield TRANSLATE, {"text": texts}
    yield TRANSLATE, {"text": texts[:20], "stream": True}
    yield TRANSLATE, {"text": texts[:20], "beam_size": 4, "alternatives": 2}
    yield TRANSLATE, {"text": [TEXT, TEXT], "prefix": ["Leider", ""]}
    yield ENCODE, {"text": texts[:50]}
    yield ENCODE, {"text": texts[:20], "pooling": "none"}


def _bad() -> Iterator[tuple[str, Any]]:
    for body in BAD_TRANSLATIONS:
        yield TRANSLATE, body
    yield from BAD_OTHERS
