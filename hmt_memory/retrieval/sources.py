"""The sources that recall searches and cites: a session's own past, and corpora. Knows rows, index and words; runs no model.

A shard is a collection's closed segments as one numbered sequence with an index over their keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine.stretches import stretches
from ..errors import StoreDamagedError
from ..store import lineage
from ..store.backend import Backend
from ..store.index.base import Halves
from ..store.index.vectors import Hits, KeyHit, KeyIndex, MemoryIndex
from ..store.index.words import Postings, WordIndex
from ..store.rows import DocumentRow, MessageRow
from ..store.shelf import Shelf
from . import lexical
from .citations import Citation, Ids, as_message, lines, of_messages, utc
from .excerpts import Decode, trimmed, whole_sentences

if TYPE_CHECKING:
    from ..store.transaction import Transaction


class Indexes(NamedTuple):
    """The indexes that search a collection's segments."""

    memory: MemoryIndex
    words: WordIndex
    keys: KeyIndex | None = None  # None: the model makes no keys by meaning


class Shard:
    """A collection's closed segments, as of one moment."""

    end_ids: frozenset[int] = frozenset()  # tokens that end a turn

    def __init__(self, database: Backend, indexes: Indexes, shelf: Shelf, name: str, decode: Decode) -> None:
        self.database, self.indexes, self.shelf, self.name, self._decode = database, indexes, shelf, name, decode
        self.total = shelf.total

    def keep_up(self) -> None:
        """Bring the indexes up to date, ahead of a search."""
        with self.database.reading() as db:
            for index in filter(None, self.indexes):
                index.keep_up(db, self.shelf)

    def search(self, query: NDArray[np.float32], k: int) -> Hits:
        """Return the best segments for a folded query [d]."""
        with self.database.reading() as db:
            return self.indexes.memory.search(db, self.shelf, query, k)

    def is_asked(self, position: int) -> bool:
        """Return whether a segment belongs to the question itself."""
        return False

    def nearest(self, key: NDArray[np.float32], k: int) -> list[KeyHit]:
        """Return the k keys by meaning that are nearest to a question's, by falling score; none of the question itself."""
        if self.indexes.keys is None:
            return []
        with self.database.reading() as db:
            hits = self.indexes.keys.search(db, self.shelf, key, k)
        return [hit for hit in hits if not self.is_asked(hit.position)]

    def stretches(self, position: int) -> list[tuple[int, int]]:
        """Return [start, stop) of the tokens that each key by meaning of a segment stands for."""
        volume, seq = self.shelf.locate(position)
        parts = self.shelf.volumes[volume].parts
        with self.database.reading() as db:
            (row,) = lineage.segments(db, parts, seq, seq + 1)
            start, stop = row.tokens
            ids = lineage.tokens(db, parts, start, stop).tolist()
        return [(start + low, start + high) for low, high in stretches(ids, self.end_ids)]

    def find(self, query: Sequence[str]) -> Postings:
        """Return the postings of distinct words (`lexical.distinct_terms`)."""
        with self.database.reading() as db:
            return self.indexes.words.find(db, self.shelf, query)

    def embeddings(self, positions: Sequence[int]) -> Halves:
        """Return the memory embeddings [k, m, d] of segments."""
        with self.database.reading() as db:
            return self.indexes.memory.embeddings(db, self.shelf, np.array(positions, np.int64))

    def cite(self, position: int, *, before: int | None = None) -> Citation:
        """Quote a segment's words; with `before`, only those of tokens before it."""
        volume, seq = self.shelf.locate(position)
        parts = self.shelf.volumes[volume].parts
        with self.database.reading() as db:
            (row,) = lineage.segments(db, parts, seq, seq + 1)
            start, stop = row.tokens
            span = (start, stop if before is None else max(start, min(stop, before)))
            return self._cite(db, volume, seq, span)

    def _cite(self, db: Transaction, volume: int, seq: int, span: tuple[int, int]) -> Citation:
        raise NotImplementedError

    def passages(self, position: int, *, before: int | None = None) -> list[Citation]:
        """Cite the messages, or the sentences of long messages and of documents, that a segment has a part of; each whole.

        Args:
            position: the segment.
            before: a token; what stands behind it is not cited.
        """
        volume, seq = self.shelf.locate(position)
        parts = self.shelf.volumes[volume].parts
        with self.database.reading() as db:
            (row,) = lineage.segments(db, parts, seq, seq + 1)
            return self._passages(db, volume, seq, row.tokens, before)

    def _passages(self, db: Transaction, volume: int, seq: int, span: tuple[int, int], before: int | None) -> list[Citation]:
        raise NotImplementedError


class Draft(NamedTuple):
    """Messages that are being answered and not stored yet; they follow the last stored token."""

    rows: Sequence[MessageRow] = ()
    ids: Sequence[int] = ()


class SessionShard(Shard):
    """A session's own past, and the segments that a draft fills behind it."""

    length = 0  # L
    draft = Draft()
    asked_at: int | None = None  # the token where the question begins; its own words are no match

    def cite(self, position: int, *, before: int | None = None) -> Citation:
        """Quote a segment's words; with `before`, only those of tokens before it."""
        if position < self.total:
            return super().cite(position, before=before)
        start, stop = position * self.length, (position + 1) * self.length
        with self.database.reading() as db:
            return self._cite(db, 0, position, (start, stop if before is None else max(start, min(stop, before))))

    def cite_open(self, tokens: int) -> Citation:
        """Quote the last of so many tokens, which fill no segment yet."""
        return self.cite(self.total, before=tokens)

    def is_asked(self, position: int) -> bool:
        """Return whether a segment belongs to the question itself."""
        return self.asked_at is not None and position * self.length >= self.asked_at

    def find(self, query: Sequence[str]) -> Postings:
        """Return postings for the query words, without the question's own segments."""
        if self.asked_at is None:
            return super().find(query)
        until = min(self.total, self.asked_at // self.length)
        with self.database.reading() as db:
            return self.indexes.words.find(db, self.shelf, query, until)

    def passages(self, position: int, *, before: int | None = None) -> list[Citation]:
        """Cite the messages, or the sentences of long ones, that a segment has a part of; none of the question."""
        if position < self.total:
            return super().passages(position, before=before)
        with self.database.reading() as db:
            return self._passages(db, 0, position, (position * self.length, (position + 1) * self.length), before)

    def _cite(self, db: Transaction, volume: int, seq: int, span: tuple[int, int]) -> Citation:
        rows, ids = self._said(db, volume, span)
        text = "\n".join(lines(rows, span, ids, self._decode))
        return Citation(seq, text, tuple(map(as_message, rows)), span, utc(rows[0].created_at if rows else 0), self.name)

    def _passages(self, db: Transaction, volume: int, seq: int, span: tuple[int, int], before: int | None) -> list[Citation]:
        rows, ids = self._said(db, volume, span)
        limits = [limit for limit in (before, self.asked_at) if limit is not None]
        return of_messages(rows, seq, span, min(limits, default=None), ids, self._decode, self.name)

    def _said(self, db: Transaction, volume: int, span: tuple[int, int]) -> tuple[list[MessageRow], Ids]:
        """Return the messages of tokens [start, stop), and a function that gives the tokens [start, stop) of a message."""
        parts = self.shelf.volumes[volume].parts
        stored = lineage.size(parts)[1]
        rows = lineage.messages_in(db, parts, min(span[0], stored), min(span[1], stored))
        rows += [row for row in self.draft.rows if _shares_tokens(row, span)]

        def ids(row: MessageRow, start: int, stop: int) -> Sequence[int]:
            drafted = row.tokens[0] >= stored
            return (
                self.draft.ids[start - stored : stop - stored] if drafted else lineage.tokens(db, parts, start, stop).tolist()
            )

        return rows, ids


def _shares_tokens(row: MessageRow, span: tuple[int, int]) -> bool:
    """Return whether a message has a part of tokens [start, stop); one without tokens, such as a pinned one, has none."""
    return max(row.tokens[0], span[0]) < min(row.tokens[1], span[1])


class StreamShard(Shard):
    """A stream that is in memory only, with nothing stored: all of its segments follow `total`, like those of a draft.

    Args:
        name: its source in citations.
        ids: tokens of the stream.
        decode: token ids to text.
        length: L, tokens a segment.
        slots: memory embeddings of a segment that may be recalled.
        until: the token where the question begins; later segments are not found by their words.
        rows: its messages; none for plain text.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[int],
        decode: Decode,
        *,
        length: int,
        slots: int,
        until: int,
        rows: Sequence[MessageRow] = (),
    ) -> None:
        self.name, self.total, self._decode = name, 0, decode
        self._ids, self._rows, self._length, self._slots, self._until = ids, rows, length, slots, until
        self._now = time.time()
        self._keys: dict[int, NDArray[np.float16]] = {}

    def know(self, keys: Sequence[NDArray[np.float16]], segments: int) -> None:
        """Take over the keys by meaning of the stream's latest segments, of so many that were read."""
        self._keys = dict(enumerate(keys, segments - len(keys)))

    def nearest(self, key: NDArray[np.float32], k: int) -> list[KeyHit]:
        """Return the k keys by meaning that are nearest to a question's, by falling score; none of the question itself."""
        hits = [
            KeyHit(position, number, float(score))
            for position, keys in self._keys.items()
            if (position + 1) * self._length <= self._until
            for number, score in enumerate(keys.astype(np.float32) @ key)
        ]
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    def stretches(self, position: int) -> list[tuple[int, int]]:
        """Return [start, stop) of the tokens that each key by meaning of a segment stands for."""
        start = position * self._length
        ids = self._ids[start : start + self._length]
        return [(start + low, start + high) for low, high in stretches(ids, self.end_ids)]

    def search(self, query: NDArray[np.float32], k: int) -> Hits:
        """Return no segments: nothing is stored."""
        return Hits(np.zeros(0, np.int64), np.zeros((0, self._slots, len(query)), np.float16), float("-inf"))

    def find(self, query: Sequence[str]) -> Postings:
        """Return postings for the query words, without the question's own segments."""
        segments = range(0, self._until // self._length * self._length, self._length)
        counted = [Counter(lexical.terms(self._decode(self._ids[start : start + self._length]))) for start in segments]
        places = []
        for word in query:
            holding = [(number, count[word]) for number, count in enumerate(counted) if word in count]
            places.append(
                (np.array([number for number, _ in holding], np.int64), np.array([often for _, often in holding], np.int64))
            )
        lengths = np.array([sum(count.values()) for count in counted], np.int64)
        return Postings(lengths, places, np.zeros(min(1, len(lengths)), np.int64))

    def cite(self, position: int, *, before: int | None = None) -> Citation:
        """Quote a segment's words; with `before`, only those of tokens before it."""
        start, stop = position * self._length, min((position + 1) * self._length, len(self._ids))
        span = (start, stop if before is None else max(start, min(stop, before)))
        rows = [row for row in self._rows if row.tokens[0] < span[1] and row.tokens[1] > span[0]]
        if self._rows:
            said = lines(rows, span, lambda row, low, high: self._ids[low:high], self._decode)
            text, messages = "\n".join(said), tuple(map(as_message, rows))
        else:
            text, messages = trimmed(self._decode(self._ids[slice(*span)]), span, (0, len(self._ids))), ()
        return Citation(position, text, messages, span, utc(self._now), self.name, timed=False)

    def passages(self, position: int, *, before: int | None = None) -> list[Citation]:
        """Cite the messages that a segment has a part of, or the sentences of a plain text."""
        span = (position * self._length, min((position + 1) * self._length, len(self._ids)))
        limit = self._until if before is None else min(before, self._until)
        if self._rows:
            rows = [row for row in self._rows if _shares_tokens(row, span)]
            cited = of_messages(
                rows, position, span, limit, lambda row, low, high: self._ids[low:high], self._decode, self.name
            )
            return [passage._replace(timed=False) for passage in cited]
        text, tokens = whole_sentences(lambda low, high: self._ids[low:high], span, (0, limit), self._decode)
        return [Citation(position, text, (), tokens, utc(self._now), self.name, timed=False)] if text else []


class CorpusShard(Shard):
    """A corpus: a volume for each document."""

    def __init__(self, database: Backend, indexes: Indexes, shelf: Shelf, name: str, decode: Decode) -> None:
        super().__init__(database, indexes, shelf, name, decode)
        self._known: dict[int, DocumentRow] = {}  # documents that were cited, without their texts

    def _cite(self, db: Transaction, volume: int, seq: int, span: tuple[int, int]) -> Citation:
        document = self._document(db, self.shelf.documents[volume])
        parts = self.shelf.volumes[volume].parts
        text = trimmed(self._decode(lineage.tokens(db, parts, *span).tolist()), span, parts[-1].tokens)
        source = f"{self.name}/{document.body['name']}"
        return Citation(
            seq, text, (), span, utc(document.created_at), source, document=document.id, metadata=document.body["metadata"]
        )

    def _passages(self, db: Transaction, volume: int, seq: int, span: tuple[int, int], before: int | None) -> list[Citation]:
        parts = self.shelf.volumes[volume].parts
        cited = self._cite(db, volume, seq, span)

        def ids(low: int, high: int) -> Sequence[int]:
            return list(map(int, lineage.tokens(db, parts, low, high)))

        text, tokens = whole_sentences(ids, span, parts[-1].tokens, self._decode)
        return [cited._replace(text=text, token_span=tokens)] if text else []

    def _document(self, db: Transaction, number: int) -> DocumentRow:
        if number not in self._known:
            (collection, _, _) = self.shelf.version or (0, 0, 0)
            row = db.find_document(collection, number)
            if row is None:
                raise StoreDamagedError(f"document {number} is missing from the store. Restore a backup.")
            self._known[number] = row._replace(body={**row.body, "text": ""})
        return self._known[number]
