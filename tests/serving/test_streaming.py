import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.bundle import locate
from model.sentences import split
from model.tokenizer import END, Tokenizer
from serving.streaming import Delta, Detokenizer, Feed, TextStream
from tests.conftest import SMALL

tokenizer = Tokenizer.load(locate(SMALL) / "tokenizer.model")
BYTES = [number for number, piece in enumerate(tokenizer) if piece.startswith("<0x")]

tokens = st.one_of(
    st.integers(0, tokenizer.vocabulary - 1).map(lambda token: [token]),
    st.sampled_from(BYTES).map(lambda token: [token]),
    st.text(max_size=4).map(lambda text: tokenizer.target(text)[:-1]),
)


@given(st.lists(tokens, max_size=12))
def test_what_was_told_is_never_taken_back_and_adds_up_to_the_text(parts: list[list[int]]) -> None:
    ids = [token for part in parts for token in part]
    detokenizer = Detokenizer(tokenizer.decode)
    told = ""
    for number, token in enumerate(ids, 1):
        told += detokenizer.add(token)
        assert tokenizer.decode(ids[:number]).startswith(told)
    assert told + detokenizer.end() == tokenizer.decode(ids)


@pytest.mark.parametrize("character", ["😀", "한", "\u0378"])
def test_a_character_of_several_bytes_is_told_when_it_is_whole(character: str) -> None:
    ids = tokenizer.target(character)[:-1]
    detokenizer = Detokenizer(tokenizer.decode)
    told = [detokenizer.add(token) for token in ids]
    assert len(told) > 2
    assert [part for part in told if part] == [character]


def test_bytes_that_are_no_character_hold_up_three_characters_at_most() -> None:
    detokenizer = Detokenizer(tokenizer.decode)
    told = [detokenizer.add(BYTES[0x80]) for _ in range(8)]
    assert told == [""] * 3 + ["\ufffd"] * 5
    assert detokenizer.end() == "\ufffd" * 3


@pytest.mark.parametrize("seed", range(5))
def test_sentences_are_told_one_after_another_whichever_is_done_first(seed: int) -> None:
    text = "  One cat.\r\n\r\n\tTwo dogs 😀!  Three birds… \n"
    cut = split(text)
    stream = TextStream(cut, tokenizer.decode)
    waiting = [tokenizer.target(piece.text) for piece in cut]
    chance, told = random.Random(seed), []
    while any(waiting):
        sentence = chance.choice([number for number, left in enumerate(waiting) if left])
        token = waiting[sentence].pop(0)
        told.append(stream.add(sentence, token, last=token == END))
        assert text.startswith("".join(told))
    assert "".join(told) == text


def test_a_feed_tells_each_texts_deltas_and_ends_when_it_is_closed() -> None:
    async def run() -> list[Delta]:
        feed = Feed([split("One. Two."), split("Three.")], tokenizer.decode)
        listeners = [feed.listener(0, 0, 10), feed.listener(0, 1, 1), feed.listener(1, 0, 10)]
        # The second sentence of the first text is over after one token, its limit.
        ids = [tokenizer.target("Eins."), tokenizer.target("Zwei.")[:1], tokenizer.target("Drei.")]
        for listener, each in reversed(list(zip(listeners, ids, strict=True))):
            for token in each:
                listener.on_token(token)
        feed.close()
        return [delta async for delta in feed]

    deltas = asyncio.run(run())
    texts = ["".join(delta.text for delta in deltas if delta.index == index) for index in (0, 1)]
    assert [delta.index for delta in deltas] == [1, 0]
    assert texts == ["Eins. " + tokenizer.decode(tokenizer.target("Zwei.")[:1]), "Drei."]


def test_a_feed_ends_even_if_a_token_is_heard_after_it_was_closed() -> None:
    """A client leaves, and the engine's last step is still on its way."""

    async def run() -> list[Delta]:
        feed = Feed([split("One.")], tokenizer.decode)
        listener = feed.listener(0, 0, 10)
        ids = tokenizer.target("Eins.")
        listener.on_token(ids[0])
        feed.close()
        for token in ids[1:]:
            listener.on_token(token)
        return [delta async for delta in feed]

    deltas = asyncio.run(asyncio.wait_for(run(), 10))
    assert "".join(delta.text for delta in deltas) == "Eins."


def test_what_comes_within_the_interval_comes_together_and_the_end_waits_for_nothing() -> None:
    async def run() -> list[Delta]:
        feed = Feed([split("One."), split("Two.")], tokenizer.decode, interval=3600)
        first, second = feed.listener(0, 0, 10), feed.listener(1, 0, 10)
        told = []
        ids = tokenizer.target("Guten Tag")
        first.on_token(ids[0])
        async for delta in feed:
            told.append(delta)
            if len(told) == 1:
                for token in ids[1:]:
                    first.on_token(token)
                for token in ids:
                    second.on_token(token)
                feed.close()
        return told

    first, *together = asyncio.run(run())
    assert together == [Delta(0, "Guten Tag".removeprefix(first.text)), Delta(1, "Guten Tag")]
