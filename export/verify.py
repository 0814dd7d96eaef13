"""The parity gate: ONNX Runtime must compute what PyTorch computes, or there is no bundle.

Batches of real sentences first, then sequences as long as the model allows (`export.long_sequences`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import long_sequences
from export.long_sequences import rounded
from export.parity import LongBounds, LongCase, ParityCase, ParityReport
from export.stepper import Stepper
from model.checkpoint import Checkpoint
from model.corpus import pad
from model.pooling import AttentionPooling
from model.search import greedy
from model.tokenizer import PADDING, START
from model.transformer import Encoded, Transformer
from model.translate import search

BATCH_SIZES = (1, 2, 7, 32)
SHORT = 64
"""Tokens of a sentence that are read in these batches."""
LOG_PROBABILITY_BOUND = {"fp32": 1e-4, "int8": 0.5}
"""In nats, of any token, likely or not. An int8 activation that lies on the edge between two steps may round to either
side in the two runtimes, whose LayerNorm and softmax differ in the last bit; one such step, early in a deep encoder,
moves an unlikely token's log-probability by up to some tenths."""
STATE_BOUND = {"fp32": 1e-4, "int8": 0.1}
"""Of the memory and of attention weights."""
TYPICAL_BOUND = {"fp32": 1e-4, "int8": 1e-3}
"""In nats, of the median: for most tokens no such edge is met, and both compute the same to the last digits."""
VECTOR_BOUND = 1e-5
"""Of a sentence vector's numbers, from the same memory: pooling is fp32 in every bundle."""
EQUAL_SHARE_BOUND = {"fp32": 1.0, "int8": 0.97}
FP32_AGREEMENT_FLOOR = {"fp32": 1.0, "int8": 0.85}
# The largest errors are those of single roundings and differ with the processor; a fault shows in the typical ones.
LONG_BOUNDS = {
    "fp32": LongBounds(
        log_probability_error=1e-4,
        typical_error=1e-4,
        cache_error=1e-4,
        typical_cache_error=1e-4,
        memory_error=1e-4,
        source_cache_error=1e-4,
        equal_share=1.0,
    ),
    "int8": LongBounds(
        log_probability_error=1.0,
        typical_error=1e-3,
        cache_error=16,
        typical_cache_error=0,
        memory_error=0.25,
        source_cache_error=0.25,
        equal_share=0.97,
    ),
}

SENTENCES = Path(__file__).with_name("sentences.txt")


def probes(loaded: Checkpoint, english: Sequence[str] = ()) -> list[list[int]]:
    """Source token ids for every pair, on which a checkpoint's graphs are compared and its int8 scales found.

    They come from ``english`` sentences, those of sentences.txt unless given. What is to be in another language is what
    the model makes of those, or, where it cannot write that language from English, the English itself.
    """
    tokenizer, limit = loaded.tokenizer, loaded.config.model.max_positions
    texts = {"en": list(english) or SENTENCES.read_text(encoding="utf-8").splitlines()}
    sources = []
    for source, target in sorted(loaded.config.pairs, key=lambda pair: pair[0] != "en"):
        if source not in texts and ("en", source) in loaded.config.pairs:
            found = dict(search(loaded.model, [tokenizer.source(text, source)[:limit] for text in texts["en"]]))
            texts[source] = [tokenizer.decode(found[index].tokens) for index in range(len(found))]
        sources += [tokenizer.source(text, target)[:limit] for text in texts.get(source, texts["en"])]
    return sources


def check(
    folder: Path,
    reference: Transformer,
    fp32: Transformer,
    sources: list[list[int]],
    precision: str,
    pooling: AttentionPooling | None = None,
) -> ParityReport:
    """Compare the bundle in ``folder`` with ``reference``, the PyTorch model of its precision, and with ``fp32``.

    ``sources`` are token ids. With ``pooling``, the bundle's is compared too.
    """
    positions = reference.config.max_positions
    stepper = Stepper(folder, positions)
    longest = min(positions, SHORT)
    whole, sources = sources, [ids[:longest] for ids in sources]
    cases, differences, agreeing, steps, written = [], [], 0, 0, []
    for rows in BATCH_SIZES:
        chosen = [sources[(7 * row + rows) % len(sources)] for row in range(rows)]
        case, difference, agreed, tokens = _case(stepper, reference, fp32, chosen, longest)
        cases.append(case)
        differences.append(difference)
        written += tokens
        agreeing, steps = agreeing + agreed, steps + case.tokens
    long = long_sequences.compare(stepper, reference, *long_sequences.sequences(whole, written, positions), precision)
    equal = sum(case.tokens_equal for case in cases) / steps
    typical = rounded(torch.cat(differences).median())
    bounds = LOG_PROBABILITY_BOUND, STATE_BOUND, TYPICAL_BOUND, EQUAL_SHARE_BOUND, FP32_AGREEMENT_FLOOR
    bound, state_bound, typical_bound, share, floor = (table[precision] for table in bounds)
    vectors = None if pooling is None else rounded(_vector_error(stepper, pooling, sources))
    # NaN is not within; max() could lose it.
    within = all(
        case.log_probability_error <= bound and case.memory_error <= state_bound and case.attention_error <= state_bound
        for case in cases
    )
    within = within and (vectors is None or vectors <= VECTOR_BOUND)
    return ParityReport(
        passed=within
        and _within(long, LONG_BOUNDS[precision])
        and typical <= typical_bound
        and equal >= share
        and agreeing / steps >= floor,
        reference=f"PyTorch, {precision}",
        cases=tuple(cases),
        long=long,
        long_bounds=LONG_BOUNDS[precision],
        log_probability_bound=bound,
        state_bound=state_bound,
        typical_error=typical,
        typical_bound=typical_bound,
        equal_share=round(equal, 5),
        equal_share_bound=share,
        vector_error=vectors,
        fp32_agreement=round(agreeing / steps, 5),
        fp32_agreement_floor=floor,
    )


def _within(case: LongCase, bounds: LongBounds) -> bool:
    """Whether ``case`` keeps all ``bounds``; NaN keeps none."""
    errors = (
        "log_probability_error",
        "typical_error",
        "cache_error",
        "typical_cache_error",
        "memory_error",
        "source_cache_error",
    )
    return case.tokens_equal >= bounds.equal_share * case.tokens and all(
        getattr(case, name) <= getattr(bounds, name) for name in errors
    )


@torch.inference_mode()
def _case(
    stepper: Stepper, reference: Transformer, fp32: Transformer, chosen: list[list[int]], longest: int
) -> tuple[ParityCase, torch.Tensor, int, list[list[int]]]:
    """What was measured; each token's largest log-probability difference; how many tokens ``fp32`` agrees on; what
    ``reference`` wrote."""
    lengths = torch.tensor([len(ids) for ids in chosen])
    source = torch.from_numpy(pad(chosen)).long()
    limits = [min(longest, reference.config.default_limit(len(ids))) for ids in chosen]
    written = [hypothesis.tokens for hypothesis in greedy(reference, source, lengths, limits)]
    steps = max(map(len, written))
    target = torch.full((len(chosen), steps), PADDING)
    target[:, 0] = START
    inside = torch.zeros(len(chosen), steps, dtype=torch.bool)
    for row, tokens in enumerate(written):
        target[row, 1 : len(tokens)] = torch.tensor(tokens[:-1])
        inside[row, : len(tokens)] = True
    encoded = reference.encode(source, lengths)
    decoded = reference.decode(target, encoded)
    expected = reference.projection(decoded.states).log_softmax(-1)
    memory = stepper.encode(source.numpy(), lengths.numpy())
    found = torch.empty_like(expected)
    for step in range(steps):
        found[:, step] = torch.from_numpy(stepper.step(target[:, step].numpy(), step))
    best = found.argmax(-1)
    difference = (found - expected).abs().amax(-1)[inside]
    plain = fp32.projection(fp32.decode(target, fp32.encode(source, lengths)).states).argmax(-1)
    real = torch.arange(source.shape[1]) < lengths[:, None]
    case = ParityCase(
        rows=len(chosen),
        lengths=(int(lengths.min()), int(lengths.max())),
        steps=steps,
        tokens=int(inside.sum()),
        tokens_equal=int((best == expected.argmax(-1))[inside].sum()),
        log_probability_error=rounded(difference.max()),
        memory_error=rounded((torch.from_numpy(memory) - encoded.memory).abs()[real].max()),
        attention_error=rounded(_attention_error(stepper, source, lengths, target, encoded, decoded, inside, real)),
    )
    return case, difference, int((best == plain)[inside].sum()), written


def _attention_error(
    stepper: Stepper, source: Any, lengths: Any, target: Any, encoded: Encoded, decoded: Any, inside: Any, real: Any
) -> Any:
    """The largest difference of an attention weight among the queries that are tokens."""
    seen = stepper.attention(source.numpy(), lengths.numpy(), target.numpy())
    expected = {f"encoder.{index}.self": (attended, real) for index, attended in enumerate(encoded.attention)}
    for use, attention in (("self", decoded.self_attention), ("cross", decoded.cross_attention)):
        expected |= {f"decoder.{index}.{use}": (attended, inside) for index, attended in enumerate(attention)}
    differences = [
        (torch.from_numpy(seen[f"{name}.weights"]) - attended.weights).abs().transpose(1, 2)[queries].max()
        for name, (attended, queries) in expected.items()
    ]
    return torch.stack(differences).max()


@torch.inference_mode()
def _vector_error(stepper: Stepper, pooling: AttentionPooling, sources: list[list[int]]) -> Any:
    """The largest difference of a number of a sentence vector, for the largest batch of ``sources``."""
    chosen = sources[: BATCH_SIZES[-1]]
    lengths = np.array([len(ids) for ids in chosen])
    memory = stepper.encode(pad(chosen).astype(np.int64), lengths)
    expected = pooling(torch.from_numpy(memory), torch.from_numpy(lengths)).vectors
    return (torch.from_numpy(stepper.vectors(memory, lengths)) - expected).abs().max()
