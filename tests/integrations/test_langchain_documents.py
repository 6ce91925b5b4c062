"""The retriever as an index of documents: each is read once, replaced where it has changed, found again, and erased."""

from __future__ import annotations

import uuid
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite
from tiny import SMALL, byte_tokenizer, light_model

from hmt_memory import Assistant, HMTError
from langchain_hmt import HMTRetriever

MODEL = light_model(config=SMALL, tokenizer=byte_tokenizer())
NOTICE = Document("The notice period is three months.", metadata={"source": "contract.md", "year": 2024})
LUNCH = Document("The canteen opens at noon.", metadata={"source": "canteen.md"})


@pytest.fixture
def retriever(tmp_path: Path) -> HMTRetriever:
    return HMTRetriever(engine=Assistant(MODEL, store=tmp_path), corpora="handbook")


class TestAsDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, retriever: HMTRetriever) -> HMTRetriever:  # type: ignore[override]
        return retriever


class TestAsAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, retriever: HMTRetriever) -> HMTRetriever:  # type: ignore[override]
        return retriever


def texts(retriever: HMTRetriever) -> list[str]:
    return [one.page_content for one in retriever.list_documents()]


def reads(retriever: HMTRetriever) -> Any:
    """Something that changes when anything is read or erased."""
    return retriever.assistant().store.corpus("handbook").version()


def test_documents_that_are_added_again_are_recognised(retriever: HMTRetriever) -> None:
    ids = retriever.add_documents([NOTICE, LUNCH])
    before = reads(retriever)
    assert retriever.add_documents([LUNCH, NOTICE]) == ids[::-1] and reads(retriever) == before
    twice = retriever.add_documents([Document("Said twice."), Document("Said twice.")])
    assert len(set(twice)) == 1
    assert texts(retriever) == [NOTICE.page_content, LUNCH.page_content, "Said twice."]


def test_an_id_that_is_given_again_replaces(retriever: HMTRetriever) -> None:
    retriever.add_documents([Document("The code is 4071.", id="code"), NOTICE])
    assert retriever.add_documents([Document("The code is 4072.")], ids=["code"]) == ["code"]
    (found,) = retriever.get_by_ids(["code", "missing"])
    assert (found.page_content, found.metadata, found.id) == ("The code is 4072.", {}, "code")
    retriever.add_documents([Document("The code is 4072.", id="code", metadata={"year": 2025})])
    assert retriever.get_by_ids(["code"])[0].metadata == {"year": 2025} and len(texts(retriever)) == 2
    assert b"4071" not in b"".join(one.read_bytes() for one in Path(retriever.store).iterdir() if one.is_file())
    with pytest.raises(exceptions.ModelInvalidRequestError, match="2 ids for 1 documents"):
        retriever.add_documents([NOTICE], ids=["a", "b"])


def test_chunks_of_one_file_are_told_apart_by_their_text(retriever: HMTRetriever) -> None:
    chunks = [Document(f"Part {at} of it.", metadata={"source": "a.md"}) for at in range(3)]
    assert len(set(retriever.add_documents(chunks))) == 3 and len(texts(retriever)) == 3


def test_what_is_listed_and_deleted(retriever: HMTRetriever) -> None:
    assert retriever.list_documents() == [] == retriever.get_by_ids(["x"])
    assert retriever.assistant().store.corpora() == [], "looking makes no corpus"
    first, second = retriever.add_documents([NOTICE, LUNCH])
    assert [(one.id, one.metadata) for one in retriever.list_documents()] == [
        (first, NOTICE.metadata),
        (second, LUNCH.metadata),
    ]
    assert retriever.delete([first, "missing"]) == {
        "num_deleted": 1,
        "succeeded": [first],
        "num_failed": 0,
        "failed": [],
    }
    assert texts(retriever) == [LUNCH.page_content]
    with pytest.raises(exceptions.ModelInvalidRequestError, match="name the ids") as refused:
        retriever.delete()
    assert isinstance(refused.value, HMTError)


def test_a_passage_names_its_document(retriever: HMTRetriever) -> None:
    (id,) = retriever.add_documents([NOTICE])
    found = retriever.invoke("notice period")[0]
    assert found.metadata["document_id"] == id and retriever.get_by_ids([found.metadata["document_id"]])[
        0
    ] == NOTICE.model_copy(update={"id": id})
    assert found.metadata["year"] == 2024 and "langchain_id" not in found.metadata


def test_refreshing_reads_what_has_changed(retriever: HMTRetriever) -> None:
    assert retriever.refresh([NOTICE, LUNCH, Document("  ")]) == [True, True, False]
    before = reads(retriever)
    assert retriever.refresh([LUNCH]) == [False] and reads(retriever) == before
    later = Document("The canteen opens at one.", metadata={"source": "canteen.md"})
    pages = [Document(f"Page {at}", metadata={"source": "b.pdf", "page": at}) for at in (0, 1)]
    assert retriever.refresh([NOTICE, later, *pages]) == [False, True, True, True]
    assert texts(retriever) == [NOTICE.page_content, later.page_content, "Page 0", "Page 1"]
    changed = Document("Page one", metadata={"source": "b.pdf", "page": 1})
    assert retriever.refresh([pages[0], changed]) == [False, True] and texts(retriever)[-2:] == ["Page 0", "Page one"]
    assert retriever.refresh([Document("The code is 4071.", id="code")]) == [True]
    assert retriever.refresh([Document("The code is 4072.", id="code")]) == [True] and texts(retriever)[-1].endswith("4072.")


def test_what_a_command_read_is_recognised_and_what_readers_leave_in_metadata_is_stored(retriever: HMTRetriever) -> None:
    retriever.assistant().corpus("handbook").add_documents([("canteen.md", LUNCH.page_content)])
    assert retriever.refresh([LUNCH]) == [False]
    assert retriever.add_documents([LUNCH]) == [retriever.list_documents()[0].id] and len(texts(retriever)) == 1
    retriever.add_documents([Document("Dated.", metadata={"day": date(2024, 1, 2)})])
    assert retriever.list_documents()[-1].metadata == {"day": "2024-01-02"}


@pytest.mark.filterwarnings("ignore:.*is in beta", "ignore:.*SHA-1")
def test_langchains_indexing_keeps_it_up_to_date(retriever: HMTRetriever) -> None:
    records = InMemoryRecordManager("handbook")
    records.create_schema()
    options: Any = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
    assert index([NOTICE, LUNCH], records, retriever, **options)["num_added"] == 2
    later = Document("The canteen opens at one.", metadata={"source": "canteen.md"})
    found = index([NOTICE, later], records, retriever, **options)
    assert (found["num_added"], found["num_skipped"], found["num_deleted"]) == (1, 1, 1)
    assert sorted(texts(retriever)) == sorted([NOTICE.page_content, later.page_content])


async def test_async_and_a_session_s_retriever(retriever: HMTRetriever) -> None:
    (id,) = await retriever.aadd_documents([NOTICE])
    assert [one.id for one in await retriever.aget_by_ids([id])] == [id]
    await retriever.adelete([id])
    assert texts(retriever) == []
    of_a_session = HMTRetriever(engine=retriever.assistant(), session_id="alice")
    for call in (lambda: of_a_session.add_documents([NOTICE]), of_a_session.list_documents, lambda: of_a_session.delete(["a"])):
        with pytest.raises(exceptions.ModelInvalidRequestError, match="name a corpus"):
            call()
    assert uuid.UUID(id)
