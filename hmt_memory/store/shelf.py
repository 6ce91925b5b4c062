"""The closed segments of a collection as one numbered sequence: a session's lineage, or a corpus's documents one by one."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from . import lineage
from .rows import CollectionRow, Lineage, LineagePart, SegmentRow
from .transaction import Transaction


class Volume(NamedTuple):
    """One stream of a shelf."""

    parts: Lineage
    segments: int  # the number of closed ones
    digest: bytes  # digest of the closed segments

    @property
    def stream(self) -> int:
        """The stream itself, without its ancestors."""
        return self.parts[-1].stream


class Shelf:
    """The closed segments of a collection, as of one view of the rows.

    Args:
        volumes: its streams, in order.
        version: the collection's id, epoch and revision.
        documents: ids of a corpus's documents, one for each volume.
    """

    def __init__(
        self, volumes: tuple[Volume, ...], version: tuple[int, int, int] | None = None, documents: tuple[int, ...] = ()
    ) -> None:
        self.volumes, self.version, self.documents = volumes, version, documents

    @cached_property
    def starts(self) -> list[int]:
        """The position of each volume's first segment, and behind them the number of all segments."""
        return list(accumulate((volume.segments for volume in self.volumes), initial=0))

    @property
    def total(self) -> int:
        """The number of all segments."""
        return self.starts[-1]

    def locate(self, position: int) -> tuple[int, int]:
        """Return the volume that a position falls into, and the segment's number there."""
        volume = bisect_right(self.starts, position) - 1
        if not 0 <= position < self.total:
            raise IndexError(position)
        return volume, position - self.starts[volume]

    def stretches(self, start: int, stop: int) -> Iterator[tuple[Lineage, int, int]]:
        """Yield, for each volume with some of segments [start, stop), its lineage and their numbers in it."""
        for number in range(bisect_right(self.starts, start) - 1, len(self.volumes)):
            first, volume = self.starts[number], self.volumes[number]
            if first >= stop:
                return
            low, high = max(start - first, 0), min(stop - first, volume.segments)
            if low < high:
                yield volume.parts, low, high

    def rows(self, db: Transaction, start: int, stop: int) -> Iterator[SegmentRow]:
        """Yield segments [start, stop); fetch them all before the transaction ends.

        Args:
            db: the transaction to read rows in.
            start: the first segment.
            stop: one past the last segment.
        """
        for parts, low, high in self.stretches(start, stop):
            yield from lineage.segments(db, parts, low, high)

    def digest(self) -> str:
        """Return a digest of all segments."""
        digest = hashlib.blake2b(digest_size=16)
        for volume in self.volumes:
            digest.update(volume.digest)
        return digest.hexdigest()

    def check(self, db: Transaction, count: int) -> str:
        """Return a digest of the first `count` segments: equal digests mean equal memories."""
        digest = hashlib.blake2b(digest_size=16)
        for volume in self.volumes:
            taken = min(count, volume.segments)
            if taken > 0:
                digest.update(volume.digest if taken == volume.segments else lineage.digest_at(db, volume.parts, taken))
            count -= volume.segments
            if count <= 0:
                break
        return digest.hexdigest()


def volume_of(db: Transaction, stream: int) -> Volume:
    """Return a stream with its ancestors as a volume."""
    return volume(db, lineage.of_stream(db, stream))


def volume(db: Transaction, parts: Lineage, count: int | None = None) -> Volume:
    """Return a lineage as a volume of its first `count` segments; None: of all.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        count: of closed segments; None: all.
    """
    closed = lineage.segment_count(db, parts) if count is None else count
    return Volume(parts, closed, lineage.digest_at(db, parts, closed))


def shelf_of(db: Transaction, row: CollectionRow) -> Shelf:
    """Return the closed segments of a session or corpus."""
    version = (row.id, row.epoch, row.revision)
    if row.stream is not None:
        return Shelf((volume_of(db, row.stream),), version)
    documents = db.document_streams(row.id)
    volumes = (
        Volume((LineagePart(document.stream, (0, 0), (0, document.tokens), (0, None)),), document.segments, document.digest)
        for document in documents
    )
    return Shelf(tuple(volumes), version, tuple(document.document for document in documents))
