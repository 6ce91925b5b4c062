"""The verbs of a transaction, over six kinds of rows. Knows no database.

A transaction's verbs are about the rows of one stream; `lineage` (what streams make up together) and `rewriting` (forks,
forgetting) are written once, over these verbs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from .rows import CollectionRow, DocumentRow, DocumentStream, Kept, MessageRow, ModelRow, SegmentRow, StreamRow, TokenRow


class Sweep(NamedTuple):
    """A stream or corpus that an erasure has still to go through."""

    kind: str  # "stream", or "corpus" for its documents
    id: int


class CatalogueRows(Protocol):
    """The verbs of facts, models, sessions, corpora, documents, and of streams as a whole."""

    # facts and models
    def fact(self, name: str) -> str | None:
        """Return the value remembered under a name."""
        ...

    def set_fact(self, name: str, value: str | None) -> None:
        """Remember a value under a name; None forgets it."""
        ...

    def model(self, number: int) -> ModelRow:
        """Return the model of that id."""
        ...

    def add_model(self, digest: str, parts: Any) -> int:
        """Return the id of the model with this digest, recorded if it is new."""
        ...

    # sessions and corpora
    def collections(self, kind: str) -> list[CollectionRow]:
        """Return all sessions or all corpora, by name."""
        ...

    def names(self, kind: str) -> list[str]:
        """Return the names of all sessions or all corpora, sorted."""
        ...

    def find_collection(self, kind: str, name: str) -> CollectionRow | None:
        """Return the session or corpus of that name."""
        ...

    def collection(self, number: int) -> CollectionRow | None:
        """Return the session or corpus of that id."""
        ...

    def add_collection(self, kind: str, name: str, *, stream: int | None, now: float) -> CollectionRow:
        """Add a new, empty session or corpus.

        Args:
            kind: "session" or "corpus".
            name: its name.
            stream: of a session; None for a corpus.
            now: seconds since 1970, UTC.
        """
        ...

    def update_collection(self, row: CollectionRow) -> CollectionRow:
        """Write a row back as its next revision. Its name stays as it is."""
        ...

    def rename_collection(self, row: CollectionRow, name: str, erasure: int) -> None:
        """Give a session or corpus another name; the old one is erased.

        Args:
            row: the session or corpus.
            name: the new name.
            erasure: the erasure that overwrites the old name.
        """
        ...

    def delete_collection(self, row: CollectionRow, erasure: int) -> None:
        """Delete a session or corpus; its messages or documents are swept away by the erasure's next steps."""
        ...

    # documents
    def documents(self, collection: int) -> list[DocumentRow]:
        """Return a corpus's documents in the order they were added."""
        ...

    def documents_named(self, collection: int, name: str) -> list[DocumentRow]:
        """Return a corpus's documents of that name."""
        ...

    def document_streams(self, collection: int) -> list[DocumentStream]:
        """Return the streams of a corpus's documents in the order they were added, without their texts."""
        ...

    def find_document(self, collection: int, number: int) -> DocumentRow | None:
        """Return the document of that id, if the corpus has it."""
        ...

    def add_document(self, collection: int, document: DocumentRow) -> None:
        """Add a document under its id."""
        ...

    def delete_document(self, collection: int, document: DocumentRow, erasure: int) -> None:
        """Delete a document; its stream is swept away by the erasure's next steps.

        Args:
            collection: the corpus.
            document: the document to delete.
            erasure: the erasure that overwrites their content.
        """
        ...

    def sweep_documents(self, collection: int, erasure: int, most: int) -> int:
        """Delete some documents of a corpus that is gone. Returns how many there were.

        Args:
            collection: the corpus.
            erasure: the erasure that overwrites their content.
            most: the largest number to delete.
        """
        ...

    # streams
    def stream(self, stream: int) -> StreamRow:
        """Return the stream of that id."""
        ...

    def has_stream(self, stream: int) -> bool:
        """Return whether there is a stream of that id."""
        ...

    def children(self, stream: int) -> list[StreamRow]:
        """Return the streams that continue a stream."""
        ...

    def add_stream(self, row: StreamRow) -> int:
        """Add a stream; its own id is ignored. Returns the new id."""
        ...

    def update_stream(self, row: StreamRow) -> None:
        """Write a stream back."""
        ...

    def delete_stream(self, stream: int) -> None:
        """Delete the record of a stream that has no rows and that nothing continues."""
        ...

    def give_rows(self, stream: int, to: int) -> None:
        """Give all rows of a stream to another one that has none at their places."""
        ...

    def is_shown(self, stream: int) -> bool:
        """Return whether a stream is the whole of a session or document, or is being written to become a session's."""
        ...

    def showing(self, stream: int, seq: int, *, besides: int) -> list[str]:
        """Return the names of sessions, besides one, that show a stream's own message at `seq`.

        Args:
            stream: the stream that owns the rows.
            seq: the place of the message.
            besides: the session that is left out.
        """
        ...

    def add_draft(self, stream: int, collection: int) -> None:
        """Note that a stream is being written to take the place of a session's."""
        ...

    def remove_draft(self, stream: int) -> None:
        """Note that a stream is no longer a draft."""
        ...

    def drafts(self, collection: int) -> list[int]:
        """List the streams that are, or were, being written for a session."""
        ...

    def drafted(self) -> list[int]:
        """List the sessions that streams are, or were, being written for."""
        ...


class ContentRows(Protocol):
    """The verbs of the content of one stream: messages, tokens, segments."""

    def add_message(self, stream: int, message: MessageRow) -> None:
        """Add a message at its place."""
        ...

    def messages(self, stream: int, start: int, stop: int) -> list[MessageRow]:
        """Return a stream's own messages [start, stop), in order.

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...

    def messages_between(self, stream: int, tokens: tuple[int, int], before: int) -> list[MessageRow]:
        """Return a stream's own messages before message `before` that tokens [low, high) belong to.

        Args:
            stream: the stream that owns the rows.
            tokens: [low, high).
            before: the first message that does not count.
        """
        ...

    def pinned(self, stream: int, start: int, stop: int) -> Iterator[MessageRow]:
        """Yield a stream's own pinned messages of [start, stop), the latest first.

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...

    def position(self, stream: int, message: int, before: int) -> int | None:
        """Return the place of a stream's own message, if it stands before message `before`.

        Args:
            stream: the stream that owns the rows.
            message: its id.
            before: the first message that does not count.
        """
        ...

    def earliest(self, stream: int, start: int, stop: int) -> float | None:
        """Return when the oldest turn among a stream's own messages [start, stop) was said.

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...

    def add_tokens(self, stream: int, start: int, ids: bytes) -> None:
        """Add token ids (uint32, little-endian) at their place.

        Args:
            stream: the stream that owns the rows.
            start: the place of the first token.
            ids: the tokens as bytes.
        """
        ...

    def tokens(self, stream: int, low: int, high: int) -> list[tuple[int, bytes]]:
        """Return the rows of a stream's own tokens that reach into [low, high): the start of each, and its ids.

        Args:
            stream: the stream that owns the rows.
            low: the first token wanted.
            high: one past the last token wanted.
        """
        ...

    def kept(self, stream: int, start: int, stop: int) -> list[Kept]:
        """Return a stream's own messages [start, stop) without their content.

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...

    def add_kept(self, stream: int, message: Kept) -> None:
        """Add a message of another stream at its place; both refer to the same content."""
        ...

    def new_tokens(self, start: int, ids: bytes) -> TokenRow:
        """Write token ids for a row that is about to refer to them."""
        ...

    def add_segment(self, stream: int, segment: SegmentRow) -> None:
        """Add a closed segment at its place."""
        ...

    def segments(self, stream: int, start: int, stop: int) -> Iterator[SegmentRow]:
        """Yield a stream's own segments [start, stop), in order; fetch them before the transaction ends.

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...

    def last_segment(self, stream: int, start: int, stop: int) -> int | None:
        """Return the number of the last of a stream's own segments [start, stop).

        Args:
            stream: the stream that owns the rows.
            start: the first of them.
            stop: one past the last of them.
        """
        ...


class Erasures(Protocol):
    """The verbs of erasing: sweeps, deletions and overwriting."""

    def begin_erasure(self) -> int:
        """Begin an erasure; return its number."""
        ...

    def end_erasure(self, erasure: int) -> None:
        """Note that nothing is left of what was erased."""
        ...

    def erasures(self) -> list[int]:
        """List the erasures that are under way, or were left by a crash."""
        ...

    def last_erasure(self) -> int:
        """Return the number of the latest erasure that was begun, be it ended or not."""
        ...

    def sweep_later(self, erasure: int, kind: str, number: int) -> None:
        """Say that a "stream", or the documents of a "corpus", may hold rows that nobody shows any more.

        Args:
            erasure: the erasure that goes through it.
            kind: "stream" or "corpus".
            number: the id of the stream or corpus.
        """
        ...

    def next_sweep(self, erasure: int) -> Sweep | None:
        """Return a stream or corpus that an erasure has still to go through."""
        ...

    def end_sweep(self, erasure: int, sweep: Sweep) -> None:
        """Note that an erasure has gone through a stream or corpus."""
        ...

    def is_swept(self, streams: Iterable[int]) -> bool:
        """Return whether an erasure has still to go through one of these streams."""
        ...

    def delete_rows(self, stream: int, ends: tuple[int, int, int], erasure: int, most: int) -> int:
        """Delete some of a stream's rows from so many messages, tokens and segments on. Returns how many there were.

        Args:
            stream: the stream whose rows are deleted.
            ends: where messages, tokens and segments are to end.
            erasure: overwrites their content.
            most: the largest number of rows to delete; a smaller result means that none are left.
        """
        ...

    def overwrite(self, erasure: int, most: int) -> int:
        """Overwrite about `most` bytes of released content. Returns the sum of payloads and bytes."""
        ...

    def vacant_bytes(self) -> int:
        """Count the bytes of vacant room."""
        ...

    @property
    def changes(self) -> int:
        """The number of rows that this connection has changed so far."""
        ...


class Transaction(CatalogueRows, ContentRows, Erasures, Protocol):
    """One consistent view of the rows, and in a writing transaction changes that are made together or not at all.

    Every row, and the content it refers to, is checked against its checksum when it is read: StoreDamagedError.
    """
