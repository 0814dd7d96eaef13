"""Text in, text out: a model's tokenizer and its engine, and what is done with both for a request."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import TOKENIZER, BundleError, Manifest, read_manifest
from model.tokenizer import START, Tokenizer
from serving.attention import Attention, View
from serving.engine import waiting
from serving.engine.decoding import Decoding
from serving.engine.jobs import Job, encoding, inspection, translation
from serving.engine.results import Attended, Encoded, Timings, Translated
from serving.engine.work import Work
from serving.errors import Invalid, TooLarge
from serving.languages import Pair, best_pair
from serving.offload import unless_short
from serving.options import GREEDY, TranslateOptions
from serving.preprocessing import Preprocessed, Preprocessor
from serving.proven_engine import proven_engine
from serving.settings import Settings
from serving.streaming import Delta, Feed
from serving.translation import Translation, join

Array = NDArray[Any]

CHARACTERS = 4
"""In a token, about."""
Stages = dict[str, float]
"""Seconds by stage; those of several sentences overlap, so each is its longest."""


@dataclass(frozen=True)
class Finished:
    """The end of a stream."""

    translations: list[Translation]
    stages: Stages


class Pipeline:
    """A bundle ready to work, for one process."""

    def __init__(self, settings: Settings, cores: int | None = None, work: Work | None = None) -> None:
        """Read the bundle and start its engine, which computes with ``cores``, all of ``settings.cpus`` unless given,
        and counts what it does in ``work``.

        BundleError when it cannot be used.
        """
        folder = settings.bundle
        self.settings = settings
        self.manifest: Manifest = read_manifest(folder)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        if self.tokenizer.vocabulary != self.manifest.model.vocabulary:
            pieces, expected = self.tokenizer.vocabulary, self.manifest.model.vocabulary
            raise BundleError(folder, [f"{TOKENIZER} has {pieces} pieces, the model {expected}"])
        self._preprocessor = Preprocessor(settings, self.manifest, self.tokenizer)
        self.engine = proven_engine(settings, self.manifest, settings.cpus if cores is None else cores, work)

    @classmethod
    def offline(cls, settings: Settings) -> "Pipeline":
        """One without a server's limits on waiting: whoever asks is alone, and waits for all of it."""
        return cls(settings.model_copy(update={"queue_tokens": sys.maxsize, "timeout": 86_400.0}))

    async def warm_up(self) -> None:
        """Take every graph through a first run."""
        source, target = self.pair(None, None)
        await self.attention("Hello.", None, source, target, "encoder-decoder", None, None)
        await self.encode(["Hello."], source, target)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.stop()

    def check(self, options: TranslateOptions) -> None:
        """Invalid when ``options`` do not go together, or not with this model and these settings."""
        self._preprocessor.check_options(options)

    def pair(self, source: str | None, target: str | None) -> Pair:
        """The model's own codes for ``source`` and ``target``; unless given, those of its first pair that fits.

        Invalid when it has no such pair.
        """
        return best_pair(self.manifest.pairs, source, target)

    def pooling(self, name: str | None) -> str:
        """How texts become vectors: ``name``, or the model's best unless given; Invalid when the model cannot do it."""
        poolings = self.manifest.poolings
        if name not in (None, "none", *poolings):
            raise Invalid([("pooling", f"{name!r} is none of this model's: {', '.join([*poolings, 'none'])}")])
        return name or poolings[0]

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
        preprocessed = await self._preprocess(texts, target, options, prefixes)
        jobs = [
            translation(ids, decoding, deadline)
            for ids, decoding in zip(preprocessed.sources, preprocessed.decodings, strict=True)
        ]
        tokenised = time.perf_counter()
        results: list[Translated] = await self._run(jobs, deadline)
        translations, detokenise = await self._join(preprocessed, results, options)
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
            reason = f"takes a beam_size of 1, not {options.beam_size}: a beam's tokens are final only at its end"
            raise Invalid([("stream", reason)])
        preprocessed = await self._preprocess(texts, target, options, prefixes)
        feed = Feed(preprocessed.sentences, self.tokenizer.decode, self.settings.stream_interval)
        places = [(text, number) for text, cut in enumerate(preprocessed.sentences) for number in range(len(cut))]
        jobs = [
            translation(ids, decoding, deadline, feed.listener(*place, decoding.max_tokens))
            for ids, decoding, place in zip(preprocessed.sources, preprocessed.decodings, places, strict=True)
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
        translations, detokenise = await self._join(preprocessed, results, options)
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
        self._preprocessor.check_texts("text", texts)
        sources, pieces = await unless_short(sum(map(len, texts)), lambda: self._whole(texts, target))
        total = sum(map(len, sources))
        if pooling == "none" and total > self.settings.max_vectors:
            raise TooLarge("text", total, self.settings.max_vectors, "tokens to encode one by one")
        tokenised = time.perf_counter()
        jobs = [encoding(ids, deadline, pooled=pooling == "attention") for ids in sources]
        results: list[Encoded] = await self._run(jobs, deadline)
        vectors = [result.vectors for result in results]
        if pooling == "mean":
            vectors = [sentence_vector(memory)[None] for memory in vectors]
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
        view = View.of(self.manifest.model, kind, layer, head)
        self._preprocessor.check_texts("text", [text])
        [source_ids] = self._preprocessor.whole([text], target)
        limit = self.settings.max_attention_tokens
        if len(source_ids) > limit:
            raise TooLarge("text", len(source_ids), limit, "tokens")
        stages = {"tokenise": time.perf_counter() - begin}
        most = min(limit, self.manifest.limits.target_tokens)
        if written is None:
            decoding = Decoding(min(most, self.manifest.model.default_limit(len(source_ids))))
            [translated] = await self._run([translation(source_ids, decoding, deadline)], deadline)
            target_ids = translated.hypotheses[0].tokens
            stages |= _stages([translated])
        else:
            self._preprocessor.check_texts("translation", [written])
            target_ids = self.tokenizer.target(written)
            if len(target_ids) > most:
                raise TooLarge("translation", len(target_ids), most, "tokens")
        # What the decoder reads at each position is the token before it: queries carry the token they read.
        decoder_ids = [START, *target_ids[:-1]]
        [attended] = await self._run([inspection(source_ids, decoder_ids, deadline)], deadline)
        assert isinstance(attended, Attended)
        stages["queue"] = stages.get("queue", 0.0) + attended.timings.queue
        stages["attention"] = attended.timings.encode
        pieces = self.tokenizer.pieces(source_ids), self.tokenizer.pieces(decoder_ids)
        return view.attention(attended.arrays, *pieces), stages

    def _deadline(self) -> float:
        """When a request that arrives now has to be done, on the clock of ``time.monotonic``."""
        return time.monotonic() + self.settings.timeout

    async def _run(self, jobs: Sequence[Job], deadline: float) -> list[Any]:
        return await waiting.results(self.engine, jobs, deadline, self.settings.timeout)

    async def _preprocess(
        self, texts: Sequence[str], target: str, options: TranslateOptions, prefixes: Sequence[str]
    ) -> Preprocessed:
        preprocessor = self._preprocessor
        preprocessor.check(texts, options, prefixes)
        # What cannot fit in any case is refused before it is worked on: a full service must not be busy with refusing.
        self.engine.check_room(preprocessor.least_cost(texts, options))
        return await unless_short(sum(map(len, texts)), lambda: preprocessor.cut(texts, target, options, prefixes))

    def _whole(self, texts: Sequence[str], target: str) -> tuple[list[list[int]], list[list[str]]]:
        """Each whole text's source ids, and their pieces."""
        sources = self._preprocessor.whole(texts, target)
        return sources, [self.tokenizer.pieces(ids) for ids in sources]

    async def _join(
        self, preprocessed: Preprocessed, results: list[Translated], options: TranslateOptions
    ) -> tuple[list[Translation], float]:
        """The translations, and the seconds it took."""

        def joined() -> list[Translation]:
            remaining, decode = iter(results), self.tokenizer.decode
            how = options.alternatives, options.length_penalty
            return [
                join(cut, [next(remaining).hypotheses for _ in cut], decode, *how) for cut in preprocessed.sentences
            ]

        begin = time.perf_counter()
        tokens = sum(len(hypothesis.tokens) for result in results for hypothesis in result.hypotheses)
        return await unless_short(CHARACTERS * tokens, joined), time.perf_counter() - begin


def sentence_vector(memory: Array) -> Array:
    """``[width]``: the mean of ``memory`` ``[tokens, width]``, scaled to length 1."""
    mean = memory.mean(axis=0, dtype=np.float64)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def _stages(results: Sequence[Translated | Encoded]) -> Stages:
    timings: list[Timings] = [result.timings for result in results]
    return {stage: max(map(attrgetter(stage), timings), default=0.0) for stage in ("queue", "encode", "decode")}
