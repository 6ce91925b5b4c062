"""The fields of the LangChain classes: what they take, what they refuse and how, what they mean, and what is written down."""

from __future__ import annotations

import doctest
import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core import exceptions
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, HumanMessagePromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableSequence
from pydantic import ValidationError
from tiny import REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import Assistant, HMTError, HMTModel
from langchain_hmt import HMTLLM, HMTChatMessageHistory, HMTChatModel, HMTMemoryMiddleware, HMTRetriever, HMTStore
from langchain_hmt.messages import to_dicts

MODEL = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer())
ALICE: Any = {"configurable": {"session_id": "alice"}}
MODELS = (HMTChatModel, HMTLLM)


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


@pytest.fixture
def chat(assistant: Assistant) -> HMTChatModel:
    return HMTChatModel(engine=assistant, max_tokens=6)


# --- what a field takes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", MODELS)
def test_a_string_is_one_stop_string(made: type[HMTChatModel], assistant: Assistant) -> None:
    model = made(engine=assistant, max_tokens=20)
    text = lambda **options: getattr(found := model.invoke("hello", **options), "text", found)  # noqa: E731
    whole = text()
    stop = whole[4:6]
    assert text(stop=stop) == whole[: whole.index(stop)]
    assert made(stop="Paris").stop_sequences == ["Paris"]  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="stop"):
        made(stop=[""])  # type: ignore[call-arg]


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_token": 5}, "'max_token'. Did you mean 'max_tokens'"),
        ({"max_completion_tokens": 5}, "'max_completion_tokens'. Did you mean 'max_tokens'"),
        ({"base_url": "http://x"}, "unknown argument 'base_url'"),
        ({"recent_tokens": -1}, "recent_tokens"),
        ({"selection": "best"}, "selection"),
    ],
)
def test_what_makes_no_sense_is_refused(made: type[HMTChatModel], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(**given)
    assert said in str(refused.value)


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 2}, "top_p=2"),
        ({"stop": [""]}, "stop"),
        ({"max_token": 5}, "'max_token'. Did you mean 'max_tokens'"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(
    made: type[HMTChatModel], given: dict[str, Any], said: str, assistant: Assistant
) -> None:
    with pytest.raises(exceptions.ModelInvalidRequestError) as refused:
        made(engine=assistant).invoke("hello", **given)
    assert isinstance(refused.value, HMTError) and said in str(refused.value)


def test_every_class_names_the_nearest_of_its_arguments(tmp_path: Path) -> None:
    ways: list[Callable[..., Any]] = [
        HMTRetriever,
        HMTStore,
        lambda **options: HMTChatMessageHistory("a", **options),
        lambda **options: HMTMemoryMiddleware(**options),
    ]
    for made in ways:
        with pytest.raises(ValueError, match=r"unknown argument 'stor'\. Did you mean 'store'"):
            made(stor=tmp_path)
    with pytest.raises(ValidationError, match="k"):
        HMTRetriever(k=0)


def test_what_is_for_hosted_models_is_taken_and_said_to_be_unused(caplog: pytest.LogCaptureFixture) -> None:
    HMTChatModel(timeout=60, max_retries=2, api_key="x")  # type: ignore[call-arg]
    assert "timeout, max_retries, api_key" in caplog.text


def test_content_and_choices_that_no_model_can_use_are_refused_in_both_ways(chat: HMTChatModel) -> None:
    def add(a: int) -> int:
        """Add."""
        return a

    refusals: list[Callable[[], Any]] = [
        lambda: chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]),
        lambda: to_dicts([HumanMessage([{"type": "audio", "base64": "x"}])]),
        lambda: chat.bind_tools([add], tool_choice="nope"),
        lambda: chat.with_structured_output(dict, method="other"),  # type: ignore[arg-type]
    ]
    for refused in refusals:
        with pytest.raises(exceptions.ModelInvalidRequestError) as error:
            refused()
        assert isinstance(error.value, HMTError) and isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", [True, ["t1"], {"a": 1}, 1.5, b"t"])
def test_only_texts_and_numbers_name_a_session(name: Any, chat: HMTChatModel, assistant: Assistant) -> None:
    with pytest.raises(exceptions.ModelInvalidRequestError, match="cannot name a session") as refused:
        chat.invoke("hello", {"configurable": {"thread_id": name}})
    assert isinstance(refused.value, HMTError) and assistant.store.sessions() == []
    with pytest.raises(exceptions.ModelInvalidRequestError):
        HMTRetriever(engine=assistant).invoke("hello", session_id=name)
    with pytest.raises(exceptions.ModelInvalidRequestError):
        HMTChatMessageHistory(name, engine=assistant)
    agent = create_agent(FakeListChatModel(responses=["ok"]), middleware=[HMTMemoryMiddleware(engine=assistant)])
    with pytest.raises(exceptions.ModelInvalidRequestError):
        agent.invoke({"messages": [HumanMessage("hello")]}, {"configurable": {"thread_id": name}})


@pytest.mark.parametrize("module", ["chat_model", "store"])
def test_examples_in_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"langchain_hmt.{module}"))
    assert found.attempted and not found.failed


def test_every_field_says_what_it_means() -> None:
    for made in (HMTChatModel, HMTLLM, HMTRetriever):
        own = {
            name
            for cls in made.__mro__
            if cls.__module__.startswith("langchain_hmt")
            for name in vars(cls).get("__annotations__", ())
        }
        silent = [name for name in own & made.model_fields.keys() if not made.model_fields[name].description]
        assert own and not silent, silent


# --- what they mean -----------------------------------------------------------------------------------------------------


def test_budgets_and_selection_are_those_of_the_view_and_the_weights_are_shared(assistant: Assistant) -> None:
    given = {"recent_tokens": 30, "replay_tokens": 40, "pinned_tokens": 50, "selection": "words"}
    chat = HMTChatModel(engine=assistant, max_tokens=4, **given)
    found = chat.assistant().model
    assert {name: getattr(found.config, name) for name in given} == given
    assert found.backbone is MODEL.backbone and MODEL.view.recent_tokens == REMEMBERING.recent_tokens
    named = HMTChatModel(engine=assistant, note_tokens=41)  # type: ignore[call-arg]
    assert named.replay_tokens == named.assistant().model.config.replay_tokens == 41
    plain = HMTChatModel(engine=assistant, max_tokens=4)
    assert plain.assistant() is assistant and chat.assistant() is HMTLLM(engine=assistant, **given).assistant()
    for number in range(6):
        chat.invoke(f"fact {number} is {number * 7}", ALICE)
    few, many = (
        HMTChatModel(engine=assistant, max_tokens=4, replay_tokens=0, recent_tokens=recent).invoke("What is fact 2?", ALICE)
        for recent in (0, 90)
    )
    assert few.usage_metadata and many.usage_metadata
    assert few.usage_metadata["input_tokens"] < many.usage_metadata["input_tokens"]


def test_an_impossible_view_is_refused_in_both_ways(assistant: Assistant) -> None:
    with pytest.raises(exceptions.ModelInvalidRequestError, match="Lower recent_tokens") as refused:
        HMTChatModel(engine=assistant, recent_tokens=1 << 20).invoke("hello")
    assert isinstance(refused.value, HMTError)


def test_a_view_is_chosen_before_any_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: loaded.append(1) or MODEL)
    chat = HMTChatModel(model="a-model-nobody-loaded", reader="same", store=tmp_path, max_tokens=2, recent_tokens=8)  # type: ignore[call-arg]
    wide = HMTChatModel(model="a-model-nobody-loaded", reader="same", store=tmp_path, max_tokens=2, recent_tokens=24)  # type: ignore[call-arg]
    assert chat.assistant().name == "a-model-nobody-loaded" and not chat.assistant().is_loaded and not loaded
    for model in (chat, wide, chat):
        model.invoke("hello", ALICE)
    assert loaded == [1] and chat.assistant().is_loaded
    assert pickle.loads(pickle.dumps(chat)).assistant() is chat.assistant()


def test_corpora_are_recalled_from_in_sessions(assistant: Assistant) -> None:
    assistant.corpus("handbook").add_documents([("codes.md", "The door code of the office is 4071. " * 3)])
    chat = HMTChatModel(engine=assistant, max_tokens=4, corpora=("handbook",), pinned_tokens=50, replay_tokens=150)
    answer = chat.invoke("What is the door code?", ALICE)
    assert "handbook/codes.md" in {one["source"] for one in answer.response_metadata["hmt"]["recalled"]}
    version = assistant.session("alice").version()
    chat.invoke("And again?", ALICE)
    assert assistant.session("alice").stats()["corpora"] == ["handbook"]
    assert version < assistant.session("alice").version()
    with pytest.raises(exceptions.ModelInvalidRequestError, match=r"corpora.*session"):
        chat.invoke("hello")
    with pytest.raises(LookupError, match="no corpus 'other'"):
        HMTChatModel(engine=assistant, corpora="other").invoke("hello", ALICE)
    assert HMTLLM(engine=assistant, corpora="handbook", max_tokens=4).invoke("hello", {"configurable": {"session_id": "bob"}})
    assert assistant.session("bob").stats()["corpora"] == ["handbook"]


def test_a_summary_of_a_conversation_needs_no_session_though_there_are_corpora(assistant: Assistant) -> None:
    assistant.corpus("handbook").add_documents(["The door code of the office is 4071. "])
    chat = HMTChatModel(engine=assistant, max_tokens=4, corpora=("handbook",))
    assert chat.invoke("Summarise.", {"metadata": {"lc_source": "summarization"}, **ALICE}).text
    assert assistant.store.sessions() == []


def test_repetition_is_made_less_likely(chat: HMTChatModel) -> None:
    whole = chat.invoke("hello", max_tokens=40).text
    other = HMTChatModel(engine=chat.engine, max_tokens=40, repetition_penalty=5.0).invoke("hello").text
    assert whole != other == chat.invoke("hello", max_tokens=40, repetition_penalty=5.0).text


def test_a_field_that_is_changed_later_counts(assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda name, **_: asked.append(name) or MODEL)
    chat = HMTChatModel(model="one", reader="same", store=tmp_path, max_tokens=2)  # type: ignore[call-arg]
    chat.invoke("hello")
    chat.model_copy(update={"model_name": "two"}).invoke("hello")
    fields = chat.configurable_fields(model_name=ConfigurableField(id="which"))
    fields.with_config(configurable={"which": "three"}).invoke("hello")
    assert asked == ["one", "two", "three"]
    views = HMTChatModel(engine=assistant).configurable_fields(recent_tokens=ConfigurableField(id="recent"))
    assert views.with_config(configurable={"recent": 3}).invoke("hello").text


# --- what is written down -----------------------------------------------------------------------------------------------

OURS: Any = [HMTChatModel, HMTLLM, HMTRetriever]
allowed: Any = {"valid_namespaces": ["langchain_hmt"], "allowed_objects": OURS}


@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (HMTChatModel, {"model": "m", "store": "s", "temperature": 0.5, "stop": "END", "corpora": ("a",), "recent_tokens": 9}),
        (HMTChatModel, {"session_keys": ("x",), "selection": "words", "top_p": 0.5}),
        (HMTLLM, {"model": "m", "max_tokens": 7, "repetition_penalty": 1.2}),
        (HMTRetriever, {"model": "m", "store": "s", "corpora": ("a", "b"), "k": 2}),
        (HMTChatModel, {}),
    ],
)
def test_objects_are_written_down_and_read_again(kind: Any, given: dict[str, Any]) -> None:
    made = kind(**given)
    text = dumps(made)
    again = loads(text, **allowed)
    assert type(again) is type(made) and dumps(again) == text
    assert json.loads(text)["id"][0] == "langchain_hmt"
    names = type(made).model_fields.keys() - {"engine"}
    assert {name: getattr(again, name) for name in names} == {name: getattr(made, name) for name in names}


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_a_chain_is_written_down_with_its_model() -> None:
    chain = ChatPromptTemplate.from_messages([("human", "{text}")]) | HMTChatModel(temperature=0.5) | StrOutputParser()
    parts = [RunnableSequence, ChatPromptTemplate, HumanMessagePromptTemplate, PromptTemplate, StrOutputParser, *OURS]
    again = loads(dumps(chain), valid_namespaces=["langchain_hmt"], allowed_objects=parts)
    assert again.steps[1].temperature == 0.5


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_what_is_read_again_has_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is written down as what it is made of; around a model object, which has no name, it cannot be read."""
    named = HMTChatModel(engine=Assistant("a-model", store=tmp_path, adapter="none", dtype="float32"))
    again = loads(dumps(named), **allowed)
    assert (again.model_name, again.adapter, again.dtype, again.store) == ("a-model", "none", "float32", str(tmp_path))
    assert again.assistant().settings == named.assistant().settings
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: MODEL)
    with named.assistant().store as store:
        assert loads(dumps(HMTChatModel(model="m", store=store)), **allowed).store == str(tmp_path)  # type: ignore[call-arg]
    held = dumps(HMTChatModel(engine=Assistant(MODEL, store=tmp_path)))
    with pytest.raises(NotImplementedError, match="Assistant"):
        loads(held, **allowed)


def test_a_cache_tells_apart_what_answers_differently(assistant: Assistant) -> None:
    made = [HMTChatModel(engine=assistant, temperature=heat, recent_tokens=recent) for heat, recent in ((0, 5), (1, 5), (0, 6))]
    assert len({model._get_llm_string() for model in made}) == 3
    llms = [HMTLLM(engine=assistant, repetition_penalty=penalty) for penalty in (1.0, 2.0)]
    assert llms[0].asdict() != llms[1].asdict()
