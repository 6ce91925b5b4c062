"""The kinds of rows a store holds, as values, and their checksums. Knows no SQL."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StoreDamagedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

MEMORY_BITS = "memory_bits"  # the setting of a session or corpus
OWED = "owed"  # the setting of a session with what is noted of answers that are not stored yet


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

    @property
    def memory_bits(self) -> int:
        """The bits of a number in its memories, 8 or 16."""
        return int(self.settings.get(MEMORY_BITS, 16))


class StreamRow(NamedTuple):
    """The beginning of a stream in its parent, and its end."""

    id: int
    parent: int | None
    parent_messages: int
    parent_tokens: int
    parent_segments: int
    messages: int
    tokens: int


class LineagePart(NamedTuple):
    """A stretch of one stream's own rows within a lineage: [start, stop) of each."""

    stream: int
    messages: tuple[int, int]
    tokens: tuple[int, int]
    segments: tuple[int, int | None]  # None: as many as there are


Lineage = tuple[LineagePart, ...]


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


class Payload(NamedTuple):
    """A reference to content, as the row that owns it holds it."""

    id: int
    size: int
    check: int  # crc32 of the content


class TokenRow(NamedTuple):
    """Some of a message's tokens, without the tokens themselves."""

    start: int
    ids: Payload


class Kept(NamedTuple):
    """A message that moves to another stream without its content, which both refer to."""

    row: MessageRow  # without its body
    body: Payload
    tokens: tuple[TokenRow, ...]
    new: frozenset[int] = frozenset()  # payloads of tokens that no other row refers to


class SegmentRow(NamedTuple):
    """One closed segment."""

    seq: int
    tokens: tuple[int, int]
    memory: bytes  # float16, little-endian, like the keys
    keys: bytes | None
    digest: bytes
    bits: int = 16  # of a number where it is stored; 8 have to hold them exactly


class DocumentRow(NamedTuple):
    """One document of a corpus."""

    id: int
    stream: int
    body: Mapping[str, Any]
    created_at: float


def as_array(ids: ArrayLike) -> NDArray[np.uint32]:
    """Convert token ids to the form in which they are stored."""
    import numpy as np

    return np.asarray(ids, dtype=np.uint32)


class DocumentStream(NamedTuple):
    """A document's stream, without its text."""

    document: int
    stream: int
    tokens: int
    segments: int  # the number of closed ones
    digest: bytes  # digest of the closed segments


def crc_of(*values: Any) -> int:
    """Compute the crc32 of a row's values, including their types and lengths."""
    parts: list[bytes] = []
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        parts += (f"{type(value).__name__}{len(data)}:".encode(), data)
    return zlib.crc32(b"".join(parts))


def checked(what: str, row: Sequence[Any]) -> Sequence[Any]:
    """Return the columns of `row` without the last, which is their crc.

    Raises:
        StoreDamagedError: the crc does not fit.
    """
    if crc_of(*row[:-1]) != row[-1]:
        raise damaged(what)
    return row[:-1]


def damaged(what: str) -> StoreDamagedError:
    """Make the error for a row that differs from what was written."""
    return StoreDamagedError(f"{what} is damaged: its checksum does not fit. Restore a backup or an export.")


def content(what: str, data: bytes, size: int, check: int) -> bytes:
    """Return the content that `data` begins with.

    Args:
        what: what the content is, for the message of an error.
        data: the content, and zeros behind it.
        size: bytes of the content.
        check: crc32 of the content.

    Raises:
        StoreDamagedError: the content differs from what was written.
    """
    said = data[:size]
    if len(said) != size or zlib.crc32(said) != check:
        raise damaged(what)
    return said


def as_json(value: Mapping[str, Any]) -> bytes:
    """Encode a body for the database."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()


def chain(before: bytes, span: tuple[int, int], memory: bytes, keys: bytes | None) -> bytes:
    """Compute the digest of a segment row from its values and the digest of the rows before it.

    Args:
        before: the digest of the row before it; empty for the first.
        span: [start, stop) of its tokens.
        memory: its memory embeddings as bytes.
        keys: its index keys as bytes; None: the embeddings are the keys.
    """
    digest = hashlib.blake2b(before, digest_size=16)
    for part in (repr(span).encode(), memory, keys or b""):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def name_key(name: str) -> bytes:
    """Return the key by which a session, corpus or document is looked up."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
