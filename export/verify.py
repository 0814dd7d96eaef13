"""The parity gate: ONNX Runtime must compute what PyTorch computes, or there is no bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from export.bundle import POOLING, ParityCase, ParityReport
from model.checkpoint import Checkpoint
from model.corpus import pad
from model.pooling import AttentionPooling
from model.search import greedy
from model.tokenizer import PADDING, START
from model.transformer import Encoded, Transformer
from model.translate import search

Array = NDArray[Any]

BATCH_SIZES = (1, 2, 7, 32)
CAPACITY = 64
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

SENTENCES = Path(__file__).with_name("sentences.txt")


class Stepper:
    """The bundle's graphs run slowly and obviously: one session each, every buffer bound anew at every step."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.encoder, self.decoder, self.inspector = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder", "attention")
        )
        self.caches: dict[str, Array] = {}
        self.lengths = np.zeros(0, np.int32)

    def encode(self, source: Array, lengths: Array) -> Array:
        """Start on ``source`` ``[b, s]`` int64 with ``lengths`` ``[b]``; returns the memory ``[b, s, w]``."""
        self.lengths = lengths.astype(np.int32)
        names = [output.name for output in self.encoder.get_outputs()]
        outputs = dict(zip(names, self.encoder.run(names, {"source": source, "lengths": self.lengths}), strict=True))
        memory: Array = outputs.pop("memory")
        self.caches = dict(outputs)
        rows, heads, _, head_width = outputs["cross_key_0"].shape
        for name, array in outputs.items():
            ends = array[np.arange(rows), :, lengths - 1]
            self.caches[name.replace("cross", "last")] = ends.reshape(rows, 1, heads * head_width)
        for value in self.decoder.get_inputs():
            if value.name.startswith("self_"):
                shape = (rows, heads, CAPACITY, head_width)
                self.caches[value.name] = np.zeros(shape, outputs["cross_key_0"].dtype)
        return memory

    def step(self, token: Array, position: int, k: int) -> tuple[Array, Array]:
        """One step at ``position`` after ``token`` ``[b]``: k best tokens ``[b, k]`` and their log-probabilities."""
        binding = self.decoder.io_binding()
        feeds: dict[str, Array] = {
            "token": token.astype(np.int64),
            "position": np.full(len(token), position, np.int32),
            "lengths": self.lengths,
            "k": np.array([k]),
            "given": token.astype(np.int64),
            **self.caches,
        }
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        names = [output.name for output in self.decoder.get_outputs()]
        for name in names:
            if name.endswith("_out"):
                array = self.caches[name.removesuffix("_out")]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        self.decoder.run_with_iobinding(binding)
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        return outputs["tokens"].numpy(), outputs["log_probabilities"].numpy()

    def attention(self, source: Array, lengths: Array, target: Array) -> dict[str, Array]:
        """Weights and scores by name, such as ``decoder.1.cross.weights`` ``[b, heads, t, s]``."""
        names = [output.name for output in self.inspector.get_outputs()]
        feeds = {"source": source, "lengths": lengths.astype(np.int32), "target": target}
        return dict(zip(names, self.inspector.run(names, feeds), strict=True))


def probes(loaded: Checkpoint) -> list[list[int]]:
    """Source token ids for every pair, on which a checkpoint's graphs are compared and its int8 scales found.

    They come from English sentences; what is to be in another language is what the model makes of those, or, where it
    cannot write that language from English, the English itself.
    """
    tokenizer, limit = loaded.tokenizer, loaded.config.model.max_positions
    texts = {"en": SENTENCES.read_text(encoding="utf-8").splitlines()}
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

    ``sources`` are token ids; the first `CAPACITY` of each are read. With ``pooling``, the bundle's is compared too.
    """
    stepper = Stepper(folder)
    longest = min(reference.config.max_positions, CAPACITY)
    sources = [ids[:longest] for ids in sources]
    cases, differences, agreeing, steps = [], [], 0, 0
    for rows in BATCH_SIZES:
        chosen = [sources[(7 * row + rows) % len(sources)] for row in range(rows)]
        case, difference, agreed = _case(stepper, reference, fp32, chosen, longest)
        cases.append(case)
        differences.append(difference)
        agreeing, steps = agreeing + agreed, steps + case.tokens
    equal = sum(case.tokens_equal for case in cases) / steps
    typical = _rounded(torch.cat(differences).median())
    bounds = LOG_PROBABILITY_BOUND, STATE_BOUND, TYPICAL_BOUND, EQUAL_SHARE_BOUND, FP32_AGREEMENT_FLOOR
    bound, state_bound, typical_bound, share, floor = (table[precision] for table in bounds)
    vectors = None if pooling is None else _rounded(_vector_error(folder, stepper, pooling, sources))
    # NaN is not within; max() could lose it.
    within = all(
        case.log_probability_error <= bound and case.memory_error <= state_bound and case.attention_error <= state_bound
        for case in cases
    )
    within = within and (vectors is None or vectors <= VECTOR_BOUND)
    return ParityReport(
        passed=within and typical <= typical_bound and equal >= share and agreeing / steps >= floor,
        reference=f"PyTorch, {precision}",
        cases=tuple(cases),
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


@torch.inference_mode()
def _case(
    stepper: Stepper, reference: Transformer, fp32: Transformer, chosen: list[list[int]], longest: int
) -> tuple[ParityCase, torch.Tensor, int]:
    """What was measured; each token's largest log-probability difference; how many tokens ``fp32`` agrees on."""
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
        tokens_step, likely = stepper.step(target[:, step].numpy(), step, reference.config.vocabulary)
        found[:, step].scatter_(1, torch.from_numpy(tokens_step), torch.from_numpy(likely))
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
        log_probability_error=_rounded(difference.max()),
        memory_error=_rounded((torch.from_numpy(memory) - encoded.memory).abs()[real].max()),
        attention_error=_rounded(_attention_error(stepper, source, lengths, target, encoded, decoded, inside, real)),
    )
    return case, difference, int((best == plain)[inside].sum())


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
def _vector_error(folder: Path, stepper: Stepper, pooling: AttentionPooling, sources: list[list[int]]) -> Any:
    """The largest difference of a number of a sentence vector, for the largest batch of ``sources``."""
    chosen = sources[: BATCH_SIZES[-1]]
    lengths = np.array([len(ids) for ids in chosen])
    memory = stepper.encode(pad(chosen).astype(np.int64), lengths)
    session = onnxruntime.InferenceSession(folder / f"{POOLING}.onnx", providers=["CPUExecutionProvider"])
    [vectors] = session.run(["vectors"], {"memory": memory, "lengths": lengths.astype(np.int32)})
    expected = pooling(torch.from_numpy(memory), torch.from_numpy(lengths)).vectors
    return (torch.from_numpy(vectors) - expected).abs().max()


def _rounded(value: Any) -> float:
    """Two significant digits: the last bits differ between processors and must not reach a manifest."""
    return float(f"{float(value):.1e}")
