"""Texts on their way into the engine: checked against the limits, cut into sentences, and turned into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.bundle import Manifest
from model.sentences import Sentence, split
from model.tokenizer import Tokenizer
from serving.engine.decoding import Decoding
from serving.errors import Invalid, TooLarge
from serving.options import TranslateOptions
from serving.settings import Settings


@dataclass(frozen=True)
class Preprocessed:
    """Texts that are ready to be translated."""

    sentences: list[list[Sentence]]
    """Of each text."""
    sources: list[list[int]]
    """The source ids of every sentence, one text after the other."""
    decodings: list[Decoding]
    """How every sentence is decoded, in the same order."""


class Preprocessor:
    """Checks texts and turns them into tokens of one model. It works on plain data, and may be called in any thread."""

    def __init__(self, settings: Settings, manifest: Manifest, tokenizer: Tokenizer) -> None:
        self._settings, self._manifest, self._tokenizer = settings, manifest, tokenizer

    def check_options(self, options: TranslateOptions) -> None:
        """Invalid when ``options`` do not go together, or not with this model and these settings."""
        largest_beam = min(self._settings.max_beam, self._settings.rows)
        if faults := options.faults(self._manifest.limits.target_tokens, largest_beam):
            raise Invalid(faults)

    def check_texts(self, field: str, texts: Sequence[str], blank: bool = False) -> None:
        """TooLarge when texts are too many or too long; Invalid when one is blank, unless they may be ``blank``."""
        if len(texts) > self._settings.max_texts:
            raise TooLarge(field, len(texts), self._settings.max_texts, "texts")
        for number, text in enumerate(texts):
            if len(text) > self._settings.max_characters:
                raise TooLarge(_field(field, number, texts), len(text), self._settings.max_characters, "characters")
        if blanks := [number for number, text in enumerate(texts) if not blank and not text.strip()]:
            raise Invalid([(_field(field, number, texts), "is blank") for number in blanks])

    def check(self, texts: Sequence[str], options: TranslateOptions, prefixes: Sequence[str]) -> None:
        """Check everything about a translation that can be checked without reading the texts."""
        self.check_options(options)
        self.check_texts("text", texts)
        if prefixes and len(prefixes) != len(texts):
            raise Invalid([("prefix", f"has {len(prefixes)} for {len(texts)} texts: give one a text, blank for none")])
        self.check_texts("prefix", prefixes, blank=True)

    def least_cost(self, texts: Sequence[str], options: TranslateOptions) -> int:
        """Tokens that translating ``texts`` costs at least, known from their characters."""
        source = self._tokenizer.least(texts)
        # As many are expected of each hypothesis, unless fewer are asked for.
        return source if options.max_tokens else source * (1 + options.beam_size)

    def whole(self, texts: Sequence[str], target: str) -> list[list[int]]:
        """The source ids of each text, uncut; TooLarge when one has more tokens than the model reads."""
        sources = self._tokenizer.sources(texts, target)
        for number, ids in enumerate(sources):
            self._check_source(ids, _field("text", number, texts))
        return sources

    def cut(
        self, texts: Sequence[str], target: str, options: TranslateOptions, prefixes: Sequence[str]
    ) -> Preprocessed:
        """The sentences of ``texts``; the first of each text begins with its prefix. TooLarge, Invalid."""
        sentences = [split(text) for text in texts]
        sources = self._tokenizer.sources([piece.text for pieces in sentences for piece in pieces], target)
        decodings: list[Decoding] = []
        for number, pieces in enumerate(sentences):
            prefix: tuple[int, ...] = ()
            if prefixes and prefixes[number]:
                prefix = tuple(self._tokenizer.target(prefixes[number])[:-1])
            for _ in pieces:
                ids = sources[len(decodings)]
                self._check_source(ids, _field("text", number, texts))
                limit = self._max_tokens(ids, prefix, options, _field("prefix", number, texts))
                decodings.append(options.decoding(limit, prefix, stream=len(decodings)))
                prefix = ()
        return Preprocessed(sentences, sources, decodings)

    def _check_source(self, ids: list[int], field: str) -> None:
        if len(ids) > self._manifest.limits.source_tokens:
            raise TooLarge(field, len(ids), self._manifest.limits.source_tokens, "tokens in one sentence")

    def _max_tokens(self, source: list[int], prefix: tuple[int, ...], options: TranslateOptions, field: str) -> int:
        """The most tokens of a sentence's translation."""
        most = self._manifest.limits.target_tokens
        if len(prefix) >= (options.max_tokens or most):
            limit = f"max_tokens, {options.max_tokens}," if options.max_tokens else f"the limit, {most},"
            raise Invalid([(field, f"has {len(prefix)} tokens; {limit} leaves none to go on with: shorten it")])
        usual = self._manifest.model.default_limit(len(source)) + len(prefix)
        return options.max_tokens or min(most, max(usual, options.min_tokens))


def _field(name: str, number: int, texts: Sequence[str]) -> str:
    return name if len(texts) == 1 else f"{name}.{number}"
