import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sentences import Sentence, split

PROSE = st.lists(st.sampled_from([*"abAÄé1.!?…\"'»“(), \t\n\r\v\u2028\u00a0", "Dr.", "z.B.", "\r\n", " ", "Go."])).map(
    "".join
)


@given(st.text() | PROSE)
def test_the_parts_join_to_the_text(text: str) -> None:
    assert "".join(part.before + part.text + part.after for part in split(text)) == text


@given(st.text() | PROSE)
def test_only_white_space_stands_around_a_sentence_and_none_at_its_edges(text: str) -> None:
    for part in split(text):
        assert not (part.before + part.after).strip()
        assert part.text == part.text.strip()


@given(PROSE)
def test_a_sentence_holds_no_line_break(text: str) -> None:
    for part in split(text):
        assert not set(part.text) & set("\n\r\v\f\x85\u2028\u2029")


@given(st.text() | PROSE)
def test_only_the_first_part_may_hold_no_text(text: str) -> None:
    parts = split(text)
    assert all(part.text for part in parts[1:])
    assert any(part.text for part in parts) is bool(text.strip())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("It costs 3.5 euros, e.g. here. Next.", ["It costs 3.5 euros, e.g. here.", "Next."]),
        ("Dr. Smith met Mrs. Jones. They talked.", ["Dr. Smith met Mrs. Jones.", "They talked."]),
        ("Er mag Obst, z.B. Äpfel, bzw. Birnen. Sie nicht.", ["Er mag Obst, z.B. Äpfel, bzw. Birnen.", "Sie nicht."]),
        ("J. S. Bach wrote it (cf. Vol. 3).", ["J. S. Bach wrote it (cf. Vol. 3)."]),
        ("Am 3. Oktober. Danach nicht.", ["Am 3. Oktober.", "Danach nicht."]),
        ("Well… Perhaps... Or not.", ["Well…", "Perhaps...", "Or not."]),
        ("Wait ... what? and so on.", ["Wait ... what? and so on."]),
        ('"Stop!" "Why?" (She left.) Then', ['"Stop!"', '"Why?"', "(She left.)", "Then"]),
        ("„Halt.“ »Nein.« “Yes.”", ["„Halt.“", "»Nein.«", "“Yes.”"]),
        ("¿Qué? ¡Nada!", ["¿Qué?", "¡Nada!"]),
        ("It ended. 20 people left.", ["It ended.", "20 people left."]),
        ("a heading\nand a line\r\nand more", ["a heading", "and a line", "and more"]),
        ("end.No space", ["end.No space"]),
        ("  padded  ", ["padded"]),
    ],
)
def test_sentences_end_where_a_reader_would_say(text: str, expected: list[str]) -> None:
    assert [part.text for part in split(text)] == expected


def test_white_space_belongs_to_the_sentence_before_it() -> None:
    assert split("  One. \t Two\n\n") == [Sentence("  ", "One.", " \t "), Sentence("", "Two", "\n\n")]


@pytest.mark.parametrize("text", [" ", "\n", " \t\r\n\n  ", "\u2028\u00a0"])
def test_blank_text_is_one_part_without_text(text: str) -> None:
    (part,) = split(text)
    assert part.text == ""
    assert part.before + part.after == text


def test_empty_text_has_no_parts() -> None:
    assert split("") == []


@pytest.mark.parametrize(
    "kind", [".", "…", "!?", "a\n", "\n", " ", ". ", '."', ".)", "(", ". (", "e.g. ", "A. ", "\u2028"]
)
def test_awkward_text_of_the_longest_kind_is_cut_in_no_time(kind: str) -> None:
    text = "Start. " + kind * (20_000 // len(kind)) + " End"
    begin = time.process_time()
    assert "".join(s.before + s.text + s.after for s in split(text)) == text
    # Not a measurement: a quadratic search took minutes here, during which a whole service stood still.
    assert time.process_time() - begin < 5
