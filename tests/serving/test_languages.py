import math

import pytest

from serving.errors import Invalid
from serving.languages import best_pair, distance

PAIRS = [("en", "de"), ("de", "en"), ("zh", "en"), ("zh-Hant", "de"), ("pt_BR", "de")]


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        (None, "en", 0),
        ("en", "en", 0),
        ("EN", "en", 1),
        ("en-US", "en", 2),
        ("de_DE", "de", 2),
        ("ZH_hant", "zh-Hant", 1),
        ("zh-Hant-TW", "zh-Hant", 2),
        ("zh-Hant-TW", "zh", 3),
        ("pt-br", "pt_BR", 1),
    ],
)
def test_a_name_falls_back_to_a_code_part_by_part(name: str | None, code: str, expected: int) -> None:
    assert distance(name, code) == expected


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("xx", "en"),
        ("eng", "en"),
        ("e", "en"),
        ("", "en"),
        ("US-en", "en"),
        ("en-", "en"),
        ("en--US", "en"),
        ("-en", "en"),
        (" en", "en"),
        ("zh", "zh-Hant"),  # a model of one script is not the language's
    ],
)
def test_another_name_is_another_language(name: str, code: str) -> None:
    assert distance(name, code) == math.inf


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (None, None, ("en", "de")),
        ("DE", None, ("de", "en")),
        (None, "en_GB", ("de", "en")),
        ("de-AT", "EN", ("de", "en")),
        ("zh", None, ("zh", "en")),
        ("zh-Hant", None, ("zh-Hant", "de")),
        ("zh_hant_TW", None, ("zh-Hant", "de")),
        ("zh-Hans", None, ("zh", "en")),
        ("zh-Hant", "en", ("zh", "en")),  # nothing nearer can be translated into English
        ("pt-BR", None, ("pt_BR", "de")),
    ],
)
def test_the_nearest_pair_is_chosen_and_has_the_models_own_codes(
    source: str | None, target: str | None, expected: tuple[str, str]
) -> None:
    assert best_pair(PAIRS, source, target) == expected


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("xx", None, "source: 'xx' is not a source language; this model reads de, en, pt_BR, zh, zh-Hant"),
        ("pt", None, "source: 'pt' is not a source language; this model reads de, en, pt_BR, zh, zh-Hant"),
        (None, "fr-FR", "target: 'fr-FR' is not a target language; this model writes de, en"),
        ("EN", "en", "target: 'en' is not a target language; this model writes de"),
        ("zh-Hant-TW", "fr", "target: 'fr' is not a target language; this model writes de, en"),
    ],
)
def test_what_cannot_be_is_said_with_what_can(source: str | None, target: str | None, message: str) -> None:
    with pytest.raises(Invalid) as raised:
        best_pair(PAIRS, source, target)
    assert raised.value.detail == message


def test_an_exact_code_comes_before_the_same_in_other_letters() -> None:
    assert best_pair([("EN", "de"), ("en", "fr")], "en", None) == ("en", "fr")
