import pytest

from model.cleaning import clean, without
from model.pairs import Pair


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("The cat sat on the mat.", "Etwas anderes.", False),  # the same text
        ("Something else.", "Die Katze saß auf der Matte.", False),
        ("THE CAT SAT ON THE mat. Really?", "Etwas anderes.", False),  # three of four runs
        ("Yes, the cat sat on the mat there now.", "Etwas anderes.", True),  # two of six
        ("The cat sat.", "Etwas anderes.", True),
        ("the cat sat on the mat", "Etwas anderes.", False),  # case and punctuation do not count
        ("Something else.", "So, der alte Hu\u0308hnerstall ist leer!", False),
        ("…", "Etwas anderes.", True),
        ("The cat sat on it.", "Etwas anderes.", True),  # one of two
    ],
)
def test_what_resembles_a_held_out_pair_is_left_out(source: str, target: str, kept: bool) -> None:
    held_out = [
        Pair("The cat sat on the mat.", "Die Katze saß auf der Matte.", "all"),
        Pair("Nobody is at home there.", "Der alte H\u00fchnerstall ist leer.", "all"),
    ]
    pair = Pair(source, target, "all")
    assert without([pair], held_out) == ([pair] if kept else [])


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("one two three four", "one two three four", "untranslated"),
        ("one two\u00a0three four", " one two  three four", "untranslated"),
        ("one two three", "one two three", None),
        ("yes", "x" * 20, None),  # short texts may differ by more
        ("yes", "x" * 21, "lopsided"),
        ("x" * 31, "y" * 10, "lopsided"),
        ("x" * 30, "y" * 10, None),
        ("Cafe\u0301  au lait", "Milchkaffee", "repeated"),
        ("Edges of the layer.", "Edges of the „Ebene“.", "foreign"),
        ("Die Ränder der Ebene.", "Am Rande.", "foreign"),
        ("Edges of it.", "„Edges of it“ wird gelöscht.", None),  # quoted
        ("Edges of", "Edges of", None),  # what says too little
        ("  ", "nichts", "empty"),
        ("Milchkaffee", "Café au lait", None),
    ],
)
def test_pairs_not_worth_learning_from_are_left_out(source: str, target: str, reason: str | None) -> None:
    first = Pair("Café au lait", "Milchkaffee", "menu")
    kept, left_out = clean([first, Pair(source, target, "web")])
    assert kept == [first] if reason else kept == [first, Pair(source, target, "web")]
    assert left_out == dict.fromkeys(("empty", "untranslated", "foreign", "lopsided", "repeated"), 0) | (
        {reason: 1} if reason else {}
    )


def test_what_is_kept_is_normalised() -> None:
    assert clean([Pair(" e\u0301\u00a0x", "é\ty ", "web")])[0] == [Pair("é x", "é y", "web")]
