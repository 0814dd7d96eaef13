"""Text in, text out: limits, sentences, tokens, the engine, and the text put together again."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.bundle import TOKENIZER, BundleError, Manifest, read_manifest
from model.sentences import Sentence, split
from model.tokenizer import START, Tokenizer
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import Job, encoding, inspection, translation
from serving.engine.results import Attended, Encoded, Timings, Translated
from serving.engine.work import Work
from serving.errors import DeadlineExceeded, Invalid, TooLarge
from serving.offload import unless_short
from serving.options import GREEDY, TranslateOptions
from serving.runtime.devices import faults_of, runtime_on
from serving.runtime.interface import DecoderBatch, Runtime
from serving.runtime.selfcheck import SelfCheckError, fill, prove
from serving.settings import Settings
from serving.streaming import Delta, Feed
from serving.translation import Translation, join

Array = NDArray[Any]

KINDS = {"encoder": "encoder.{}.self", "decoder": "decoder.{}.self", "encoder-decoder": "decoder.{}.cross"}
"""Kinds of attention to the names of their arrays."""


@dataclass(frozen=True)
class Attention:
    """One kind of attention in one layer."""

    kind: str
    layer: int
    queries: list[str]
    keys: list[str]
    """Pieces, as the tokenizer writes them."""
    weights: Array
    scores: Array
    """``[heads, queries, keys]`` fp32."""


CHARACTERS = 4
"""In a token, about."""
HANGS_SECONDS = 5.0
"""After its deadline: so long is waited for an engine that should have kept it."""
Stages = dict[str, float]
"""Seconds by stage; those of several sentences overlap, so each is its longest."""


@dataclass(frozen=True)
class Finished:
    """The end of a stream."""

    translations: list[Translation]
    stages: Stages


class _Prepared(NamedTuple):
    """Texts on their way into the engine: the sentences of each, and every sentence's source ids and settings."""

    sentences: list[list[Sentence]]
    sources: list[list[int]]
    decodings: list[Decoding]


class Pipeline:
    """A bundle ready to work, for one process."""

    def __init__(self, settings: Settings, work: Work | None = None) -> None:
        folder: Path = settings.bundle
        self.settings = settings
        self.manifest: Manifest = read_manifest(folder)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        if self.tokenizer.vocabulary != self.manifest.model.vocabulary:
            pieces, expected = self.tokenizer.vocabulary, self.manifest.model.vocabulary
            raise BundleError(folder, [f"{TOKENIZER} has {pieces} pieces, the model {expected}"])
        with faults_of(settings.device):
            gpu = settings.gpus, settings.cuda_graphs
            runtime = runtime_on(settings.device, folder, self.manifest, settings.cpus, *gpu)
            batch = runtime.batch(settings.rows)
            limits = settings.encode_tokens, settings.queue_tokens, settings.request_rows
            try:
                self.engine = Engine(runtime, batch, *limits, lambda: self._prove(runtime, batch), work)
            except SelfCheckError as error:
                if settings.device == "cuda" and error.__cause__:
                    raise error.__cause__ from None  # the GPU has failed, not the bundle
                way_out = "install the versions of constraints.txt, or export it again"
                raise BundleError(folder, [f"on this computer it is wrong: {error}; {way_out}"]) from None

    def _prove(self, runtime: Runtime, batch: DecoderBatch) -> None:
        if self.manifest.probes:
            prove(runtime, batch, self.manifest.probes)
        if self.settings.device == "cuda":
            # What a GPU's memory does not hold is better known now than when it is wanted.
            fill(runtime, batch, self.settings.encode_tokens)

    @classmethod
    def offline(cls, settings: Settings) -> "Pipeline":
        """One without a server's limits on waiting: whoever asks is alone, and waits for all of it."""
        return cls(settings.model_copy(update={"queue_tokens": sys.maxsize, "timeout": 86_400.0}))

    def check(self, options: TranslateOptions) -> None:
        """Invalid when ``options`` do not go together, or not with this model and these settings."""
        largest_beam = min(self.settings.max_beam, self.settings.rows)
        if faults := options.faults(self.manifest.limits.target_tokens, largest_beam):
            raise Invalid(faults)

    async def warm_up(self) -> None:
        """Take every graph through a first run."""
        source, target = self.pair(None, None)
        await self.attention("Hello.", None, source, target, "encoder-decoder", None, None)
        await self.encode(["Hello."], source, target)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.stop()

    async def translate(
        self,
        texts: Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions = GREEDY,
        prefixes: Sequence[str] = (),
    ) -> tuple[list[Translation], Stages]:
        """Translate ``texts`` sentence by sentence.

        ``source`` and ``target`` are one of the model's pairs (`pair`). With ``prefixes``, one a text, the translation
        of a text's first sentence begins with its prefix (blank: with whatever is best). Raises Invalid, TooLarge,
        QueueFull, DeadlineExceeded, NotReady.
        """
        begin, deadline = time.perf_counter(), self._deadline()
        prepared = await self._prepare(texts, target, options, prefixes)
        jobs = [translation(*each, deadline) for each in zip(prepared.sources, prepared.decodings, strict=True)]
        tokenised = time.perf_counter()
        results: list[Translated] = await self._run(jobs, deadline)
        translations, detokenise = await self._join(prepared, results, options)
        return translations, {"tokenise": tokenised - begin, **_stages(results), "detokenise": detokenise}

    async def stream(
        self,
        texts: Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions = GREEDY,
        prefixes: Sequence[str] = (),
    ) -> AsyncGenerator[Delta | Finished, None]:
        """As `translate`, but tells the translations as they grow; those of several texts in turns. Ends in `Finished`.

        The same errors, from whichever step. Closing the generator stops the work.
        """
        begin, deadline = time.perf_counter(), self._deadline()
        if options.beam_size > 1:
            said = f"takes a beam_size of 1, not {options.beam_size}: a beam's tokens are final only at its end"
            raise Invalid([("stream", said)])
        prepared = await self._prepare(texts, target, options, prefixes)
        feed = Feed(prepared.sentences, self.tokenizer.decode, self.settings.stream_interval)
        places = [(index, number) for index, cut in enumerate(prepared.sentences) for number in range(len(cut))]
        jobs = [
            translation(ids, decoding, deadline, feed.listener(*place, decoding.max_tokens))
            for ids, decoding, place in zip(prepared.sources, prepared.decodings, places, strict=True)
        ]
        tokenised = time.perf_counter()
        running = asyncio.create_task(self._run(jobs, deadline))
        running.add_done_callback(lambda _: feed.close())
        try:
            async for delta in feed:
                yield delta
            results: list[Translated] = await running
        finally:
            running.cancel()
        translations, detokenise = await self._join(prepared, results, options)
        yield Finished(translations, {"tokenise": tokenised - begin, **_stages(results), "detokenise": detokenise})

    async def encode(
        self, texts: Sequence[str], source: str, target: str, pooling: str | None = None
    ) -> tuple[list[list[str]], list[Array], Stages]:
        """Pieces and vectors of each text, read whole; the same errors.

        The vectors are one a text, ``[1, width]``: by ``pooling`` "attention", "mean" or, unless given, the better
        one that the model has (`Manifest.poolings`). With "none" they are the memory ``[tokens, width]`` that a
        translation from ``source`` into ``target`` attends to.
        """
        begin, deadline = time.perf_counter(), self._deadline()
        pooling = self.pooling(pooling)
        self._check("text", texts)
        ids, pieces = await unless_short(sum(map(len, texts)), lambda: self._read(texts, target))
        total = sum(map(len, ids))
        if pooling == "none" and total > self.settings.max_vectors:
            raise TooLarge("text", total, self.settings.max_vectors, "tokens to encode one by one")
        tokenised = time.perf_counter()
        jobs = [encoding(each, deadline, pooled=pooling == "attention") for each in ids]
        results: list[Encoded] = await self._run(jobs, deadline)
        vectors = [sentence_vector(each.vectors)[None] if pooling == "mean" else each.vectors for each in results]
        return pieces, vectors, {"tokenise": tokenised - begin, **_stages(results)}

    async def attention(
        self,
        text: str,
        written: str | None,
        source: str,
        target: str,
        kind: str,
        layer: int | None,
        head: int | None,
    ) -> tuple[Attention, Stages]:
        """What ``kind`` of attention sees in ``layer`` (the last unless given), in one ``head`` or in all.

        The text is read whole and its translation, ``written`` or the model's own, is teacher-forced. The same errors.
        """
        begin, deadline = time.perf_counter(), self._deadline()
        model = self.manifest.model
        layers = model.encoder_layers if kind == "encoder" else model.decoder_layers
        layer = layers - 1 if layer is None else layer
        if layer >= layers:
            raise Invalid([("layer", f"is {layer}; {kind} attention has layers 0 to {layers - 1}")])
        if head is not None and head >= model.heads:
            raise Invalid([("head", f"is {head}; there are heads 0 to {model.heads - 1}")])
        self._check("text", [text])
        limit = self.settings.max_attention_tokens
        source_ids = self._fitting(self.tokenizer.source(text, target), "text")
        if len(source_ids) > limit:
            raise TooLarge("text", len(source_ids), limit, "tokens")
        tokenised = time.perf_counter()
        stages = {"tokenise": tokenised - begin}
        most = min(limit, self.manifest.limits.target_tokens)
        if written is None:
            decoding = Decoding(min(most, model.default_limit(len(source_ids))))
            [found] = await self._run([translation(source_ids, decoding, deadline)], deadline)
            target_ids = found.hypotheses[0].tokens
            stages |= _stages([found])
        else:
            self._check("translation", [written])
            target_ids = self.tokenizer.target(written)
            if len(target_ids) > most:
                raise TooLarge("translation", len(target_ids), most, "tokens")
        # What the decoder reads at each position is the token before it: queries carry the token they read.
        read = [START, *target_ids[:-1]]
        [seen] = await self._run([inspection(source_ids, read, deadline)], deadline)
        assert isinstance(seen, Attended)
        stages["queue"] = stages.get("queue", 0.0) + seen.timings.queue
        stages["attention"] = seen.timings.encode
        queries = source_ids if kind == "encoder" else read
        keys = read if kind == "decoder" else source_ids
        heads = slice(None) if head is None else slice(head, head + 1)
        name = KINDS[kind].format(layer)
        return (
            Attention(
                kind,
                layer,
                self.tokenizer.pieces(queries),
                self.tokenizer.pieces(keys),
                seen.arrays[f"{name}.weights"][heads],
                seen.arrays[f"{name}.scores"][heads],
            ),
            stages,
        )

    def _deadline(self) -> float:
        """When a request that arrives now has to be done, on the clock of ``time.monotonic``."""
        return time.monotonic() + self.settings.timeout

    async def _run(self, jobs: Sequence[Job], deadline: float) -> list[Any]:
        """Results of ``jobs`` in order; whatever ends this early also ends the work."""
        self.engine.submit(jobs)
        try:
            # The engine keeps the deadline; this one speaks up when the engine itself hangs.
            await _all_done(jobs, max(0.0, deadline - time.monotonic()) + HANGS_SECONDS)
            for job in jobs:
                if _failed(job.future):
                    job.future.result()
            return [job.future.result(timeout=0) for job in jobs]
        except (TimeoutError, DeadlineExceeded) as error:
            error.__traceback__ = None  # leads here, and so to the job that keeps the error
            raise DeadlineExceeded(self.settings.timeout) from None
        finally:
            if not all(job.future.done() for job in jobs):
                self.engine.cancel(jobs)

    def pair(self, source: str | None, target: str | None) -> tuple[str, str]:
        """The model's first pair that fits what was asked for; Invalid when none does."""
        pairs = self.manifest.pairs
        for pair in pairs:
            if source in (None, pair[0]) and target in (None, pair[1]):
                return pair
        sources = sorted({pair[0] for pair in pairs})
        if source is not None and source not in sources:
            raise Invalid([("source", f"{source!r} is not a source language; this model reads {', '.join(sources)}")])
        known = ", ".join(sorted({pair[1] for pair in pairs if source in (None, pair[0])}))
        raise Invalid([("target", f"{target!r} is not a target language; this model writes {known}")])

    def pooling(self, asked: str | None) -> str:
        """How texts are made into vectors; Invalid when the model cannot do what was ``asked``."""
        poolings = self.manifest.poolings
        if asked not in (None, "none", *poolings):
            raise Invalid([("pooling", f"{asked!r} is none of this model's: {', '.join([*poolings, 'none'])}")])
        return asked or poolings[0]

    def _check(self, field: str, texts: Sequence[str], blank: bool = False) -> None:
        """Refuse texts that are too many, too long or, unless they may be, ``blank``."""
        if len(texts) > self.settings.max_texts:
            raise TooLarge(field, len(texts), self.settings.max_texts, "texts")
        for number, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                raise TooLarge(_field(field, number, texts), len(text), self.settings.max_characters, "characters")
        if blanks := [number for number, text in enumerate(texts) if not blank and not text.strip()]:
            raise Invalid([(_field(field, number, texts), "is blank") for number in blanks])

    def _fitting(self, ids: list[int], field: str) -> list[int]:
        if len(ids) > self.manifest.limits.source_tokens:
            raise TooLarge(field, len(ids), self.manifest.limits.source_tokens, "tokens in one sentence")
        return ids

    def _read(self, texts: Sequence[str], target: str) -> tuple[list[list[int]], list[list[str]]]:
        """Each whole text's source ids, and their pieces."""
        sources = self.tokenizer.sources(texts, target)
        ids = [self._fitting(each, _field("text", number, texts)) for number, each in enumerate(sources)]
        return ids, [self.tokenizer.pieces(each) for each in ids]

    async def _prepare(
        self, texts: Sequence[str], target: str, options: TranslateOptions, prefixes: Sequence[str]
    ) -> _Prepared:
        """Check what was asked for and cut it up."""
        self.check(options)
        self._check("text", texts)
        if prefixes and len(prefixes) != len(texts):
            raise Invalid([("prefix", f"has {len(prefixes)} for {len(texts)} texts: give one a text, blank for none")])
        self._check("prefix", prefixes, blank=True)
        # What cannot fit in any case is refused before it is worked on: a full service must not be busy with refusing.
        self.engine.check_room(self._least(texts, options))
        prefixes = prefixes or [""] * len(texts)
        return await unless_short(sum(map(len, texts)), lambda: self._cut(texts, target, options, prefixes))

    def _least(self, texts: Sequence[str], options: TranslateOptions) -> int:
        """Tokens that translating ``texts`` costs at least, known from their characters."""
        source = self.tokenizer.least(texts)
        # As many are expected of each hypothesis, unless fewer are asked for.
        return source if options.max_tokens else source * (1 + options.beam_size)

    def _cut(self, texts: Sequence[str], target: str, options: TranslateOptions, prefixes: Sequence[str]) -> _Prepared:
        cuts = [split(text) for text in texts]
        sources = self.tokenizer.sources([piece.text for cut in cuts for piece in cut], target)
        prepared = _Prepared(cuts, [], [])
        for number, (cut, prefix) in enumerate(zip(cuts, prefixes, strict=True)):
            given = tuple(self.tokenizer.target(prefix)[:-1]) if prefix else ()
            for _ in cut:
                ids = self._fitting(sources[len(prepared.sources)], _field("text", number, texts))
                limit = self._limit(ids, given, options, _field("prefix", number, texts))
                prepared.decodings.append(options.decoding(limit, given, stream=len(prepared.sources)))
                prepared.sources.append(ids)
                given = ()
        return prepared

    def _limit(self, source: list[int], prefix: tuple[int, ...], options: TranslateOptions, field: str) -> int:
        """The most tokens of a sentence's translation."""
        most = self.manifest.limits.target_tokens
        if len(prefix) >= (options.max_tokens or most):
            limit = f"max_tokens, {options.max_tokens}," if options.max_tokens else f"the limit, {most},"
            raise Invalid([(field, f"has {len(prefix)} tokens; {limit} leaves none to go on with: shorten it")])
        usual = self.manifest.model.default_limit(len(source)) + len(prefix)
        return options.max_tokens or min(most, max(usual, options.min_tokens))

    async def _join(
        self, prepared: _Prepared, results: list[Translated], options: TranslateOptions
    ) -> tuple[list[Translation], float]:
        """The translations, and the seconds it took."""

        def joined() -> list[Translation]:
            remaining = iter(results)
            return [
                join(
                    cut,
                    [next(remaining).hypotheses for _ in cut],
                    self.tokenizer.decode,
                    options.alternatives,
                    options.length_penalty,
                )
                for cut in prepared.sentences
            ]

        begin = time.perf_counter()
        tokens = sum(len(each.tokens) for result in results for each in result.hypotheses)
        return await unless_short(CHARACTERS * tokens, joined), time.perf_counter() - begin


def sentence_vector(memory: Array) -> Array:
    """``[width]``: the mean of ``memory`` ``[tokens, width]``, scaled to length 1."""
    mean = memory.mean(axis=0, dtype=np.float64)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def _field(name: str, number: int, texts: Sequence[str]) -> str:
    return name if len(texts) == 1 else f"{name}.{number}"


async def _all_done(jobs: Sequence[Job], seconds: float) -> None:
    """Wait until all ``jobs`` are done or one has failed, ``seconds`` at most; the engine wakes the event loop once."""
    if not jobs:
        return
    # The jobs' futures keep the callback, which therefore must not know the jobs: they would lie about in circles until
    # Python looks for such garbage, once in minutes.
    loop, last, done = asyncio.get_running_loop(), len(jobs), itertools.count(1)
    waiting: asyncio.Future[None] = loop.create_future()

    def go_on() -> None:
        if not waiting.done():
            waiting.set_result(None)

    def count(future: "Future[Any]") -> None:
        if next(done) == last or _failed(future):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(go_on)

    for job in jobs:
        job.future.add_done_callback(count)
    limit = loop.call_later(seconds, go_on)
    try:
        await waiting
    finally:
        limit.cancel()


def _failed(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def _stages(results: Sequence[Translated | Encoded]) -> Stages:
    timings: list[Timings] = [result.timings for result in results]
    return {stage: max(map(attrgetter(stage), timings), default=0.0) for stage in ("queue", "encode", "decode")}
