"""LangChain's own suites for chat models and retrievers, over a tiny model that says what a script wants, grammar enforced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain_abilities import Abilities
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from tiny import SMALL, byte_tokenizer, randomize, tiny_causal_lm, tiny_model

from hmt_memory import Assistant, HMTModel
from langchain_hmt import HMTChatModel, HMTRetriever

WIDE = replace(SMALL, segment_length=16, recent_tokens=64, replay_tokens=0, pinned_tokens=4000)


def _model() -> HMTModel:
    """Tools and schemas are thousands of bytes, which are this model's tokens."""
    causal = tiny_causal_lm()
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


OTHER: list[str] = []  # another model's folder, for the tests that name one in a call


@pytest.fixture(scope="module", autouse=True)
def other_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models") / "other"
    MODEL.backbone.causal_lm.save_pretrained(folder)
    MODEL.backbone.tokenizer.save_pretrained(folder)
    OTHER.append(str(folder))


class TestHMTChatModelUnit(Abilities, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"HMT_MODEL": "m"}, {}, {"model_name": "m"}


class TestHMTChatModelScripted(Abilities, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": ScriptedAssistant(MODEL)}

    @property
    def model_override_value(self) -> str:
        return OTHER[0]


class TestHMTRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def session(self, tmp_path: Path) -> None:
        TestHMTRetriever.engine = Assistant(tiny_model(config=SMALL, tokenizer=byte_tokenizer()), store=tmp_path / "memories")
        self.engine.session("s").add([{"role": "user", "content": f"fact {at} is {at * 7}"} for at in range(8)])

    @property
    def retriever_constructor(self) -> type[HMTRetriever]:
        return HMTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "session_id": "s"}

    @property
    def retriever_query_example(self) -> str:
        return "What is fact 3?"


def test_a_tool_loop_is_remembered_step_by_step_and_once(tmp_path: Path) -> None:
    @tool
    def add(input: int) -> str:
        """Add."""
        return f"sum {input + 1}"

    assistant = ScriptedAssistant(MODEL, store=tmp_path)
    agent = create_agent(HMTChatModel(engine=assistant), [add], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    for text in ("first", "second"):
        agent.invoke({"messages": [HumanMessage(text)]}, thread)
    turn = ["user", "assistant", "tool", "assistant"]
    stored = assistant.session("t").messages()
    assert [one.role for one in stored] == turn * 2
    assert stored[2].content == "sum 4" and stored[1].fields["tool_calls"][0]["function"]["name"] == "add"
