from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from export.bundle import TOKENIZER, read_manifest
from model.tokenizer import Tokenizer
from serving.engine.jobs import translation
from serving.errors import TooLarge
from serving.options import TranslateOptions
from serving.preprocessing import Preprocessor
from serving.settings import Settings


@pytest.fixture(scope="module")
def preprocessor(tiny_bundle: Path) -> Preprocessor:
    return Preprocessor(
        Settings(bundle=tiny_bundle, max_texts=3), read_manifest(tiny_bundle), Tokenizer.load(tiny_bundle / TOKENIZER)
    )


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"max_tokens": 1}, {"beam_size": 2, "max_tokens": 1}])
@given(st.lists(st.text(st.sampled_from("ae.! \u00a0\u3000▁\u0301"), min_size=1, max_size=3), min_size=1, max_size=4))
def test_nothing_costs_less_than_what_it_is_refused_for(
    preprocessor: Preprocessor, options: dict[str, Any], parts: list[str]
) -> None:
    search = TranslateOptions(**options)
    texts = [part * 40 for part in parts]
    try:
        preprocessed = preprocessor.cut(texts, "de", search, ())
    except TooLarge:
        assume(False)
    jobs = [
        translation(ids, decoding, 0.0)
        for ids, decoding in zip(preprocessed.sources, preprocessed.decodings, strict=True)
    ]
    assert preprocessor.least_cost(texts, search) <= sum(job.cost for job in jobs)


def test_every_sentence_has_a_source_and_a_decoding_and_the_first_of_a_text_its_prefix(
    preprocessor: Preprocessor, tiny_bundle: Path
) -> None:
    cut = preprocessor.cut(["One cat. Two dogs.", "Three birds."], "de", TranslateOptions(), ["Eine", ""])
    tokenizer = Tokenizer.load(tiny_bundle / TOKENIZER)
    assert [[sentence.text for sentence in sentences] for sentences in cut.sentences] == [
        ["One cat.", "Two dogs."],
        ["Three birds."],
    ]
    assert cut.sources == [tokenizer.source(text, "de") for text in ("One cat.", "Two dogs.", "Three birds.")]
    assert [decoding.prefix for decoding in cut.decodings] == [tuple(tokenizer.target("Eine")[:-1]), (), ()]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"] * 4, "text has 4 texts; the limit is 3"),
        (["a", "b" * 20_001], r"text\.1 has 20,001 characters; the limit is 20,000"),
    ],
)
def test_too_many_texts_or_characters_are_named(preprocessor: Preprocessor, texts: list[str], message: str) -> None:
    with pytest.raises(TooLarge, match=message):
        preprocessor.check_texts("text", texts)
