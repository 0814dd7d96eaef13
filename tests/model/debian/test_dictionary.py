from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from model.debian.dictionary import example_sentences, phrases, words
from tests.model.debian.files import DING, put


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (words, [("cat", "Katze"), ("cats", "Katzen"), ("disgust with sth.", "Ekel vor etw.")]),
        (example_sentences, [("That is good.", "Das ist gut.")]),
        (
            phrases,
            [
                ("to be in a real fix", "in der Klemme sitzen"),
                ("to prefer sb./sth. to sb./sth.", "jdn./etw. jdm./etw. vorziehen"),
            ],
        ),
    ],
)
def test_a_dictionary_has_words_phrases_and_sentences(
    tmp_path: Path, read: Callable[[Path], Iterable[tuple[str, str]]], expected: list[tuple[str, str]]
) -> None:
    put(tmp_path / "usr/share/trans/de-en", DING)
    assert [tuple(found) for found in read(tmp_path)] == expected
