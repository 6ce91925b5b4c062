"""A session as one file to keep or to give away: a ZIP of JSON lines and raw little-endian numbers (`docs/FORMAT.md`).

Nothing in it is code, nothing is trusted: an import checks every length, digest and span before it writes a row.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .config import HMTConfig
from .errors import InputError, SessionNotFoundError, StoreDamagedError, StoreError
from .fingerprint import digest_of
from .history import lineage
from .shards import utc
from .store import records
from .store.database import Database
from .streams import as_array
from .transcript import validated

if TYPE_CHECKING:
    import sqlite3

    from .memory_store import MemoryStore

FORMAT, VERSION = "hmt-session", 1
_MANIFEST, _MESSAGES, _TOKENS, _MEMORY = "manifest.json", "messages.jsonl", "tokens.u32", "memory.f16"
_LARGEST_MANIFEST = 1 << 20
_LARGEST_FILE = 1 << 33  # bytes of one part, unpacked: a year of talk is a thousandth of it
_LARGEST_ID = 1 << 53
_TIME = (1980, 1, 1, 0, 0, 0)  # ZIP's own: the same session gives the same file


def export_session(database: Database, id: int, path: Path) -> None:
    """Write the session of that id to `path`, replacing it whole or not at all."""
    with database.reading() as db:
        row = records.collection(db, id)
        if row is None:
            raise SessionNotFoundError("the session was deleted.")
        parts = lineage(db, row)
        messages, tokens = records.size(parts)
        segments = list(records.segments(db, parts, 0, records.segment_count(db, parts)))
        content = {
            _MESSAGES: "".join(_line(message) for message in records.messages(db, parts)).encode(),
            _TOKENS: as_array(records.tokens(db, parts, 0, tokens).tolist()).astype("<u4").tobytes(),
            _MEMORY: b"".join(segment.memory for segment in segments),
        }
        model = None if row.model is None else records.model(db, row.model)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"hmt-memory {__version__}",
        "name": row.name,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "next_id": row.next_id,
        "retention": row.settings.get("retention", {}),
        "model": None if model is None else {"digest": model.digest, "parts": model.parts},
        "messages": messages,
        "tokens": tokens,
        "segments": len(segments),
        "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in content.items()},
    }
    _write(path, {_MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False).encode(), **content})


def _line(message: records.MessageRow) -> str:
    fields = message._asdict() | {"tokens": list(message.tokens), "content": list(message.content)}
    del fields["seq"]
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in files.items():
                    packed = zipfile.ZIP_STORED if name == _MEMORY else zipfile.ZIP_DEFLATED
                    archive.writestr(zipfile.ZipInfo(name, _TIME), data, compress_type=packed)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def import_session(store: MemoryStore, path: Path, name: str | None) -> records.CollectionRow:
    """Add the session of an exported file under `name` (None: its own); its row."""
    manifest, files = _read(path)
    with _damage_of(path):
        _check(0 <= manifest["segments"] <= manifest["tokens"] == len(files[_TOKENS]) / 4, "its counts do not fit")
        messages = _messages(manifest, files[_MESSAGES])
        tokens = np.frombuffer(files[_TOKENS], "<u4").astype(np.uint32)
        memory = _memory(manifest, files[_MEMORY])
        model = manifest["model"]
        if model is not None:
            _check(digest_of(model["parts"]) == model["digest"], "the model's digest does not fit its parts")
            _check(isinstance(model["parts"]["backbone"]["name"], str), "its model has no name")
            HMTConfig.from_dict(model["parts"]["config"])
        _check(
            len(tokens) == manifest["tokens"] == (messages[-1].tokens[1] if messages else 0), "messages and tokens do not fit"
        )
        if model is not None:
            vocabulary = int(model["parts"]["backbone"]["vocab_size"])
            _check(not len(tokens) or int(tokens.max()) < vocabulary, "it holds tokens that its model does not know")
        length = 1 if model is None else int(model["parts"]["config"]["segment_length"])
        _check(len(memory) * length <= len(tokens), "it holds more segments than tokens")
        created, updated = _time(manifest["created_at"]), _time(manifest["updated_at"])
        retention, next_id = _retention(manifest["retention"]), int(manifest["next_id"])
        _check(all(message.id < next_id < _LARGEST_ID for message in messages), "it would give a message id twice")
    with store.database.writing() as db:
        wanted = str(manifest["name"]) if name is None else name
        store.check_new(db, "session", wanted)
        stream = records.add_stream(db)
        records.append_messages(db, stream, messages, tokens)
        if model is not None:
            _add_segments(db, stream, memory, length)
        number = None if model is None else records.add_model(db, model["digest"], model["parts"])
        new = records.add_collection(db, "session", wanted, stream=stream, now=created)
        row = replace(new, model=number, next_id=next_id, updated_at=updated, settings={"retention": retention})
        return records.update_collection(db, row)


def _add_segments(db: sqlite3.Connection, stream: int, memory: list[bytes], length: int) -> None:
    digest, rows = b"", []
    for at, data in enumerate(memory):
        span = (at * length, (at + 1) * length)
        digest = records.chain(digest, span, data, None)
        rows.append(records.SegmentRow(at, span, data, None, digest))
    records.append_segments(db, records.lineage(db, stream), rows)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and files of an archive, each as long as it says and with the digest that it says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    with _damage_of(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
        manifest = json.loads(_member(archive, _MANIFEST, _LARGEST_MANIFEST))
        _check(isinstance(manifest, dict) and manifest.get("format") == FORMAT, "it is not an exported session")
        if manifest.get("version") != VERSION:
            raise StoreError(
                f"{path} is of format {manifest.get('version')!r}, this version reads {VERSION}. Upgrade hmt-memory."
            )
        files = {}
        for name in (_MESSAGES, _TOKENS, _MEMORY):
            stated = manifest["files"][name]
            _check(0 <= int(stated["bytes"]) <= _LARGEST_FILE, f"{name} is too large")
            files[name] = _member(archive, name, int(stated["bytes"]))
            _check(len(files[name]) == stated["bytes"] and _sha256(files[name]) == stated["sha256"], f"{name} is not whole")
    return manifest, files


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member, if it unpacks to at most so many bytes, whatever its header says."""
    _check(
        archive.getinfo(name).compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{name} is packed in another way"
    )
    with archive.open(name) as member:
        data = member.read(most + 1)
    _check(len(data) <= most, f"{name} is longer than it says")
    return data


def _messages(manifest: Mapping[str, Any], data: bytes) -> list[records.MessageRow]:
    found: list[records.MessageRow] = []
    at = 0
    for seq, line in enumerate(data.decode().split("\n")[:-1]):
        fields = json.loads(line)
        (body,) = validated(fields["body"])
        start, stop = (int(value) for value in fields["tokens"])
        content = (int(fields["content"][0]), int(fields["content"][1]))
        _check(start == at <= content[0] <= content[1] <= stop, f"message {seq} is not where the one before it ends")
        id, batch, created = int(fields["id"]), int(fields["batch"]), _time(fields["created_at"])
        _check(0 < id < _LARGEST_ID and 0 < batch < _LARGEST_ID, "a message id is out of range")
        found.append(records.MessageRow(seq, id, batch, bool(fields["pinned"]), body, created, (start, stop), content))
        at = stop
    _check(len(found) == manifest["messages"], "messages are missing")
    _check(len({message.id for message in found}) == len(found), "a message id is there twice")
    return found


def _memory(manifest: Mapping[str, Any], data: bytes) -> list[bytes]:
    count, model = int(manifest["segments"]), manifest["model"]
    _check(count >= 0 and (count == 0 or model is not None), "it holds memories of no model")
    if not count:
        _check(not data, "it holds memories of no segment")
        return []
    config = model["parts"]["config"]
    slots = 0 if config["mode"] == "plain" else int(config["memory_tokens"])
    size = 2 * slots * int(model["parts"]["backbone"]["hidden_size"])
    _check(len(data) == count * size and count <= int(manifest["tokens"]), "memories are missing")
    _check(bool(np.isfinite(np.frombuffer(data, "<f2")).all()) if data else True, "a memory embedding is not finite")
    return [data[at * size : (at + 1) * size] for at in range(count)]


def _time(value: Any) -> float:
    """A time that can be shown. Raises ValueError or OverflowError."""
    utc(float(value))
    return float(value)


def _retention(limits: Mapping[str, Any]) -> dict[str, float]:
    known = {name: value for name, value in limits.items() if name in ("messages", "seconds")}
    _check(all(isinstance(value, (int, float)) and value > 0 for value in known.values()), "its retention is no limit")
    return known


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


@contextlib.contextmanager
def _damage_of(path: Path) -> Any:
    """Whatever a damaged or hostile file leads to, as one error; nothing has been written then."""
    try:
        yield
    except StoreError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, IndexError, AttributeError, InputError),
        *(OSError, OverflowError, NotImplementedError, EOFError, RuntimeError, MemoryError, RecursionError),
    ) as error:
        reason = str(error) or type(error).__name__
        raise StoreDamagedError(f"{path} is not a whole exported session: {reason}. Export it again.") from error
