"""`HMTStore`: LangGraph's long-term store in an HMT store's folder, searched by what a query recalls.

Items are documents of a corpus; what answers reads and filters is LangGraph's own in-memory store, filled from them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

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

from .engine import Engine

_EVERYTHING = 1 << 31
_Key = tuple[tuple[str, ...], str]


class HMTStore(BaseStore):
    """Durable, and searched without an embedding model: by HMT recall and words.

    Args:
        corpus: name of the corpus that holds the items. fields: paths in a value whose texts are searched, as LangGraph's
            `index`; "$" is the whole value.
        options: fields of the other classes, such as store, model and adapter.

    A value is JSON. What is put with `index=False` is found by filters and its key alone. An item that is replaced or deleted
    is gone from the disk. Write a folder from one object
    at a time.
    """

    supports_ttl = False

    def __init__(self, *, corpus: str = "langgraph", fields: tuple[str, ...] = ("$",), **options: Any) -> None:
        self._assistant = Engine(**options).assistant()
        self._name, self._fields = corpus, fields
        self._mutex = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._view = InMemoryStore()
        self._documents: dict[_Key, int] = {}

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations, reads as of before the writes among them."""
        with self._mutex:
            self._catch_up()
            results: list[Result] = []
            puts: dict[_Key, PutOp] = {}
            for op in ops:
                if isinstance(op, PutOp):
                    puts[op.namespace, op.key] = op
                    results.append(None)
                elif isinstance(op, SearchOp) and op.query:
                    results.append(self._recalled(op))
                elif isinstance(op, (GetOp, SearchOp, ListNamespacesOp)):
                    results += self._view.batch([op])
                else:
                    raise ValueError(f"unknown operation {type(op).__name__}.")
            if puts:
                self._put(puts)
            return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`, off the event loop."""
        return await run_in_executor(None, self.batch, list(ops))

    # --- writing ----------------------------------------------------------------------------------------------------

    def _put(self, puts: Mapping[_Key, PutOp]) -> None:
        corpus, now = self._assistant.corpus(self._name), datetime.now(timezone.utc)
        bodies = []
        for (namespace, key), op in puts.items():
            if op.value is not None:
                before = self._item((namespace, key))
                times = {"created_at": (before.created_at if before else now).isoformat(), "updated_at": now.isoformat()}
                about = {"namespace": list(namespace), "key": key, "value": op.value, **times}
                bodies.append({"name": _name(namespace, key), "text": self._text(op), "metadata": about})
        gone = [self._documents[one] for one, op in puts.items() if op.value is None and one in self._documents]
        if bodies:
            corpus.add_documents(bodies, replace_named=True)
        if gone:
            corpus.remove(gone)
        self._view.batch(list(puts.values()))
        self._take_over(corpus, {one for one, op in puts.items() if op.value is not None})
        for one, op in puts.items():
            if op.value is None:
                self._documents.pop(one, None)

    def _text(self, op: PutOp) -> str:
        """What of a value is searched."""
        paths = self._fields if op.index is None else op.index
        texts = [] if paths is False else [text for path in paths for text in get_text_at_path(op.value, tokenize_path(path))]
        return "\n".join(text for text in texts if text.strip()) or op.key.strip() or "-"

    # --- reading ----------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Take over what other processes wrote."""
        corpus = self._assistant.corpus(self._name)
        if corpus.version() == self._version:
            return
        self._view, self._documents = InMemoryStore(), {}
        held = sorted(corpus.documents(), key=lambda one: str(one.metadata.get("created_at")))
        for document in held:
            about = document.metadata
            self._view.batch([PutOp(tuple(about["namespace"]), about["key"], about["value"])])
        self._take_over(corpus, None)

    def _take_over(self, corpus: Any, keys: set[_Key] | None) -> None:
        """Ids and times of the stored items, of all or of some."""
        for document in corpus.documents():
            about = document.metadata
            one = (tuple(about["namespace"]), about["key"])
            if keys is None or one in keys:
                self._documents[one] = document.id
                item = self._item(one)
                if item is not None:
                    item.created_at = datetime.fromisoformat(about["created_at"])
                    item.updated_at = datetime.fromisoformat(about["updated_at"])
        self._version = corpus.version()

    def _item(self, key: _Key) -> Item | None:
        (found,) = self._view.batch([GetOp(*key)])  # get() would refuse labels that batch() takes
        return found if isinstance(found, Item) else None

    def _recalled(self, op: SearchOp) -> list[SearchItem]:
        everything = op._replace(query=None, limit=_EVERYTHING, offset=0)
        (candidates,) = self._view.batch([everything])
        items: list[Item] = list(candidates or [])  # type: ignore[arg-type]
        scores: dict[str, float] = {}
        if items:
            found = self._assistant.recall(op.query or "", corpora=[self._name], top_k=_EVERYTHING)
            for one in found:
                scores.setdefault(one.source.removeprefix(f"{self._name}/"), one.weight)
        scored = [(scores.get(_name(one.namespace, one.key)), one) for one in items]
        scored.sort(key=lambda pair: -1.0 if pair[0] is None else pair[0], reverse=True)
        return [
            SearchItem(one.namespace, one.key, one.value, one.created_at, one.updated_at, score)
            for score, one in scored[op.offset : op.offset + op.limit]
        ]


def _name(namespace: tuple[str, ...], key: str) -> str:
    return json.dumps([*namespace, key], ensure_ascii=False)
