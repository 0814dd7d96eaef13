"""Text to token ids and back: sentencepiece, special tokens, and a token for each target language. No torch."""

import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

PADDING, UNKNOWN, START, END = range(4)
LANGUAGES = ("en", "de")
"""Languages that have a token in every vocabulary; which pairs a model has learnt stands in its checkpoint."""
FEW = 8
"""Texts that are tokenised one by one."""
SPACE = "▁"
"""How sentencepiece writes a space."""
_BLANK = bytes(code for code in range(256) if chr(code).isspace())


def language_token(language: str) -> str:
    """The piece that opens a source and asks for ``language``, such as ``<2de>``."""
    return f"<2{language}>"


def normalise(text: str) -> str:
    """Canonical composition (NFC) and single spaces; nothing else is changed, so text survives a round trip.

    All but ``▁`` (U+2581), by which sentencepiece writes a space: that comes back as one.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


class Tokenizer:
    """A sentencepiece model shared by source and target.

    Bytes stand in for characters that the vocabulary lacks, so no text is unknown. Special tokens are control symbols:
    text that spells one is read as ordinary characters.
    """

    def __init__(self, serialized: bytes) -> None:
        self.serialized = serialized
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(serialized)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model: {error}") from None
        self._longest = max(len(piece.replace(SPACE, "")) for piece in self)
        tokens = {language: int(self._processor.PieceToId(language_token(language))) for language in LANGUAGES}
        self._languages = {language: token for language, token in tokens.items() if token != UNKNOWN}

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a sentencepiece model file; OSError or ValueError when that cannot be."""
        return cls(path.read_bytes())

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, placeholders: Sequence[str] = ()) -> "Tokenizer":
        """Learn a unigram vocabulary of ``vocabulary`` pieces, special ones and 256 bytes included.

        Each of ``placeholders`` is a piece of its own wherever it stands, never cut and never part of another.
        ValueError when ``texts`` are too few for so many.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(normalise(text) for text in texts),
                model_writer=written,
                vocab_size=vocabulary,
                model_type="unigram",
                character_coverage=0.9998,
                byte_fallback=True,
                normalization_rule_name="identity",
                pad_id=PADDING,
                unk_id=UNKNOWN,
                bos_id=START,
                eos_id=END,
                control_symbols=[language_token(language) for language in LANGUAGES],
                user_defined_symbols=list(placeholders),
                num_threads=2,
                minloglevel=2,
            )
        except RuntimeError as error:
            said = str(error).rpartition("] ")[2] or "there is none"
            raise ValueError(f"no vocabulary of {vocabulary} pieces can be learnt from this text: {said}") from None
        return cls(written.getvalue())

    @property
    def vocabulary(self) -> int:
        """How many pieces there are."""
        return int(self._processor.GetPieceSize())

    def language_id(self, language: str) -> int:
        """The id of ``language``'s token; KeyError when the vocabulary has none."""
        return self._languages[language]

    def source(self, text: str, target_language: str) -> list[int]:
        """What the encoder reads: the target language's token, the text's pieces, the end token."""
        return [self.language_id(target_language), *self._processor.Encode(normalise(text)), END]

    def sources(self, texts: Sequence[str], target_language: str) -> list[list[int]]:
        """`source` of each of ``texts``.

        Many in one call: one by one, other threads would be let in between any two. Few one by one: the call begins
        threads, which takes longer than a sentence does.
        """
        language, normalised = self.language_id(target_language), [normalise(text) for text in texts]
        if len(texts) <= FEW:
            pieces = [self._processor.Encode(text) for text in normalised]
        else:
            pieces = self._processor.Encode(normalised, num_threads=1)
        return [[language, *ids, END] for ids in pieces]

    def target(self, text: str) -> list[int]:
        """What the decoder writes: the text's pieces and the end token."""
        return [*self._processor.Encode(normalise(text)), END]

    def least(self, texts: Sequence[str]) -> int:
        """Tokens that ``texts``, cut up or not, have at least, special ones aside: found without reading them.

        No piece stands for more characters than the longest in the vocabulary. Only those of Latin-1 that are no white
        space are counted: others may vanish (``▁`` at the end) or become one with those before them (accents, Hangul).
        Holds for vocabularies as `train` makes them, which leave text as it is and spell in bytes what they lack.
        """
        characters = sum(len(text.encode("latin-1", "ignore").translate(None, _BLANK)) for text in texts)
        return -(-characters // self._longest)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens vanish, bytes that are not UTF-8 become U+FFFD."""
        return str(self._processor.Decode([int(token) for token in ids]))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces as written in the vocabulary (``▁`` opens a word), for people to look at."""
        return [str(self._processor.IdToPiece(int(token))) for token in ids]

    def __iter__(self) -> Iterator[str]:
        return (str(self._processor.IdToPiece(token)) for token in range(self.vocabulary))
