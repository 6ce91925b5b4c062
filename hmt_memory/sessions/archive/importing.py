"""Import of an exported session into a store: a pass that checks all of the file, then one that copies it into rows.

The first needs no lock. The second is one transaction, and hashes again what it reads: a file that changes in between leaves
nothing behind. Neither holds more than a block or the largest message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.mxint8 import held
from ...store import lineage
from ...store.rows import MEMORY_BITS, CollectionRow, MessageRow, SegmentRow, chain
from ..names import check_new, normal
from . import layout
from .agreement import UNVERIFIED
from .container import BLOCK_BYTES, Archive, ArchiveFile, opened
from .layout import check
from .manifest import Manifest, Model
from .messages import read_messages

if TYPE_CHECKING:
    from ...store.transaction import Transaction
    from ..storage import Storage

_BATCH_BYTES = 1 << 16  # messages and their tokens that are stored together


def import_session(store: Storage, path: Path, name: str | None) -> CollectionRow:
    """Add the session of an exported file. Returns its row.

    Its tokens are not compared with its messages here, which takes the model: `settle` does it before a model uses them.

    Args:
        store: where it is added.
        path: the file.
        name: of the new session; None: its own.

    Raises:
        StoreError: the file cannot be read.
        StoreDamagedError: the file is not whole.
        SessionExistsError: the name is taken.
        InputError: the name is impossible. Nothing is stored then.
    """
    with opened(path) as archive:
        wanted = normal(archive.manifest.name if name is None else name)
        with store.database.reading() as db:
            check_new(db, "session", wanted)
        _check(archive)
        with store.database.writing() as db:
            check_new(db, "session", wanted)
            return _copy(db, archive, wanted)


def _check(archive: Archive) -> None:
    """Raise Unfit unless every file is what the manifest says, and can be stored."""
    model = archive.manifest.model
    with archive.part(layout.MESSAGES) as part:
        for _ in read_messages(part.lines(), archive.manifest):
            pass
    with archive.part(layout.TOKENS) as part:
        for block in part.blocks():
            known = model is not None and int(np.frombuffer(block, "<u4").max()) < model.vocabulary
            check(known, "it holds tokens that its model does not know")
    bits, segments = archive.manifest.memory_bits, archive.manifest.segments
    if model is None:
        return
    with archive.part(layout.MEMORY) as part:
        for _ in range(segments):
            _memory(part, model, bits)
    if layout.KEYS in archive.manifest.files:
        with archive.part(layout.KEYS) as part:
            for _ in range(segments):
                _keys(part, model, bits)


def _copy(db: Transaction, archive: Archive, name: str) -> CollectionRow:
    manifest = archive.manifest
    stream = lineage.add_stream(db)
    _copy_messages(db, archive, stream)
    number = None
    if manifest.model is not None:
        _copy_memory(db, archive, stream, manifest.model)
        number = db.add_model(manifest.model.digest, manifest.model.parts)
    new = db.add_collection("session", name, stream=stream, now=manifest.created_at)
    row = replace(new, model=number, next_id=manifest.next_id, updated_at=manifest.updated_at, settings=_settings(manifest))
    return db.update_collection(row)


def _settings(manifest: Manifest) -> dict[str, Any]:
    unverified = {UNVERIFIED: True} if manifest.tokens else {}
    bits = {} if manifest.memory_bits == 16 else {MEMORY_BITS: manifest.memory_bits}
    return {"retention": dict(manifest.retention), **unverified, **bits}


def _copy_messages(db: Transaction, archive: Archive, stream: int) -> None:
    with archive.part(layout.MESSAGES) as lines, archive.part(layout.TOKENS) as tokens:
        for batch in _batches(read_messages(lines.lines(), archive.manifest)):
            data = tokens.read(4 * (batch[-1].tokens[1] - batch[0].tokens[0]))
            lineage.append_messages(db, stream, batch, np.frombuffer(data, "<u4").astype(np.uint32))


def _batches(messages: Iterable[tuple[MessageRow, int]]) -> Iterator[list[MessageRow]]:
    batch: list[MessageRow] = []
    size = 0
    for message, weight in messages:
        batch.append(message)
        size += weight
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _copy_memory(db: Transaction, archive: Archive, stream: int, model: Model) -> None:
    parts, digest, bits = lineage.of_stream(db, stream), b"", archive.manifest.memory_bits
    together = max(1, BLOCK_BYTES // max(model.segment_bytes, lineage.TOKENS_PER_ROW))
    with archive.part(layout.MEMORY) as part, ExitStack() as stack:
        keyed = stack.enter_context(archive.part(layout.KEYS)) if layout.KEYS in archive.manifest.files else None
        for first in range(0, archive.manifest.segments, together):
            numbers = range(first, min(first + together, archive.manifest.segments))
            rows = []
            for number in numbers:
                span, memory = (number * model.segment_length, (number + 1) * model.segment_length), _memory(part, model, bits)
                keys = None if keyed is None else _keys(keyed, model, bits)
                digest = chain(digest, span, memory, keys)
                rows.append(SegmentRow(number, span, memory, keys, digest, bits))
            lineage.append_segments(db, parts, rows)


def _memory(part: ArchiveFile, model: Model, bits: int) -> bytes:
    """Read the memory of the next segment."""
    return _held(part.read(model.segment_bytes), bits, "a memory embedding")


def _keys(part: ArchiveFile, model: Model, bits: int) -> bytes:
    """Read the keys by meaning of the next segment."""
    size = int.from_bytes(part.read(layout.KEYS_SIZE_BYTES), "little")
    check(size <= layout.MOST_SEGMENT_BYTES and size % model.key_bytes == 0, "the keys of a segment are of another size")
    return _held(part.read(size), bits, "a key")


def _held(vectors: bytes, bits: int, what: str) -> bytes:
    """Return float16 vectors that can be stored."""
    check(bool(np.isfinite(np.frombuffer(vectors, "<f2")).all()), f"{what} is not finite")
    check(bits != 8 or held(vectors), f"{what} is finer than 8 bits")
    return vectors
