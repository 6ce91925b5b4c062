"""A tiny model that says what a script wants, grammar enforced: stands for a model that is good at tools and schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tiny import SMALL, byte_tokenizer, randomize, tiny_causal_lm

from hmt_memory import Assistant, HMTModel

WIDE = replace(SMALL, segment_length=64, summary_length=32, recent_tokens=64, replay_tokens=0, pinned_tokens=4000)


def _model() -> HMTModel:
    """Tools and schemas are thousands of bytes, which are this model's tokens."""
    causal = tiny_causal_lm(layers=1)
    causal.config.max_position_embeddings = 8192
    return randomize(HMTModel.wrap(causal, byte_tokenizer(), WIDE)).eval()


MODEL = _model()


class Says:
    """Makes a model say a text as far as the grammar lets it, and then end."""

    def __init__(self, text: str) -> None:
        self.wanted = [*MODEL.backbone.encode(text, literal=True), MODEL.backbone.tokenizer.eos_token_id]
        self.at = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.wanted[min(self.at, len(self.wanted) - 1)]
        self.at += 1
        assert torch.isfinite(scores[0, token]), "the grammar does not allow what the script says"
        said = torch.full_like(scores, float("-inf"))
        said[:, token] = 0.0
        return said


class ScriptedAssistant(Assistant):
    """An assistant that knows what these suites ask for."""

    def reply(self, messages: Any, **options: Any) -> Any:
        said = script(messages, options.get("tools"), options.get("tool_choice"), options.get("schema"))
        # Constraints come first, so that the script sees what the grammar allows.
        return super().reply(messages, **options, logits_processors=[Says(said)])

    def ask(self, question: str, corpora: Sequence[str], **options: Any) -> Any:
        return super().ask(question, corpora, **options, logits_processors=[Says("It says so.")])


def script(messages: Sequence[Mapping[str, Any]], tools: Any, choice: str | None, schema: Any) -> str:
    if schema is not None:
        return json.dumps(example(schema, schema), separators=(",", ":"))
    last = messages[-1]
    if tools and choice != "none" and (choice is not None or last["role"] == "user"):
        functions = [tool["function"] for tool in tools]
        chosen = next((one for one in functions if one["name"] == choice), functions[0])
        quoted = re.search("'(.+?)'", last["content"])
        arguments = example(chosen["parameters"], chosen["parameters"], quoted and quoted[1])
        call = json.dumps({"name": chosen["name"], "arguments": arguments}, ensure_ascii=False, separators=(",", ":"))
        return f"<tool_call>{call}</tool_call>"
    return "Hello, nice to meet you."


def example(schema: Any, root: Any, text: str | None = None) -> Any:
    """A value of a JSON schema; its strings say `text`."""
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, text)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], root, text)
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: example(one, root, text) for name, one in schema.get("properties", {}).items()}
    return {"string": text or "text", "integer": 3, "number": 3.0, "boolean": True, "array": [], "null": None}[kind]
