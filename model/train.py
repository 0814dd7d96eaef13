"""Training: from parallel text to a checkpoint, stoppable and repeatable."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import sacrebleu
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor

from model import checkpoint
from model.checkpoint import CheckpointConfig
from model.cleaning import clean
from model.config import ModelConfig
from model.corpus import Batch, Corpus
from model.files import write
from model.grow import grow
from model.loss import label_smoothed_cross_entropy
from model.optimizer import Muon
from model.pairs import Pair, directed, read_pairs
from model.placeholders import PLACEHOLDERS, with_placeholders
from model.tokenizer import LANGUAGES, PADDING, Tokenizer
from model.transformer import Transformer
from model.translate import translate

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
STATE = "state.pt"
"""In a run's folder: the last saved step."""


class TrainSettings(BaseModel):
    """Everything that decides a run. The same settings on the same machine repeat it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "dragoman"
    languages: tuple[str, str] = ("en", "de")
    """What the first two columns of the data hold."""
    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)] = Field(
        default_factory=lambda values: (values["languages"],)
    )
    """The directions to learn: ``languages``, its reverse or both; ``languages`` alone unless given."""
    model: ModelConfig = ModelConfig()
    initialize_from: Path | None = None
    """Folder of a smaller model's checkpoint to begin with (`model.grow`), for the first start; else random weights."""
    placeholders: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = ()
    """Pieces of their own in the vocabulary, such as ``%s`` or ``{0}``, for programs' messages.

    A piece that training text hardly has is hardly ever written. So copies of pairs that share a number or a name are
    added with placeholders there; ``weights`` doses them under the origin ``placeholders``.
    """
    clean: bool = True
    """Whether pairs that teach nothing are left out first (`model.cleaning`)."""
    longest: Positive = 128
    """Pairs with more tokens on a side are left out."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How often a pair of an origin appears in one pass; 1 unless named."""
    tokens: Positive = 8000
    """Padded tokens a step, source and target together."""
    steps: Positive = 4000
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Rate = 3e-3
    warmup: Positive = 400
    decay: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The last share of the steps, over which the rate falls in a straight line to a fiftieth."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: Rate = 1.0
    """The largest norm of the whole gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """"auto" takes bf16 where the hardware multiplies it (a CUDA device, a processor with AMX or AVX-512 BF16)."""
    seed: int = 1
    save_every: Positive = 250
    average: Positive = 4
    """How many of the last saved steps are averaged into the checkpoint."""
    evaluate_every: Positive = 500
    evaluate_sentences: Positive = 64
    """Of dev, for the BLEU on the way."""

    @model_validator(mode="after")
    def _directions_are_those_of_the_data(self) -> Self:
        if unknown := set(self.languages) - set(LANGUAGES):
            raise ValueError(f"languages names {', '.join(sorted(unknown))}; there are {', '.join(LANGUAGES)}")
        possible = {self.languages, self.languages[::-1]}
        if not possible.issuperset(self.pairs) or len(set(self.pairs)) < len(self.pairs):
            raise ValueError(f"pairs takes {self.languages}, its reverse or both, each once; not {self.pairs}")
        return self

    @model_validator(mode="after")
    def _pieces_are_pieces_once(self) -> Self:
        if len(set(self.placeholders)) < len(self.placeholders):
            raise ValueError("placeholders names one twice")
        return self

    @model_validator(mode="after")
    def _pairs_fit_the_model(self) -> Self:
        if self.longest > self.model.max_positions:
            raise ValueError(f"longest {self.longest} is more than the model's {self.model.max_positions} positions")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (from 0): warm-up, inverse square root (section 5.3), then the decay."""
        done = step + 1
        rate = self.learning_rate * min(done / self.warmup, (self.warmup / done) ** 0.5)
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return float(rate * max(0.02, min(1.0, left)))


def device_and_precision(precision: str) -> tuple[torch.device, bool]:
    """Where to train, and whether in bf16."""
    cuda = torch.cuda.is_available()
    fast = cuda or any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return torch.device("cuda" if cuda else "cpu"), precision == "bf16" or (precision == "auto" and fast)


class Run:
    """A training run in a folder.

    ===================  ==========================================================
    ``settings.json``    the settings it was started with
    ``tokenizer.model``  learnt from the training text unless it was there already
    ``state.pt``         the last saved step, to go on from
    ``step-*.safetensors``  the weights of the last few saved steps
    ``log.jsonl``        a line each report
    ``checkpoint/``      the averaged model so far
    ===================  ==========================================================
    """

    def __init__(
        self, folder: Path, settings: TrainSettings, train: Sequence[Path], dev: Path, console: Console
    ) -> None:
        self.folder, self.settings, self.console = folder, settings, console
        folder.mkdir(parents=True, exist_ok=True)
        _same_run(folder, settings)
        write(folder / "settings.json", f"{settings.model_dump_json(indent=2)}\n".encode())
        torch.manual_seed(settings.seed)
        self.device, self.bf16 = device_and_precision(settings.precision)
        console.print(f"training on {self.device.type} in {'bf16' if self.bf16 else 'fp32'}")
        with console.status("reading the text"):
            pairs, dev_pairs = [pair for path in train for pair in read_pairs(path)], read_pairs(dev)
            if settings.clean:
                pairs, left_out = clean(pairs, settings.languages)
                console.print("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))
        origins = {pair.origin for pair in pairs} | {PLACEHOLDERS}
        if unused := sorted(settings.weights.keys() - origins):
            console.print(f"no pairs of {', '.join(unused)}, which weights names")
        with console.status(f"learning a vocabulary of {settings.model.vocabulary} pieces from {len(pairs)} pairs"):
            self.tokenizer = self._tokenizer(pairs)
        self.dev_pairs = self._fitting(dev_pairs)
        write(folder / checkpoint.TOKENIZER, self.tokenizer.serialized)
        seen = [pair for pair in pairs if settings.weights.get(pair.origin, 1)]
        copies = with_placeholders(seen, settings.placeholders, settings.seed)
        with console.status(f"tokenising {len(pairs)} pairs"):
            self.corpus = self._encode([*pairs, *copies], settings.weights)
            self.dev = self._encode(self.dev_pairs, {})
        self.text = self.corpus.digest()
        console.print(
            f"{len(pairs)} pairs and {len(copies)} copies with placeholders, in {len(settings.pairs)} directions: "
            f"{len(self.corpus)} examples kept, {int(self.corpus.lengths.sum())} tokens"
        )
        self.model = Transformer(settings.model)
        console.print(f"{sum(parameter.numel() for parameter in self.model.parameters()):,} parameters")
        if settings.initialize_from and not (folder / STATE).exists():
            start = checkpoint.load(settings.initialize_from)
            known = grow(self.model, self.tokenizer, start)
            console.print(
                f"beginning with {start.config.name}, which knows {known} of {self.tokenizer.vocabulary} pieces"
            )
        self.model.to(self.device)
        self.optimizers = self._optimizers()
        self.step, self.tokens_seen, self.seconds = 0, 0, 0.0
        self._resume()

    def _tokenizer(self, pairs: list[Pair]) -> Tokenizer:
        path = self.folder / checkpoint.TOKENIZER
        if path.exists():
            self.console.print(f"with the vocabulary that is there: {path}", markup=False)
            tokenizer = Tokenizer.load(path)
        else:
            texts = (text for pair in pairs for text in (pair.source, pair.target))
            tokenizer = Tokenizer.train(texts, self.settings.model.vocabulary, self.settings.placeholders)
        if tokenizer.vocabulary != self.settings.model.vocabulary:
            pieces, expected = tokenizer.vocabulary, self.settings.model.vocabulary
            raise ValueError(f"{path} has {pieces} pieces, the settings ask for {expected}; start in another folder")
        if missing := set(self.settings.placeholders) - set(tokenizer):
            raise ValueError(f"{path} has no piece {', '.join(sorted(missing))}; start in another folder")
        return tokenizer

    def _fitting(self, pairs: list[Pair]) -> list[Pair]:
        """Those of ``pairs`` that fit in every direction; ValueError when there are none."""
        languages, longest = self.settings.languages, self.settings.longest
        sides = [
            self.tokenizer.sources([getattr(pair, side) for pair in pairs], language)
            for side, language in zip(("source", "target"), languages, strict=True)
        ]
        kept = [pair for pair, *ids in zip(pairs, *sides, strict=True) if all(2 < len(each) <= longest for each in ids)]
        if not kept:
            raise ValueError(f"dev has no pair of at most {longest} tokens a side to evaluate on (longest)")
        if left_out := len(pairs) - len(kept):
            self.console.print(f"{left_out} pairs of dev are empty or over {longest} tokens, and left out")
        return kept

    def _encode(self, pairs: list[Pair], weights: Mapping[str, float]) -> Corpus:
        """An example of each pair in each direction."""
        languages, longest = self.settings.languages, self.settings.longest
        return Corpus.join(
            [
                Corpus.encode(directed(pairs, languages, each), self.tokenizer, each[1], longest, weights)
                for each in self.settings.pairs
            ]
        )

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside, AdamW for embeddings, norms and biases; or AdamW for all."""
        inner: list[Tensor] = []
        outer: list[Tensor] = []
        for name, parameter in self.model.named_parameters():
            matrix = parameter.ndim == 2 and not name.startswith(("source_", "target_", "projection"))
            (inner if matrix and self.settings.optimizer == "muon" else outer).append(parameter)
        adamw = torch.optim.AdamW(
            outer, lr=self.settings.learning_rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
        )
        return [adamw, Muon(inner, lr=self.settings.learning_rate, bf16=self.bf16)] if inner else [adamw]

    def train(self) -> Path:
        """Train to the last step and return the checkpoint's folder. An interrupt saves first."""
        settings = self.settings
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        described = [TextColumn(column) if isinstance(column, str) else column for column in columns]
        batches = self.corpus.batches(settings.tokens, settings.seed, first=self.step)
        with Progress(*described, console=self.console, refresh_per_second=2) as progress:
            task = progress.add_task("training", total=settings.steps, completed=self.step)
            try:
                for report in self._steps(batches):
                    progress.update(task, completed=self.step, description=f"loss {report['loss']:.3f}")
                    if evaluated := self.step % settings.evaluate_every == 0 or self.step == settings.steps:
                        report |= self.evaluate()
                        self.console.print(_line(report), markup=False)
                    if evaluated or self.step % 50 == 0:
                        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                            log.write(json.dumps(report) + "\n")
            except KeyboardInterrupt:
                self.save()
                self.console.print(f"stopped and saved at step {self.step}; the same command goes on from there")
                raise
        if self.step % settings.save_every:
            self.save()
        return self.folder / "checkpoint"

    def _steps(self, batches: Iterator[Batch]) -> Iterator[dict[str, Any]]:
        recent: list[float] = []
        while self.step < self.settings.steps:
            with _uninterrupted():  # half an update, or one not counted, must not be saved
                begin = time.perf_counter()
                loss, tokens = self._update(next(batches))
                self.seconds += time.perf_counter() - begin
                self.step, self.tokens_seen = self.step + 1, self.tokens_seen + tokens
            recent = [*recent[-49:], loss]
            report = {
                "step": self.step,
                "loss": float(np.mean(recent)),
                "rate": self.settings.rate(self.step - 1),
                "tokens": self.tokens_seen,
                "minutes": round(self.seconds / 60, 2),
                "tokens_per_second": round(self.tokens_seen / self.seconds),
            }
            if self.step % self.settings.save_every == 0:
                self.save()
            yield report

    def _loss(self, batch: Batch, smoothing: float) -> Tensor:
        source, lengths, target, labels = (
            torch.from_numpy(array).long().to(self.device)
            for array in (batch.source, batch.source_lengths, batch.target, batch.labels)
        )
        real = labels != PADDING
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            states = self.model.decode(target, self.model.encode(source, lengths)).states
            weight = self.model.projection.weight
            return label_smoothed_cross_entropy(states[real], weight, labels[real], smoothing)

    def _update(self, batch: Batch) -> tuple[float, int]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(self.step)
            optimizer.zero_grad()
        loss = self._loss(batch, self.settings.label_smoothing)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not norm.isfinite():  # one such update spoils every weight, and the next save the good ones
            raise ValueError(
                f"step {self.step + 1}: the gradient is not finite; what was saved before, if anything, is kept: "
                f"lower learning_rate ({self.settings.learning_rate}) in another folder"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item(), int(batch.source_lengths.sum() + (batch.labels != PADDING).sum())

    @torch.inference_mode()
    def evaluate(self) -> dict[str, Any]:
        """Loss on dev in nats a token, without smoothing; by direction, greedy BLEU and the first of a fixed sample."""
        self.model.eval()
        losses, counts = [], []
        for rows in self.dev.plan(self.settings.tokens, seed=0, epoch=0):
            batch = self.dev.batch(rows)
            counts.append(int((batch.labels != PADDING).sum()))
            losses.append(float(self._loss(batch, 0.0)) * counts[-1])
        sample = random.Random(0).sample(self.dev_pairs, min(self.settings.evaluate_sentences, len(self.dev_pairs)))
        bleu, examples = {}, {}
        for direction in self.settings.pairs:
            pairs, name = directed(sample, self.settings.languages, direction), "-".join(direction)
            found = dict(translate(self.model, self.tokenizer, [pair.source for pair in pairs], direction[1]))
            written = [found[index] for index in range(len(pairs))]
            score = sacrebleu.corpus_bleu(written, [[pair.target for pair in pairs]]).score
            bleu[name], examples[name] = round(score, 2), written[0]
        self.model.train()
        return {"dev_loss": sum(losses) / sum(counts), "dev_bleu": bleu, "example": examples}

    def save(self) -> None:
        """Write the state to go on from and the averaged checkpoint so far; each file whole or not at all."""
        checkpoint.save_weights(self.folder / f"step-{self.step:07}.safetensors", dict(self.model.named_parameters()))
        files = {int(file.stem.removeprefix("step-")): file for file in self.folder.glob("step-*.safetensors")}
        # What an interrupt saved between the regular steps leaves again: the average is that of a run never stopped.
        regular = sorted(step for step in files if step < self.step and step % self.settings.save_every == 0)
        kept = [*regular, self.step][-self.settings.average :]
        for step in files.keys() - set(kept):
            files[step].unlink()
        averaged = average([files[step] for step in kept])
        config = CheckpointConfig(name=self.settings.name, pairs=self.settings.pairs, model=self.settings.model)
        checkpoint.save(self.folder / "checkpoint", config, averaged, self.tokenizer)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all(),
            "progress": (self.step, self.tokens_seen, self.seconds),
            "text": self.text,
        }
        partial = (self.folder / STATE).with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder / STATE)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state.get("text", self.text) != self.text:
            raise ValueError(f"{self.folder} holds a run on other text; give it the same, or start in another folder")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"].cpu())
        torch.cuda.set_rng_state_all([each.cpu() for each in state.get("cuda_random", [])])
        self.step, self.tokens_seen, self.seconds = state["progress"]
        self.console.print(f"going on from step {self.step}")


def average(files: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights in ``files`` (section 6.1), taken in fp32."""
    weights = [load_file(file) for file in files]
    return {name: torch.stack([each[name].float() for each in weights]).mean(0) for name in weights[0]}


def _same_run(folder: Path, settings: TrainSettings) -> None:
    """ValueError when ``folder`` holds a run that these settings would not go on with but spoil."""
    if not (folder / STATE).exists():
        return
    free = {"steps", "save_every", "average", "evaluate_every", "evaluate_sentences"}
    stored = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    wanted = settings.model_dump(mode="json")
    stored = TrainSettings.model_validate(stored).model_dump(mode="json")  # what it does not name is as it was
    other = [f"{name} {stored[name]}, not {wanted[name]}" for name in wanted if stored[name] != wanted[name]]
    if changed := [difference for difference in other if difference.split()[0] not in free]:
        raise ValueError(f"{folder} holds a run with {'; '.join(changed)}; start in another folder")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold an interrupt (Ctrl-C) back until the block is done."""
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


def _line(report: dict[str, Any]) -> str:
    directions = (f"{name} {bleu} «{report['example'][name]}»" for name, bleu in report["dev_bleu"].items())
    return (
        f"step {report['step']}  {report['minutes']} min  {report['tokens_per_second']} tokens/s  "
        f"loss {report['loss']:.3f}  dev loss {report['dev_loss']:.3f}  "
        f"dev BLEU {'  '.join(directions)}"
    )
