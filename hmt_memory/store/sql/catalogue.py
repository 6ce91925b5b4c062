"""The rows of facts, models, sessions, corpora and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import StoreDamagedError
from ..rows import CollectionRow, DocumentRow, DocumentStream, ModelRow, Payload, as_json, checked, content, crc_of, name_key
from .streams import Streams

_COLUMNS = (
    "kind, key, name, name_size, name_check, model, stream, next_id, revision, epoch, created_at, updated_at, settings, crc"
)
_COLLECTION = f"c.id, {_COLUMNS}, data FROM collections c JOIN payloads p ON p.id = name"
_NAMES = "SELECT kind, c.id, name_size, name_check, data FROM collections c JOIN payloads p ON p.id = name WHERE kind = ?"
_DOCUMENT = (
    "d.id, stream, key, body, body_size, body_check, created_at, crc, data FROM documents d JOIN payloads p ON p.id = body"
    " WHERE collection = ?"
)
_DOCUMENT_STREAMS = (
    "SELECT d.id, d.stream, s.tokens, seq, digest FROM documents d"
    " JOIN streams s ON s.id = d.stream LEFT JOIN segments g ON g.stream = d.stream"
    " AND g.seq = (SELECT max(seq) FROM segments WHERE stream = d.stream) WHERE d.collection = ? ORDER BY d.id"
)


class Catalogue(Streams):
    """Facts, models, sessions, corpora and documents in SQL."""

    def fact(self, name: str) -> str | None:
        """Return the value remembered under a name."""
        row = self.one("SELECT value FROM facts WHERE name = ?", (name,))
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str | None) -> None:
        """Remember a value under a name; None forgets it."""
        if value is None:
            self.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            again = f"{self.on_conflict('facts', 'name')} DO UPDATE SET value = excluded.value"
            self.execute(f"INSERT INTO facts VALUES (?, ?) {again}", (name, value))

    def model(self, number: int) -> ModelRow:
        """Return the model of that id."""
        row = self.one("SELECT digest, parts, crc FROM models WHERE id = ?", (number,))
        if row is None:
            raise StoreDamagedError(f"the record of model {number} is missing. Restore a backup or an export.")
        digest, parts = checked(f"the record of model {number}", row)
        return ModelRow(number, digest, json.loads(parts))

    def add_model(self, digest: str, parts: Mapping[str, Any]) -> int:
        """Return the id of the model with this digest, recorded if it is new."""
        row = self.one("SELECT id FROM models WHERE digest = ?", (digest,))
        if row is not None:
            return int(row[0])
        values = (digest, text := json.dumps(parts, sort_keys=True), crc_of(digest, text))
        return self.insert("INSERT INTO models (digest, parts, crc) VALUES (?, ?, ?)", values)

    def collections(self, kind: str) -> list[CollectionRow]:
        """Return all sessions or all corpora, by name."""
        rows = self.all(f"SELECT {_COLLECTION} WHERE kind = ?", (kind,))
        return sorted(map(_collection, rows), key=lambda row: row.name)

    def names(self, kind: str) -> list[str]:
        """Return the names of all sessions or all corpora, sorted."""
        return sorted(_name(*row) for row in self.all(_NAMES, (kind,)))

    def find_collection(self, kind: str, name: str) -> CollectionRow | None:
        """Return the session or corpus of that name."""
        row = self.one(f"SELECT {_COLLECTION} WHERE kind = ? AND key = ?", (kind, name_key(name)))
        return None if row is None else _collection(row)

    def collection(self, number: int) -> CollectionRow | None:
        """Return the session or corpus of that id."""
        row = self.one(f"SELECT {_COLLECTION} WHERE c.id = ?", (number,))
        return None if row is None else _collection(row)

    def add_collection(self, kind: str, name: str, *, stream: int | None, now: float) -> CollectionRow:
        """Add a new, empty session or corpus."""
        new = CollectionRow(0, kind, name, None, stream, 1, 0, 0, now, now, {})
        values = _collection_values(new, self.put(name.encode()))
        insert = f"INSERT INTO collections ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})"
        return replace(new, id=self.insert(insert, values))

    def update_collection(self, row: CollectionRow) -> CollectionRow:
        """Write a row back as its next revision. Its name stays as it is."""
        new = replace(row, revision=row.revision + 1)
        self._write_collection(new, self._name(row.id))
        return new

    def rename_collection(self, row: CollectionRow, name: str, erasure: int) -> None:
        """Give a session or corpus another name; the old one is erased."""
        self.release(erasure, [self._name(row.id).id])
        self._write_collection(replace(row, name=name, revision=row.revision + 1), self.put(name.encode()))

    def delete_collection(self, row: CollectionRow, erasure: int) -> None:
        """Delete a session or corpus; its messages or documents are swept away by the erasure's next steps."""
        self.release(erasure, [self._name(row.id).id])
        self.execute("DELETE FROM collections WHERE id = ?", (row.id,))
        kind, number = ("corpus", row.id) if row.stream is None else ("stream", row.stream)
        self.sweep_later(erasure, kind, number)

    def _name(self, collection: int) -> Payload:
        return Payload(*self.one("SELECT name, name_size, name_check FROM collections WHERE id = ?", (collection,)))

    def _write_collection(self, row: CollectionRow, name: Payload) -> None:
        self.execute(
            f"UPDATE collections SET {_COLUMNS.replace(',', ' = ?,')} = ? WHERE id = ?",
            (*_collection_values(row, name), row.id),
        )

    def documents(self, collection: int) -> list[DocumentRow]:
        """Return a corpus's documents in the order they were added."""
        return [_document(row) for row in self.all(f"SELECT {_DOCUMENT} ORDER BY d.id", (collection,))]

    def documents_named(self, collection: int, name: str) -> list[DocumentRow]:
        """Return a corpus's documents of that name."""
        rows = self.all(f"SELECT {_DOCUMENT} AND key = ?", (collection, name_key(name)))
        return [_document(row) for row in rows]

    def document_streams(self, collection: int) -> list[DocumentStream]:
        """Return the streams of a corpus's documents in the order they were added, without their texts."""
        rows = self.all(_DOCUMENT_STREAMS, (collection,))
        return [
            DocumentStream(document, stream, tokens, 0 if last is None else last + 1, digest or b"")
            for document, stream, tokens, last, digest in rows
        ]

    def find_document(self, collection: int, number: int) -> DocumentRow | None:
        """Return the document of that id, if the corpus has it."""
        row = self.one(f"SELECT {_DOCUMENT} AND d.id = ?", (collection, number))
        return None if row is None else _document(row)

    def add_document(self, collection: int, document: DocumentRow) -> None:
        """Add a document under its id."""
        body = self.put(as_json(document.body))
        values = (document.id, document.stream, name_key(document.body["name"]), *body, document.created_at)
        self.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (collection, *values, crc_of(*values)))

    def delete_document(self, collection: int, document: DocumentRow, erasure: int) -> None:
        """Delete a document; its stream is swept away by the erasure's next steps."""
        query = "SELECT id, stream, body FROM documents WHERE collection = ? AND id = ?"
        self._delete_documents(collection, self.all(query, (collection, document.id)), erasure)

    def sweep_documents(self, collection: int, erasure: int, most: int) -> int:
        """Delete some documents of a corpus that is gone. Returns how many there were."""
        query = "SELECT id, stream, body FROM documents WHERE collection = ? LIMIT ?"
        rows = self.all(query, (collection, most))
        self._delete_documents(collection, rows, erasure)
        return len(rows)

    def _delete_documents(self, collection: int, rows: Sequence[tuple[int, int, int]], erasure: int) -> None:
        self.release(erasure, [body for _, _, body in rows])
        for document, stream, _ in rows:
            self.execute("DELETE FROM documents WHERE collection = ? AND id = ?", (collection, document))
            self.sweep_later(erasure, "stream", stream)


def _collection(row: Sequence[Any]) -> CollectionRow:
    number, *rest, data = row
    kind, _, _, size, check, *values, settings = checked(_record(row[1], number), rest)
    return CollectionRow(number, kind, _name(kind, number, size, check, data), *[*values, json.loads(settings)])


def _name(kind: str, number: int, size: int, check: int, data: bytes) -> str:
    return content(_record(kind, number), data, size, check).decode()


def _record(kind: str, number: int) -> str:
    return f"the record of {kind} {number}"


def _collection_values(row: CollectionRow, name: Payload) -> tuple[Any, ...]:
    counts, times = (row.next_id, row.revision, row.epoch), (row.created_at, row.updated_at)
    settings = json.dumps(row.settings, sort_keys=True)
    values = (row.kind, name_key(row.name), *name, row.model, row.stream, *counts, *times, settings)
    return (*values, crc_of(*values))


def _document(row: Sequence[Any]) -> DocumentRow:
    *rest, data = row
    what = f"the record of document {row[0]}"
    number, stream, _, _, size, check, created = checked(what, rest)
    return DocumentRow(number, stream, json.loads(content(what, data, size, check)), created)
