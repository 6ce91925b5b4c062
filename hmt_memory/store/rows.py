"""The kinds of rows a store holds, as values, and their checksums. Knows no SQL."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import StoreDamagedError


class ModelRow(NamedTuple):
    """A model that made memories."""

    id: int
    digest: str
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class CollectionRow:
    """A session or a corpus."""

    id: int
    kind: str
    name: str
    model: int | None
    stream: int | None
    next_id: int
    revision: int
    epoch: int
    created_at: float
    updated_at: float
    settings: Mapping[str, Any]


class StreamRow(NamedTuple):
    """Where a stream begins in its parent, and where it ends."""

    id: int
    parent: int | None
    parent_messages: int
    parent_tokens: int
    parent_segments: int
    messages: int
    tokens: int


class Part(NamedTuple):
    """A stretch of one stream's own rows within a lineage: [start, stop) of each."""

    stream: int
    messages: tuple[int, int]
    tokens: tuple[int, int]
    segments: tuple[int, int | None]  # None: as many as there are


Lineage = tuple[Part, ...]


class MessageRow(NamedTuple):
    """One message."""

    seq: int
    id: int
    batch: int
    pinned: bool
    body: Mapping[str, Any]
    created_at: float
    tokens: tuple[int, int]
    content: tuple[int, int]


class SegmentRow(NamedTuple):
    """One closed segment."""

    seq: int
    tokens: tuple[int, int]
    memory: bytes
    keys: bytes | None
    digest: bytes


class DocumentRow(NamedTuple):
    """One document of a corpus."""

    id: int
    stream: int
    body: Mapping[str, Any]
    created_at: float


def crc_of(*values: Any) -> int:
    """Compute the crc32 of a row's values, their types and lengths included."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        crc = zlib.crc32(data, zlib.crc32(f"{type(value).__name__}{len(data)}:".encode(), crc))
    return crc


def checked(what: str, row: Sequence[Any]) -> Sequence[Any]:
    """Return the columns of `row` without its last, their crc. Raises StoreDamagedError where it does not fit."""
    if crc_of(*row[:-1]) != row[-1]:
        raise damaged(what)
    return row[:-1]


def damaged(what: str) -> StoreDamagedError:
    """Make the error for a row that is not what was written."""
    return StoreDamagedError(f"{what} is damaged: its checksum does not fit. Restore a backup or an export.")
