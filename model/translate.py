"""Text in, text out with the reference search: what serving must reproduce, slowly."""

from collections.abc import Iterator

import torch

from model.corpus import pad
from model.search import Hypothesis, beam, greedy
from model.sentences import split
from model.tokenizer import Tokenizer
from model.transformer import Transformer


def search(
    model: Transformer,
    sources: list[list[int]],
    rows: int = 32,
    beam_size: int = 1,
    length_penalty: float = 1.0,
) -> Iterator[tuple[int, Hypothesis]]:
    """The best hypotheses of ``sources`` with their indices, shortest first, ``rows`` at a time if greedy."""
    device = next(model.parameters()).device
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    if beam_size > 1:
        for index in order:
            limit, source = model.config.default_limit(len(sources[index])), torch.tensor(sources[index], device=device)
            found = beam(model, source, max_tokens=limit, beam_size=beam_size, length_penalty=length_penalty)
            yield index, found[0]
        return
    for begin in range(0, len(order), rows):
        indices = order[begin : begin + rows]
        lengths = torch.tensor([len(sources[index]) for index in indices])
        padded = torch.from_numpy(pad([sources[index] for index in indices])).long()
        yield from zip(indices, greedy(model, padded.to(device), lengths.to(device)), strict=True)


def translate(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: list[str],
    language: str,
    beam_size: int = 1,
    length_penalty: float = 1.0,
) -> Iterator[tuple[int, str]]:
    """Indices of ``texts`` and their translations into ``language``, each as soon as its last sentence is done."""
    pieces = [split(text) for text in texts]
    places = [(text, sentence) for text, cut in enumerate(pieces) for sentence, piece in enumerate(cut) if piece.text]
    missing = [sum(bool(piece.text) for piece in cut) for cut in pieces]
    written: dict[tuple[int, int], str] = {}
    sources = [tokenizer.source(pieces[text][sentence].text, language) for text, sentence in places]
    yield from ((index, text) for index, text in enumerate(texts) if not missing[index])
    for place, hypothesis in search(model, sources, beam_size=beam_size, length_penalty=length_penalty):
        written[places[place]] = tokenizer.decode(hypothesis.tokens)
        text = places[place][0]
        missing[text] -= 1
        if not missing[text]:
            parts = (
                piece.before + written.get((text, number), "") + piece.after
                for number, piece in enumerate(pieces[text])
            )
            yield text, "".join(parts)
