import io
from pathlib import Path

import pytest
from rich.console import Console

from export.bundle import read_manifest
from model.evaluation_sets import EvaluationSet
from model.pairs import Pair
from serving.options import TranslateOptions
from serving.scoring import Task, in_precision, possible, scored
from tests.conftest import SMALL

quiet = Console(file=io.StringIO())
KNOWN = [("en", "de"), ("de", "en"), ("en", "fr")]


def test_directions_are_those_that_the_text_has_both_sides_of() -> None:
    assert possible(KNOWN, "en-de", None) == possible(KNOWN, "de-en", []) == KNOWN[:2]
    assert possible(KNOWN, "en-de", ["de-en"]) == [("de", "en")]
    for languages, wanted, said in (
        ("en-de", ["en-fr"], "--pair en-fr: the model translates en-de, de-en, en-fr; choose among these"),
        ("de-fr", None, "--languages de-fr: the model translates"),
    ):
        with pytest.raises(ValueError, match=said):
            possible(KNOWN, languages, wanted)


def test_a_bundle_that_has_the_precision_is_taken_as_it_is(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    assert read_manifest(tiny_bundle).precision == "fp32"
    for model, precision, label in (
        (str(tiny_bundle), "fp32", "fp32"),
        (str(tiny_bundle), None, "fp32"),
        (str(tiny_checkpoint), None, "pytorch"),
        (SMALL, "int8", "int8"),
        (SMALL, None, "int8"),
    ):
        told = Console(file=io.StringIO())
        with in_precision(model, precision, told) as ready:
            assert ready.label == label
        assert "exporting" not in told.file.getvalue()  # type: ignore[attr-defined]


def test_both_columns_are_sources_and_references_in_turn() -> None:
    pairs = [Pair("One cat.", "Eine Katze.", "web"), Pair("Two dogs.", "Zwei Hunde.", "web")]
    with in_precision(SMALL, None, quiet) as ready:
        sets, options = [EvaluationSet("own", pairs)], TranslateOptions(max_tokens=5)
        [forth] = scored(ready, options, Task(sets, ("en", "de"), [("en", "de")]))
        [swapped] = scored(ready, options, Task(sets, ("de", "en"), [("en", "de")]))
    assert (forth.system, forth.set, forth.scores[-1].pairs) == ("int8-greedy", "own", 2)
    assert forth.references == ["Eine Katze.", "Zwei Hunde."]
    assert swapped.references == ["One cat.", "Two dogs."]
    assert forth.texts != swapped.texts
