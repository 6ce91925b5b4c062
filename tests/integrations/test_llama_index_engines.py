"""Memories, retriever and query engine in LlamaIndex's own engines and agents, over a model that says what a script wants."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import BaseMemory, BaseMemoryBlock, Memory
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock
from llama_index.retrievers.hmt import HMTQueryEngine, HMTRetriever
from pydantic import BaseModel
from scripted import MODEL as SCRIPTED_MODEL
from scripted import ScriptedAssistant
from tiny import REMEMBERING, byte_tokenizer, else_long, light_model

from hmt_memory import Assistant
from hmt_memory.errors import InputError, SessionNotFoundError
from llama_index_hmt.messages import to_dicts

# Segments that hold a sentence; random weights recall nothing in particular.
MODEL = light_model(
    config=replace(REMEMBERING, segment_length=64, replay_tokens=40, pinned_tokens=80, selection="words"),
    tokenizer=byte_tokenizer(),
)
NOTICE = "The notice period is three months to the end of a quarter."
CANTEEN = "The canteen opens at noon and closes at two."
SAYS = "Hello, nice to meet you."


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


@pytest.fixture
def llm(tmp_path: Path) -> HMTLLM:
    """Says what the script wants; tells engines that it takes 1,024 tokens."""
    return HMTLLM(engine=ScriptedAssistant(SCRIPTED_MODEL, store=tmp_path / "memories"), context_window=1024)


@pytest.fixture
def handbook(llm: HMTLLM) -> HMTRetriever:
    retriever = HMTRetriever("handbook", llm=llm, similarity_top_k=3)
    contract = Document(text=NOTICE, metadata={"file_name": "contract.md", "year": 2024})
    retriever.add_documents([contract, Document(text=CANTEEN)])
    return retriever


class Person(BaseModel):
    """A person."""

    name: str


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def contents(memory: HMTMemory) -> list[str | None]:
    return [one.content for one in memory.get_all()]


# --- retriever ----------------------------------------------------------------------------------------------------------


def test_classes() -> None:
    for cls, base in (
        (HMTRetriever, BaseRetriever),
        (HMTMemory, BaseMemory),
        (HMTMemoryBlock, BaseMemoryBlock),
    ):
        assert base.__name__ in [one.__name__ for one in cls.__mro__]
    assert HMTMemory.class_name() == "HMTMemory"


async def test_nodes_have_weights_stable_ids_and_sources_and_hide_their_metadata_from_models(handbook: HMTRetriever) -> None:
    found = handbook.retrieve("How long is the notice period?")
    assert [one.node_id for one in found] == [one.node_id for one in await handbook.aretrieve("How long is the notice period?")]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True) and len(found) >= 2
    best = found[0]
    assert best.node.text in NOTICE and best.metadata["source"] == "handbook/contract.md" and best.metadata["year"] == 2024
    assert re.fullmatch(r"handbook/contract\.md:1:[0-9a-f]{8}", best.node_id)
    assert best.node.get_content(MetadataMode.LLM) == best.node.get_content(MetadataMode.EMBED) == best.node.text
    start, stop = best.metadata["token_span"]
    assert best.node.text in NOTICE[start:stop], "a citation leads to the passage"
    assert handbook.retrieve(" ") == [] and len(handbook.retrieve(QueryBundle("notice", embedding=[0.0]))) == len(found)


def test_documents_of_one_name_stay_apart_and_keep_their_own_ids(llm: HMTLLM) -> None:
    pages = [
        Document(text=text, metadata={"file_path": "/a/b.pdf", "file_name": "b.pdf", "page_label": str(at)})
        for at, text in enumerate((NOTICE, CANTEEN), start=1)
    ]
    twins = [Document(text=NOTICE, metadata={"file_path": "/a/c.md"}) for _ in range(2)]
    retriever = HMTRetriever(["pages"], llm=llm, similarity_top_k=50)
    assert retriever.add_documents([*pages, *twins]) == [1, 2, 3, 4]
    found = retriever.retrieve("notice period canteen")
    assert len({one.node_id for one in found}) == len(found) >= 4
    sources = {one.node.ref_doc_id: one.metadata["source"] for one in found}
    assert sources == {
        pages[0].id_: "pages/b.pdf, page 1",
        pages[1].id_: "pages/b.pdf, page 2",
        twins[0].id_: "pages//a/c.md",
        twins[1].id_: "pages//a/c.md",
    }


def test_refreshing_reads_what_has_changed(llm: HMTLLM) -> None:
    retriever = HMTRetriever("notes", llm=llm)
    corpus = llm.assistant().corpus("notes")

    def documents(second: str = CANTEEN) -> list[Document]:
        named = [Document(text=text, metadata={"file_path": "/n.md"}) for text in (NOTICE, second)]
        return [*named, Document(text="no name"), Document(text="own id", id_="mine")]

    assert retriever.refresh(documents()) == [True] * 4
    before = {one.id for one in corpus.documents()}
    assert retriever.refresh(documents()) == [False] * 4 and {one.id for one in corpus.documents()} == before
    assert retriever.refresh(documents("The canteen is closed.")) == [True, True, False, False]
    texts = sorted(one.text for one in corpus.documents())
    assert texts == sorted([NOTICE, "The canteen is closed.", "no name", "own id"])
    assert {one.name for one in corpus.documents()} == {"/n.md", "no name", "mine"}
    with pytest.raises(InputError, match="a document is a text"):
        retriever.add_documents([Document(text="good"), Document(text=" ")])
    assert retriever.refresh([Document(text=" ")]) == [False] and len(corpus.documents()) == 4
    retriever.refresh([Document(text="dated", metadata={"day": date(2026, 11, 24)})])
    assert corpus.documents()[-1].metadata["day"] == "2026-11-24"


def test_refreshing_erases_nothing_that_is_somebody_else_s(llm: HMTLLM) -> None:
    retriever, corpus = HMTRetriever("notes", llm=llm), llm.assistant().corpus("notes")
    for folder in ("a", "b"):
        about = {"file_path": f"/{folder}/readme.md", "file_name": "readme.md"}
        retriever.refresh([Document(text=f"of {folder}", metadata=about)])
    head = "CONFIDENTIAL - Acme Corporation, Zurich office. "
    for text in ("The vault is closed.", "The canteen is open."):
        retriever.refresh([Document(text=head + text)])
    for row in ("r1", "r2"):
        retriever.refresh([Document(text=f"row {row}", id_=row, metadata={"file_path": "/t.csv"})])
    assert len(corpus.documents()) == 6 and retriever.refresh([Document(text="row r1", id_="r1")]) == [False]
    assert retriever.refresh([Document(text=head + "The vault is closed.")]) == [False]


def test_what_a_document_brought_is_in_its_nodes(llm: HMTLLM) -> None:
    retriever = HMTRetriever("notes", llm=llm)
    retriever.add_documents([Document(text="hello there", id_="d7", metadata={"source": "https://x.org", "lang": "en"})])
    (found,) = retriever.retrieve("hello")
    about = found.metadata
    assert (about["source"], about["document_source"], about["lang"], found.node.ref_doc_id) == (
        "notes/d7",
        "https://x.org",
        "en",
        "d7",
    )
    for cls in (HMTRetriever, HMTQueryEngine):
        with pytest.raises(ValueError, match="it has to be an HMTLLM, not MockLLM"):
            cls("notes", llm=MockLLM())  # type: ignore[arg-type]


def test_a_session_is_recalled_from_when_it_is_there(assistant: Assistant) -> None:
    retriever = HMTRetriever(session_id="alice", engine=assistant, similarity_top_k=1)
    assert retriever.retrieve("door code") == [] and assistant.store.sessions() == []
    for name, code in (("alice", "4071"), ("bob", "9999")):
        assistant.session(name).add({"role": "user", "content": f"The door code is {code}. " + "Remember that. " * 4})
    (found,) = retriever.retrieve("door code")
    assistant.session("new").add({"role": "user", "content": "Code 4071."})
    (short,) = HMTRetriever(session_id="new", engine=assistant).retrieve("code")
    assert "4071" in short.text and short.score == 0, "what fills no segment yet comes last"
    assert found.metadata["source"] == "alice" and "4071" in found.text and found.node_id.startswith("alice:")
    with pytest.raises(ValueError, match="this retriever has a session"):
        retriever.add_documents([Document(text="x")])
    with pytest.raises(SessionNotFoundError, match="there is no corpus 'nothing'"):
        HMTRetriever("nothing", engine=assistant).retrieve("x")
    for wrong in ({}, {"corpora": "a", "session_id": "b"}):
        with pytest.raises(ValueError, match="name corpora to recall from"):
            HMTRetriever(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave out store"):
        HMTRetriever("a", llm=HMTLLM(engine=assistant), store="b")


# --- query engines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", else_long(["compact", "refine", "tree_summarize", "simple_summarize"], "compact", "refine"))
async def test_llama_index_s_query_engine(mode: Any, llm: HMTLLM, handbook: HMTRetriever) -> None:
    post = [SimilarityPostprocessor(similarity_cutoff=1e-6)]
    engine = RetrieverQueryEngine.from_args(handbook, llm=llm, response_mode=mode, node_postprocessors=post)
    response = engine.query("How long is the notice period?")
    assert str(response) == SAYS and 1 <= len(response.source_nodes) <= 3
    assert "handbook/contract.md:1:" in response.get_formatted_sources()
    assert str(await engine.aquery("How long is the notice period?")) == SAYS
    streaming = RetrieverQueryEngine.from_args(handbook, llm=llm, response_mode=mode, streaming=True)
    assert "".join(streaming.query("notice?").response_gen) == SAYS  # type: ignore[union-attr]
    astream = await streaming.aquery("notice?")
    assert "".join([piece async for piece in astream.async_response_gen()]) == SAYS  # type: ignore[union-attr]


def test_the_citation_query_engine(llm: HMTLLM, handbook: HMTRetriever) -> None:
    engine = CitationQueryEngine(handbook, llm=llm)
    response = engine.query("How long is the notice period?")
    assert str(response) == SAYS and response.source_nodes[0].node.get_content().startswith("Source 1:")


async def test_an_empty_corpus_gives_llama_index_s_empty_response(llm: HMTLLM) -> None:
    for streaming in (False, True):
        engine = HMTQueryEngine.from_documents([Document(text=" ")], "nothing", llm=llm, streaming=streaming)
        assert str(engine.query("Anything?")) == str(await engine.aquery("Anything?")) == "Empty Response"


async def test_our_query_engine_answers_through_memory_and_says_what_it_showed(llm: HMTLLM, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "contract.md").write_text(NOTICE)
    (folder / "canteen.txt").write_text(CANTEEN * 20)
    documents = SimpleDirectoryReader(str(folder)).load_data()
    wide = HMTLLM(
        engine=ScriptedAssistant(SCRIPTED_MODEL.with_config(pinned_tokens=500, replay_tokens=300), store=tmp_path / "m")
    )
    engine = HMTQueryEngine.from_documents(documents, "docs", llm=wide, system_prompt="Be brief.")
    response = engine.query("How long is the notice period?")
    assert str(response) == "It says so." and response.source_nodes[0].metadata["file_name"] == "contract.md"
    assert response.metadata is not None and set(response.metadata) == {one.node_id for one in response.source_nodes}
    assert wide.assistant().store.sessions() == []
    again = await engine.aquery("How long is the notice period?")
    assert [one.node_id for one in again.source_nodes] == [one.node_id for one in response.source_nodes]
    streaming = HMTQueryEngine("docs", llm=wide, streaming=True)
    streamed, astreamed = streaming.query("notice period?"), await streaming.aquery("notice period?")
    assert streamed.source_nodes and astreamed.source_nodes, "sources are known before the text is read"
    assert "".join(streamed.response_gen) == "It says so."  # type: ignore[union-attr]
    assert "".join([one async for one in astreamed.async_response_gen()]) == "It says so."  # type: ignore[union-attr]
    assert [one.node_id for one in engine.retrieve(QueryBundle("notice"))] == [
        one.node_id for one in await engine.aretrieve(QueryBundle("notice"))
    ]


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


# --- HMTMemory ----------------------------------------------------------------------------------------------------------

# LlamaIndex keeps its own memory in a database that it never closes, and asks pydantic for what is no longer there.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What LlamaIndex leaves open is closed, and complains, where that is ignored."""
    yield
    gc.collect()


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


def test_a_node_is_scored_as_a_number(handbook: HMTRetriever) -> None:
    (first, *_) = handbook.retrieve("notice")
    assert isinstance(first, NodeWithScore) and isinstance(first.score, float)
