"""The service's own dialect: /v1/translate, /v1/encode, /v1/attention, /v1/models, /healthz, /readyz, /metrics."""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from model.tokenizer import Tokenizer
from serving.api import http
from serving.errors import NotReady
from serving.metrics import CONTENT_TYPE, Metrics
from serving.offload import unless_short
from serving.registry import Registry
from serving.schemas import (
    AttentionRequest,
    AttentionResponse,
    EncodeRequest,
    EncodeResponse,
    EncodingBody,
    HeadBody,
    StreamedDelta,
    StreamedResult,
    TranslateRequest,
    TranslateResponse,
)
from serving.streaming import Delta
from serving.translation import Translation


def build(registry: Registry, metrics: Metrics) -> FastAPI:
    """The application over the one model of ``registry``, which shows ``metrics``."""
    [pipeline] = registry.pipelines
    app = http.Application(title="Dragoman", docs_url=None, redoc_url=None)
    name, limit = pipeline.manifest.name, pipeline.settings.max_body

    streamed = {"text/event-stream": {"schema": {"type": "string"}}}

    @app.post(
        "/v1/translate",
        response_model=TranslateResponse,
        responses={200: {"content": streamed}},
        openapi_extra=_takes(TranslateRequest),
    )
    async def translate(request: Request) -> Response:
        begin = time.perf_counter()
        body = await http.read(request, TranslateRequest, limit)
        source, target = pipeline.pair(body.source, body.target)
        seed = {"seed": body.sampling.seed} if body.sampling else {}
        asked = (body.text, source, target, body, body.prefix or ())

        def written(found: list[Translation]) -> dict[str, Any]:
            # To fill the models of the answer takes several times as long as to write it.
            translations = [_translation(pipeline.tokenizer, each, body.log_probabilities) for each in found]
            return {"model": name, "source": source, "target": target, **seed, "translations": translations}

        async def events() -> AsyncGenerator[http.Event, None]:
            async with contextlib.aclosing(pipeline.stream(*asked)) as news:
                async for each in news:
                    if isinstance(each, Delta):
                        yield "delta", StreamedDelta(index=each.index, text=each.text)
                    else:
                        timings = http.milliseconds(each.stages, begin)
                        yield "result", StreamedResult(**written(each.translations), timings=timings)

        if body.stream:
            return await http.stream(request, events())
        found, stages = await http.while_connected(request, pipeline.translate(*asked))
        characters = sum(len(each.text) * max(1, len(each.alternatives)) for each in found)
        return await unless_short(characters, lambda: http.answer(written(found), stages, begin))

    @app.post("/v1/encode", response_model=EncodeResponse, openapi_extra=_takes(EncodeRequest))
    async def encode(request: Request) -> Response:
        begin = time.perf_counter()
        body = await http.read(request, EncodeRequest, limit)
        source, target = pipeline.pair(body.source, None)
        pooling = pipeline.pooling(body.pooling)
        work = pipeline.encode(body.text, source, target, pooling)
        pieces, vectors, stages = await http.while_connected(request, work)

        def written() -> Response:
            encodings = [
                EncodingBody(tokens=tokens, vectors=each.tolist())
                if pooling == "none"
                else EncodingBody(tokens=tokens, vector=each[0].tolist())
                for tokens, each in zip(pieces, vectors, strict=True)
            ]
            answer = EncodeResponse(model=name, source=source, pooling=pooling, encodings=encodings)
            return http.answer(answer, stages, begin)

        return await unless_short(sum(each.size for each in vectors), written)

    @app.post("/v1/attention", response_model=AttentionResponse, openapi_extra=_takes(AttentionRequest))
    async def attention(request: Request) -> Response:
        begin = time.perf_counter()
        body = await http.read(request, AttentionRequest, limit)
        source, target = pipeline.pair(body.source, body.target)
        work = pipeline.attention(body.text, body.translation, source, target, body.kind, body.layer, body.head)
        seen, stages = await http.while_connected(request, work)

        def written() -> Response:
            heads = [
                HeadBody(head=(body.head or 0) + index, weights=weights.tolist(), scores=scores.tolist())
                for index, (weights, scores) in enumerate(zip(seen.weights, seen.scores, strict=True))
            ]
            answer = AttentionResponse(
                model=name,
                source=source,
                target=target,
                kind=seen.kind,
                layer=seen.layer,
                queries=seen.queries,
                keys=seen.keys,
                heads=heads,
            )
            return http.answer(answer, stages, begin)

        return await unless_short(seen.weights.size + seen.scores.size, written)

    app.direct |= {route.path: route.endpoint for route in app.routes if isinstance(route, APIRoute)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"models": [pipeline.manifest.model_dump(mode="json")]}

    @app.get("/healthz")
    async def alive() -> Response:
        return _health(registry.check_alive, "alive")

    @app.get("/readyz")
    async def ready() -> Response:
        return _health(registry.check_ready, "ready")

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return app


def _health(check: Callable[[], None], status: str) -> Response:
    try:
        check()
    except RuntimeError as error:
        raise NotReady(str(error)) from None
    return JSONResponse({"status": status})


def _translation(tokenizer: Tokenizer, found: Translation, log_probabilities: bool) -> dict[str, Any]:
    """The members of a `TranslationBody`."""

    def members(each: Translation) -> dict[str, Any]:
        told = {
            "text": each.text,
            "score": each.score,
            "mean_score": each.mean_score,
            "tokens": each.tokens,
            "finish_reason": each.finish_reason,
        }
        if log_probabilities:
            told |= {"pieces": tokenizer.pieces(each.ids), "log_probabilities": each.log_probabilities}
        return told

    told = members(found)
    if found.alternatives:
        told["alternatives"] = [members(each) for each in found.alternatives]
    return told


def _takes(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that is read by `http.read`."""
    written = schema.model_json_schema()
    # A reference would be looked up in the whole document, where this schema's definitions are not.
    definitions = written.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            part = definitions[part["$ref"].removeprefix("#/$defs/")] | {
                name: value for name, value in part.items() if name != "$ref"
            }
        return {name: inlined(value) for name, value in part.items()}

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(written)}}}}
