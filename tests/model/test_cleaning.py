import pytest

from model.cleaning import clean
from model.pairs import Pair


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
        ("Die, monster, die!", "Stirb, Monster!", None),  # one word, and English too
        ("The add-on manager", "Add-on-Manager: Add-on", None),
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


def test_columns_are_in_the_languages_that_are_named() -> None:
    pair = Pair("Die Ränder der Ebene.", "Edges of the layer.", "web")
    assert clean([pair], ("de", "en"))[0] == [pair]
    assert clean([pair])[1]["foreign"] == 1


def test_what_is_kept_is_normalised() -> None:
    assert clean([Pair(" e\u0301\u00a0x", "é\ty ", "web")])[0] == [Pair("é x", "é y", "web")]
