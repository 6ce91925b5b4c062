"""Writers of answers: the backbone itself behind the interface, and a server that answers as vLLM's does."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Generator
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from torch import Tensor

from hmt_memory import Decoding, HMTModel
from hmt_memory.engine.decoding import Sampler
from hmt_memory.engine.writing import Choice


class Here:
    """Writes with a model of this process, and keeps what it was given."""

    def __init__(self, model: HMTModel) -> None:
        self.model, self.views, self.asked, self.closed = model, [], [], 0  # type: ignore[var-annotated]

    @property
    def width(self) -> int:
        return self.model.backbone.hidden_size

    def write(self, embeddings: Tensor, decoding: Decoding, *, end_ids: Any, most: int, least: int = 0) -> Generator[Choice]:
        self.views.append(embeddings)
        self.asked.append((decoding, most, least))
        try:
            yield from written(self.model, embeddings, decoding, end_ids, most, least)
        except GeneratorExit:
            self.closed += 1
            raise


def written(model: HMTModel, embeddings: Tensor, decoding: Decoding, end_ids: Any, most: int, least: int) -> Generator[Choice]:
    backbone, sampler, said = model.backbone, Sampler(decoding), []  # type: ignore[var-annotated]
    with torch.no_grad():
        hidden, cache = backbone.advance(embeddings[None])
    while len(said) < most and not (said and said[-1] in end_ids):
        with torch.no_grad():
            if said:
                hidden, cache = backbone.advance(backbone.embed(torch.tensor([[said[-1]]])), cache)
            logits = backbone.head(hidden)[0]
        chances = logits.float().log_softmax(dim=-1)
        logprobs = {int(token): float(chances[token]) for token in chances.topk(1 + (decoding.logprobs or 0)).indices}
        if len(said) < least:
            logits[list(end_ids)] = float("-inf")
        said.append(sampler(torch.zeros(0, dtype=torch.long), logits))
        yield Choice(said[-1], logprobs | {said[-1]: float(chances[said[-1]])} if decoding.logprobs is not None else None)


def recording_vllm(model: HMTModel, *, card: dict[str, Any] | None = None, cut: int | None = None) -> Any:
    """A server that writes with `model` what vLLM's protocol asks for; `calls` are the bodies. `cut`: breaks off so early."""
    app = FastAPI()
    app.state.calls = []

    @app.get("/v1/models")
    async def models() -> Any:
        told = {"id": "merged", "object": "model", "created": 0, "owned_by": "vllm", "root": "/nowhere", "max_model_len": 4096}
        return {"object": "list", "data": [told | (card or {})]}

    @app.post("/v1/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        app.state.calls.append(body)
        sent = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        if body["min_tokens"] > body["max_tokens"]:
            return JSONResponse(
                {"error": {"message": "min_tokens must be less than or equal to max_tokens.", "code": 400}}, 400
            )
        if sent.shape[1] != model.backbone.hidden_size:
            return JSONResponse({"error": {"message": "hidden_size does not match.", "code": 400}}, 400)
        asked = Decoding(
            temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"], logprobs=body.get("logprobs")
        )
        choices = written(model, sent, asked, body["stop_token_ids"], body["max_tokens"], body["min_tokens"])

        def events() -> Any:
            for number, (token, logprobs) in enumerate(choices):
                if number == cut:
                    return
                named = {f"token_id:{key}": value for key, value in (logprobs or {}).items()}
                told = logprobs and {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [logprobs[token]],
                    "top_logprobs": [named],
                }
                choice = {"index": 0, "text": "", "token_ids": [token], "logprobs": told, "finish_reason": None}
                told = {"id": "1", "object": "text_completion", "model": "merged", "choices": [choice]}
                yield f"data: {json.dumps(told)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
