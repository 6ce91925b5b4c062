"""`HMTStore`: LangGraph's long-term store in an HMT store's folder, searched by what a query recalls.

Items are documents of a corpus; what answers reads and filters is LangGraph's own in-memory store, filled from them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
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
from .errors import as_langchain

if TYPE_CHECKING:
    from hmt_memory.corpus import Document

_EVERYTHING = 1 << 31
_Key = tuple[tuple[str, ...], str]


class HMTStore(BaseStore):
    """Durable, and searched without an embedding model: by HMT recall and words.

    Args:
        corpus: name of the corpus that holds the items. fields: paths in a value whose texts are searched, as LangGraph's
            `index`; "$" is the whole value.
        options: fields of the other classes, such as store, model and adapter.

    A value is JSON. What is put with `index=False` is found by filters and its key alone. An item that is replaced or deleted
    is gone from the disk. Several processes may use one folder; the writes of one `batch` are no transaction.
    """

    supports_ttl = False

    def __init__(self, *, corpus: str = "langgraph", fields: tuple[str, ...] = ("$",), **options: Any) -> None:
        self._assistant = Engine(**options).assistant()
        self._name, self._fields = corpus, fields
        self._mutex = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._view = InMemoryStore()
        self._documents: dict[_Key, int] = {}  # ids of what the view holds

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations, reads as of before the writes among them."""
        with self._mutex, as_langchain():
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
        if bodies:
            corpus.add_documents(bodies, replace_named=True)
        gone = {_name(*one) for one, op in puts.items() if op.value is None}
        while ids := [document.id for document in corpus.documents() if document.name in gone] if gone else []:
            with suppress(SessionNotFoundError):  # somebody else was first with one of them
                corpus.remove(ids)
        self._view.batch([op for op in puts.values() if op.value is None])  # deleting makes a namespace known, as there
        self._catch_up()

    def _text(self, op: PutOp) -> str:
        """What of a value is searched."""
        paths = self._fields if op.index is None else op.index
        texts = [] if paths is False else [text for path in paths for text in get_text_at_path(op.value, tokenize_path(path))]
        return "\n".join(text for text in texts if text.strip()) or op.key.strip() or "-"

    # --- reading ----------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Make what answers reads equal to what is stored."""
        corpus = self._assistant.corpus(self._name)
        version = corpus.version()  # before what is taken over: it may be more, and is then looked at again
        if version == self._version:
            return
        stored = {_key(document): document for document in corpus.documents()}
        self._view.batch([PutOp(*one, None) for one in self._documents if one not in stored])
        changed = [document for one, document in stored.items() if self._documents.get(one) != document.id]
        for document in sorted(changed, key=lambda one: str(one.metadata["created_at"])):
            self._view.batch([PutOp(*_key(document), document.metadata["value"])])
            item = self._item(_key(document))
            if item is not None:
                item.created_at = datetime.fromisoformat(document.metadata["created_at"])
                item.updated_at = datetime.fromisoformat(document.metadata["updated_at"])
        self._documents = {one: document.id for one, document in stored.items()}
        self._version = version

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


def _key(document: Document) -> _Key:
    return tuple(document.metadata["namespace"]), document.metadata["key"]


def _name(namespace: tuple[str, ...], key: str) -> str:
    return json.dumps([*namespace, key], ensure_ascii=False)
