import torch

from model.search import beam, greedy
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.translate import search, translate


def alone(model: Transformer, tokenizer: Tokenizer, text: str) -> str:
    source = tokenizer.source(text, "de")
    (hypothesis,) = greedy(model, torch.tensor([source]), torch.tensor([len(source)]))
    return tokenizer.decode(hypothesis.tokens)


def test_sentences_are_translated_as_each_alone(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer, sentences: list[str]
) -> None:
    texts = [text for text in sentences if 0 < len(text) < 40][:12]
    written = dict(translate(tiny_model, tiny_tokenizer, texts, "de"))
    assert [written[index] for index in range(len(texts))] == [
        alone(tiny_model, tiny_tokenizer, text) for text in texts
    ]
    assert len(set(written.values())) > 6


def test_a_text_keeps_what_stands_around_its_sentences(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    first, second, third = (
        alone(tiny_model, tiny_tokenizer, text) for text in ("See you tomorrow.", "Not found", "Departures?")
    )
    texts = [" \n See you tomorrow.\t Not found\r\n\n", "Departures? Not found", "\u00a0Departures?\n"]
    written = dict(translate(tiny_model, tiny_tokenizer, texts, "de"))
    assert written == {
        0: f" \n {first}\t {second}\r\n\n",
        1: f"{third} {second}",
        2: f"\u00a0{third}\n",
    }


def test_blank_texts_come_back_as_they_are_and_every_index_once(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer
) -> None:
    texts = ["", "Departures", " ", "\n\t\r\n", "See you. Not found\nDepartures", "Departures"]
    found = list(translate(tiny_model, tiny_tokenizer, texts, "de"))
    assert sorted(index for index, _ in found) == list(range(6))
    written = dict(found)
    assert [written[index] for index in (0, 2, 3)] == ["", " ", "\n\t\r\n"]
    assert written[1] == written[5] == alone(tiny_model, tiny_tokenizer, "Departures")


def test_nothing_to_translate_gives_nothing(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    assert list(translate(tiny_model, tiny_tokenizer, [], "de")) == []


def test_the_target_language_reaches_the_model(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    texts = ["Departures", "See you tomorrow."]
    assert dict(translate(tiny_model, tiny_tokenizer, texts, "de")) != dict(
        translate(tiny_model, tiny_tokenizer, texts, "en")
    )


def test_search_gives_every_source_once_shortest_first(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    texts = ["See you at the beach", "Fragile", "Departures", "Not found", "My phone fell into the lake."]
    sources = [tiny_tokenizer.source(text, "de") for text in texts]
    found = {rows: list(search(tiny_model, sources, rows)) for rows in (1, 2, 32)}
    for rows in found:
        lengths = [len(sources[index]) for index, _ in found[rows]]
        assert lengths == sorted(lengths)
        assert sorted(index for index, _ in found[rows]) == list(range(5))
        tokens = {index: hypothesis.tokens for index, hypothesis in found[rows]}
        assert tokens == {index: hypothesis.tokens for index, hypothesis in found[1]}


def test_a_beam_is_the_reference_beams_best(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    texts = ["See you tomorrow.", "Departures"]
    found = dict(translate(tiny_model, tiny_tokenizer, texts, "de", beam_size=3, length_penalty=0.2))
    for index, text in enumerate(texts):
        source = tiny_tokenizer.source(text, "de")
        limit = tiny_model.config.default_limit(len(source))
        best, *_ = beam(tiny_model, torch.tensor(source), max_tokens=limit, beam_size=3, length_penalty=0.2)
        assert found[index] == tiny_tokenizer.decode(best.tokens)
