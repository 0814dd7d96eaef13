import io
from pathlib import Path

import pytest
import sacrebleu
from rich.console import Console

from model import checkpoint
from model.evaluate import confidence, degenerate, score, translations
from model.pairs import Pair
from model.translate import translate

PAIRS = [
    Pair("one " * 8, "Die Katze schläft auf dem alten Sofa.", "web"),
    Pair("two " * 9, "Morgen wird es in den Bergen regnen.", "books"),
    Pair("three", "Der Zug nach Hamburg fährt um neun Uhr ab.", "web"),
    Pair("four " * 33, "Ich habe das Buch gestern gelesen.", "books"),
    Pair("five " * 32, "Bitte schließen Sie alle Fenster.", "manual"),
]
WRITTEN = [
    "Die Katze schläft auf dem Sofa.",
    "Morgen wird es in den Bergen regnen.",
    "Der Zug fährt um neun Uhr nach Hamburg ab.",
    "Ich las das Buch gestern.",
    "Fenster",
]
PARTS = {
    "books": [1, 3],
    "manual": [4],
    "web": [0, 2],
    "up to 8 words": [0, 2],
    "9 to 16 words": [1],
    "17 to 32 words": [4],
    "33 words or more": [3],
    "total": [0, 1, 2, 3, 4],
}


def test_origins_come_in_order_then_lengths_and_total_is_last() -> None:
    assert [(row.part, row.pairs) for row in score(PAIRS, WRITTEN)] == [
        (part, len(indices)) for part, indices in PARTS.items()
    ]
    named = [Pair("one", "eins", "total"), Pair("two", "zwei", "up to 8 words")]
    assert [row.part for row in score(named, ["eins", "zwei"])] == ["total", "up to 8 words", "up to 8 words", "total"]
    assert [row.part for row in score(PAIRS[1:2], WRITTEN[1:2])] == ["books", "9 to 16 words", "total"]


@pytest.mark.parametrize("part", PARTS)
def test_scores_are_those_of_sacrebleu_on_the_pairs_of_the_part(part: str) -> None:
    found = {row.part: row for row in score(PAIRS, WRITTEN)}[part]
    written, references = ([texts[i] for i in PARTS[part]] for texts in (WRITTEN, [pair.target for pair in PAIRS]))
    assert found.bleu == round(sacrebleu.BLEU().corpus_score(written, [references]).score, 2)
    assert found.chrf == round(sacrebleu.CHRF().corpus_score(written, [references]).score, 2)


def test_perfect_translations_score_a_hundred() -> None:
    assert {(row.bleu, row.chrf) for row in score(PAIRS, [pair.target for pair in PAIRS])} == {(100.0, 100.0)}


def test_translations_are_those_of_the_checkpoint_in_order(tiny_checkpoint: Path) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    texts = ["See you at the beach tomorrow", "", "Fragile", "Not found. Fragile"]
    expected = dict(translate(loaded.model, loaded.tokenizer, texts, "de"))
    written = translations(loaded, texts, "de", Console(file=io.StringIO()))
    assert written == [expected[index] for index in range(4)]
    assert written[1] == ""
    assert any(written)


@pytest.mark.parametrize(
    ("source", "written", "lost"),
    [
        ("Any text.", "so ist es und so ist es und so ist es und", True),
        ("Any text.", "so ist es und so ist es und", False),
        ("Open the old file.", "Open the old file.", True),
        ("Open the  old\u00a0file.", "Open the old file.", True),
        ("Open the file.", "Open the file.", False),
        ("apt-get install foo_bar -y 7", "apt-get install foo_bar -y 7", False),
        ("Open the old file.", "Die alte Datei öffnen.", False),
        ("", "", False),
    ],
)
def test_repetitions_and_copies_are_degenerate(source: str, written: str, lost: bool) -> None:
    assert degenerate(source, written) == lost
    assert score([Pair(source, "Something.", "all")], [written])[-1].degenerate == lost


def test_confidence_is_a_correlation_of_ranks() -> None:
    # By quality: the second is perfect, then the first, the third, the fourth, and the last.
    quality = [sacrebleu.sentence_chrf(text, [pair.target]).score for text, pair in zip(WRITTEN, PAIRS, strict=True)]
    order = sorted(range(5), key=quality.__getitem__)
    scores = [0.0] * 5
    for rank, index in enumerate(order):
        scores[index] = -100.0 / (rank + 1)  # grows, though not in a line
    assert confidence(PAIRS, WRITTEN, scores) == pytest.approx(1.0)
    assert confidence(PAIRS, WRITTEN, [-score for score in scores]) == pytest.approx(-1.0)
    # The best two as sure as each other: ranks 4.5 and 4.5 instead of 4 and 5.
    ties = [scores[order[-1]] if index == order[-2] else score for index, score in enumerate(scores)]
    assert confidence(PAIRS, WRITTEN, ties) == pytest.approx(9.5 / (10 * 9.5) ** 0.5)
    assert confidence(PAIRS, WRITTEN, [-1.0] * 5) is None
    assert confidence(PAIRS, [pair.target for pair in PAIRS], scores) is None
