import io
from pathlib import Path

import pytest
import sacrebleu
from rich.console import Console

from model import checkpoint
from model.corpus import Pair
from model.evaluate import score, translations
from model.translate import translate

PAIRS = [
    Pair("1", "Die Katze schläft auf dem alten Sofa.", "web"),
    Pair("2", "Morgen wird es in den Bergen regnen.", "books"),
    Pair("3", "Der Zug nach Hamburg fährt um neun Uhr ab.", "web"),
    Pair("4", "Ich habe das Buch gestern gelesen.", "books"),
    Pair("5", "Bitte schließen Sie alle Fenster.", "manual"),
]
WRITTEN = [
    "Die Katze schläft auf dem Sofa.",
    "Morgen wird es in den Bergen regnen.",
    "Der Zug fährt um neun Uhr nach Hamburg ab.",
    "Ich las das Buch gestern.",
    "Fenster",
]
ORIGINS = {"books": [1, 3], "manual": [4], "web": [0, 2], "total": [0, 1, 2, 3, 4]}


def test_origins_come_in_order_and_total_is_last() -> None:
    assert [(row.origin, row.pairs) for row in score(PAIRS, WRITTEN)] == [
        (origin, len(indices)) for origin, indices in ORIGINS.items()
    ]


@pytest.mark.parametrize("origin", ORIGINS)
def test_scores_are_those_of_sacrebleu_on_the_pairs_of_the_origin(origin: str) -> None:
    found = {row.origin: row for row in score(PAIRS, WRITTEN)}[origin]
    written, references = ([texts[i] for i in ORIGINS[origin]] for texts in (WRITTEN, [pair.target for pair in PAIRS]))
    assert found.bleu == round(sacrebleu.BLEU().corpus_score(written, [references]).score, 2)
    assert found.chrf == round(sacrebleu.CHRF().corpus_score(written, [references]).score, 2)


def test_perfect_translations_score_a_hundred() -> None:
    assert {(row.bleu, row.chrf) for row in score(PAIRS, [pair.target for pair in PAIRS])} == {(100.0, 100.0)}


def test_translations_are_those_of_the_checkpoint_in_order(tiny_checkpoint: Path) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    texts = ["See you at the beach tomorrow", "", "Fragile", "Not found. Fragile"]
    expected = dict(translate(loaded.model, loaded.tokenizer, texts, "de"))
    written = translations(tiny_checkpoint, [Pair(text, "", "all") for text in texts], Console(file=io.StringIO()))
    assert written == [expected[index] for index in range(4)]
    assert written[1] == ""
    assert any(written)
