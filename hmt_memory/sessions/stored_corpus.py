"""A corpus as it is stored: looked at and changed without a model. `corpus` adds the model.

Knows rows; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..engine.fingerprint import fingerprint
from ..errors import SessionNotFoundError
from ..retrieval.citations import utc
from ..store import lineage
from ..store.rows import CollectionRow, DocumentRow, as_array
from .collection import Collection
from .made_by import made_by

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .reading import Progress


@dataclass(frozen=True)
class Document:
    """One document of a corpus."""

    id: int  # `Corpus.remove` takes it; never given twice in a corpus
    name: str
    text: str
    created_at: datetime  # when it was added; UTC
    metadata: dict[str, Any] = field(default_factory=dict)


class StoredCorpus(Collection):
    """Documents in a store, without a model; `MemoryStore.corpus` makes it.

    Nothing can be added to it or recalled from it: that takes a `Corpus`, which has a model.
    """

    def add_documents(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: adding takes a model."""
        self._needs_model()

    def recall(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: recalling takes a model."""
        self._needs_model()

    def ask(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: answering takes a model."""
        self._needs_model()

    def documents(self) -> list[Document]:
        """Return all documents in the order they were added."""
        with self._database.reading() as db:
            return [_document(row) for row in db.documents(self._row(db).id)]

    def stats(self) -> dict[str, Any]:
        """Return counts and times, ready for JSON."""
        with self._database.reading() as db:
            row = self._row(db)
            shelf = self._store.shelf(row)
            return {
                "name": row.name,
                "documents": len(shelf.documents),
                "tokens": sum(lineage.size(volume.parts)[1] for volume in shelf.volumes),
                "segments": shelf.total,
                "created_at": utc(row.created_at).isoformat(timespec="seconds"),
                "updated_at": utc(row.updated_at).isoformat(timespec="seconds"),
                "model": None if (reader := made_by(db, row)) is None else str(reader),
                "memory_bits": row.memory_bits,
            }

    def remove(self, document_ids: Sequence[int]) -> None:
        """Erase documents for good: text, embeddings, index entries, and the bytes in all files.

        Raises:
            SessionNotFoundError: an id is not in this corpus; nothing is removed then.
        """
        wanted = set(document_ids)
        self._database.again(lambda: self._removed(wanted))

    def _removed(self, ids: set[int]) -> None:
        with self._reading():
            self._store.finish_erasing(self._database.erasing(lambda db: self._remove(db, ids)))

    def _remove(self, db: Transaction, ids: set[int]) -> int | None:
        row = self._row(db)
        documents = {number: db.find_document(row.id, number) for number in sorted(ids)}
        if missing := [number for number, document in documents.items() if document is None]:
            raise SessionNotFoundError(f"corpus {self.name!r} has no document {', '.join(map(str, missing))}.")
        return self._erase(db, row, [document for document in documents.values() if document is not None])[1]

    def rebuild(self, model: HMTModel, *, progress: Progress | None = None) -> StoredCorpus:
        """Read all documents again with `model`.

        Returns:
            The corpus for that model, a `Corpus`; this object is then out of date.
        """
        return self._database.again(lambda: self._rebuilt(model, progress))

    def _rebuilt(self, model: HMTModel, progress: Progress | None) -> StoredCorpus:
        """Tokenize all documents anew for a model, and read them."""
        made_by = fingerprint(model)
        with self._reading():
            with self._database.writing() as db:
                row, erasure = self._row(db), db.begin_erasure()
                for document in db.documents(row.id):
                    db.delete_document(row.id, document, erasure)
                    stream = lineage.add_stream(db)
                    tokens = as_array(model.backbone.encode(document.body["text"], literal=True))
                    lineage.append_messages(db, stream, [], tokens)
                    db.add_document(row.id, document._replace(stream=stream))
                number = db.add_model(made_by.digest, made_by.parts)
                row = self._store.in_memory_bits(replace(row, model=number, epoch=row.epoch + 1))
                row = db.update_collection(row)
                self._store.drop_index(row.id)
            self._store.finish_erasing(erasure)
            corpus = self._store.corpus_of(row, model)
            with self._done_already():
                corpus._read_pending(progress)
        opened: StoredCorpus = corpus
        return opened

    def _erase(self, db: Transaction, row: CollectionRow, documents: Sequence[DocumentRow]) -> tuple[CollectionRow, int | None]:
        """Delete documents. Returns the row afterwards, and the erasure to finish after the transaction."""
        if not documents:
            return row, None
        erasure = db.begin_erasure()
        for document in documents:
            db.delete_document(row.id, document, erasure)
        self._store.open_indexes.drop_files(row.id)
        return db.update_collection(replace(row, epoch=row.epoch + 1)), erasure


def _document(row: DocumentRow) -> Document:
    return Document(row.id, row.body["name"], row.body["text"], utc(row.created_at), row.body["metadata"])
