import pytest

from model.pairs import Pair
from model.placeholders import survival, with_placeholders


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (
            "Use Linux 5.",
            "Linux 5 benutzen",
            ("Use Linux %.", "Linux % benutzen"),
        ),  # a name that opens a text may be any word
        ("Use Linux 5.", "Unter Linux 5", ("Use % %.", "Unter % %")),
        ("12 files", "12 Dateien", ("% files", "% Dateien")),
        ("the file (Foo), the Foo-Bar", "die Datei Foo, Bar", ("the file (Foo), the Foo-%", "die Datei Foo, %")),
        ("costs 1.50, or x2", "kostet 1.50 oder x2", None),
        ("a 1 b 2 c 3 d 4", "4 3 2 1", ("a % b % c % d 4", "4 % % %")),
        ("no value", "kein Wert", None),
        ("Copy $1 to {0}, %2$s", "$1 nach {0}, %2$s", None),  # one that is there already
        ("Don&#8217;t 7", "Nicht&#8217;s 7", ("Don&#8217;t %", "Nicht&#8217;s %")),
    ],
)
def test_placeholders_take_the_place_of_what_both_sides_share(
    source: str, target: str, expected: tuple[str, str] | None
) -> None:
    copies = with_placeholders([Pair(source, target, "web")], ["%"], seed=1)
    assert copies == ([Pair(*expected, "placeholders")] if expected else [])


def test_placeholders_are_the_same_on_both_sides_and_drawn_by_seed() -> None:
    pairs = [Pair(f"a {n} b {n + 1}", f"{n + 1}, {n}", "web") for n in range(40)]
    copies = with_placeholders(pairs, ["%s", "{0}", "$1"], seed=3)
    for copy in copies:
        _, first, _, second = copy.source.split()
        assert copy.target == f"{second}, {first}"
    assert {copy.source.split()[1] for copy in copies} == {"%s", "{0}", "$1"}
    assert with_placeholders(pairs, ["%s", "{0}", "$1"], seed=3) == copies
    assert with_placeholders(pairs, ["%s", "{0}", "$1"], seed=4) != copies
    assert with_placeholders(pairs, [], seed=3) == []


@pytest.mark.parametrize(
    ("source", "text", "share"),
    [
        ("%s of %s in {0}", "%s von {0}", 2 / 3),
        ("%s", "%s %s", 1.0),  # once too often is another fault
        ("%s", "% s", 0.0),
        ("none", "keiner", 1.0),
        ("%1$s of %1", "%1$s", 1 / 2),  # which has no %1
    ],
)
def test_placeholders_that_are_carried_over_are_counted(source: str, text: str, share: float) -> None:
    assert survival([source], [text], ["%s", "{0}", "%1", "%1$s"]) == pytest.approx(share)
