from pathlib import Path

import pytest

from loadtest.payloads import SENTENCES, read_sentences


def test_sentences_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("One.\n\nTwo.\n")
    assert read_sentences(file) == ["One.", "Two."]
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no sentences"):
        read_sentences(file)


def test_the_projects_own_vary_in_length_as_real_ones_do() -> None:
    words = sorted(len(sentence.split()) for sentence in read_sentences(SENTENCES))
    assert len(words) == 300
    assert words[0] == 1
    assert 8 <= words[150] <= 16
    assert words[-1] > 100
