"""The LlamaIndex classes on the real default model: every engine, what a memory is for, objects and tools."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import FunctionTool
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock
from llama_index.retrievers.hmt import HMTQueryEngine, HMTRetriever
from pydantic import BaseModel
from tiny import else_long

from hmt_memory import Assistant, HMTModel

pytestmark = pytest.mark.real
NOTICE = "The notice period is three months to the end of a quarter. Thirty days of leave a year are yours."
QUESTION = "What is the door code of the office?"
HOUSE = "The canteen opens at half past eleven. Bicycles stand in the cellar, whose door code is 4071."


@pytest.fixture
def llm(tmp_path: Path, smollm2: HMTModel) -> HMTLLM:
    return HMTLLM(engine=Assistant(smollm2, store=tmp_path / "memories"), max_tokens=12, context_window=1024)


@pytest.fixture
def handbook(llm: HMTLLM) -> HMTRetriever:
    retriever = HMTRetriever("handbook", llm=llm, similarity_top_k=2)
    named = (("contract.md", NOTICE), ("house.md", HOUSE))
    retriever.refresh([Document(text=text, metadata={"file_name": name}) for name, text in named])
    return retriever


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def passages(response: Any) -> dict[str, str]:
    """Return what a response cites: file names and verbatim texts."""
    return {one.metadata["file_name"]: one.text.strip() for one in response.source_nodes}


@pytest.mark.long
async def test_all_endpoints_say_the_same(llm: HMTLLM) -> None:
    asked = [user("What is the capital of France?")]
    whole = llm.chat(asked)
    assert whole.message.content
    assert (await llm.achat(asked)).message == whole.message == list(llm.stream_chat(asked))[-1].message
    assert [one async for one in await llm.astream_chat(asked)][-1].raw == whole.raw
    assert llm.complete("What is the capital of France?").text == whole.message.content
    pickled = pickle.loads(pickle.dumps(HMTLLM(store=llm.store, max_tokens=12)))
    assert pickled.to_dict()["store"] == llm.store and pickled.model_name == "smollm2-135m-instruct"


@pytest.mark.slow
def test_a_session_remembers_across_objects(llm: HMTLLM, smollm2: HMTModel) -> None:
    told = llm.chat([user("The door code of the office is 4071.")], session_id="alice").message.content
    again = HMTLLM(engine=Assistant(smollm2, store=llm.store), max_tokens=12, session_id="alice")
    response = again.chat([user(QUESTION)])
    assert response.message.content and len(response.raw["hmt"]["message_ids"]) == 2
    kept = [[one.content for one in again.engine.session(name).messages()] for name in ("alice", "bob")]
    assert kept == [["The door code of the office is 4071.", told, QUESTION, response.message.content], []]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def room_temperature(room: Literal["kitchen", "cellar"]) -> str:
    """Measure the temperature of a room."""
    return f"The {room} has 21 degrees."


room_temperature.__annotations__ = {"room": Literal["kitchen", "cellar"], "return": str}  # LlamaIndex reads no strings


@pytest.mark.long
async def test_objects_and_calls(llm: HMTLLM) -> None:
    prompt = PromptTemplate("Who is it, and how old? {text}")
    wordy = llm.model_copy(update={"max_tokens": 96})
    assert isinstance(wordy.structured_predict(Person, prompt, text="Ann is 41 years old."), Person)
    *_, streamed = [one async for one in await wordy.astream_structured_predict(Person, prompt, text="Ann is 41 years old.")]
    assert isinstance(streamed, Person)
    tool = FunctionTool.from_defaults(room_temperature)
    response = wordy.chat_with_tools([tool], user_msg="How warm is it in the kitchen?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "room_temperature"
    assert call.tool_kwargs in ({"room": "kitchen"}, {"room": "cellar"})  # which of them is the model's choice


@pytest.mark.slow
@pytest.mark.parametrize("kind", else_long(["simple", "context", "condense"], "context"))
async def test_every_chat_engine_in_a_window_of_1024(kind: str, llm: HMTLLM, handbook: HMTRetriever) -> None:
    memory = HMTMemory.from_defaults("alice", llm=llm)
    engines: dict[str, Any] = {
        "simple": lambda: SimpleChatEngine.from_defaults(llm=llm, memory=memory),
        "context": lambda: ContextChatEngine.from_defaults(retriever=handbook, llm=llm, memory=memory),
        "condense": lambda: CondensePlusContextChatEngine.from_defaults(retriever=handbook, llm=llm, memory=memory),
    }
    engine = engines[kind]()
    asked = "The door code of the cellar is 4071. What is the door code of the cellar?" if kind == "simple" else ""
    asked = asked or "What is the door code of the cellar?"
    first = engine.chat(asked)
    assert first.response and passages(first) == ({} if kind == "simple" else {"contract.md": NOTICE, "house.md": HOUSE})
    assert "".join(engine.stream_chat("And what else?").response_gen)
    assert str(await engine.achat("Thank you."))
    assert [one.role.value for one in engine.chat_history] == ["user", "assistant"] * 3


@pytest.mark.long
async def test_query_engines_answer_from_the_passage_and_cite_it(llm: HMTLLM, handbook: HMTRetriever) -> None:
    for engine in (RetrieverQueryEngine.from_args(handbook, llm=llm), HMTQueryEngine("handbook", llm=llm)):
        response = engine.query("What is the door code of the cellar?")
        assert str(response) and passages(response)["house.md"] in HOUSE
        again = await engine.aquery("How long is the notice period?")
        assert str(again) and passages(again)["contract.md"] in NOTICE


@pytest.mark.long
async def test_what_left_the_window_is_recalled(llm: HMTLLM) -> None:
    talk = [user("The door code of the office is 4071."), ChatMessage(role="assistant", content="I will keep that in mind.")]
    for at in range(8):
        talk += [
            user(f"Tell me about day {at} of the voyage."),
            ChatMessage(role="assistant", content="The sea was calm. " * 4),
        ]
    asked = user("What is the door code of the office?")
    memory = HMTMemory.from_defaults("alice", llm=llm, token_limit=200)
    memory.put_messages([*talk, asked])
    shown = memory.get()
    assert "4071" in (shown[0].content or "") and len(shown) < 12
    assert llm.chat(shown).message.content
    block = HMTMemoryBlock(engine=llm.engine)
    waterfall = Memory.from_defaults("bob", token_limit=200, tokenizer_fn=llm.engine.token_ids, memory_blocks=[block])
    for message in [*talk, asked]:
        await waterfall.aput(message)
    assert "4071" in ((await waterfall.aget())[0].content or "")
