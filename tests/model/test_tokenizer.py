import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import Checkpoint
from model.sentences import split
from model.tokenizer import END, FEW, LANGUAGES, PADDING, START, UNKNOWN, Tokenizer, language_token, normalise

# sentencepiece writes spaces as U+2581, so that one character cannot be told from a space.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
ODD = [*" \t\n\r\v\f\x1c\x85\xa0\u2003\u2028\u3000\u200b\ufeff▁\0\x07\x7f\x9f\xad", *"aeuAé.ﬁﬃ²½ﷺ日한가각각åÅΐᾧ<>2"]
ODD += ["\u0301", "\u0308", "\u0304", "\u0323", "\u0338", "\u0344", "\u0345", "\U0001f600", "\ufffd", "<2de>", "<0x41>"]
"""White space, what is dropped or replaced, ligatures, what is composed, controls."""


@given(TEXT)
def test_any_text_survives_a_round_trip(tiny_tokenizer: Tokenizer, text: str) -> None:
    expected = normalise(text)
    assert tiny_tokenizer.decode(tiny_tokenizer.target(text)) == expected
    assert tiny_tokenizer.decode(tiny_tokenizer.source(text, "de")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
        "nul \0 inside, nul at the end\0",
        "Ζεύς שלום नमस्ते 漢字 ภาษา 𓀀",
        "<0x41> &amp; ⁇ \ufffd \u200b",
        "",
    ],
)
def test_awkward_text_survives_a_round_trip(tiny_tokenizer: Tokenizer, text: str) -> None:
    assert tiny_tokenizer.decode(tiny_tokenizer.target(text)) == normalise(text)


def test_the_block_that_stands_for_a_space_comes_back_as_one(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.decode(tiny_tokenizer.target("a▁b")) == "a b"


@given(TEXT)
def test_normalise_composes_and_leaves_single_spaces(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split()) == unicodedata.normalize("NFC", once)
    assert normalise(once) == once
    assert once.replace(" ", "") == "".join(unicodedata.normalize("NFC", text).split())


def test_normalise_leaves_compatibility_characters_alone() -> None:
    assert normalise(" e\u0301\t ﬁ ½\n™ ") == "é ﬁ ½ ™"


@given(TEXT)
def test_no_text_is_read_as_a_special_token(tiny_tokenizer: Tokenizer, text: str) -> None:
    *content, end = tiny_tokenizer.target(text)
    specials = {PADDING, UNKNOWN, START, END, *map(tiny_tokenizer.language_id, LANGUAGES)}
    assert end == END
    assert specials.isdisjoint(content)


def test_text_that_is_too_little_for_a_vocabulary_is_told() -> None:
    for texts, reason in (([], "there is none"), (["a few words"], "Vocabulary size too high")):
        with pytest.raises(ValueError, match=f"no vocabulary of 5000 pieces can be learnt from this text: {reason}"):
            Tokenizer.train(texts, 5000)


@pytest.mark.parametrize("text", ["<pad>", "<unk>", "<s>", "</s>", "a</s>b", *map(language_token, LANGUAGES)])
def test_specials_spelled_in_text_are_ordinary_characters(tiny_tokenizer: Tokenizer, text: str) -> None:
    ids = tiny_tokenizer.target(text)
    assert min(ids[:-1]) > max(map(tiny_tokenizer.language_id, LANGUAGES))
    assert tiny_tokenizer.decode(ids) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_source_opens_with_its_language_and_ends(tiny_tokenizer: Tokenizer, language: str) -> None:
    ids = tiny_tokenizer.source("See you tomorrow.", language)
    assert ids[0] == tiny_tokenizer.language_id(language)
    assert tiny_tokenizer.pieces(ids)[0] == language_token(language)
    assert ids[1:] == tiny_tokenizer.target("See you tomorrow.")


@given(st.lists(TEXT, max_size=2 * FEW), st.sampled_from(LANGUAGES))
def test_many_sources_at_once_are_those_of_one_after_another(
    tiny_tokenizer: Tokenizer, texts: list[str], language: str
) -> None:
    expected = [tiny_tokenizer.source(text, language) for text in texts]
    assert tiny_tokenizer.sources(texts, language) == expected


def test_every_sentence_is_the_same_source_alone_and_among_all(tiny_tokenizer: Tokenizer, sentences: list[str]) -> None:
    texts = [*sentences, "", " ", "nul \0 inside", "e\u0301", "a▁b", "<2de> </s>"]
    assert tiny_tokenizer.sources(texts, "de") == [tiny_tokenizer.source(text, "de") for text in texts]


@pytest.mark.parametrize("trained_here", [True, False])
@given(st.data())
def test_no_text_has_fewer_tokens_than_the_least(
    tiny_tokenizer: Tokenizer, small: Checkpoint, trained_here: bool, data: st.DataObject
) -> None:
    tokenizer = tiny_tokenizer if trained_here else small.tokenizer
    # Few kinds of characters in a text, and many of each: what one takes more tokens for than expected hides the others.
    part = st.sampled_from([*ODD, *sorted(tokenizer, key=len)[-9:]]) | st.lists(st.sampled_from(ODD)).map("".join)
    rows = data.draw(st.lists(st.tuples(part, st.integers(1, 60)), max_size=2))
    text = "".join(part * times for part, times in rows)
    parts = [text, *(sentence.text for sentence in split(text))]
    whole, *cut = [len(ids) - 2 for ids in tokenizer.sources(parts, "de")]
    assert tokenizer.least([text]) <= min(whole, sum(cut))
    assert tokenizer.least([sentence.text for sentence in split(text)]) <= sum(cut)


def test_the_least_is_by_the_longest_piece_and_reached_where_a_text_is_that(tiny_tokenizer: Tokenizer) -> None:
    bare = [piece.replace("▁", "") for piece in tiny_tokenizer if piece.isascii() or piece[0] == "▁"]
    longest = max(bare, key=len)
    assert len(longest) < 16
    assert tiny_tokenizer.least([longest] * 7) == 7 == sum(len(tiny_tokenizer.target(longest)) - 1 for _ in range(7))
    assert tiny_tokenizer.least(["a" * (2 * len(longest) + 1)]) == 3
    assert tiny_tokenizer.least([" \xa0\u3000▁\u0301"]) == 0


def test_each_language_has_its_own_token(tiny_tokenizer: Tokenizer) -> None:
    assert len({PADDING, UNKNOWN, START, END, *map(tiny_tokenizer.language_id, LANGUAGES)}) == 4 + len(LANGUAGES)


@pytest.mark.parametrize("language", ["fr", "", "EN", "de>"])
def test_an_unknown_language_is_a_key_error(tiny_tokenizer: Tokenizer, language: str) -> None:
    with pytest.raises(KeyError):
        tiny_tokenizer.source("text", language)
    with pytest.raises(KeyError):
        tiny_tokenizer.sources([], language)


def test_special_tokens_vanish_when_decoded(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.source("See you tomorrow.", "de")
    assert tiny_tokenizer.decode([START, *ids, END, PADDING, PADDING]) == "See you tomorrow."


def test_bytes_that_are_not_utf8_become_the_replacement_character(tiny_tokenizer: Tokenizer) -> None:
    pieces = list(tiny_tokenizer)
    assert tiny_tokenizer.decode([pieces.index("▁a"), pieces.index("<0xF0>")]) == "a\ufffd"


def test_the_vocabulary_has_the_size_asked_for(tiny_tokenizer: Tokenizer) -> None:
    pieces = list(tiny_tokenizer)
    assert tiny_tokenizer.vocabulary == len(pieces) == len(set(pieces)) == 800
    assert pieces[:6] == ["<pad>", "<unk>", "<s>", "</s>", "<2en>", "<2de>"]
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(pieces)


PLACEHOLDERS = ["%s", "%1", "%1$s", "$1", "{0}", "{name}"]


@pytest.fixture(scope="module")
def with_placeholders(sentences: list[str]) -> Tokenizer:
    return Tokenizer.train(sentences, 800, PLACEHOLDERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Copy %s to %1$s", ["%s", "%1$s"]),
        ('({0}), "%1":$1.', ["{0}", "%1", "$1"]),
        ("%s%s x%s1 %%s", ["%s", "%s", "%s", "%s"]),
        ("{name} {names} {1} %2", ["{name}"]),
    ],
)
def test_a_placeholder_is_one_piece_wherever_it_stands(
    with_placeholders: Tokenizer, text: str, expected: list[str]
) -> None:
    ids = with_placeholders.target(text)
    assert [piece for piece in with_placeholders.pieces(ids) if piece in PLACEHOLDERS] == expected
    assert with_placeholders.decode(ids) == text


@given(st.lists(st.sampled_from([*PLACEHOLDERS, "%", "$", "1", "{", "}", " ", "ab", "ä", "🐍"])).map("".join) | TEXT)
def test_any_text_survives_a_round_trip_among_placeholders(with_placeholders: Tokenizer, text: str) -> None:
    assert with_placeholders.decode(with_placeholders.target(text)) == normalise(text)


def test_placeholders_leave_size_and_special_tokens_alone(with_placeholders: Tokenizer) -> None:
    pieces = list(with_placeholders)
    assert len(pieces) == len(set(pieces)) == 800
    assert pieces[:6] == ["<pad>", "<unk>", "<s>", "</s>", "<2en>", "<2de>"]
    assert set(PLACEHOLDERS) <= set(pieces)


def test_a_tokenizer_read_from_a_file_is_the_same(
    tmp_path: Path, tiny_tokenizer: Tokenizer, sentences: list[str]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_tokenizer.serialized)
    read = Tokenizer.load(tmp_path / "tokenizer.model")
    assert [read.target(text) for text in sentences] == [tiny_tokenizer.target(text) for text in sentences]


@pytest.mark.parametrize("serialized", [b"", b"garbage", bytes(1000)])
def test_bytes_that_are_no_model_are_a_value_error(serialized: bytes) -> None:
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        Tokenizer(serialized)


def test_a_cut_model_is_a_value_error(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        Tokenizer(tiny_tokenizer.serialized[:5000])


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "none.model")
