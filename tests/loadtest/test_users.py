from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore")
def test_timings_are_read_from_the_header() -> None:
    from loadtest.users import server_timing

    assert server_timing("tokenise;dur=0.25, queue;dur=3") == {"tokenise": 0.25, "queue": 3.0}
    assert server_timing("") == {}
    assert server_timing("cache;desc=hit") == {}


@pytest.mark.filterwarnings("ignore")
def test_sentences_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    from loadtest.users import read_sentences

    file = tmp_path / "some.txt"
    file.write_text("One.\n\nTwo.\n")
    assert read_sentences(file) == ["One.", "Two."]
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no sentences"):
        read_sentences(file)
