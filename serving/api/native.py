"""The service's own dialect: /v1/translate, /v1/encode, /v1/attention, /v1/models, /healthz, /readyz."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.responses import Response

from serving.api import http
from serving.errors import NotReady
from serving.pipeline import Pipeline
from serving.schemas import (
    AttentionRequest,
    AttentionResponse,
    EncodeRequest,
    EncodeResponse,
    EncodingBody,
    HeadBody,
    TranslateRequest,
    TranslateResponse,
    TranslationBody,
)


def build(pipeline: Pipeline) -> FastAPI:
    """The application over ``pipeline``."""
    app = FastAPI(title="Dragoman", docs_url=None, redoc_url=None)
    http.install(app)
    name, limit = pipeline.manifest.name, pipeline.settings.max_body

    @app.post("/v1/translate", response_model=TranslateResponse, openapi_extra=_takes(TranslateRequest))
    async def translate(request: Request) -> Response:
        body = await http.read(request, TranslateRequest, limit)
        source, target = pipeline.pair(body.source, body.target)
        found, stages = await pipeline.translate(body.text, source, target, body.max_tokens)
        translations = [
            TranslationBody(
                text=each.text,
                score=each.score,
                mean_score=each.mean_score,
                tokens=each.tokens,
                finish_reason=each.finish_reason,
            )
            for each in found
        ]
        answer = TranslateResponse(model=name, source=source, target=target, translations=translations)
        return http.answer(answer, stages)

    @app.post("/v1/encode", response_model=EncodeResponse, openapi_extra=_takes(EncodeRequest))
    async def encode(request: Request) -> Response:
        body = await http.read(request, EncodeRequest, limit)
        source, target = pipeline.pair(body.source, None)
        pooled = body.pooling == "mean"
        pieces, vectors, stages = await pipeline.encode(body.text, source, target, pooled)

        def written() -> Response:
            encodings = [
                EncodingBody(tokens=tokens, vector=each[0].tolist())
                if pooled
                else EncodingBody(tokens=tokens, vectors=each.tolist())
                for tokens, each in zip(pieces, vectors, strict=True)
            ]
            return http.answer(EncodeResponse(model=name, source=source, encodings=encodings), stages)

        return await asyncio.to_thread(written)

    @app.post("/v1/attention", response_model=AttentionResponse, openapi_extra=_takes(AttentionRequest))
    async def attention(request: Request) -> Response:
        body = await http.read(request, AttentionRequest, limit)
        source, target = pipeline.pair(body.source, body.target)
        seen, stages = await pipeline.attention(
            body.text, body.translation, source, target, body.kind, body.layer, body.head
        )

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
            return http.answer(answer, stages)

        return await asyncio.to_thread(written)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"models": [pipeline.manifest.model_dump(mode="json")]}

    @app.get("/healthz")
    async def alive() -> Response:
        return _health(pipeline, "alive")

    @app.get("/readyz")
    async def ready() -> Response:
        # A replica takes no request before every graph has run once.
        return _health(pipeline, "ready")

    return app


def _health(pipeline: Pipeline, status: str) -> Response:
    try:
        pipeline.engine.check_health()
    except RuntimeError as error:
        raise NotReady(str(error)) from None
    return JSONResponse({"status": status})


def _takes(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that is read by `http.read`."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
