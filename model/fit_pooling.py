"""Fits the pooling that makes sentence vectors: a sentence's nearest vector is to be that of its translation.

The encoder stays as it is, so its memory of every sentence is computed once. The pooling learns by ranking: each
sentence of a batch must find its translation among those of all others, both ways (Chen et al., 2020, "A Simple
Framework for Contrastive Learning of Visual Representations", section 2.1, with translations as the two views).
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.config import Positive
from model.corpus import pad
from model.pairs import Pair
from model.pooling import NARROW, QUERIES, AttentionPooling
from model.retrieval import WrongNearest, wrong_nearest

WARM_UP = 100
"""Steps until the learning rate is at its peak."""
STEADY = 0.4
"""Share of the steps after which it falls, in a straight line to nothing."""
ENCODED_TOKENS = 4096
"""Padded source tokens that are encoded at one time."""
LENGTH_SPREAD = 6
"""Tokens: a random number up to this is added to each length before sorting, so that batches hold like lengths."""


class PoolingSettings(BaseModel):
    """How to fit; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pairs: Positive = 220_000
    """Pairs drawn from the data. Each needs 25 KB of disk until the fit ends (width 512)."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """By origin, how likely its pairs are to be drawn; 1 unless named."""
    fewest_words: Positive = 3
    """Of a pair's first side; shorter ones say too little to be told apart."""
    longest: Positive = 96
    """Tokens of a side; longer pairs are left out."""
    queries: Positive = QUERIES
    """Learned queries."""
    narrow: Positive = NARROW
    """Numbers that what each query gathers is narrowed to."""
    batch: Positive = 2048
    """Pairs that are told apart in one step."""
    steps: Positive = 1500
    """Of the optimizer."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """At its peak."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosines: the smaller, the more the nearest of the wrong ones count."""
    evaluate_every: Positive = 250
    """Steps from one look at dev to the next; the best is kept."""
    seed: int = 0
    """Fit the same again."""


class Memories(NamedTuple):
    """The encoder's output for many sentences, one after the other in a file."""

    states: NDArray[np.float16]
    """``[tokens, width]``."""
    ends: NDArray[np.int64]
    """Where each sentence ends."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence."""
        return np.diff(self.ends, prepend=0)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Memory ``[len(rows), longest, width]`` bfloat16, zeros where there is no token, and lengths."""
        lengths = self.lengths[rows]
        padded = np.zeros((len(rows), lengths.max(), self.states.shape[1]), np.float16)
        for place, row in enumerate(rows):
            padded[place, : lengths[place]] = self.states[self.ends[row] - lengths[place] : self.ends[row]]
        return torch.from_numpy(padded).bfloat16(), torch.from_numpy(lengths)


def fit(
    loaded: Checkpoint, pairs: Sequence[Pair], dev: Sequence[Pair], settings: PoolingSettings, console: Console
) -> tuple[AttentionPooling, WrongNearest]:
    """Fit a pooling to ``loaded`` on ``pairs``, texts of its first direction, and keep the best on ``dev``.

    Returns it with the shares of dev's sentences whose nearest vector is wrong. ValueError when there is too little
    text, or when the model reads only one of the languages.
    """
    source, target = loaded.config.pairs[0]
    if (target, source) not in loaded.config.pairs:
        raise ValueError(f"the model does not read {target}: sentences of both languages are ranked, so it must")
    if unused := sorted(settings.weights.keys() - {pair.origin for pair in pairs}):
        console.print(f"weights names origins that the data do not have: {', '.join(unused)}")
    train, held = (
        tokenised(loaded, part, longest)
        for part, longest in ((draw(pairs, settings), settings.longest), (dev, loaded.config.model.max_positions))
    )
    if len(train[0]) < settings.batch or not held[0]:
        counts = f"{len(train[0])} pairs to fit on and {len(held[0])} of dev are neither too short nor too long"
        raise ValueError(f"{counts}: a step takes {settings.batch}; give more text or --set batch=…")
    torch.manual_seed(settings.seed)
    pooling = AttentionPooling(loaded.config.model.width, settings.queries, settings.narrow)
    with TemporaryDirectory() as folder:
        console.print(f"encoding {len(train[0])} pairs to fit on and {len(held[0])} of dev")
        memories = [
            encode(loaded, ids, Path(folder) / str(number), console) for number, ids in enumerate((*train, *held))
        ]
        return _rank(pooling, memories[:2], memories[2:], settings, console)


def draw(pairs: Sequence[Pair], settings: PoolingSettings) -> list[Pair]:
    """At most ``settings.pairs`` of ``pairs``, in random order, those of an origin with more weight the likelier."""
    chance = np.random.default_rng(settings.seed)
    wordy = [pair for pair in pairs if len(pair.source.split()) >= settings.fewest_words]
    weights = np.array([settings.weights.get(pair.origin, 1.0) for pair in wordy])
    # The smallest of these are a draw by weight without repetition (Efraimidis and Spirakis, 2006).
    times = chance.exponential(size=len(wordy)) / np.maximum(weights, 1e-9)
    order = np.argsort(times, kind="stable")[: min(settings.pairs, int((weights > 0).sum()))]
    return [wordy[index] for index in chance.permutation(order)]


def tokenised(loaded: Checkpoint, pairs: Sequence[Pair], longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """Source ids of both sides of those ``pairs`` of which neither has more than ``longest``."""
    source, target = loaded.config.pairs[0]
    sides = (
        loaded.tokenizer.sources([pair.source for pair in pairs], target),
        loaded.tokenizer.sources([pair.target for pair in pairs], source),
    )
    fitting = [(first, second) for first, second in zip(*sides, strict=True) if max(len(first), len(second)) <= longest]
    return [first for first, _ in fitting], [second for _, second in fitting]


@torch.inference_mode()
def encode(loaded: Checkpoint, sources: Sequence[list[int]], path: Path, console: Console) -> Memories:
    """The memory of each of ``sources``, written to ``path`` as fp16; computed in bf16 for speed."""
    ends = np.cumsum([len(ids) for ids in sources])
    size, room = 2 * int(ends[-1]) * loaded.config.model.width, shutil.disk_usage(path.parent).free
    if size > room:  # a map of a file that cannot grow ends the process without a word
        needed = f"{path.parent} has {room / 1e9:.1f} GB left; {size / 1e9:.1f} are needed"
        raise OSError(f"{needed}: name another folder with TMPDIR, or ask for fewer pairs")
    states = np.memmap(path, np.float16, "w+", shape=(int(ends[-1]), loaded.config.model.width))
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    with _progress(console) as progress:
        task = progress.add_task("encoding", total=len(order))
        while order:
            count = max(1, ENCODED_TOKENS // len(sources[order[-1]]))
            rows, order = order[-count:], order[:-count]
            lengths = torch.tensor([len(sources[row]) for row in rows])
            padded = torch.from_numpy(pad([sources[row] for row in rows])).long()
            with torch.autocast("cpu", torch.bfloat16):
                memory = loaded.model.encode(padded, lengths).memory.half().numpy()
            for row, state in zip(rows, memory, strict=True):
                states[ends[row] - len(sources[row]) : ends[row]] = state[: len(sources[row])]
            progress.advance(task, len(rows))
    return Memories(states, ends)


def _rank(
    pooling: AttentionPooling,
    train: Sequence[Memories],
    dev: Sequence[Memories],
    settings: PoolingSettings,
    console: Console,
) -> tuple[AttentionPooling, WrongNearest]:
    """Train ``pooling`` on both sides of ``train``; returns it as it was when it was best on ``dev``."""
    optimizer = torch.optim.AdamW(pooling.parameters(), lr=settings.learning_rate, weight_decay=0.01, fused=True)
    batches, best, begin = _batches(train[0].lengths, settings), None, time.monotonic()
    kept = pooling.state_dict()
    with _progress(console) as progress:
        task = progress.add_task("ranking", total=settings.steps)
        for step in range(1, settings.steps + 1):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate(step, settings.steps)
            rows = next(batches)
            first, second = (pooling(*side.batch(rows)).vectors for side in train)
            loss = ranking_loss(first, second, settings.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not nn.utils.clip_grad_norm_(pooling.parameters(), 1.0).isfinite():
                raise ValueError(f"the fit diverged at step {step}: a smaller learning_rate may help")
            optimizer.step()
            progress.advance(task)
            if step % settings.evaluate_every == 0 or step == settings.steps:
                wrong = wrong_nearest(*(vectors(pooling, side) for side in dev))
                minutes = (time.monotonic() - begin) / 60
                console.print(f"step {step}, {minutes:.1f} min: loss {loss.item():.4f}, wrong on dev {wrong.mean:.2%}")
                if best is None or wrong.mean < best.mean:
                    best, kept = wrong, {name: weight.clone() for name, weight in pooling.state_dict().items()}
    assert best is not None
    pooling.load_state_dict(kept)
    return pooling.eval(), best


def ranking_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of finding each row of ``second`` ``[pairs, width]`` by ``first``'s, and the other way."""
    # In bf16: the products are most of a step, and their noise is far below the temperature.
    scores = (first.bfloat16() @ second.bfloat16().T).float() / temperature
    right = torch.arange(len(scores))
    return (nn.functional.cross_entropy(scores, right) + nn.functional.cross_entropy(scores.T, right)) / 2


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at ``step``, from 1: rising, steady, then in a straight line to nothing."""
    return min(1.0, step / WARM_UP, (steps - step + 1) / ((1 - STEADY) * steps))


def _batches(lengths: NDArray[np.int64], settings: PoolingSettings) -> Iterator[NDArray[np.int64]]:
    """Rows of like length without end: little is padded, and lengths do not give the translation away."""
    chance = np.random.default_rng(settings.seed)
    while True:
        order = np.argsort(lengths + chance.random(len(lengths)) * LENGTH_SPREAD, kind="stable")
        # What makes no whole batch is left out, now the shortest and now the longest.
        first = chance.integers(len(order) % settings.batch + 1)
        starts = chance.permutation(np.arange(first, len(order) - settings.batch + 1, settings.batch))
        yield from (order[start : start + settings.batch] for start in starts)


@torch.inference_mode()
def vectors(pooling: AttentionPooling, memories: Memories) -> NDArray[np.float32]:
    """``[sentences, width]``."""
    parts = np.array_split(np.arange(len(memories.ends)), max(1, len(memories.ends) // 64))
    return np.concatenate([pooling(*memories.batch(rows)).vectors.numpy() for rows in parts])


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
