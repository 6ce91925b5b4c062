"""`HMTStore`: LangGraph's long-term store in an HMT store's folder, searched by recall.

Items are documents of a corpus. Reads and filters go to LangGraph's own in-memory store, which is filled from them.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from langchain_core.runnables.config import run_in_executor
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
    tokenize_path,
)
from langgraph.store.memory import InMemoryStore

from hmt_memory.errors import SessionNotFoundError

from .engine import Engine
from .errors import HMTInvalidRequestError, as_langchain
from .lexicon import Lexicon

if TYPE_CHECKING:
    from hmt_memory.assistant import Document

_EVERYTHING = 1 << 31
_RECALL = 1 / 3  # recall's share of a score; the rest is for words: docs/guides/langchain.md
_Key = tuple[tuple[str, ...], str]


class HMTStore(BaseStore):
    """A durable store, searched without an embedding model: by HMT recall and words.

    >>> HMTStore("memories").supports_ttl
    False

    Args:
        store: folder of the items, or an open `MemoryStore`; None: where the `hmt` command keeps its sessions.
        corpus: name of the corpus that holds the items.
        fields: paths in a value whose texts are searched, as LangGraph's `index`; "$" is the whole value as JSON.
        options: fields of the other classes, such as model, adapter and selection.

    A value is JSON. An item that is put with `index=False`, or has none of the fields, is not searched: it comes last, without
    a score. An item that is replaced or deleted is gone from the disk. Several processes may use one folder; the writes of one
    `batch` are not a transaction.

    A score lies between 0 and 1. Two thirds are the share of the query's words that a passage of the item holds; rare words
    count more. One third is how much more the model's memory recalls the item than others. So an item that holds all words
    comes before one that holds none. A score depends on the query and on what is stored, not on filter, namespace or limit. If
    recall is untrained, or `selection` is "words", the words are all of it; if `selection` is "recall", recall is.
    """

    supports_ttl = False

    def __init__(self, store: Any = None, *, corpus: str = "langgraph", fields: Sequence[str] = ("$",), **options: Any) -> None:
        from .view import under

        engine = Engine(store=store, **options)
        self._assistant, self._selection = engine.assistant(), engine.selection or "fused"
        self._by_memory = under(self._assistant, {"selection": "recall"})
        self._name, self._fields = corpus, (fields,) if isinstance(fields, str) else tuple(fields)
        self._lexicon = Lexicon()
        self._mutex = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._view = InMemoryStore()
        self._documents: dict[_Key, int] = {}  # the document of each item in the view

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations. Reads see the state before the writes among them."""
        with self._mutex, as_langchain():
            self._catch_up()
            results: list[Result] = []
            puts: dict[_Key, PutOp] = {}
            for op in ops:
                if isinstance(op, PutOp):
                    puts[op.namespace, op.key] = op
                    results.append(None)
                elif isinstance(op, SearchOp) and op.query:
                    results.append(self._found(op))
                elif isinstance(op, (GetOp, SearchOp, ListNamespacesOp)):
                    results += self._view.batch([op])
                else:
                    raise HMTInvalidRequestError(f"unknown operation {type(op).__name__}. Pass LangGraph's Op objects.")
            if puts:
                self._put(puts)
            return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations as `batch` does, off the event loop."""
        return await run_in_executor(None, self.batch, list(ops))

    def _put(self, puts: Mapping[_Key, PutOp]) -> None:
        corpus, now = self._assistant.corpus(self._name), datetime.now(timezone.utc)
        bodies = []
        for (namespace, key), op in puts.items():
            if op.value is not None:
                before = self._item((namespace, key))
                times = {"created_at": (before.created_at if before else now).isoformat(), "updated_at": now.isoformat()}
                about: dict[str, Any] = {"namespace": list(namespace), "key": key, "value": op.value, **times}
                searched = self._text(op)
                about |= {} if searched else {"searched": False}  # a document has to have a text
                bodies.append({"name": _name(namespace, key), "text": searched or key.strip() or "-", "metadata": about})
        if bodies:
            corpus.add_documents(bodies, replace_named=True)
        gone = {_name(*item) for item, op in puts.items() if op.value is None}
        while ids := [document.id for document in corpus.documents() if document.name in gone] if gone else []:
            with suppress(SessionNotFoundError):  # another process has removed one of them
                corpus.remove(ids)
        self._view.batch(
            [op for op in puts.values() if op.value is None]
        )  # LangGraph's own store knows a namespace once something is deleted in it
        self._catch_up()

    def _text(self, op: PutOp) -> str:
        """Return the part of a value that is searched."""
        paths = (self._fields if op.index is None else op.index) or ()
        whole = [get_text_at_path(op.value, path if path == "$" else tokenize_path(path)) for path in paths]
        return "\n".join(text for texts in whole for text in texts if text.strip())

    def _catch_up(self) -> None:
        """Bring the in-memory store up to date with the stored documents."""
        corpus = self._assistant.corpus(self._name)
        version = corpus.version()  # read before the documents: later changes are noticed at the next call
        if version == self._version:
            return
        stored = {_key(document): document for document in corpus.documents()}
        self._view.batch([PutOp(*key, None) for key in self._documents if key not in stored])
        changed = [document for key, document in stored.items() if self._documents.get(key) != document.id]
        self._learn(changed, {*self._documents.values()} - {document.id for document in stored.values()})
        for document in sorted(changed, key=lambda document: str(document.metadata["created_at"])):
            self._view.batch([PutOp(*_key(document), document.metadata["value"])])
            item = self._item(_key(document))
            if item is not None:
                item.created_at = datetime.fromisoformat(document.metadata["created_at"])
                item.updated_at = datetime.fromisoformat(document.metadata["updated_at"])
        self._documents = {key: document.id for key, document in stored.items()}
        self._version = version

    def _learn(self, changed: Sequence[Document], gone: Iterable[int]) -> None:
        """Update the words that are searched."""
        for number in gone:
            self._lexicon.remove(number)
        for document in changed:
            if document.metadata.get("searched", True):
                self._lexicon.add(document.id, document.text)

    def _item(self, key: _Key) -> Item | None:
        (item,) = self._view.batch([GetOp(*key)])  # get() would refuse labels that batch() takes
        return item if isinstance(item, Item) else None

    def _found(self, op: SearchOp) -> list[SearchItem]:
        """Return the items of a search with a query, by falling score; items that are not searched come last."""
        (candidates,) = self._view.batch([op._replace(query=None, limit=_EVERYTHING, offset=0)])
        items: list[Item] = list(candidates or [])  # type: ignore[arg-type]
        numbers = [self._documents[item.namespace, item.key] for item in items]
        scores = self._scores(op.query or "", [number for number in numbers if number in self._lexicon])
        scored = sorted(((scores.get(number, -1.0), place) for place, number in enumerate(numbers)), key=lambda pair: -pair[0])
        chosen = [(items[place], None if score < 0 else score) for score, place in scored[op.offset : op.offset + op.limit]]
        return [
            SearchItem(item.namespace, item.key, item.value, item.created_at, item.updated_at, score) for item, score in chosen
        ]

    def _scores(self, query: str, numbers: Sequence[int]) -> dict[int, float]:
        """Return the scores of documents for a query, from 0 to 1."""
        if not numbers:
            return {}
        held = self._lexicon.shares(query)
        recalled = {} if self._selection == "words" else self._recalled(query)
        part = {"fused": _RECALL, "recall": 1.0, "words": 0.0}[self._selection] if recalled else 0.0
        return {number: (1 - part) * held.get(number, 0.0) + part * recalled.get(number, 0.0) for number in numbers}

    def _recalled(self, query: str) -> dict[int, float]:
        """Return how much more than others each document is recalled, from 0 to 1; nothing if recall is untrained."""
        model = self._by_memory.model
        if model.config.mode != "hmt" or not model.is_trained:
            return {}
        best: dict[int, float] = {}
        for passage in self._by_memory.recall(query, corpora=[self._name], top_k=model.config.recall_window):
            best[passage.document or 0] = max(best.get(passage.document or 0, 0.0), passage.weight)
        return _standing(best)


def _standing(weights: Mapping[int, float]) -> dict[int, float]:
    """Return the rank of each weight among all, from 0 to 1: a logistic function of its logarithm in standard deviations."""
    logs = {document: math.log(weight) for document, weight in weights.items() if weight > 0}
    middle = math.fsum(logs.values()) / max(1, len(logs))
    spread = math.sqrt(math.fsum((log - middle) ** 2 for log in logs.values()) / max(1, len(logs))) or 1.0
    return {document: 1 / (1 + math.exp((middle - log) / spread)) for document, log in logs.items()}


def _key(document: Document) -> _Key:
    return tuple(document.metadata["namespace"]), document.metadata["key"]


def _name(namespace: tuple[str, ...], key: str) -> str:
    return json.dumps([*namespace, key], ensure_ascii=False)
