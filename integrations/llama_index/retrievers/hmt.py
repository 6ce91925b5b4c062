"""`HMTRetriever`: passages of corpora or of a session, recalled for a question, as LlamaIndex nodes; no embedding model.

A corpus is read once, from LlamaIndex documents, and recalled from at any time; `refresh` reads what has changed.
`HMTQueryEngine` answers from corpora through their memory and notes of their passages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.llms.hmt import HMTLLM

from llama_index_hmt.engine import assistant_of, off_the_loop  # first: it says what to install

# isort: split
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.schema import (
    Document,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

if TYPE_CHECKING:
    from llama_index.core.callbacks import CallbackManager

    from hmt_memory import Corpus, RecalledSegment
    from hmt_memory.assistant import Answer

_T = TypeVar("_T")
log = logging.getLogger("llama_index.hmt")
_EMPTY = "Empty Response"  # the answer of LlamaIndex's own engines when nothing was retrieved
_DOCUMENT = "document_id"  # the key of LlamaIndex's id in the stored metadata


class HMTRetriever(BaseRetriever):
    """A retriever of verbatim passages with their weights, heaviest first.

    Args:
        corpora: names of the corpora to recall from; `add_documents` and `refresh` make the first of them.
        session_id: the session to recall from instead; nothing is recalled while there is no such session.
        similarity_top_k: passages recalled.
        llm: an `HMTLLM` whose model and store are used.
        callback_manager: of LlamaIndex.
        verbose: of LlamaIndex.
        settings: fields of `HMTEngine` if there is no `llm`: model, adapter, store, dtype, device.

    A node's id names its segment; its metadata has the document's own, its source, segment, token span and time. A model is
    shown none of that.

    Raises:
        ValueError: neither corpora nor a session is named, or both are.
    """

    def __init__(
        self,
        corpora: str | Sequence[str] = (),
        *,
        session_id: str | None = None,
        similarity_top_k: int = 8,
        llm: HMTLLM | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        **settings: Any,
    ) -> None:
        self.corpora = (corpora,) if isinstance(corpora, str) else tuple(corpora)
        self._session_id, self.similarity_top_k = session_id, similarity_top_k
        if bool(self.corpora) == (session_id is not None):
            raise ValueError(
                'name corpora to recall from, HMTRetriever("handbook"), or a session: HMTRetriever(session_id="alice").'
            )
        self._assistant = assistant_of(llm, settings)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def add_documents(self, documents: Sequence[Document]) -> list[int]:
        """Read documents into the first of the corpora. They are on disk when it returns.

        Returns:
            Their ids in the corpus, for `Corpus.remove`.

        Raises:
            ValueError: this retriever recalls from a session, or a document has no text; nothing is stored then.
        """
        return self._corpus().add_documents([_body(document) for document in documents])

    def refresh(self, documents: Sequence[Document]) -> list[bool]:
        """Read the documents that are new or have changed since they were read; the others cost nothing.

        A document is known by its given id, by its file and page, or else by its text. Documents of one file and page are read
        together: pass all of them. A document that is missing here is not removed; one without text is left out.

        Returns:
            For each, whether it was read.
        """
        corpus, bodies = self._corpus(), [_body(document) for document in documents]
        said = [body for body in bodies if body["text"].strip()]
        stored = _by_key((_key(document.text, document.metadata), document) for document in corpus.documents())
        given = _by_key((_key(body["text"], body["metadata"]), body) for body in said)
        changed = {
            key
            for key, group in given.items()
            if sorted(document.text for document in stored.get(key, ())) != sorted(body["text"] for body in group)
        }
        gone = [document.id for key in changed for document in stored.get(key, ())]
        corpus.add_documents([body for key in given if key in changed for body in given[key]], replacing=gone)
        if len(said) < len(bodies):
            log.warning("%d documents without text were left out of corpus %r", len(bodies) - len(said), corpus.name)
        return [_key(body["text"], body["metadata"]) in changed for body in bodies]

    def _corpus(self) -> Corpus:
        if not self.corpora:
            raise ValueError('documents are read into a corpus, and this retriever has a session: HMTRetriever("handbook").')
        return self._assistant.corpus(self.corpora[0])

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        if not query.strip() or (self._session_id is not None and not self._assistant.has_session(self._session_id)):
            return []
        passages = self._assistant.recall(query, session=self._session_id, corpora=self.corpora, top_k=self.similarity_top_k)
        return [NodeWithScore(node=_node(passage), score=passage.weight) for passage in passages]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class HMTQueryEngine(BaseQueryEngine):
    """A query engine over corpora: the model's memory of them answers, together with the passages that the question recalls.

    Args:
        corpora: names of the corpora.
        llm: its model, store and decoding are used.
        system_prompt: how to answer.
        streaming: give `StreamingResponse`s, whose text comes piece by piece.
        callback_manager: of LlamaIndex.

    A response's `source_nodes` are the passages that were shown, and their places are in its `metadata`. For another LLM, or
    for node postprocessors, put an `HMTRetriever` into LlamaIndex's own `RetrieverQueryEngine`.

    >>> HMTQueryEngine("handbook").retriever.similarity_top_k
    8
    """

    def __init__(
        self,
        corpora: str | Sequence[str],
        *,
        llm: HMTLLM | None = None,
        system_prompt: str | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._llm = llm or HMTLLM()
        self.retriever = HMTRetriever(corpora, llm=self._llm)
        self._system_prompt, self._streaming = system_prompt or self._llm.system_prompt, streaming
        super().__init__(callback_manager)

    @classmethod
    def from_documents(cls, documents: Sequence[Document], corpus: str, **options: Any) -> HMTQueryEngine:
        """Make an engine over a corpus that holds these documents; documents that it holds already are not read again.

        Args:
            documents: of the corpus.
            corpus: its name.
            **options: of the class.
        """
        engine = cls(corpus, **options)
        engine.retriever.refresh(documents)
        return engine

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the passages that a question recalls."""
        return self.retriever.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return the passages that a question recalls, off the event loop."""
        return await self.retriever.aretrieve(query_bundle)

    def _get_prompt_modules(self) -> Any:
        return {}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        asked: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=asked) as event:
            answer, pieces = self._begun(query_bundle)
            nodes = _nodes(answer.recalled)
            response: RESPONSE_TYPE = (
                StreamingResponse(pieces, **nodes) if self._streaming else Response("".join(pieces), **nodes)
            )
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        if not self._streaming:
            return await asyncio.to_thread(self._query, query_bundle)
        answer, pieces = await asyncio.to_thread(self._begun, query_bundle)
        return AsyncStreamingResponse(off_the_loop(pieces), **_nodes(answer.recalled))

    def _begun(self, query_bundle: QueryBundle) -> tuple[Answer, Generator[str, None, None]]:
        """Return an answer whose passages are chosen, and an iterator over all of its pieces."""
        question, corpora = query_bundle.query_str, self.retriever.corpora
        answer = self._llm.assistant().ask(question, corpora, system=self._system_prompt, **self._llm.decoding({}))
        first = next(answer, "")
        nothing = not answer.recalled and not self.retriever.retrieve(query_bundle)

        def pieces() -> Generator[str, None, None]:
            yield _EMPTY if nothing else first
            yield from () if nothing else answer

        return answer, pieces()


def _nodes(recalled: Sequence[RecalledSegment]) -> dict[str, Any]:
    """Return the sources of a response."""
    nodes = [NodeWithScore(node=_node(passage), score=passage.weight) for passage in recalled]
    return {"source_nodes": nodes, "metadata": {node.node_id: node.metadata for node in nodes}}


def _body(document: Document) -> dict[str, Any]:
    """Convert a document to the form that `Corpus.add_documents` takes."""
    from hmt_memory.assistant import name_of

    about = document.metadata
    text = document.get_content(metadata_mode=MetadataMode.NONE)
    own = "" if _is_random(document.id_) else document.id_
    name = own or str(about.get("file_name") or about.get("file_path") or name_of(text))
    page = f", page {about['page_label']}" if "page_label" in about and not own else ""
    plain = json.loads(json.dumps(about, default=str, ensure_ascii=False))  # readers leave dates and paths there
    return {"name": name + page, "text": text, "metadata": {**plain, _DOCUMENT: document.id_}}


def _is_random(document_id: str) -> bool:
    try:
        return uuid.UUID(document_id).version == 4
    except ValueError:
        return False


def _key(text: str, about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key by which a document is recognised: its given id, its file and page, or its text."""
    own = about.get(_DOCUMENT)
    if own is not None and not _is_random(own):
        return "id", own
    file = about.get("file_path") or about.get("file_name")
    return ("file", str(file), str(about.get("page_label"))) if file else ("text", text)


def _by_key(documents: Iterable[tuple[tuple[str, ...], _T]]) -> dict[tuple[str, ...], list[_T]]:
    groups: dict[tuple[str, ...], list[_T]] = {}
    for key, document in documents:
        groups.setdefault(key, []).append(document)
    return groups


def _node(passage: RecalledSegment) -> TextNode:
    brought = dict(passage.metadata)
    document = brought.pop(_DOCUMENT, None)
    ours = {
        "source": passage.source,
        "segment": passage.segment,
        "token_span": list(passage.token_span),
        "created_at": passage.created_at.isoformat(),
    }
    about = {f"document_{name}" if name in ours else name: value for name, value in brought.items()} | ours
    relations: Any = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=str(document))} if document is not None else {}
    return TextNode(
        id_=passage.id,
        text=passage.text,
        metadata=about,
        relationships=relations,
        excluded_llm_metadata_keys=[*about],
        excluded_embed_metadata_keys=[*about],
    )
