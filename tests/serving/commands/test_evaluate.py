import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL
from tests.service import dragoman

PAIRS = "Open the file.\tÖffnen Sie die Datei.\ttest\nSave it.\tSpeichern.\ttest\n"


def lines(done: "subprocess.CompletedProcess[bytes]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]


def rows(done: "subprocess.CompletedProcess[bytes]") -> list[list[str]]:
    """Cells of the Markdown tables, with those of their heads."""
    table = [line.strip() for line in done.stdout.decode().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text(PAIRS, encoding="utf-8")
    return path


def test_evaluates_bundle_and_checkpoint_alike_with_a_beam(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, data: Path
) -> None:
    written = []
    for model, system in ((tiny_bundle, "fp32-beam3"), (tiny_checkpoint, "pytorch-beam3")):
        arguments = ["--data", data, "--output", tmp_path, "--beam-size", "3", "--length-penalty", "0.2"]
        [line] = lines(dragoman("evaluate", model, *arguments))
        assert (line["system"], line["set"], line["direction"], line["pairs"]) == (system, "pairs", "en-de", 2)
        assert ("confidence" in line) == (model == tiny_bundle)
        written.append((tmp_path / system / "pairs.en-de.txt").read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert written[0].strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--beam-size", "17"],
            "beam_size: is 17; the limit is 16, the lesser of the service's settings max_beam and rows",
        ),
        (["--pair", "de-en"], "--pair de-en: the model translates en-de; choose among these"),
        (["--languages", "en-fr"], "--languages en-fr: the model translates en-de; choose among these"),
        (["--precision", "int4"], "--precision is 'int4'; it takes int8 or fp32"),
        (["--placeholder", " "], "--placeholder is blank: give it one such as %s"),
        (["--placeholder", "%s"], "pairs.tsv: no pairs to translate that have a number or a name"),
        (
            ["--against", "nobody"],
            "--against nobody: there is no such file or model, and no folder that has pairs.en-de.txt",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_message(
    tiny_bundle: Path, data: Path, arguments: list[str], said: str
) -> None:
    refused = dragoman("evaluate", tiny_bundle, "--data", data, *arguments)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.decode().strip().endswith(said)
    assert refused.stderr.count(b"\n") == 1


def test_what_was_done_is_shown_although_the_rest_fails(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tsv"
    broken.write_text("Fine.\tGut.\n" + "q" * 3000 + "\tLang.\n", encoding="utf-8")
    done = dragoman("evaluate", tiny_bundle, "--data", data, "--data", broken)
    assert done.returncode == 1
    assert "en to de, text 2: text has" in done.stderr.decode()
    assert "| pairs" in done.stdout.decode()


def test_a_bundle_is_no_checkpoint_to_export(tiny_bundle: Path, data: Path) -> None:
    refused = dragoman("evaluate", tiny_bundle, "--data", data, "--precision", "int8")
    assert (
        refused.stderr.decode().strip() == f"--precision int8: {tiny_bundle} is a bundle in fp32; name its checkpoint"
    )


def test_two_sets_of_one_name_are_refused(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "pairs.tsv.gz"
    refused = dragoman("evaluate", tiny_bundle, "--data", data, "--data", other)
    assert refused.stderr.decode().strip() == f"{other}: another set is called pairs as well; rename the file"


def test_evaluates_several_sets_and_searches_in_every_direction(data: Path, tmp_path: Path) -> None:
    """A row each set, and of a set of several origins one each of these."""
    more = tmp_path / "more.tsv"
    more.write_text("Close the window.\tSchließen Sie das Fenster.\tgui\nHello.\tHallo.\ttalk\n", encoding="utf-8")
    arguments = ["--data", data, "--data", more, "--beam-size", "1", "--beam-size", "2", "--output", tmp_path / "out"]
    done = dragoman("evaluate", SMALL, *arguments)
    figures = lines(done)
    assert [(each["system"], each["set"], each["direction"]) for each in figures] == [
        (system, name, direction)
        for system in ("int8-greedy", "int8-beam2")
        for name in ("pairs", "more")
        for direction in ("en-de", "de-en")
    ]
    table = rows(done)
    systems = ["int8-greedy: BLEU / chrF", "int8-beam2: BLEU / chrF"]
    assert [row[0] for row in table] == [
        title
        for direction in ("en-de", "de-en")
        for title in (direction, "pairs", "more: gui", "more: talk", "more: up to 8 words", "more")
    ]
    assert table[0] == ["en-de", "pairs", *systems]
    of_pairs = [each for each in figures if (each["set"], each["direction"]) == ("pairs", "en-de")]
    assert table[1] == ["pairs", "2", *(f"{each['bleu']:.2f} / {each['chrf']:.2f}" for each in of_pairs)]
    texts = [(tmp_path / f"out/int8-greedy/pairs.{way}.txt").read_text("utf-8") for way in ("en-de", "de-en")]
    assert "Datei" in texts[0]
    assert "file" in texts[1]


@pytest.mark.slow
def test_a_checkpoint_is_exported_in_each_precision_first(tiny_checkpoint: Path, data: Path) -> None:
    figures = lines(dragoman("evaluate", tiny_checkpoint, "--data", data, "--precision", "int8", "--precision", "fp32"))
    assert [each["system"] for each in figures] == ["int8-greedy", "fp32-greedy"]


@pytest.mark.slow
def test_compares_with_a_file_a_folder_and_a_model(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    assert lines(dragoman("evaluate", tiny_bundle, "--data", data, "--output", tmp_path / "own"))
    right = tmp_path / "right.txt"
    right.write_text("Öffnen Sie die Datei.\nSpeichern.\n", encoding="utf-8")
    for against, worse in ((right, True), (tmp_path / "own/fp32-greedy", False), (tiny_bundle, False)):
        table = rows(dragoman("evaluate", tiny_bundle, "--data", data, "--against", against))
        [head, bleu, chrf] = table[-3:]
        assert head == ["set", "direction", "system", "metric", "score", str(against), "difference", "p"]
        for row, metric in ((bleu, "BLEU"), (chrf, "chrF")):
            assert row[:4] == ["pairs", "en-de", "fp32-greedy", metric]
            assert (float(row[5]) == 100) == worse
            assert (float(row[6]) < 0) == worse
    own = tmp_path / "own/fp32-greedy/pairs.en-de.txt"
    own.write_text("Öffnen Sie die Datei.\nSpeichern.\n", encoding="utf-8")
    done = dragoman("evaluate", tiny_bundle, "--data", data, "--against", own, "--output", tmp_path / "own")
    assert rows(done)[-1][5] == "100.00"  # as it was before it was written over
    right.write_text("Nur eine.\n", encoding="utf-8")
    refused = dragoman("evaluate", tiny_bundle, "--data", data, "--against", right)
    assert (
        refused.stderr.decode().strip()
        == f"--against: {right} has 1 lines, the set 2 pairs; give one translation a line, in the set's order"
    )
    refused = dragoman("evaluate", SMALL, "--data", data, "--against", right)
    assert "is one file, and 2 are needed: name a folder" in refused.stderr.decode()
    refused = dragoman("evaluate", SMALL, "--data", data, "--against", tiny_bundle)
    assert (
        f"--against {tiny_bundle}: that model does not translate de-en; leave it out with --pair"
        in refused.stderr.decode()
    )


def test_evaluates_with_placeholders_in_place_of_values(tmp_path: Path) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("Open file 7.\tÖffnen Sie Datei 7.\nSave it.\tSpeichern.\n", encoding="utf-8")
    arguments = ["--data", data, "--pair", "en-de", "--output", tmp_path, "--placeholder", "{name}"]
    [found] = lines(dragoman("evaluate", SMALL, *arguments, "--placeholder", "%s"))
    [text] = (tmp_path / "int8-greedy" / "pairs.en-de.txt").read_text(encoding="utf-8").splitlines()
    assert (found["pairs"], found["placeholders_kept"]) == (1, float("%s" in text or "{name}" in text))
    assert "7" not in text
