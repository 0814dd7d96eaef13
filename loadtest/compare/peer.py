"""The service people build around CTranslate2, as well as one can: FastAPI, and batches of whatever waits.

Run as ``python -m loadtest.compare.peer --help``. One process, for CTranslate2 lets go of Python's lock while it works;
or several that accept from one socket, whoever is free. A worker (CTranslate2: ``inter_threads``) that becomes free
takes who has waited longest, with others of the same kind and as alike in length as can be, ``max_batch`` at most, and
gives them to ``translate_batch``; who comes meanwhile waits for the next batch. Nothing waits for a batch to fill:
while there is enough to do, the workers' work is the wait.
"""

import argparse
import asyncio
import ctypes
import multiprocessing
import os
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ctranslate2
import sentencepiece
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from loadtest.servers import end_on_sigterm


class Body(BaseModel):
    """What is asked for."""

    text: str | list[str]
    beam_size: Annotated[int, Field(ge=1, le=16)] = 1
    min_tokens: int | None = None
    max_tokens: int | None = None
    """Both or none: then as many as it takes to the end token."""


@dataclass(eq=False)
class Waiting:
    """A request in the queue."""

    tokens: list[str]
    exactly: int | None
    """Target tokens it has to have."""
    length: int
    """In which those of a batch should be alike, so that few wait for the longest."""
    answer: "asyncio.Future[list[int]]"


class Counts(ctypes.Structure):
    """What a process has done; in memory that all processes share, any of them tells those of all."""

    _fields_ = (
        ("process", ctypes.c_long),  # 0 until it serves
        ("source_tokens", ctypes.c_long),
        ("padded_tokens", ctypes.c_long),
        ("batches", ctypes.c_long),
        ("sentences", ctypes.c_long),
    )


class Batcher:
    """Requests in, one by one; batches through the translator; tokens out."""

    def __init__(
        self, translator: ctranslate2.Translator, workers: int, max_batch: int, counts: Counts | None = None
    ) -> None:
        self._translator, self._max_batch = translator, max_batch
        self.counts = counts or Counts()
        self._pool = ThreadPoolExecutor(workers)
        self._queues: dict[int, list[Waiting]] = defaultdict(list)
        self._order: asyncio.Queue[int] = asyncio.Queue()
        """The beam size of every request, in order of arrival."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    async def translate(self, tokens: list[str], beam_size: int, exactly: int | None) -> list[int]:
        """Target token ids of the best hypothesis."""
        # Who serves knows a source's length only. But the translator cannot end a beam's sentences each at its own
        # length (`_run`): those that are to be equally long go together instead.
        length = exactly if exactly and beam_size > 1 else len(tokens)
        waiting = Waiting(tokens, exactly, length, asyncio.get_running_loop().create_future())
        self._queues[beam_size].append(waiting)
        self._order.put_nowait(beam_size)
        return await waiting.answer

    async def _work(self) -> None:
        while True:
            beam_size = await self._order.get()
            batch = self._take(self._queues[beam_size])
            if not batch:  # another batch took those this place in the order stood for
                continue
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, batch, beam_size)
            except Exception as error:
                for waiting in (waiting for waiting in batch if not waiting.answer.done()):
                    waiting.answer.set_exception(error)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
            longest = max(len(waiting.tokens) for waiting in batch)
            self.counts.batches += 1
            self.counts.sentences += len(batch)
            self.counts.source_tokens += sum(len(waiting.tokens) for waiting in batch)
            self.counts.padded_tokens += longest * len(batch)

    def _take(self, queue: list[Waiting]) -> list[Waiting]:
        """Out of the ``queue``: who has waited longest, with those who are nearest in length."""
        if not queue:
            return []
        first = queue[0].length
        batch = sorted(queue, key=lambda waiting: (waiting is not queue[0], abs(waiting.length - first)))
        del batch[self._max_batch :]
        for waiting in batch:
            queue.remove(waiting)
        return batch

    def _run(self, batch: Sequence[Waiting], beam_size: int) -> list[list[int]]:
        exactly = [waiting.exactly for waiting in batch if waiting.exactly is not None]
        most = max(exactly) if exactly else 2 * max(len(waiting.tokens) for waiting in batch) + 10

        def over(step: ctranslate2.GenerationStepResult) -> bool:
            """Ends a sentence at its own length, so that it leaves the batch as it would with an end token."""
            limit = batch[step.batch_id].exactly
            return limit is not None and step.step + 1 >= limit

        results = self._translator.translate_batch(
            [waiting.tokens for waiting in batch],
            beam_size=beam_size,
            max_input_length=0,
            max_decoding_length=most,
            min_decoding_length=most if exactly else 1,
            # The translator calls back only in greedy search: a beam goes on to the batch's longest.
            callback=over if exactly and beam_size == 1 else None,
        )
        return [[int(piece) for piece in result.hypotheses[0]] for result in results]


def build(arguments: argparse.Namespace, number: int, counts: ctypes.Array[Counts]) -> FastAPI:
    """The application of one process, which counts in its own of the ``counts``."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(arguments.tokenizer))
    translator = ctranslate2.Translator(
        str(arguments.model),
        compute_type="int8",
        inter_threads=arguments.inter_threads,
        intra_threads=arguments.intra_threads,
    )
    end = tokenizer.eos_id()
    state: dict[str, Batcher] = {}

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        state["batcher"] = Batcher(translator, arguments.inter_threads, arguments.max_batch, counts[number])
        counts[number].process = os.getpid()
        yield

    app = FastAPI(lifespan=life)

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/metrics")
    async def figures() -> PlainTextResponse:
        return PlainTextResponse(
            "".join(
                f'peer_{name}_total{{process="{each.process}"}} {getattr(each, name)}\n'
                for each in counts
                if each.process
                for name, _ in Counts._fields_[1:]
            )
        )

    @app.post("/v1/translate")
    async def translate(body: Body) -> dict[str, list[dict[str, str]]]:
        texts = [body.text] if isinstance(body.text, str) else body.text
        read = ([arguments.language, *tokenizer.encode(text), end] for text in texts)
        found = await asyncio.gather(
            *(state["batcher"].translate(list(map(str, ids)), body.beam_size, body.max_tokens) for ids in read)
        )
        return {"translations": [{"text": tokenizer.decode(each)} for each in found]}

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser("loadtest.compare.peer", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a CTranslate2 model over token ids")
    parser.add_argument("--tokenizer", type=Path, required=True, help="sentencepiece model")
    parser.add_argument("--language", type=int, required=True, help="id of the target language's token")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--processes", type=int, default=1, help="that each have the following")
    parser.add_argument("--inter-threads", type=int, default=1, help="batches translated at one time")
    parser.add_argument("--intra-threads", type=int, default=1, help="threads a batch is translated with")
    parser.add_argument("--max-batch", type=int, default=32, help="sentences in a batch")
    arguments = parser.parse_args()
    # Else the server, once it has ended in good order, dies of the signal, and its processes outlive it.
    end_on_sigterm()
    listening = socket.create_server(("127.0.0.1", arguments.port), backlog=2048)
    fork = multiprocessing.get_context("fork")
    counts = fork.RawArray(Counts, arguments.processes)
    for number in range(1, arguments.processes):
        fork.Process(target=serve, args=(arguments, listening, number, counts), daemon=True).start()
    serve(arguments, listening, 0, counts)


def serve(arguments: argparse.Namespace, listening: socket.socket, number: int, counts: ctypes.Array[Counts]) -> None:
    """Answer whom this process accepts from ``listening``, until SIGTERM."""
    # As this project's own service does: threads in CTranslate2 want the interpreter back sooner.
    sys.setswitchinterval(0.0005)
    uvicorn.Server(uvicorn.Config(build(arguments, number, counts), log_level="warning")).run([listening])


if __name__ == "__main__":
    main()
