"""Translations as they grow: text that no later token can change, in the order in which it is read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from model.sentences import Sentence
from model.tokenizer import END

Decode = Callable[[Sequence[int]], str]
UNFINISHED = "\ufffd"
"""What each byte of a character decodes to before the last of them has come, of at most four."""


@dataclass(frozen=True)
class Delta:
    """The next part of a translation: what comes one after another adds up to its text."""

    index: int
    """Which text of the request it belongs to."""
    text: str


class Detokenizer:
    """The text of one sentence's tokens, as far as it is certain."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What has become certain with ``token``."""
        self._tokens.append(token)
        certain = self._decode(self._tokens)
        for _ in range(3):
            certain = certain.removesuffix(UNFINISHED)
        return self._tell(certain)

    def end(self) -> str:
        """What was held back and will not change any more."""
        return self._tell(self._decode(self._tokens))

    def _tell(self, text: str) -> str:
        begin, self._told = self._told, len(text)
        return text[begin:]


class TextStream:
    """One text's translation: its sentences are decoded side by side, and told one after another."""

    def __init__(self, sentences: Sequence[Sentence], decode: Decode) -> None:
        self._sentences = sentences
        self._detokenizers = [Detokenizer(decode) for _ in sentences]
        self._untold = [piece.before for piece in sentences]
        self._over = [False] * len(sentences)
        self._current = 0

    def add(self, sentence: int, token: int, last: bool) -> str:
        """What can be told with the next ``token`` of ``sentence``; ``last`` when it is its last."""
        detokenizer = self._detokenizers[sentence]
        self._untold[sentence] += detokenizer.add(token)
        if last:
            self._untold[sentence] += detokenizer.end() + self._sentences[sentence].after
            self._over[sentence] = True
        return self._tell() if sentence == self._current else ""

    def _tell(self) -> str:
        begin = self._current
        while self._over[self._current] and self._current + 1 < len(self._over):
            self._current += 1
        told = "".join(self._untold[begin : self._current + 1])
        self._untold[begin : self._current + 1] = [""] * (self._current + 1 - begin)
        return told


class Feed:
    """Deltas of all texts of a request, from the engine's tokens to whoever iterates over it.

    An exception that one of its listeners meets is raised here. The first deltas come at once. What comes within
    ``interval`` seconds of them comes together, one delta a text: to send every token on its own costs a server more
    than to find it.
    """

    def __init__(self, texts: Sequence[Sequence[Sentence]], decode: Decode, interval: float = 0) -> None:
        self._streams = [TextStream(sentences, decode) for sentences in texts]
        self._deltas: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        self._interval = interval
        self._closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def listener(self, index: int, sentence: int, max_tokens: int) -> "SentenceListener":
        """Who listens to the translation of a ``sentence`` of the text ``index``."""
        return SentenceListener(self._loop, self._streams[index], self._deltas, index, sentence, max_tokens)

    def close(self) -> None:
        """Nothing more will come."""
        self._closed.set()
        self._deltas.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        over = False
        while not over:
            waiting = [await self._deltas.get()]
            while not self._deltas.empty():
                waiting.append(self._deltas.get_nowait())
            over = None in waiting
            texts: dict[int, str] = {}
            for delta in waiting:
                if isinstance(delta, Exception):
                    raise delta
                if delta:
                    texts[delta.index] = texts.get(delta.index, "") + delta.text
            for index, text in texts.items():
                yield Delta(index, text)
            if self._interval:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), self._interval)


@dataclass
class SentenceListener:
    """Takes one sentence's tokens (`serving.engine.jobs.Listener`)."""

    loop: asyncio.AbstractEventLoop
    stream: TextStream
    deltas: "asyncio.Queue[Delta | Exception | None]"
    index: int
    sentence: int
    left: int
    """Tokens the sentence may still get."""

    def on_token(self, token: int) -> None:
        """Take the next token and pass on what it makes certain."""
        self.left -= 1
        if text := self.stream.add(self.sentence, token, last=token == END or not self.left):
            self.deltas.put_nowait(Delta(self.index, text))

    def on_error(self, error: Exception) -> None:
        """End the stream with ``error``."""
        self.deltas.put_nowait(error)
