"""LangChain documents as a corpus holds them: their ids, their keys, and which are the same. Knows values; no store."""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from langchain_core.documents import Document

from .errors import HMTInvalidRequestError

if TYPE_CHECKING:
    from hmt_memory.assistant import Document as StoredDocument

_ID = "langchain_id"  # the key of LangChain's id in the stored metadata
_OURS = uuid.UUID("5c0f1c3e-7e0b-5a57-9d0e-6f1d0f4c9a11")
_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


class Held(NamedTuple):
    """A document of a corpus."""

    number: int  # the corpus's id of it
    document: Document  # with an id


def held(stored: StoredDocument) -> Held:
    """Convert a stored document to LangChain's. A document without LangChain's id gets one made from its source and text."""
    about = dict(stored.metadata)
    known = about.pop(_ID, None)
    document = Document(stored.text, metadata=about if known else {"source": stored.name, **about})
    return Held(stored.id, document.model_copy(update={"id": known or text_id(document)}))


def named(document: Document, given: str | None = None) -> Document:
    """Return a document with an id, its own or one made from its text, and with metadata that JSON can hold."""
    about = json.loads(json.dumps(document.metadata, default=str, ensure_ascii=False))  # loaders put dates and paths there
    plain = Document(document.page_content, metadata=about)
    return plain.model_copy(update={"id": given or document.id or text_id(plain)})


def with_ids(documents: Sequence[Document], ids: Sequence[str | None] | None) -> list[Document]:
    """Return documents with the ids given for them, or else their own.

    Raises:
        HMTInvalidRequestError: there are not as many ids as documents.
    """
    given = [None] * len(documents) if ids is None else ids
    if len(given) != len(documents):
        raise HMTInvalidRequestError(f"{len(given)} ids for {len(documents)} documents. Pass one for each.")
    return [named(document, own_id) for document, own_id in zip(documents, given, strict=True)]


def text_id(document: Document) -> str:
    """Make the id of a document that was given none: the same id for the same text of the same source."""
    parts = [document.metadata.get("source"), document.metadata.get("page"), document.page_content]
    return str(uuid.uuid5(_OURS, json.dumps(parts, default=str)))


def body(document: Document) -> dict[str, Any]:
    """Convert a named document to the form that `Corpus.add_documents` takes."""
    about = document.metadata
    own = None if document.id == text_id(document) else document.id
    name = about.get("source") or own  # without either, the corpus calls it by its first words
    return {"text": document.page_content, "name": name and str(name), "metadata": {**about, _ID: document.id}}


def key(document: Document) -> tuple[str, ...]:
    """Return the key of a named document, by which it is recognised when read again: its given id, its file, or its text."""
    if document.id != text_id(document):
        return "id", str(document.id)
    source = document.metadata.get("source")
    return ("file", str(source), str(document.metadata.get("page"))) if source else ("text", document.page_content)


def same(first: Iterable[Document], second: Iterable[Document]) -> bool:
    """Return whether two groups of documents say the same, in any order."""
    return _said(first) == _said(second)


def _said(documents: Iterable[Document]) -> set[str]:
    return {json.dumps([document.page_content, document.metadata], sort_keys=True) for document in documents}


def grouped(pairs: Iterable[tuple[_K, _T]]) -> dict[_K, list[_T]]:
    """Collect values by their keys."""
    groups: dict[_K, list[_T]] = {}
    for each, value in pairs:
        groups.setdefault(each, []).append(value)
    return groups


def brought(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a passage's metadata as its document had it, with the document's id."""
    own = {name: value for name, value in metadata.items() if name != _ID}
    return {"document_id": metadata[_ID], **own} if _ID in metadata else own
