"""Locust users: they translate, encode and look at attention, with sentences of real, varied length."""

import random
from typing import Any, ClassVar

from locust import FastHttpUser, between, task

from loadtest.timings import server_timing

ELSEWHERE = "elsewhere"
"""What the client waits besides the server's own total: HTTP, the kernel, the client itself."""


class Visitor(FastHttpUser):
    """Asks, reads the answer for a moment, asks again."""

    wait_time = between(0.01, 0.2)
    sentences: ClassVar[list[str]] = []
    stages: ClassVar[dict[str, list[float]]] = {}
    """Milliseconds by stage, of every answer to every visitor."""
    seed = 0
    born = 0

    def on_start(self) -> None:
        """Give each visitor a stream of random numbers of its own."""
        Visitor.born += 1
        self.random = random.Random(f"{self.seed}/{Visitor.born}")

    def ask(self, route: str, body: dict[str, Any], expected: str) -> None:
        """POST ``body``; a failure unless the answer is 200 and has the member ``expected``, as long as the request."""
        with self.client.post(route, json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {(response.text or 'no answer')[:200]}")
                return
            answered = response.json().get(expected)
            texts = body["text"] if isinstance(body["text"], list) else None
            if not answered or (texts is not None and len(answered) != len(texts)):
                response.failure(f"{expected} is missing or incomplete")
            stages = server_timing(response.headers.get("Server-Timing", ""))
            if "total" in stages:
                stages[ELSEWHERE] = response.request_meta["response_time"] - stages["total"]
            for stage, milliseconds in stages.items():
                self.stages.setdefault(stage, []).append(milliseconds)

    def sentence(self) -> str:
        """One of the sentences."""
        return self.random.choice(self.sentences)

    @task(12)
    def translate(self) -> None:
        """One sentence."""
        self.ask("/v1/translate", {"text": self.sentence()}, "translations")

    @task(2)
    def translate_several(self) -> None:
        """A list of two to eight."""
        texts = [self.sentence() for _ in range(self.random.randint(2, 8))]
        self.ask("/v1/translate", {"text": texts}, "translations")

    @task(4)
    def encode(self) -> None:
        """One vector."""
        self.ask("/v1/encode", {"text": self.sentence()}, "encodings")

    @task(2)
    def attention(self) -> None:
        """The last layer's encoder-decoder attention of a sentence short enough to be shown."""
        short = [sentence for sentence in self.sentences if len(sentence) <= 120] or [self.sentences[0][:120]]
        self.ask("/v1/attention", {"text": self.random.choice(short)}, "heads")
