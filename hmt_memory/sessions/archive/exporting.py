"""Export of a session into one file: row by row, in one view of the store, so that its length does not matter.

Knows the rows and the file; `layout` says what may stand in it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..._version import __version__
from ...errors import HMTError, SessionNotFoundError, StoreError
from ...files import replacing
from ...store import lineage
from ...store.backend import Backend
from ...store.rows import CollectionRow, Lineage, ModelRow
from . import layout, messages
from .container import fair

if TYPE_CHECKING:
    from ...store.transaction import Transaction

_MESSAGES, _TOKENS, _SEGMENTS = 32, 1 << 16, 64  # rows fetched at once
_TIME = (1980, 1, 1, 0, 0, 0)  # always the same, so that the same session gives the same file
_WORTH_IT = 0.8  # share of a file's bytes that are left when it is deflated: more are stored as they are
_LARGE = 1 << 30  # bytes from which on a file in a ZIP may need 64-bit sizes

Content = Mapping[str, Callable[[], Iterator[bytes]]]  # the content of each file, readable as often as needed


class _Measured(NamedTuple):
    bytes: int
    sha256: str
    packed: int  # bytes after deflation


def export_session(database: Backend, session: int, path: Path) -> None:
    """Write a session to `path`, replacing the file whole or not at all. Only its owner can read the file.

    A link at `path` is replaced, not followed.

    Args:
        database: holds the session.
        session: its id.
        path: the file.

    Raises:
        SessionNotFoundError: the session was deleted.
        StoreError: the file cannot be written, or the session is beyond a limit of the format.
    """
    with database.reading() as db:
        row = db.collection(session)
        if row is None:
            raise SessionNotFoundError("the session was deleted.")
        parts = lineage.of(db, row)
        model = None if row.model is None else db.model(row.model)
        content = _content(db, parts, model)
        try:
            measured = {name: _measured(blocks()) for name, blocks in content.items()}
            for name, size in measured.items():
                layout.check(size.bytes <= layout.MOST_BYTES, f"{name} would be over {layout.MOST_BYTES >> 30} GiB")
            manifest = json.dumps(_manifest(db, row, parts, model, measured), indent=2, ensure_ascii=False).encode()
            layout.check(len(manifest) <= layout.MOST_MANIFEST_BYTES, "its manifest would be too large")
        except layout.Unfit as error:
            raise StoreError(f"session {row.name!r} cannot be exported: {error}. Forget that part of it first.") from error
        with _replacing(path) as file:
            _write(file, manifest, content, measured)


def _content(db: Transaction, parts: Lineage, model: ModelRow | None) -> Content:
    count, tokens = lineage.size(parts)
    segments = lineage.segment_count(db, parts)

    def lines() -> Iterator[bytes]:
        for start in range(0, count, _MESSAGES):
            block = lineage.messages(db, parts, start, min(start + _MESSAGES, count))
            yield b"".join(messages.written(message) for message in block)

    def ids() -> Iterator[bytes]:
        for start in range(0, tokens, _TOKENS):
            yield lineage.tokens(db, parts, start, min(start + _TOKENS, tokens)).astype("<u4").tobytes()

    def memory() -> Iterator[bytes]:
        for start in range(0, segments, _SEGMENTS):
            yield b"".join(row.memory for row in lineage.segments(db, parts, start, min(start + _SEGMENTS, segments)))

    def keys() -> Iterator[bytes]:
        for start in range(0, segments, _SEGMENTS):
            rows = lineage.segments(db, parts, start, min(start + _SEGMENTS, segments))
            yield b"".join(len(row.keys or b"").to_bytes(layout.KEYS_SIZE_BYTES, "little") + (row.keys or b"") for row in rows)

    every = {layout.MESSAGES: lines, layout.TOKENS: ids, layout.MEMORY: memory, layout.KEYS: keys}
    return {name: every[name] for name in (layout.KEYED if _keyed(model) else layout.UNKEYED)}


def _keyed(model: ModelRow | None) -> bool:
    return model is not None and bool(model.parts["config"].get("key_dim"))


def _version(row: CollectionRow, model: ModelRow | None) -> int:
    """Return the first version of the format that has a place for everything: older programs read it."""
    if row.memory_bits != 16 or (model is not None and "quantization" in model.parts["backbone"]):
        return 3
    return 2 if _keyed(model) else 1


def _measured(blocks: Iterator[bytes]) -> _Measured:
    digest, packer = hashlib.sha256(), zlib.compressobj(wbits=-zlib.MAX_WBITS)
    size = packed = 0
    for block in blocks:
        digest.update(block)
        size += len(block)
        packed += len(packer.compress(block))
    return _Measured(size, digest.hexdigest(), packed + len(packer.flush()))


def _manifest(
    db: Transaction, row: CollectionRow, parts: Lineage, model: ModelRow | None, measured: Mapping[str, _Measured]
) -> dict[str, Any]:
    count, tokens = lineage.size(parts)
    return {
        "format": layout.FORMAT,
        "version": (version := _version(row, model)),
        "written_by": f"hmt-memory {__version__}",
        "name": row.name,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "next_id": row.next_id,
        **({} if version < 3 else {"memory_bits": row.memory_bits}),
        "retention": row.settings.get("retention", {}),
        "model": None if model is None else _model(model),
        "messages": count,
        "tokens": tokens,
        "segments": lineage.segment_count(db, parts),
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in measured.items()},
    }


def _model(row: ModelRow) -> dict[str, Any]:
    """Describe the model that made the memory; its name, which may be any path and is not in the digest, is made printable."""
    name = "".join(char if char.isprintable() else "?" for char in row.parts["backbone"]["name"])
    return {"digest": row.digest, "parts": {**row.parts, "backbone": {**row.parts["backbone"], "name": name}}}


def _write(file: IO[bytes], manifest: bytes, content: Content, measured: Mapping[str, _Measured]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(layout.MANIFEST, _TIME), manifest, compress_type=zipfile.ZIP_DEFLATED)
        for name, blocks in content.items():
            size, _, packed = measured[name]
            info = zipfile.ZipInfo(name, _TIME)
            deflate = packed < _WORTH_IT * size and fair(packed, size)
            info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=size > _LARGE) as member:
                for block in blocks():
                    member.write(block)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that only its owner can read and that replaces `path`; the system's errors become StoreError."""
    try:
        with replacing(path, private=True) as file:
            yield file
    except HMTError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error
