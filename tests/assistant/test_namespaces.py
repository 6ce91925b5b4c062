"""Calls without a session: a caller's prompts make his own next ones faster, and nobody else's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant
from hmt_memory.assistant.loading import ModelSettings
from hmt_memory.model import HMTModel
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())
PROMPT = "The secret word is zanzibar, and this is long enough for some segments."
Ask = Callable[[Any, dict[str, Any]], object]


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Assistant]:
    """Assistants that load one model by its name, with a store each."""
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: MODEL)
    return lambda folder: Assistant.shared(ModelSettings("some-model"), tmp_path / folder)


def read(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> int:
    """How many tokens a call reads."""
    counted: list[int] = []
    with monkeypatch.context() as patch:
        real = type(MODEL).read
        patch.setattr(type(MODEL), "read", lambda self, ids, state=None: counted.append(len(ids)) or real(self, ids, state))
        call()
    return sum(counted)


def answer(assistant: Assistant, **options: Any) -> Callable[[], object]:
    return lambda: assistant.reply({"role": "user", "content": PROMPT}, max_new_tokens=2, **options).finish()


def test_a_caller_meets_his_own_prompts_only(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(monkeypatch, answer(assistant, namespace="alice"))
    assert whole > 64
    assert read(monkeypatch, answer(assistant, namespace="bob")) == whole
    assert read(monkeypatch, answer(assistant)) == whole
    for namespace in ("alice", "bob", None):
        assert read(monkeypatch, answer(assistant, namespace=namespace)) == 0


def test_assistants_of_one_model_have_a_namespace_each(
    named: Callable[[str], Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = named("one"), named("other")
    assert one.model is other.model and one._weights is other._weights
    whole = read(monkeypatch, answer(one))
    assert read(monkeypatch, answer(other)) == whole > 0
    assert read(monkeypatch, answer(one)) == read(monkeypatch, answer(other)) == 0


def invoke(model: Any, options: dict[str, Any]) -> object:
    return model.invoke(PROMPT, **options)


def complete(model: Any, options: dict[str, Any]) -> object:
    return model.complete(PROMPT, **options)


def langchain_chat(engine: Assistant | None, **fields: Any) -> tuple[Any, Ask]:
    from langchain_hmt import HMTChatModel

    return HMTChatModel(engine=engine, max_tokens=2, **fields), invoke


def langchain_llm(engine: Assistant | None, **fields: Any) -> tuple[Any, Ask]:
    from langchain_hmt import HMTLLM

    return HMTLLM(engine=engine, max_tokens=2, **fields), invoke


def llama_index(engine: Assistant | None, **fields: Any) -> tuple[Any, Ask]:
    from llama_index.llms.hmt import HMTLLM

    return HMTLLM(engine=engine, max_tokens=2, **fields), complete


KINDS = [langchain_chat, langchain_llm, llama_index]


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_of_a_framework_is_a_caller(kind: Any, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, ask), (second, _) = kind(assistant), kind(assistant)
    assert first == second or kind is llama_index  # LangChain's compare by their fields, LlamaIndex's by their callbacks
    whole = read(monkeypatch, lambda: ask(first, {}))
    assert read(monkeypatch, lambda: ask(second, {})) == whole > 0
    assert read(monkeypatch, lambda: ask(first, {})) == read(monkeypatch, lambda: ask(first.model_copy(), {})) == 0
    assert read(monkeypatch, lambda: ask(first, {"namespace": "bob"})) == whole
    assert read(monkeypatch, lambda: ask(first, {"namespace": "bob"})) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_objects_share_by_a_name_that_they_are_given(kind: Any, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, ask), (second, _) = kind(assistant, namespace="us"), kind(assistant, namespace="us")
    assert read(monkeypatch, lambda: ask(first, {})) > 0
    assert read(monkeypatch, lambda: ask(second, {})) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_another_caller(kind: Any, named: Callable[[str], Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ask = kind(named("one"))
    other = pickle.loads(pickle.dumps(model))
    assert other.assistant() is model.assistant()
    whole = read(monkeypatch, lambda: ask(model, {}))
    assert read(monkeypatch, lambda: ask(other, {})) == whole > 0


def test_a_deep_copy_shares_where_its_framework_makes_them_all_the_time(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, shares in ((llama_index, True), (langchain_chat, False)):
        model, ask = kind(assistant)
        read(monkeypatch, lambda: ask(model, {}))  # noqa: B023
        again = read(monkeypatch, lambda: ask(copy.deepcopy(model), {}))  # noqa: B023
        assert (again == 0) == shares


BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": 2},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 2, "store": False},
}


@pytest.mark.parametrize("route", BODIES)
def test_whoever_shows_a_token_of_a_server_is_a_caller(
    route: str, assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(tmp_path)
    alice, bob, hers = tokens.make("alice"), tokens.make("bob"), tokens.make("phone", of="alice")
    with TestClient(create_app(assistant, Settings(hosts=("testserver",)), tokens=tokens)) as http:

        def ask(token: str) -> None:
            http.post(route, json=BODIES[route], headers={"Authorization": f"Bearer {token}"}).raise_for_status()

        whole = read(monkeypatch, lambda: ask(alice))
        assert read(monkeypatch, lambda: ask(bob)) == whole > 64
        assert [read(monkeypatch, lambda token=token: ask(token)) for token in (alice, bob, hers)] == [0, 0, 0]
