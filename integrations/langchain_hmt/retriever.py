"""`HMTRetriever`: passages of a session or of corpora, recalled for a question, and the documents of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.indexing import DeleteResponse, DocumentIndex, UpsertResponse
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import Field

from .documents import Held, body, brought, grouped, held, key, same, with_ids
from .engine import Names, Sessioned
from .errors import HMTInvalidRequestError, as_langchain


class HMTRetriever(Sessioned, DocumentIndex):
    """A retriever of verbatim passages with their weights, heaviest first; no embedding model is needed.

    With `corpora` it recalls from documents that `add_documents`, or `hmt read`, has read; without, from the session of a call,
    and nothing if there is no such session yet. It is LangChain's `DocumentIndex` too: `langchain_core.indexing.index` keeps
    a corpus up to date.

    A document is known by its id, or else by its source, page and text. The calls about documents use the first of `corpora`,
    unless they name a `corpus`.
    """

    corpora: Names = ()
    """Corpora to recall from, instead of a session; documents are read into the first."""
    k: int = Field(default=4, ge=1)
    """The number of passages that are recalled."""
    min_weight: float = Field(default=0.0, ge=0)
    """The least weight of a passage; lighter ones are left out."""

    def add_documents(
        self, documents: Sequence[Document], *, ids: Sequence[str | None] | None = None, corpus: str | None = None
    ) -> list[str]:
        """Read documents that the corpus does not hold yet, in place of others with their ids. On disk when it returns.

        Args:
            documents: with text, and metadata of JSON types or types that can be printed.
            ids: replace the documents' own ids.
            corpus: to read into.

        Returns:
            The documents' ids, for `delete` and `get_by_ids`.

        Raises:
            HMTInvalidRequestError: no corpus is named, or a document has no text; nothing is stored then.
        """
        given = with_ids(documents, ids)
        wanted = {document.id: document for document in given}
        stored = grouped((str(known.document.id), known) for known in self._held(corpus))
        new = {
            document_id: document
            for document_id, document in wanted.items()
            if [document] != [known.document for known in stored.get(str(document_id), ())]
        }
        self._read(
            list(new.values()), [known.number for document_id in new for known in stored.get(str(document_id), ())], corpus
        )
        return [str(document.id) for document in given]

    def refresh(self, documents: Sequence[Document], *, corpus: str | None = None) -> list[bool]:
        """Read the documents that are new or have changed since they were read; the others cost nothing.

        A document is known by its given id, by its source and page, or else by its text. Documents of one source and page are
        read together: pass all of them. A document that is missing here is not removed; one without text is left out.

        Returns:
            For each, whether it was read.
        """
        whole = with_ids(documents, None)
        given = grouped((key(document), document) for document in whole if document.page_content.strip())
        stored = grouped((key(known.document), known) for known in self._held(corpus))
        changed = {name for name, new in given.items() if not same(new, (known.document for known in stored.get(name, ())))}
        new = {document.id: document for name in given if name in changed for document in given[name]}
        self._read(list(new.values()), [known.number for name in changed for known in stored.get(name, ())], corpus)
        return [document.id in new for document in whole]

    def list_documents(self, *, corpus: str | None = None) -> list[Document]:
        """Return all documents of the corpus with their ids, in the order they were read; none if there is no corpus."""
        return [known.document for known in self._held(corpus)]

    def get_by_ids(self, ids: Sequence[str], /, *, corpus: str | None = None) -> list[Document]:
        """Return the documents with these ids; unknown ids are left out."""
        stored = {known.document.id: known.document for known in self._held(corpus)}
        return [stored[document_id] for document_id in dict.fromkeys(ids) if document_id in stored]

    def delete(self, ids: list[str] | None = None, *, corpus: str | None = None, **kwargs: Any) -> DeleteResponse:
        """Erase documents for good: text, embeddings, index entries.

        Args:
            ids: of the documents; unknown ids are ignored.
            corpus: that holds them.
            **kwargs: ignored.

        Raises:
            HMTInvalidRequestError: no ids are given.
        """
        if ids is None:
            raise HMTInvalidRequestError("name the ids of the documents to delete: delete([...]). list_documents() has them.")
        chosen = [known for known in self._held(corpus) if known.document.id in ids]
        if chosen:
            with as_langchain():
                self.assistant().store.corpus(self._corpus(corpus)).remove([known.number for known in chosen])
        gone = list(dict.fromkeys(str(known.document.id) for known in chosen))
        return DeleteResponse(num_deleted=len(gone), succeeded=gone, num_failed=0, failed=[])

    def upsert(self, items: Sequence[Document], /, *, corpus: str | None = None, **kwargs: Any) -> UpsertResponse:
        """Read documents as `add_documents` does.

        Args:
            items: the documents.
            corpus: to read into.
            **kwargs: ignored.
        """
        return UpsertResponse(succeeded=self.add_documents(items, corpus=corpus), failed=[])

    def get(self, ids: Sequence[str], /, *, corpus: str | None = None, **kwargs: Any) -> list[Document]:
        """Return documents as `get_by_ids` does.

        Args:
            ids: of the documents.
            corpus: that holds them.
            **kwargs: ignored.
        """
        return self.get_by_ids(ids, corpus=corpus)

    async def aadd_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[str]:
        """Read documents as `add_documents` does, off the event loop."""
        return await run_in_executor(None, lambda: self.add_documents(documents, **kwargs))

    async def aget_by_ids(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Return documents as `get_by_ids` does, off the event loop."""
        return await run_in_executor(None, lambda: self.get_by_ids(ids, **kwargs))

    def _corpus(self, named: str | None) -> str:
        name = named or next(iter(self.corpora), None)
        if name is None:
            raise HMTInvalidRequestError("name a corpus for the documents: HMTRetriever(corpora='handbook').")
        return name

    def _held(self, corpus: str | None) -> list[Held]:
        name = self._corpus(corpus)
        with as_langchain():
            store = self.assistant().store
            return [held(document) for document in store.corpus(name).documents()] if store.has("corpus", name) else []

    def _read(self, documents: Sequence[Document], replacing: Sequence[int], corpus: str | None) -> None:
        if documents:
            with as_langchain():
                self.assistant().corpus(self._corpus(corpus)).add_documents(map(body, documents), replacing=replacing)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Recall passages for a question, in the session that the call names.

        Args:
            input: the question.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call: `k`, `session_id`.
        """
        return super().invoke(input, config, **self.with_session(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Recall passages for a question, in the session that the call names, off the event loop.

        Args:
            input: the question.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call: `k`, `session_id`.
        """
        return await super().ainvoke(input, config, **self.with_session(config, kwargs))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun | None = None,
        k: int | None = None,
        session_id: str | None = None,
    ) -> list[Document]:
        with as_langchain():
            return self._recalled(query, self.k if k is None else k, session_id)

    def _recalled(self, query: str, wanted: int, session_id: str | None) -> list[Document]:
        assistant = self.assistant()
        if self.corpora:
            passages = assistant.recall(query, corpora=self.corpora, top_k=wanted)
        elif session_id is not None and assistant.has_session(session_id):
            passages = assistant.recall(query, session=session_id, top_k=wanted)
        else:
            return []
        return [
            Document(
                id=passage.id,
                page_content=passage.text,
                metadata={
                    **brought(passage.metadata),
                    "source": passage.source,
                    "segment_index": passage.segment,
                    "attention_weight": passage.weight,
                    "token_span": list(passage.token_span),
                    "created_at": passage.created_at.isoformat(),
                    **({"session_id": session_id} if not self.corpora else {}),
                },
            )
            for passage in passages
            if passage.weight >= self.min_weight
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, lambda: self._get_relevant_documents(query, **kwargs))
