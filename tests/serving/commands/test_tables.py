import pytest

from model.evaluate import Kind, Score
from model.significance import Comparison
from serving.commands import tables
from serving.scoring import Scored


def part(name: str, by: Kind, bleu: float = 10.0) -> Score:
    return Score(name, by, 1234, bleu, 20.0, 0.001)


def scored(system: str, set_: str, *parts: Score, direction: tuple[str, str] = ("en", "de")) -> Scored:
    model, search = system.split("-")
    return Scored(model, search, set_, direction, [], [], list(parts), {})


def printed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_one_system_has_a_column_a_figure_and_lengths_where_its_set_is_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lengths, total = part("up to 8 words", "length"), part("total", "total", 12.345)
    tables.show_scores([scored("int8-greedy", "dev", part("web", "origin"), lengths, total)])
    assert printed(capsys) == [
        ["en-de, int8-greedy", "pairs", "BLEU", "chrF", "degenerate"],
        ["dev: up to 8 words", "1,234", "10.00", "20.00", "0.10%"],
        ["dev", "1,234", "12.35", "20.00", "0.10%"],
    ]


def test_many_systems_stand_side_by_side_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    systems = [f"fp32-beam{number}" for number in range(1, 30)]
    results = [scored(system, "a set with a long name", part("total", "total")) for system in systems]
    tables.show_scores([*results, scored("fp32-beam1", "second", part("total", "total", 7.0))])
    head, first, second = printed(capsys)
    assert head == ["en-de", "pairs", *(f"{system}: BLEU / chrF" for system in systems)]
    assert first == ["a set with a long name", "1,234", *["10.00 / 20.00"] * 29]
    assert second == ["second", "1,234", "7.00 / 20.00", *["–"] * 28]


def test_directions_have_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    total = part("total", "total")
    tables.show_scores(
        [scored("int8-greedy", "dev", total), scored("int8-greedy", "dev", total, direction=("de", "en"))]
    )
    assert [row[0] for row in printed(capsys)] == ["en-de, int8-greedy", "dev", "de-en, int8-greedy", "dev"]


def test_names_are_shown_as_they_are_spelt(capsys: pytest.CaptureFixture[str]) -> None:
    result = scored("int8-greedy", "a[/x]|b", part("total", "total"))
    tables.show_comparisons([(result, Comparison("BLEU", 2.0, 3.5, 0.04))], "out/[bold]/y")
    head, row = printed(capsys)
    assert head[5] == "out/[bold]/y"
    assert row == [r"a[/x]\|b", "en-de", "int8-greedy", "BLEU", "2.00", "3.50", "-1.50", "0.040"]
