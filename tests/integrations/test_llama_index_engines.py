"""Chat engines and agents of LlamaIndex with our memory, over a model that says what a script wants."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import scripted
from llama_index.core import Document
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock
from llama_index.retrievers.hmt import HMTQueryEngine, HMTRetriever
from llama_indexed import SAYS, answer, user
from pydantic import BaseModel
from scripted import ScriptedAssistant
from tiny import else_long


class Person(BaseModel):
    """A person."""

    name: str


# --- chat engines -------------------------------------------------------------------------------------------------------


def chat_engines(llm: HMTLLM, retriever: HMTRetriever, memory: Any) -> list[Any]:
    return [
        SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt="Be brief."),
        ContextChatEngine.from_defaults(retriever=retriever, llm=llm, memory=memory, system_prompt="Be brief."),
        CondensePlusContextChatEngine.from_defaults(retriever=retriever, llm=llm, memory=memory),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("ours", else_long([True, False], True))
async def test_every_chat_engine_in_a_window_of_1024(number: int, ours: bool, llm: HMTLLM, handbook: HMTRetriever) -> None:
    memory = HMTMemory.from_defaults("alice", llm=llm, token_limit=500) if ours else None
    engine = chat_engines(llm, handbook, memory)[number]
    assert str(engine.chat("What is the notice period?")) == SAYS
    assert "".join(engine.stream_chat("And for trainees?").response_gen) == SAYS
    assert str(await engine.achat("Who decides?")) == SAYS
    astream = await engine.astream_chat("Since when?")
    assert "".join([piece async for piece in astream.async_response_gen()]) == SAYS
    said = ["What is the notice period?", "And for trainees?", "Who decides?", "Since when?"]
    assert [one.content for one in engine.chat_history] == [text for one in said for text in (one, SAYS)]
    if ours:
        assert llm.assistant().store.sessions() == ["alice"]
    engine.chat("Something else.", chat_history=[user("Hi."), answer("Ho.")])
    assert [one.content for one in engine.chat_history] == ["Hi.", "Ho.", "Something else.", SAYS]
    engine.reset()
    assert engine.chat_history == [] and llm.assistant().store.sessions() == []


def test_an_engine_makes_its_own_memory_of_our_class(llm: HMTLLM) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm, memory_cls=HMTMemory)
    first, second = HMTMemory(), HMTMemory()
    assert first.session_id != second.session_id
    assert engine._memory.token_limit == 1024 - 256


def test_llama_index_s_memory_forgets_and_a_session_of_the_llm_does_not(llm: HMTLLM) -> None:
    with_session = llm.model_copy(update={"session_id": "alice"})
    short = Memory.from_defaults("x", token_limit=300, token_flush_size=50, tokenizer_fn=llm.assistant().token_ids)
    engine = SimpleChatEngine.from_defaults(llm=with_session, memory=short)
    for at in range(6):
        engine.chat(f"This is turn {at}. " * 3)
    stored = [one.content for one in llm.assistant().session("alice").messages()]
    assert len(engine._memory.get()) < 12 == len(stored) and stored[0].startswith("This is turn 0.")


def test_prompts_about_a_conversation_are_none_of_its_turns(llm: HMTLLM, handbook: HMTRetriever) -> None:
    own = llm.model_copy(update={"session_id": "alice"})
    RetrieverQueryEngine.from_args(handbook, llm=own).query("notice?")
    CondensePlusContextChatEngine.from_defaults(retriever=handbook, llm=own).chat("notice?")
    own.structured_predict(Person, PromptTemplate("Who?"))
    list(own.stream_structured_predict(Person, PromptTemplate("Who?")))
    assert llm.assistant().store.sessions() == []


async def test_their_async_twins_neither(llm: HMTLLM) -> None:
    own = llm.model_copy(update={"session_id": "alice"})
    assert await own.apredict(PromptTemplate("Hello")) == own.predict(PromptTemplate("Hello")) == SAYS
    assert "".join([one async for one in await own.astream(PromptTemplate("Hello"))]) == "".join(
        own.stream(PromptTemplate("Hello"))
    )
    assert await own.astructured_predict(Person, PromptTemplate("Who?")) == Person(name="text")
    assert [one async for one in await own.astream_structured_predict(Person, PromptTemplate("Who?"))][-1] == Person(
        name="text"
    )
    assert llm.assistant().store.sessions() == []


def test_a_context_longer_than_what_is_pinned_is_answered_all_the_same(llm: HMTLLM) -> None:
    retriever = HMTRetriever("long", llm=llm, similarity_top_k=500)
    retriever.add_documents([Document(text="The canteen opens at noon and closes at two. " * 150)])
    free = llm.model_copy(update={"context_window": 1 << 20})
    assert str(ContextChatEngine.from_defaults(retriever=retriever, llm=free).chat("When?")) == SAYS
    with pytest.raises(RuntimeError, match="pinned_tokens"):  # a ValueError would become an empty response
        free.chat([ChatMessage(role="system", content="word " * 2000), user("x")], session_id="alice")


# --- agents -------------------------------------------------------------------------------------------------------------


def greet(name: str) -> str:
    """Greet somebody."""
    return f"Good day, {name}!"


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_calls_tools_and_its_memory_has_every_step(streaming: bool, llm: HMTLLM) -> None:
    memory = HMTMemory.from_defaults("alice", llm=llm, token_limit=4000)
    agent = FunctionAgent(
        tools=[greet],
        llm=llm,
        system_prompt="Be kind.",
        streaming=streaming,
        initial_state={"x": 1},
        state_prompt="{msg} {state}",
    )
    done = await agent.run("Please greet 'Ann'.", memory=memory)
    assert str(done) == SAYS and done.tool_calls[0].tool_kwargs == {"name": "Ann"}
    kept = memory.get_all()
    assert [one.role.value for one in kept] == ["user", "assistant", "tool", "assistant"]
    assert kept[0] == user("Please greet 'Ann'."), "the agent's state is not in the memory"
    assert kept[2].content == "Good day, Ann!" and kept[2].additional_kwargs["tool_call_id"] == kept[1].blocks[0].tool_call_id  # type: ignore[union-attr]
    await agent.run("And now 'Bob'.", memory=memory)
    assert len(memory.get_all()) == 8


async def test_a_react_agent_and_its_memory(llm: HMTLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(
        [
            'Thought: I need a tool.\nAction: greet\nAction Input: {"name": "Ann"}',
            "Thought: I can answer without using any more tools.\nAnswer: Done.",
        ]
    )
    monkeypatch.setattr(scripted, "script", lambda *_: next(said))
    memory = HMTMemory.from_defaults("alice", llm=llm, token_limit=9000)
    assert str(await ReActAgent(tools=[greet], llm=llm).run("Greet Ann.", memory=memory)) == "Done."
    kept = memory.get_all()
    assert kept[0] == user("Greet Ann.") and "Good day, Ann!" in str(kept) and (kept[-1].content or "").endswith("Done.")
    assert [one.content for one in kept].count("Greet Ann.") == 1


async def test_agents_that_hand_over_share_a_memory(llm: HMTLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    call = '<tool_call>{"name":"handoff","arguments":{"to_agent":"second","reason":"it knows"}}</tool_call>'
    said = iter([call, "I know."])
    monkeypatch.setattr(scripted, "script", lambda *_: next(said))
    agents = [
        FunctionAgent(name="first", description="asks", tools=[greet], llm=llm, can_handoff_to=["second"]),
        FunctionAgent(name="second", description="knows", tools=[greet], llm=llm),
    ]
    memory = HMTMemory.from_defaults("alice", llm=llm, token_limit=9000)
    assert str(await AgentWorkflow(agents=agents, root_agent="first").run("Who knows?", memory=memory)) == "I know."
    kept = memory.get_all()
    assert kept[0] == user("Who knows?") and kept[-1] == answer("I know.")


async def test_what_is_recalled_and_kept_async_is_so_in_other_threads(
    llm: HMTLLM, handbook: HMTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def watched(work: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return work(*args, **options)

        return call

    for name in ("recall", "ask", "recall_hidden", "add"):
        monkeypatch.setattr(ScriptedAssistant, name, watched(getattr(ScriptedAssistant, name)))
    block, memory = HMTMemoryBlock(engine=llm.engine, session_id="block"), HMTMemory(engine=llm.engine, session_id="alice")
    await handbook.aretrieve("notice?")
    for streaming in (True, False):
        response = await HMTQueryEngine("handbook", llm=llm, streaming=streaming).aquery("notice?")
        assert response.source_nodes is not None
    await block.aput([user("x")])
    await block.aget([user("x?")])
    await memory.aput(user("x"))
    assert len(threads) >= 6 and threading.main_thread() not in threads


async def test_an_agent_whose_llm_has_the_session(llm: HMTLLM) -> None:
    own = llm.model_copy(update={"session_id": "alice"})
    agent = AgentWorkflow.from_tools_or_functions([greet], llm=own)
    await agent.run("Please greet 'Ann'.")
    stored = llm.assistant().session("alice").messages()
    assert [one.role for one in stored] == ["user", "assistant", "tool", "assistant"]


async def test_a_context_with_our_memory_is_written_down_and_goes_on(tmp_path: Path, chatty: str, llm: HMTLLM) -> None:
    agent = FunctionAgent(tools=[greet], llm=llm)
    context = Context(agent)
    await context.store.set(
        "memory", HMTMemory(model=chatty, reader="same", store=tmp_path / "named", session_id="alice", token_limit=4000)
    )
    await agent.run("Please greet 'Ann'.", ctx=context)
    written = json.dumps(context.to_dict(serializer=JsonSerializer()))
    again = Context.from_dict(agent, json.loads(written), serializer=JsonSerializer())
    await agent.run("And now 'Bob'.", ctx=again)
    memory = await again.store.get("memory")
    assert isinstance(memory, HMTMemory) and memory.session_id == "alice"
    said = [one.content for one in memory.get_all() if one.role == "user"]
    assert said == ["Please greet 'Ann'.", "And now 'Bob'."]
