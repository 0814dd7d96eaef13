"""The parity gate: ONNX Runtime must compute what PyTorch computes, or there is no bundle.

Batches of real sentences first, then sequences as long as the model allows (`export.long_sequences`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import long_sequences
from export.agreement import NEAR_TIE, Agreement, agreement
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
# Of fp16 it is said what was measured: the most of both bodies of en-de-small and en-de-base. ONNX Runtime's CPU
# provider keeps fp32 between many nodes. Where every operation rounds, as in PyTorch's fp16, errors are up to 2.5 times
# as large.
LOG_PROBABILITY_BOUND = {"fp32": 1e-4, "fp16": 0.08, "int8": 0.5}
"""In nats, of any token, likely or not. fp16 had 0.02: logits of 8 to 16 lie 0.008 apart. An int8 activation that lies
on the edge between two steps may round to either side in the two runtimes, whose LayerNorm and softmax differ in the
last bit; one such step, early in a deep encoder, moves an unlikely token's log-probability by up to some tenths."""
STATE_BOUND = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.1}
"""Of the memory and of attention weights. fp16 had 0.0027 and 0.0004; and 0.0032 and 0.0021 where random weights make
larger scores, whose fp16 numbers lie farther apart."""
TYPICAL_BOUND = {"fp32": 1e-4, "fp16": 0.02, "int8": 1e-3}
"""In nats, of the median: for most tokens no such edge is met, and both compute the same to the last digits. fp16 had
0.0054: of a whole vocabulary, some logit always lies half a step from its fp16 number."""
BEST_BOUND = {"fp32": 1e-4, "fp16": 2e-3, "int8": 1e-3}
"""In nats, of the median of the token that PyTorch likes best: what a score is made of. fp16 had 0.00024."""
VECTOR_BOUND = 1e-5
"""Of a sentence vector's numbers, from the same memory: pooling is fp32 in every bundle."""
EQUAL_SHARE_BOUND = {"fp32": 1.0, "fp16": 1.0, "int8": 0.97}
"""In fp16 a token counts as equal where it is exempt: another one of a near-tie (`export.agreement`)."""
FP32_AGREEMENT_FLOOR = {"fp32": 1.0, "fp16": 0.9, "int8": 0.85}
"""fp16 had 0.9985. What is exempt counts as differing here, so a model of many near-ties has less."""
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
    # What was measured stands behind each, as above.
    "fp16": LongBounds(
        log_probability_error=0.15,  # 0.039
        typical_error=0.03,  # 0.0072
        best_error=2e-3,  # 0.0011
        cache_error=0.1,  # 0.023
        typical_cache_error=0.015,  # 0.0044
        memory_error=0.01,  # 0.0026
        source_cache_error=0.012,  # 0.0031
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


def gate_sources(loaded: Checkpoint, english: Sequence[str] = ()) -> list[list[int]]:
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
    """Compare the bundle in ``folder`` with ``reference``, a PyTorch model, and with ``fp32``.

    ``reference`` is the model that rounds as the bundle does in int8, and ``fp32`` itself in fp32 and fp16. In fp16 the
    token that is liked best at each step, teacher-forced, may be another one at near-ties (`export.agreement`), and
    nowhere else. `BEST_BOUND` holds for the median, over all tokens, of how far the log-probability of the token that
    ``reference`` likes best is from what it is in ``reference``.

    ``sources`` are token ids. With ``pooling``, the bundle's is compared too.
    """
    positions = reference.config.max_positions
    stepper = Stepper(folder, positions)
    longest = min(positions, SHORT)
    whole, sources = sources, [ids[:longest] for ids in sources]
    cases, agreements, agreeing, steps, written = [], [], 0, 0, []
    for rows in BATCH_SIZES:
        chosen = [sources[(7 * row + rows) % len(sources)] for row in range(rows)]
        case, agreed, as_fp32, tokens = _case(stepper, reference, fp32, chosen, longest, precision)
        cases.append(case)
        agreements.append(agreed)
        written += tokens
        agreeing, steps = agreeing + as_fp32, steps + case.tokens
    long = long_sequences.compare(stepper, reference, *long_sequences.sequences(whole, written, positions), precision)
    equal = sum(case.tokens_equal + (case.tokens_exempt or 0) for case in cases) / steps
    typical = rounded(torch.cat([agreed.errors for agreed in agreements]).median())
    best = rounded(torch.cat([agreed.best_errors for agreed in agreements]).median())
    bounds = LOG_PROBABILITY_BOUND, STATE_BOUND, TYPICAL_BOUND, BEST_BOUND, EQUAL_SHARE_BOUND, FP32_AGREEMENT_FLOOR
    bound, state_bound, typical_bound, best_bound, share, floor = (table[precision] for table in bounds)
    half, everything = precision == "fp16", (*cases, long)
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
        and best <= best_bound
        and equal >= share
        and agreeing / steps >= floor,
        reference=f"PyTorch, {'fp32' if half else precision}",
        cases=tuple(cases),
        long=long,
        long_bounds=LONG_BOUNDS[precision],
        log_probability_bound=bound,
        state_bound=state_bound,
        typical_error=typical,
        typical_bound=typical_bound,
        best_error=best,
        best_bound=best_bound,
        near_tie=NEAR_TIE if half else None,
        near_ties=sum(case.near_ties or 0 for case in everything) if half else None,
        tokens_differing=sum(case.tokens - case.tokens_equal for case in everything) if half else None,
        equal_share=round(equal, 5),
        equal_share_bound=share,
        vector_error=vectors,
        fp32_agreement=round(agreeing / steps, 5),
        fp32_agreement_floor=floor,
    )


def _within(case: LongCase, bounds: LongBounds) -> bool:
    """Whether ``case`` keeps all ``bounds``; NaN keeps none."""
    errors = set(LongBounds.model_fields) - {"equal_share"}
    return case.tokens_equal + (case.tokens_exempt or 0) >= bounds.equal_share * case.tokens and all(
        getattr(case, name) <= bound for name in errors if (bound := getattr(bounds, name)) is not None
    )


@torch.inference_mode()
def _case(
    stepper: Stepper, reference: Transformer, fp32: Transformer, chosen: list[list[int]], longest: int, precision: str
) -> tuple[ParityCase, Agreement, int, list[list[int]]]:
    """What was measured; the same token by token; how many tokens ``fp32`` agrees on; what ``reference`` wrote."""
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
    agreed, half = agreement(found, expected, inside), precision == "fp16"
    plain = fp32.projection(fp32.decode(target, fp32.encode(source, lengths)).states).argmax(-1)
    real = torch.arange(source.shape[1]) < lengths[:, None]
    case = ParityCase(
        rows=len(chosen),
        lengths=(int(lengths.min()), int(lengths.max())),
        steps=steps,
        tokens=int(inside.sum()),
        tokens_equal=agreed.equal,
        near_ties=agreed.near_ties if half else None,
        tokens_exempt=agreed.exempt if half else None,
        log_probability_error=rounded(agreed.errors.max()),
        memory_error=rounded((torch.from_numpy(memory) - encoded.memory).abs()[real].max()),
        attention_error=rounded(_attention_error(stepper, source, lengths, target, encoded, decoded, inside, real)),
    )
    return case, agreed, int((found.argmax(-1) == plain)[inside].sum()), written


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
