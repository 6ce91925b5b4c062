"""Memory around any model of an agent, and the chat model inside one: what is recalled, remembered, and never repeated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from places import SUPPORT
from scripts import run_script
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant
from langchain_hmt import HMTChatModel, HMTMemoryMiddleware

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())
THREAD: RunnableConfig = {"configurable": {"thread_id": "t1"}}


class Hosted(GenericFakeChatModel):
    """Stands for a model whose weights nobody has; keeps what it was shown."""

    shown: list[list[BaseMessage]]

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.shown.append(messages)
        return super()._generate(messages, *args, **kwargs)


def hosted(*answers: str) -> Hosted:
    return Hosted(messages=iter([AIMessage(text) for text in answers]), shown=[])


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


def stored(assistant: Assistant, name: str = "t1") -> list[str]:
    return [one.content for one in assistant.session(name).messages()]


def texts(messages: Sequence[BaseMessage]) -> str:
    return "\n".join(one.text for one in messages)


FACT = "The door code of the office is 4071, please remember."


def test_what_one_thread_said_is_recalled_in_a_later_run_and_stays_out_of_the_conversation(assistant: Assistant) -> None:
    model = hosted("I will.", "It is 4071.")
    agent = create_agent(model, middleware=[HMTMemoryMiddleware(engine=assistant)])
    agent.invoke({"messages": [HumanMessage(FACT)]}, THREAD)
    assert stored(assistant) == [FACT, "I will."] and "Recalled from earlier" not in texts(model.shown[0])
    found = agent.invoke({"messages": [HumanMessage("What is the door code?")]}, THREAD)  # no checkpointer: memory alone knows
    assert "Recalled from earlier:" in texts(model.shown[1]) and "The door c" in model.shown[1][0].text
    assert "Recalled" not in texts(found["messages"]) and "hmt_recalled" not in found
    assert stored(assistant) == [FACT, "I will.", "What is the door code?", "It is 4071."]


def test_what_fills_no_segment_yet_is_recalled_too(assistant: Assistant) -> None:
    model = hosted("Yes.")
    assistant.add("t1", [{"role": "user", "content": "4071"}])
    assert assistant.session("t1").stats()["segments"] == 0
    create_agent(model, middleware=[HMTMemoryMiddleware(engine=assistant)]).invoke(
        {"messages": [HumanMessage("Code?")]}, THREAD
    )
    assert "4071" in texts(model.shown[0])


async def test_a_checkpointed_thread_is_remembered_once_and_what_shows_is_not_recalled(assistant: Assistant) -> None:
    model = hosted("one", "two", "three")
    agent = create_agent(model, middleware=[HMTMemoryMiddleware(engine=assistant)], checkpointer=InMemorySaver())
    for text in (FACT, "And now?", "What is the door code?"):
        await agent.ainvoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant) == [FACT, "one", "And now?", "two", "What is the door code?", "three"]
    assert all("Recalled" not in texts(messages) for messages in model.shown)


def test_whose_session_it_is(assistant: Assistant) -> None:
    def run(middleware: HMTMemoryMiddleware, config: RunnableConfig | None) -> None:
        create_agent(hosted("ok"), middleware=[middleware]).invoke({"messages": [HumanMessage("hello")]}, config)

    run(HMTMemoryMiddleware(engine=assistant), None)
    assert assistant.store.sessions() == []
    run(HMTMemoryMiddleware(engine=assistant, session_id="mine"), None)
    run(HMTMemoryMiddleware(engine=assistant, session_key=lambda runtime, found: f"sub-{found['thread_id']}"), THREAD)
    run(HMTMemoryMiddleware(engine=assistant), {"configurable": {"session_id": "s", "thread_id": "t"}})
    assert sorted(assistant.store.sessions()) == ["mine", "s", "sub-t1"]


def test_two_middlewares_with_names_of_their_own(assistant: Assistant) -> None:
    """Each remembers, and the model is shown what both recall."""
    for name in ("work", "home"):
        assistant.add(name, {"role": "user", "content": f"at {name} the code is hidden well"})
    pair = [HMTMemoryMiddleware(engine=assistant, name=name, session_id=name) for name in ("work", "home")]
    model = hosted("ok")
    create_agent(model, middleware=pair).invoke({"messages": [HumanMessage("code?")]})
    assert stored(assistant, "work")[1:] == stored(assistant, "home")[1:] == ["code?", "ok"]
    assert "at work" in texts(model.shown[0]) and "at home" in texts(model.shown[0])


def test_answers_in_the_same_words_and_turns_said_again_are_all_remembered(assistant: Assistant) -> None:
    agent = create_agent(hosted(*["OK."] * 4), middleware=[HMTMemoryMiddleware(engine=assistant)])
    for text in ("My code is 4071.", "My dog is Rex.", "My dog is Rex.", "My sister is Ana."):
        agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant)[::2] == ["My code is 4071.", "My dog is Rex.", "My dog is Rex.", "My sister is Ana."]


def test_a_picture_is_left_out_and_its_words_are_remembered(assistant: Assistant) -> None:
    agent = create_agent(
        hosted("nice", "nice", "yes"), middleware=[HMTMemoryMiddleware(engine=assistant)], checkpointer=InMemorySaver()
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    agent.invoke({"messages": [HumanMessage([{"type": "text", "text": "my cat"}, picture])]}, THREAD)
    agent.invoke({"messages": [HumanMessage([picture])]}, THREAD)
    assert stored(assistant) == ["my cat", "nice", "nice"]  # though nothing was asked in words
    agent.invoke({"messages": [HumanMessage("is it big?")]}, THREAD)
    assert stored(assistant) == ["my cat", "nice", "nice", "is it big?", "yes"]


def test_a_question_is_remembered_though_a_summary_takes_its_place(assistant: Assistant) -> None:
    summaries = SummarizationMiddleware(hosted(*["a summary"] * 9), trigger=("messages", 2), keep=("messages", 1))
    middleware = [HMTMemoryMiddleware(engine=assistant), summaries]
    agent = create_agent(hosted("one", "two", "three"), middleware=middleware, checkpointer=InMemorySaver())
    for text in ("first", "second", "third"):
        agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant) == ["first", "one", "second", "two", "third", "three"]


def test_another_model_s_summary_is_no_turn_either(assistant: Assistant) -> None:
    summaries = SummarizationMiddleware(hosted(*["a summary"] * 9), trigger=("messages", 3), keep=("messages", 1))
    agent = create_agent(HMTChatModel(engine=assistant, max_tokens=6), middleware=[summaries], checkpointer=InMemorySaver())
    for text in ("one", "two", "three"):
        agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant)[::2] == ["one", "two", "three"] and len(stored(assistant)) == 6


def test_summaries_and_calls_for_them_are_no_turns_of_the_chat_model(assistant: Assistant) -> None:
    chat = HMTChatModel(engine=assistant, max_tokens=6)
    summaries = SummarizationMiddleware(chat, trigger=("messages", 4), keep=("messages", 3))
    agent = create_agent(chat, middleware=[summaries], checkpointer=InMemorySaver())
    for text in ("one", "two", "three", "four"):
        agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant)[::2] == ["one", "two", "three", "four"] and len(stored(assistant)) == 8


def test_the_chat_model_in_an_agent_remembers_a_thread_once(assistant: Assistant) -> None:
    """With and without a checkpointer the session holds each turn once; a turn that is edited replaces what followed."""
    chat = HMTChatModel(engine=assistant, max_tokens=6)
    agent = create_agent(chat, checkpointer=InMemorySaver())
    for text in ("one", "two"):
        agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
    assert stored(assistant)[::2] == ["one", "two"] and len(stored(assistant)) == 4
    history = list(agent.get_state_history(THREAD))
    after_one = next(state for state in history if len(state.values.get("messages", ())) == 2)
    agent.invoke({"messages": [HumanMessage("TWO")]}, after_one.config)
    assert stored(assistant)[::2] == ["one", "TWO"] and len(stored(assistant)) == 4
    create_agent(chat).invoke({"messages": [HumanMessage("three")]}, THREAD)
    assert stored(assistant)[::2] == ["one", "TWO", "three"]


def run_apart(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run_script(SUPPORT / "agent_worker.py", str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_thread_goes_on_in_new_processes_and_is_forked_by_a_checkpoint(tmp_path: Path) -> None:
    """Each run is a process of its own; the session follows the thread, also back to an earlier checkpoint."""
    first = run_apart(tmp_path, "one")
    second = run_apart(tmp_path, "two")
    assert second["thread"][::2] == ["one", "two"] and second["session"] == second["thread"]
    third = run_apart(tmp_path, "three")
    assert third["session"] == third["thread"] and len(third["thread"]) == 6
    forked = run_apart(tmp_path, "TWO", first["checkpoint"])
    assert forked["thread"][::2] == ["one", "TWO"] and forked["session"] == forked["thread"]
    again = run_apart(tmp_path, "TWO", first["checkpoint"])  # another try
    assert again["thread"] == forked["thread"] == again["session"]
