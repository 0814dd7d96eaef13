"""The parity gate at the model's limits: sequences as long as it reads and writes, where short ones cannot tell.

In fp32 and fp16 the graphs run through the whole of a sequence, step after step on their own caches, and must agree
with PyTorch as they do on short ones. In int8 they cannot: an activation on the edge between two steps may round to
either side in the two runtimes, and what comes of it reaches every later position, and through the encoder every token.
So each step is taken by itself: on PyTorch's own keys and values of all that comes before, with noise where the future
will stand. What it then finds, and the keys and values that it writes, depend on one token's roundings.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.agreement import agreement
from export.parity import LongCase
from export.quantize import QuantizedLinear
from export.stepper import Stepper
from model.corpus import pad
from model.tokenizer import END, START
from model.transformer import Transformer

Array = NDArray[Any]
ROWS = 3
NOISE = 99
"""What stands where no key or value has been written: whoever reads it is found out."""


class Remembered(NamedTuple):
    """What PyTorch computes of whole sequences, teacher-forced."""

    memory: Tensor
    log_probabilities: Tensor
    """``[b, t, vocabulary]``."""
    caches: dict[str, Array]
    """Keys and values by the decoder's input names, ``[b, heads, length, d]``, as its caches hold them."""


def sequences(
    sources: list[list[int]], written: list[list[int]], limit: int
) -> tuple[list[list[int]], list[list[int]]]:
    """`ROWS` sources and targets made of ``sources`` and ``written`` token ids, up to ``limit`` tokens long.

    Each begins with another of them. The first has the length of the limit, the others are a token and a third shorter.
    A target is what the decoder reads: it begins with the start token and has no end.
    """

    def joined(parts: list[list[int]], row: int, first: int) -> list[int]:
        begin = row * len(parts) // ROWS
        words = [token for part in parts[begin:] + parts[:begin] for token in part if token not in (first, END)]
        while len(words) < limit:
            words = words * 2 or [END]
        return [first, *words[: limit - 1 - (0, 1, limit // 3)[row]]]

    first = [sources[row * len(sources) // ROWS][0] for row in range(ROWS)]
    return (
        [[*joined(sources, row, first[row])[:-1], END] for row in range(ROWS)],
        [joined(written, row, START) for row in range(ROWS)],
    )


@torch.inference_mode()
def remembered(model: Transformer, source: Tensor, lengths: Tensor, target: Tensor) -> Remembered:
    """Run ``model``, quantised or not, and keep what its decoder would remember."""
    caches: dict[str, Array] = {}

    def keep(name: str, heads: int, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, __: object, output: Tensor) -> None:
            by_head = output.unflatten(-1, (heads, -1)).transpose(1, 2)
            if isinstance(module, QuantizedLinear):
                assert module.cache_unit is not None
                unit = module.cache_unit.unflatten(-1, (heads, -1))[:, None]
                by_head = torch.round(by_head / unit).to(torch.int8)
            caches[name] = by_head.contiguous().numpy()

        return module.register_forward_hook(look)

    hooks = [
        keep(f"{use}_{part}_{index}", model.config.heads, getattr(attention, part))
        for index, layer in enumerate(model.decoder)
        for use, attention in (("self", layer.self_attention), ("cross", layer.cross_attention))
        for part in ("key", "value")
    ]
    try:
        encoded = model.encode(source, lengths)
        states = model.decode(target, encoded).states
    finally:
        for hook in hooks:
            hook.remove()
    return Remembered(encoded.memory, model.projection(states).log_softmax(-1), caches)


def compare(
    stepper: Stepper, reference: Transformer, sources: list[list[int]], targets: list[list[int]], precision: str
) -> LongCase:
    """What the bundle makes of ``sources`` and ``targets`` beside ``reference``."""
    lengths, ends = (torch.tensor([len(ids) for ids in rows]) for rows in (sources, targets))
    source, target = (torch.from_numpy(pad(rows)).long() for rows in (sources, targets))
    expected = remembered(reference, source, lengths, target)
    memory = torch.from_numpy(stepper.encode(source.numpy(), lengths.numpy()))
    real = torch.arange(source.shape[1]) < lengths[:, None]
    inside = torch.arange(target.shape[1]) < ends[:, None]
    own = precision != "int8"
    cross = {name: array for name, array in expected.caches.items() if name.startswith("cross")}
    apart = _apart(memory, expected.memory)
    # Beside what the memory differs by, what is made of it: by token too, of all layers the most.
    kept = torch.stack([_apart(_by_token(stepper.caches[name]), _by_token(array)) for name, array in cross.items()])
    if not own:
        stepper.begin(cross, lengths.numpy(), fill=NOISE)
    found = torch.empty_like(expected.log_probabilities)
    error = torch.zeros(target.shape)
    for step in range(target.shape[1]):
        found[:, step] = torch.from_numpy(stepper.step(target[:, step].numpy(), step))
        for name, array in stepper.caches.items():
            if name.startswith("self"):
                want = expected.caches[name][:, :, step]
                difference = np.abs(array[:, :, step].astype(np.float32) - want).max(axis=(1, 2))
                error[:, step] = torch.maximum(error[:, step], torch.from_numpy(difference))
                if not own:
                    array[:, :, step] = want
    agreed = agreement(found, expected.log_probabilities, inside)
    half = precision == "fp16"
    return LongCase(
        rows=len(sources),
        lengths=(int(lengths.min()), int(lengths.max())),
        steps=target.shape[1],
        tokens=int(inside.sum()),
        tokens_equal=agreed.equal,
        near_ties=agreed.near_ties if half else None,
        tokens_exempt=agreed.exempt if half else None,
        log_probability_error=rounded(agreed.errors.max()),
        typical_error=rounded(agreed.errors.median()),
        best_error=rounded(agreed.best_errors.median()),
        cache_error=rounded(error[inside].max()),
        typical_cache_error=rounded(error[inside].median()),
        memory_error=rounded(apart[real].max()),
        source_cache_error=rounded(kept.amax(0)[real].max()),
    )


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """How far each token's vector ``[b, s, w]`` is from what is ``expected``, over the latter's length: ``[b, s]``."""
    found = found[:, : expected.shape[1]]
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)


def _by_token(cache: Array) -> Tensor:
    """Keys or values ``[b, heads, s, d]`` as fp32 ``[b, s, w]``."""
    return torch.from_numpy(cache.astype(np.float32)).transpose(1, 2).flatten(2)


def rounded(value: Any) -> float:
    """Two significant digits: the last bits differ between processors and must not reach a manifest."""
    return float(f"{float(value):.1e}")
