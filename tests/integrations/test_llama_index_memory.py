"""Memories and memory blocks in LlamaIndex, over a model that says what a script wants."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import Memory
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock
from llama_indexed import MODEL, answer, user

from hmt_memory import Assistant
from llama_index_hmt.messages import to_dicts


def contents(memory: HMTMemory) -> list[str | None]:
    return [one.content for one in memory.get_all()]


# --- HMTMemory ----------------------------------------------------------------------------------------------------------

FACTS = [user("The door code is 4071."), answer("Noted.")]
TALK = [message for at in range(30) for message in (user(f"Line {at} says little."), answer("Yes."))]


@pytest.fixture
def memory(assistant: Assistant) -> HMTMemory:
    return HMTMemory(engine=assistant, session_id="alice", token_limit=400)


def test_everything_is_kept_and_the_window_holds_the_latest_and_what_is_recalled(memory: HMTMemory) -> None:
    memory.put_messages([*FACTS, *TALK, user("What is the door code?")])
    assert contents(memory) == [one.content for one in [*FACTS, *TALK, user("What is the door code?")]]
    system, *window = memory.get()
    assert system.role == "system" and (system.content or "").startswith("Recalled from earlier:\n\n[20")
    assert "4071" in (system.content or "")
    assert window[0].role == "user" and window[-1] == user("What is the door code?") and 2 < len(window) < 30
    assert sum(len(one.content or "") for one in [system, *window]) <= 400
    (other, *_) = memory.get(input="Which line says little? Line 3?")
    assert "3 says little" in (other.content or "")


def test_a_window_that_begins_inside_a_segment_hides_nothing(memory: HMTMemory, assistant: Assistant) -> None:
    (_, second, *_) = assistant.add("alice", to_dicts([user("The blue key."), *TALK, user("And?")]))
    session = assistant.session("alice")
    assert session.recall("blue key", before=second)[0].segment == 0, "both begin in the first segment"
    assert "blue key" in (memory.get(input="Where is the blue key?")[0].content or "")


def test_a_short_conversation_is_shown_whole(memory: HMTMemory) -> None:
    assert memory.get() == [] and memory.get_all() == []
    memory.put_messages([answer("Welcome."), *FACTS])
    assert memory.get() == memory.get_all() == [answer("Welcome."), *FACTS]


def test_what_comes_before_takes_from_the_window(memory: HMTMemory) -> None:
    memory.put_messages(TALK)
    assert len(memory.get(initial_token_count=100)) < len(memory.get())
    with pytest.raises(ValueError, match="what comes before the messages has 400 tokens, not under token_limit=400"):
        memory.get(initial_token_count=400)
    assert memory.tokenizer_fn("four") == memory.assistant().token_ids("four")


def test_a_call_is_not_parted_from_its_result_and_the_last_turn_is_whole(memory: HMTMemory) -> None:
    call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="c", tool_name="look", tool_kwargs={"at": 1})])
    result = ChatMessage(role="tool", content="found " * 60, additional_kwargs={"tool_call_id": "c"})
    turn = [user("Look, please."), call, result, answer("There.")]
    memory.put_messages([*TALK, *turn])
    assert memory.get() == turn, "longer than the limit, and nothing else beside it"
    assert memory.get_all()[-4:] == turn


def test_the_limit_counts_what_calls_say(memory: HMTMemory) -> None:
    call = ToolCallBlock(tool_call_id="c", tool_name="write", tool_kwargs={"text": "z" * 300})
    result = ChatMessage(role="tool", content="ok", additional_kwargs={"tool_call_id": "c"})
    for at in range(4):
        memory.put_messages([user(f"q{at}"), ChatMessage(role="assistant", blocks=[call]), result])
    assert [one.content for one in memory.get() if one.role == "user"] == ["q3"]


def test_what_get_shows_is_not_the_conversation(memory: HMTMemory) -> None:
    memory.put_messages([*FACTS, *TALK])
    with pytest.raises(ValueError, match="Set those of get_all"):
        memory.set(memory.get())
    memory.set(memory.get_all())
    assert len(memory.get_all()) == len([*FACTS, *TALK])


def test_a_memory_that_is_reset_meanwhile_shows_nothing(memory: HMTMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.put_messages(FACTS)
    window = HMTMemory._window

    def reset_first(self: HMTMemory, limit: int) -> Any:
        self.reset()
        return window(self, limit)

    monkeypatch.setattr(HMTMemory, "_window", reset_first)
    assert memory.get() == []


def test_a_system_message_is_kept_apart(memory: HMTMemory) -> None:
    memory.set([ChatMessage(role="system", content="Be brief."), *FACTS])
    assert memory.get() == [ChatMessage(role="system", content="Be brief."), *FACTS]
    memory.put_messages([*TALK, user("What is the door code?")])
    (system, *window) = memory.get()
    assert (system.content or "").startswith("Be brief.\n\nRecalled") and all(one.role != "system" for one in window)


def test_setting_and_resetting(memory: HMTMemory, assistant: Assistant) -> None:
    memory.set([*FACTS, *TALK])
    ids = [one.id for one in assistant.session("alice").messages()]
    memory.set([*FACTS, *TALK[:4]])
    assert [one.id for one in assistant.session("alice").messages()] == ids[:6], "what stays is not read again"
    memory.set([*FACTS, user("Other.")])
    assert contents(memory) == [*(one.content for one in FACTS), "Other."]
    assert contents(HMTMemory.from_defaults("alice", chat_history=[], engine=assistant)) == contents(memory)
    HMTMemory.from_defaults("alice", chat_history=FACTS, engine=assistant)
    assert contents(memory) == [one.content for one in FACTS]
    memory.reset()
    assert contents(memory) == [] and assistant.store.sessions() == []
    memory.reset()
    memory.put(user("New."))
    assert contents(memory) == ["New."]


def test_what_is_given_out_is_nobody_else_s(memory: HMTMemory) -> None:
    message = user("mine")
    memory.put(message)
    message.blocks = [TextBlock(text="changed")]
    for one in (memory.get()[0], memory.get_all()[0]):
        one.blocks[0].text = "changed"  # type: ignore[union-attr]
    assert contents(memory) == ["mine"]


def test_pictures_are_refused_and_nothing_is_stored(memory: HMTMemory) -> None:
    picture = ChatMessage(role="user", blocks=[ImageBlock(image=b"123", image_mimetype="image/png")])
    with pytest.raises(ValueError, match="read text only"):
        memory.put_messages([user("one"), picture])
    assert memory.get_all() == []


async def test_sync_async_and_threads_write_the_same(memory: HMTMemory) -> None:
    await memory.aput(user("one"))
    await memory.aput_messages([answer("two"), user("three")])
    await asyncio.gather(*(memory.aput(answer(f"at once {at}")) for at in range(8)))
    assert contents(memory)[:3] == ["one", "two", "three"] and len(await memory.aget_all()) == 11
    assert await memory.aget(input="x") == memory.get(input="x")
    await memory.aset([user("only")])
    assert contents(memory) == ["only"]
    await memory.areset()
    assert await memory.aget() == []


def test_two_sessions_never_meet(assistant: Assistant) -> None:
    alice, bob = (HMTMemory.from_defaults(name, llm=HMTLLM(engine=assistant), token_limit=300) for name in ("alice", "bob"))
    alice.put_messages([*FACTS, *TALK])
    bob.put_messages([user("My code is 9999."), *TALK, user("What is the door code?")])
    assert "4071" not in "".join(one.content or "" for one in bob.get(input="What is the door code?"))
    assert "9999" not in "".join(one.content or "" for one in alice.get(input="What is my code?"))


def test_a_memory_is_written_down_copied_and_pickled(tmp_path: Path, assistant: Assistant) -> None:
    memory = HMTMemory(model="m", store=tmp_path, session_id="alice", token_limit=77)
    found = [HMTMemory.from_dict(memory.to_dict()), copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    for one in found:
        assert one.to_dict() == memory.to_dict() and one.assistant() is memory.assistant()
    own = HMTLLM(model="m", adapter="trained", dtype="float32", device="cpu", store=tmp_path)
    of_llm = HMTMemory.from_defaults("alice", llm=own)
    for name in ("model_name", "adapter", "dtype", "device", "store"):
        assert of_llm.to_dict()[name] == own.to_dict()[name], "a copy reads with the same model"
    block = HMTMemoryBlock(model="m", store=tmp_path, session_id="alice")
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), HMTMemoryBlock(**block.model_dump())):
        assert other.model_dump() == block.model_dump() and other.assistant() is block.assistant()


WORDS = st.text("abcdefgh ", min_size=1, max_size=60)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), WORDS), max_size=12), st.integers(40, 300))
def test_the_window_is_bounded_begins_with_a_user_and_ends_with_the_last(
    tmp_path_factory: pytest.TempPathFactory, talk: list[tuple[str, str]], limit: int
) -> None:
    assistant = Assistant(MODEL, store=tmp_path_factory.mktemp("m"))
    memory = HMTMemory(engine=assistant, session_id="s", token_limit=limit)
    messages = [ChatMessage(role=role, content=text) for role, text in talk]
    memory.put_messages(messages)
    shown = memory.get()
    window = [one for one in shown if one.role != "system"]
    total = sum(len(one.content or "") for one in shown)
    assert window == messages[len(messages) - len(window) :]
    turns = [at for at, one in enumerate(messages) if one.role == "user"]
    last_turn = messages[turns[-1] :] if turns else messages
    if total > limit:
        assert len(shown) == len(window) == len(last_turn)
    elif len(window) < len(messages):
        assert window[0].role == "user"


# --- HMTMemoryBlock -----------------------------------------------------------------------------------------------------


def waterfall(assistant: Assistant, session: str, block: HMTMemoryBlock | None = None, **options: Any) -> Memory:
    return Memory.from_defaults(
        session_id=session,
        token_limit=200,
        token_flush_size=40,
        tokenizer_fn=assistant.token_ids,
        memory_blocks=[block or HMTMemoryBlock(engine=assistant, similarity_top_k=3, **options)],
    )


async def test_what_falls_out_of_the_window_is_recalled(assistant: Assistant) -> None:
    memory = waterfall(assistant, "alice")
    for message in [*FACTS, *TALK, user("What is the door code?")]:
        await memory.aput(message)
    stored = [one.content for one in assistant.session("alice").messages()]
    assert stored[0] == "The door code is 4071." and len(stored) < len([*FACTS, *TALK]), "the window is not in the block"
    system, *window = await memory.aget()
    assert system.role == "system" and "4071" in (system.content or "") and "<HMTMemory>" in (system.content or "")
    assert all((one.content or "") not in stored or one.content == "Yes." for one in window)
    assert "4071" in (memory.get()[0].content or "")  # the sync twin, inside a running loop


async def test_what_fills_no_segment_yet_is_recalled_too(assistant: Assistant) -> None:
    block = HMTMemoryBlock(engine=assistant)
    await block.aput([user("Code 4071.")], session_id="alice")
    assert assistant.session("alice").stats()["segments"] == 0
    assert "4071" in await block.aget([user("Which code?")], session_id="alice")
    assert await block.aget([user("Code 4071."), user("Code 4071.")], session_id="alice") == "", "what shows anyway is not"


async def test_one_block_for_two_memories_keeps_them_apart(assistant: Assistant) -> None:
    block = HMTMemoryBlock(engine=assistant)
    alice, bob = waterfall(assistant, "alice", block), waterfall(assistant, "bob", block)
    for message in [*FACTS, *TALK]:
        await alice.aput(message)
        await bob.aput(message.model_copy(update={"blocks": [TextBlock(text=(message.content or "").replace("4071", "9999"))]}))
    shown = {name: str(await one.aget(input="What is the door code?")) for name, one in (("a", alice), ("b", bob))}
    assert "4071" in shown["a"] and "9999" not in shown["a"] and "9999" in shown["b"] and "4071" not in shown["b"]
    await block.areset("alice")
    assert assistant.store.sessions() == ["bob"] and await block.aget([user("door code?")], session_id="alice") == ""


async def test_a_block_truncates_whole_passages_and_survives_nothing(assistant: Assistant) -> None:
    block = HMTMemoryBlock(engine=assistant, session_id="alice", similarity_top_k=4)
    await block.aput([*FACTS, *TALK])
    content = await block.aget([user("What is the door code? Line 3?")])
    assert content.count("\n\n[") == 5, "four, and what fills no segment yet"
    less = await block.atruncate(content, 1)
    assert (
        less is not None and less.count("\n\n[") == 4 and less.startswith("Recalled from earlier:") and len(less) < len(content)
    )
    assert await block.atruncate(content, 10_000) is None and await block.atruncate([], 5) is None
    assert await block.atruncate(content, 0) == content
    memory = waterfall(assistant, "alice", priority=1)
    for message in [*FACTS, *TALK, user("What is the door code? " * 8)]:
        await memory.aput(message)
    assert sum(len(one.content or "") for one in await memory.aget()) < 600


async def test_a_block_asks_whose_messages_they_are_and_leaves_pictures_out(assistant: Assistant) -> None:
    block = HMTMemoryBlock(engine=assistant)
    with pytest.raises(ValueError, match="whose messages are these"):
        await block.aput([user("x")])
    assert await block.aget([user("x")]) == "" and await block.aget() == ""
    picture = ChatMessage(
        role="user", blocks=[ImageBlock(image=b"1", image_mimetype="image/png"), TextBlock(text="Look, a cat.")]
    )
    await block.aput([picture], session_id="alice")
    assert [one.content for one in assistant.session("alice").messages()] == ["Look, a cat."]
    await block.aput([ChatMessage(role="system", content="A rule. " * 50), user("fact")], session_id="rules")
    assert [one.role for one in assistant.session("rules").messages()] == ["user", "user"], "no rule is in force"
    await block.aput([user("short")], from_short_term_memory=True, session_id="alice")
    assert len(assistant.session("alice").messages()) == 2


@pytest.mark.slow
async def test_memory_around_a_model_that_is_not_ours(assistant: Assistant) -> None:
    memory = HMTMemory(engine=assistant, session_id="alice", token_limit=400)
    engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
    engine.chat("The door code is 4071.")
    for at in range(12):
        engine.chat(f"Line {at} says little.")
    # This model repeats what it is shown.
    assert "4071" in str(engine.chat("What is the door code?"))
