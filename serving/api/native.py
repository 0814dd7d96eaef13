"""The service's own dialect: /v1/translate, /v1/encode, /v1/attention, /v1/models, /healthz, /readyz, /metrics."""

import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from model.tokenizer import Tokenizer
from serving import metrics
from serving.api import events, openapi
from serving.api.body import read, while_connected
from serving.api.dialect import Dialect, Operation
from serving.api.schemas import (
    AttentionRequest,
    AttentionResponse,
    EncodeRequest,
    EncodeResponse,
    EncodingBody,
    HeadBody,
    ModelsResponse,
    Problem,
    Status,
    StreamedDelta,
    StreamedResult,
    TranslateRequest,
    TranslateResponse,
)
from serving.api.statuses import Refusal, refusal_of
from serving.errors import NotReady, ServiceError
from serving.offload import unless_short
from serving.streaming import Delta
from serving.translation import Translation

EVENTS: Mapping[str, type[BaseModel]] = {"delta": StreamedDelta, "result": StreamedResult, "error": Problem}
"""What a stream says."""


class Native(Dialect):
    """JSON in, JSON or server-sent events out; errors are problems (RFC 9457)."""

    prefix = "/"

    def operations(self) -> Sequence[Operation]:
        """What it can be asked."""
        return [
            Operation("POST", "/v1/translate", self.translate, TranslateRequest, TranslateResponse, events=EVENTS),
            Operation("POST", "/v1/encode", self.encode, EncodeRequest, EncodeResponse),
            Operation("POST", "/v1/attention", self.attention, AttentionRequest, AttentionResponse),
            Operation("GET", "/v1/models", self.models, gives=ModelsResponse),
            Operation("GET", "/healthz", self.healthz, gives=Status),
            Operation("GET", "/readyz", self.readyz, gives=Status),
            Operation("GET", "/metrics", self.metrics, media_type="text/plain"),
            Operation("GET", "/openapi.json", self.openapi),
        ]

    async def translate(self, request: Request) -> Response:
        """Translate texts."""
        begin = time.perf_counter()
        body = await read(request, TranslateRequest)
        pipeline, source, target = self.service.registry.choose(body.model, body.source, body.target)
        name, tokenizer = pipeline.manifest.name, pipeline.tokenizer
        seed = {"seed": body.sampling.seed} if body.sampling else {}
        order = (body.text, source, target, body, body.prefix or ())

        def response(translations: Sequence[Translation]) -> dict[str, Any]:
            # To fill the models of the answer takes several times as long as to write it.
            bodies = [_translation(tokenizer, each, body.log_probabilities) for each in translations]
            return {"model": name, "source": source, "target": target, **seed, "translations": bodies}

        async def streamed() -> AsyncGenerator[events.Event, None]:
            async with contextlib.aclosing(pipeline.stream(*order)) as parts:
                async for part in parts:
                    if isinstance(part, Delta):
                        yield "delta", StreamedDelta(index=part.index, text=part.text)
                    else:
                        timings = milliseconds(part.stages, begin)
                        yield "result", StreamedResult(**response(part.translations), timings=timings)

        if body.stream:
            return await events.stream(request, streamed(), self._describe)
        translations, stages = await while_connected(request, pipeline.translate(*order))
        characters = sum(len(each.text) * max(1, len(each.alternatives)) for each in translations)
        return await unless_short(characters, lambda: answer(response(translations), stages, begin))

    async def encode(self, request: Request) -> Response:
        """Encode texts as vectors."""
        begin = time.perf_counter()
        body = await read(request, EncodeRequest)
        pipeline, source, target = self.service.registry.choose(body.model, body.source, None)
        pooling = pipeline.pooling(body.pooling)
        work = pipeline.encode(body.text, source, target, pooling)
        pieces, vectors, stages = await while_connected(request, work)

        def response() -> Response:
            encodings = [
                EncodingBody(tokens=tokens, vectors=each.tolist())
                if pooling == "none"
                else EncodingBody(tokens=tokens, vector=each[0].tolist())
                for tokens, each in zip(pieces, vectors, strict=True)
            ]
            name = pipeline.manifest.name
            encoded = EncodeResponse(model=name, source=source, pooling=pooling, encodings=encodings)
            return answer(encoded, stages, begin)

        return await unless_short(sum(each.size for each in vectors), response)

    async def attention(self, request: Request) -> Response:
        """Show what attention sees."""
        begin = time.perf_counter()
        body = await read(request, AttentionRequest)
        pipeline, source, target = self.service.registry.choose(body.model, body.source, body.target)
        work = pipeline.attention(body.text, body.translation, source, target, body.kind, body.layer, body.head)
        seen, stages = await while_connected(request, work)

        def response() -> Response:
            heads = [
                HeadBody(head=(body.head or 0) + index, weights=weights.tolist(), scores=scores.tolist())
                for index, (weights, scores) in enumerate(zip(seen.weights, seen.scores, strict=True))
            ]
            shown = AttentionResponse(
                model=pipeline.manifest.name,
                source=source,
                target=target,
                kind=seen.kind,
                layer=seen.layer,
                queries=seen.queries,
                keys=seen.keys,
                heads=heads,
            )
            return answer(shown, stages, begin)

        return await unless_short(seen.weights.size + seen.scores.size, response)

    async def models(self, request: Request) -> Response:
        """Say which models are loaded, with their manifests."""
        return JSONResponse({"models": [each.model_dump(mode="json") for each in self.service.registry.manifests]})

    async def healthz(self, request: Request) -> Response:
        """Say whether the replica is alive: if not, it has to be replaced."""
        with _not_ready():
            self.service.registry.check_alive()
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """Say whether the replica answers requests: if not, they have to go elsewhere."""
        with _not_ready():
            self.service.registry.check_ready()
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Give the service's figures to Prometheus."""
        try:
            return Response(self.service.metrics.exposition(), media_type=metrics.CONTENT_TYPE)
        except OSError as error:
            raise NotReady(f"the figures cannot be read: {error.strerror}") from None

    async def openapi(self, request: Request) -> Response:
        """Describe the API as an OpenAPI document."""
        return JSONResponse(self._document)

    @functools.cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document("Dragoman", version("dragoman"), self.routes, Problem)

    def refuse(self, refusal: Refusal) -> Response:
        """Answer with a problem."""
        kind = "application/problem+json"
        return JSONResponse(problem(refusal), refusal.status, dict(refusal.headers), media_type=kind)

    def _describe(self, error: ServiceError) -> str:
        return json.dumps(problem(refusal_of(error)))


def problem(refusal: Refusal) -> dict[str, Any]:
    """An error as RFC 9457 writes it, with what a program can read of it as further members."""
    return {
        "type": "about:blank",
        "title": refusal.error.kind,
        "status": refusal.status,
        "detail": refusal.error.detail,
        **refusal.error.members,
    }


def milliseconds(stages: Mapping[str, float], begin: float) -> dict[str, float]:
    """``stages`` (seconds) as clients are told them.

    And ``total``: all that has passed since ``begin``, on the clock of ``time.perf_counter``.
    """
    seconds = {**stages, "total": time.perf_counter() - begin}
    return {stage: round(1000 * duration, 2) for stage, duration in seconds.items()}


def answer(body: BaseModel | dict[str, Any], stages: Mapping[str, float], begin: float) -> Response:
    """``body`` as JSON, without a model's members that are None, with `milliseconds` as ``Server-Timing`` (W3C Server
    Timing)."""
    content = to_json(body, exclude_none=True, inf_nan_mode="null")
    timing = ", ".join([f"{stage};dur={value}" for stage, value in milliseconds(stages, begin).items()])
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


@contextlib.contextmanager
def _not_ready() -> Any:
    """A failed check is an answer."""
    try:
        yield
    except RuntimeError as error:
        raise NotReady(str(error)) from None


def _translation(tokenizer: Tokenizer, translation: Translation, log_probabilities: bool) -> dict[str, Any]:
    """The members of a `TranslationBody`."""

    def members(each: Translation) -> dict[str, Any]:
        body = {
            "text": each.text,
            "score": each.score,
            "mean_score": each.mean_score,
            "tokens": each.tokens,
            "finish_reason": each.finish_reason,
        }
        if log_probabilities:
            body |= {"pieces": tokenizer.pieces(each.ids), "log_probabilities": each.log_probabilities}
        return body

    body = members(translation)
    if translation.alternatives:
        body["alternatives"] = [members(each) for each in translation.alternatives]
    return body
