"""`HMTRetriever`: passages of a session or of corpora, recalled for a question, as LangChain documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import Field

from .engine import Names, Sessioned
from .errors import as_langchain


class HMTRetriever(Sessioned, BaseRetriever):
    """Recalls verbatim passages with their weights, heaviest first; no embedding model is needed.

    With `corpora` it recalls from documents that `add_documents`, or `hmt read`, has read; without, from the session of a call,
    and nothing where there is no such session yet.
    """

    corpora: Names = ()
    """Corpora to recall from, instead of a session; documents are read into the first."""
    k: int = Field(default=4, ge=1)
    """How many passages are recalled."""
    min_weight: float = Field(default=0.0, ge=0)
    """Passages that weigh less are left out."""

    def add_documents(self, documents: list[Document], *, corpus: str | None = None) -> list[int]:
        """Read documents into the first of `corpora`, or into `corpus`. They are on disk when it returns.

        Returns:
            Their ids in the corpus.

        Raises:
            ValueError: no corpus is named.
        """
        name = corpus or next(iter(self.corpora), None)
        if name is None:
            raise ValueError("name a corpus to read into: HMTRetriever(corpora=('handbook',)).")
        bodies = [
            {
                "text": one.page_content,
                "name": str(one.metadata.get("source") or one.id or f"document {at}"),
                "metadata": one.metadata,
            }
            for at, one in enumerate(documents, start=1)
        ]
        with as_langchain():
            return self.assistant().corpus(name).add_documents(bodies)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return super().invoke(input, config, **self.with_session(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
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
            found = assistant.recall(query, corpora=self.corpora, top_k=wanted)
        elif session_id is not None and assistant.has_session(session_id):
            found = assistant.recall(query, session=session_id, top_k=wanted)
        else:
            return []
        return [
            Document(
                id=one.id,
                page_content=one.text,
                metadata={
                    **one.metadata,
                    "source": one.source,
                    "segment_index": one.segment,
                    "attention_weight": one.weight,
                    "token_span": list(one.token_span),
                    "created_at": one.created_at.isoformat(),
                    **({"session_id": session_id} if not self.corpora else {}),
                },
            )
            for one in found
            if one.weight >= self.min_weight
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, lambda: self._get_relevant_documents(query, **kwargs))
