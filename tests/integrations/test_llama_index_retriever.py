"""The retriever and query engines, LlamaIndex's own and ours, over a model that says what a script wants."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import BaseMemory, BaseMemoryBlock
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock
from llama_index.retrievers.hmt import HMTQueryEngine, HMTRetriever
from llama_indexed import CANTEEN, NOTICE, SAYS
from scripted import MODEL as SCRIPTED_MODEL
from scripted import ScriptedAssistant
from tiny import else_long

from hmt_memory import Assistant
from hmt_memory.errors import InputError, SessionNotFoundError

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


def test_a_node_is_scored_as_a_number(handbook: HMTRetriever) -> None:
    (first, *_) = handbook.retrieve("notice")
    assert isinstance(first, NodeWithScore) and isinstance(first.score, float)
