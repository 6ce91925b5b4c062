"""Embeddings: the keys by which recall compares a question with what was read, as OpenAI's protocol has vectors of texts."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, field_validator
from starlette.concurrency import run_in_threadpool

from ..errors import InputError
from ..retrieval import embedding
from . import failures
from .bodies import Asked
from .calls import check_model
from .description import shows
from .guard import caller
from .memory import Memory, place
from .tracing import Span

router = APIRouter(prefix="/v1", dependencies=[Depends(caller), Depends(place)])
_MOST = 2048  # texts of a call, as OpenAI has it


class EmbeddingRequest(Asked):
    """The body of a call of Embeddings."""

    model_config = shows({"model": "smollm2-135m-instruct", "input": ["Ida grows roses."]})

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Literal["document", "query"] = "document"

    @field_validator("input")
    @classmethod
    def _text(cls, value: Any) -> list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 0 < len(texts) <= _MOST:
            raise ValueError(f"{len(texts)} texts. Send 1 to {_MOST:,}.")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("token ids of whichever tokenizer. Send text; in LangChain, check_embedding_ctx_length=False.")
        return list(texts)


@router.post("/embeddings")
async def embed(body: EmbeddingRequest, request: Request, memory: Memory) -> Response:
    """Embed texts as recall does.

    A vector of a query and one of a document have as inner product what recall compares by meaning: `input_type` says which a
    text is. One of a document of more than 32 tokens is the mean of those that recall has of its stretches.
    """
    check_model(memory, body.model)
    reader = await run_in_threadpool(lambda: memory.reader)
    width = embedding.width(reader)
    if body.dimensions not in (None, width):
        raise InputError(f"dimensions={body.dimensions} cannot be given: leave it out. Vectors have {width} here.")
    work = embedding.question if body.input_type == "query" else embedding.passage
    data, tokens = [], 0
    with Span("embeddings", request.headers, model=memory.name) as span:
        for index, text in enumerate(body.input):
            if index and await request.is_disconnected():
                return Response(status_code=failures.CLOSED)
            embedded = await run_in_threadpool(work, reader, str(text))
            tokens += embedded.tokens
            values = embedded.vector.numpy().astype("<f4")
            vector = base64.b64encode(values.tobytes()).decode() if body.encoding_format == "base64" else values.tolist()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        span.ends(tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": memory.name, "usage": usage})
