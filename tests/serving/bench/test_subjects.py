import gzip
from pathlib import Path

import pytest

from model.config import ModelConfig
from serving.bench.subjects import FIXED_TOKENS, PAPER, Subject, prepare, read_lines
from serving.engine.decoding import Decoding
from tests.conftest import SENTENCES, SMALL


def test_measures_the_same_sentences_whatever_the_rows(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [[number] for number in range(8)])
    assert subject.batches(1) == [[[number]] for number in range(8)]
    assert subject.batches(4) == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
    assert subject.batches(1, most=2) == [[[0]], [[1]]]
    assert subject.batches(3) == [[[0], [1], [2]], [[3], [4], [5]]]


def test_of_a_fixed_length_one_batch_is_enough(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [[5] * 6 for _ in range(8)], fixed=6)
    assert subject.batches(2) == [[[5] * 6, [5] * 6]]
    assert subject.decoding(subject.sources[:2], 4) == Decoding(max_tokens=6, min_tokens=6, beam_size=4)


def test_a_batch_has_the_limit_of_its_longest_source(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    assert subject.decoding([[5] * 4, [5] * 9], 1) == Decoding(max_tokens=28)


def test_reads_the_first_column(tmp_path: Path) -> None:
    text = "One.\tEins.\ttest\n\nTwo.\n \tblank\n"
    (tmp_path / "plain.tsv").write_text(text)
    (tmp_path / "packed.tsv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_lines(tmp_path / "plain.tsv") == read_lines(tmp_path / "packed.tsv.gz") == ["One.", "Two."]
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n")
    with pytest.raises(ValueError, match=r"latin\.txt"):
        read_lines(tmp_path / "latin.txt")


def test_a_trained_model_takes_sentences_in_order(tmp_path: Path) -> None:
    subject = prepare(SMALL, tmp_path / SMALL, (), SENTENCES, 4)
    assert len(subject.sources) == 4
    assert all(len(source) <= subject.config.max_positions for source in subject.sources)
    assert not list(subject.folder.iterdir())


def test_too_few_sentences_are_said(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("The file could not be opened.\n")
    with pytest.raises(ValueError, match="2 sentences are needed and 1 can be"):
        prepare(SMALL, tmp_path / SMALL, (), few, 2)


def test_the_papers_shape_is_the_papers(tmp_path: Path) -> None:
    subject = prepare(PAPER, tmp_path / PAPER, (), SENTENCES, 3)
    config = subject.config
    assert (config.encoder_layers, config.decoder_layers, config.width, config.heads) == (6, 6, 512, 8)
    assert (config.feed_forward, config.vocabulary, config.norm) == (2048, 32_000, "post")
    assert [len(source) for source in subject.sources] == [FIXED_TOKENS] * 3
