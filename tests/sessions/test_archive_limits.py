"""Exported sessions of any length, and files that claim more than they hold: memory stays bounded, nothing is stored."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import MODEL, pack, parts_of
from tiny import LONG

from hmt_memory import MemoryStore
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.errors import StoreDamagedError, StoreError
from hmt_memory.sessions.archive import layout
from hmt_memory.store import lineage, rows

MADE_BY = fingerprint(MODEL)
MANY = 100_000 if LONG else 1_500
ROOM = 8 << 20  # bytes that an import may take beside its largest message


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


def peak(action: Callable[[], Any]) -> int:
    """The most bytes that `action` held at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def line(id: int, start: int, stop: int, text: str = "hello") -> bytes:
    """A message with its tokens."""
    fields = {"id": id, "batch": id, "pinned": False, "body": {"role": "user", "content": text}, "created_at": 0.0}
    return json.dumps({**fields, "tokens": [start, stop], "content": [start, stop]}).encode() + b"\n"


def conversation(count: int, tokens_each: int = 10) -> dict[str, bytes]:
    """The files of an exported session of so many messages, read to its end."""
    lines = b"".join(line(at + 1, at * tokens_each, (at + 1) * tokens_each) for at in range(count))
    tokens = np.random.default_rng(0).integers(0, 256, count * tokens_each).astype("<u4")
    memory = np.random.default_rng(1).standard_normal(count * tokens_each // 16 * 32).astype("<f2")
    return described({"messages.jsonl": lines, "tokens.u32": tokens.tobytes(), "memory.f16": memory.tobytes()}, count)


def described(files: dict[str, bytes], messages: int, **changes: Any) -> dict[str, bytes]:
    """Files with a manifest that fits their sizes."""
    manifest = {
        **{"format": "hmt-session", "version": 1, "written_by": "hmt-memory", "name": "made"},
        **{"created_at": 0.0, "updated_at": 0.0, "next_id": messages + 1, "retention": {}},
        **{"model": {"digest": MADE_BY.digest, "parts": MADE_BY.parts}, "messages": messages},
        **{"tokens": len(files["tokens.u32"]) // 4, "segments": len(files["memory.f16"]) // 64},
        "files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()},
    }
    return {"manifest.json": json.dumps(manifest | changes).encode(), **files}


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """The same, deflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def raw(path: Path, files: list[tuple[str, bytes]], lies: dict[str, dict[str, int]] | None = None, **end: int) -> Path:
    """A ZIP file written by hand.

    Args:
        lies: what the directory says of a file instead of the truth: its `size`, `packed` size or `offset`.
        end: what its end says instead: `entries`, `length`; `length_64` with a ZIP64 end, `place` of that.
    """
    body, directory = b"", b""
    for name, data in files:
        told = {"size": len(data), "packed": len(data), "offset": len(body), **(lies or {}).get(name, {})}
        crc, wide = zlib.crc32(data), max(told.values()) >= 1 << 32
        extra = struct.pack("<2H3Q", 1, 24, told["size"], told["packed"], told["offset"]) if wide else b""
        sizes = [0xFFFFFFFF] * 2 if wide else [told["packed"], told["size"]]
        head = struct.pack("<5H3L2H", 45, 0, 0, 0, 33, crc, *sizes, len(name), len(extra))
        offset = 0xFFFFFFFF if wide else told["offset"]
        directory += b"PK\1\2" + struct.pack("<H", 45) + head + struct.pack("<3H2L", 0, 0, 0, 0, offset) + name.encode() + extra
        body += (
            b"PK\3\4" + struct.pack("<5H3L2H", 45, 0, 0, 0, 33, crc, len(data), len(data), len(name), 0) + name.encode() + data
        )
    entries, length = end.get("entries", len(files)), end.get("length", len(directory))
    wide_end = b""
    if "length_64" in end:
        at = len(body) + len(directory)
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, end["length_64"], len(body))
        wide_end = record + struct.pack("<4sLQL", b"PK\6\7", 0, end.get("place", at), 1)
    path.write_bytes(
        body + directory + wide_end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, length, len(body), 0)
    )
    return path


# --- honest ones ------------------------------------------------------------------------------------------------------


def test_a_file_written_by_hand_is_taken(store: MemoryStore, tmp_path: Path) -> None:
    """So the lies below are refused for what they say."""
    files = list(conversation(3).items())
    assert store.import_session(raw(tmp_path / "plain", files), name="a").stats()["messages"] == 3
    truth = len(raw(tmp_path / "again", files).read_bytes()) - sum(30 + len(name) + len(data) for name, data in files) - 22
    assert store.import_session(raw(tmp_path / "wide", files, length_64=truth), name="b").stats()["messages"] == 3


@pytest.mark.slow
def test_a_long_session_comes_and_goes_in_bounded_memory(store: MemoryStore, tmp_path: Path) -> None:
    files = conversation(MANY)
    path = packed(tmp_path / "long", files)
    assert peak(lambda: store.import_session(path)) < 3 << 20
    assert peak(lambda: store.session("made").export(tmp_path / "again")) < 3 << 20
    again = parts_of(tmp_path / "again")
    assert all(again[name] == files[name] for name in ("tokens.u32", "memory.f16"))
    assert [json.loads(one) for one in again["messages.jsonl"].split(b"\n")[:-1]] == [
        json.loads(one) for one in files["messages.jsonl"].split(b"\n")[:-1]
    ]
    assert store.verify("made").ok


def test_the_largest_message_is_all_that_counts(store: MemoryStore, tmp_path: Path) -> None:
    size = 1 << 20
    text = np.random.default_rng(0).bytes(size // 2).hex()
    files = {
        "messages.jsonl": b"".join(line(at + 1, at * size, (at + 1) * size, text) for at in range(6)),
        "tokens.u32": bytes(4 * 6 * size),
        "memory.f16": b"",
    }
    path = pack(tmp_path / "large", described(files, 6))
    assert peak(lambda: store.import_session(path)) < ROOM + 16 * size
    assert store.verify("made").ok


def test_what_shrinks_more_than_a_file_may_is_stored_as_it_is(store: MemoryStore, tmp_path: Path) -> None:
    """A limit that an export did not keep to would show when the session is gone."""
    files = {"messages.jsonl": line(1, 0, 9, "a" * 3_000_000), "tokens.u32": bytes(36), "memory.f16": b""}
    store.import_session(pack(tmp_path / "file", described(files, 1)))
    store.session("made").export(tmp_path / "again")
    assert (tmp_path / "again").stat().st_size > 3_000_000
    assert store.import_session(tmp_path / "again", name="again").messages() == store.session("made").messages()


@pytest.mark.parametrize("body", ["a text that is long", "many values"])
def test_what_no_import_would_take_is_not_exported(store: MemoryStore, tmp_path: Path, body: str) -> None:
    store.import_session(pack(tmp_path / "file", conversation(3)))
    with store.database.writing() as db:
        row = db.find_collection("session", "made")
        assert row is not None and row.stream is not None
        content = (
            {"long": "x" * (layout.MOST_MESSAGE_BYTES + 1)} if "long" in body else {"many": [0] * (layout.MOST_VALUES + 1)}
        )
        held = {"role": "user", "content": "", **content}
        message = rows.MessageRow(3, 9, 9, False, held, 0.0, (30, 30), (30, 30))
        lineage.append_messages(db, row.stream, [message], np.zeros(0, np.uint32))
    with pytest.raises(StoreError, match=r"session 'made' cannot be exported: message 9 .* Forget that part of it first."):
        store.session("made").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- bombs ------------------------------------------------------------------------------------------------------------

LONG_LINE = line(1, 0, 9).replace(b"hello", b"x" * (20 << 20))
NESTED = line(1, 0, 9).replace(b'"hello"', b"[" * 100_000 + b"]" * 100_000)
WIDE = line(1, 0, 9).replace(b'"hello"', b"[" + b"[]," * 1_000_000 + b"0]")
TINY = b"".join(line(at + 1, 0, 0, "") for at in range(10_000))


def with_lines(data: bytes, messages: int, tokens: int = 9) -> dict[str, bytes]:
    return described({"messages.jsonl": data, "tokens.u32": bytes(4 * tokens), "memory.f16": b""}, messages)


def many_members(path: Path) -> Path:
    return raw(path, [*conversation(1).items(), *((f"more{at}", b"") for at in range(20_000))], entries=4)


def twice(path: Path) -> Path:
    files = list(conversation(3).items())
    return raw(path, [*files[:-1], files[1]])


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one huge line": (lambda path: pack(path, with_lines(LONG_LINE, 9)), "over 16 MiB"),
    "one huge line, packed": (lambda path: packed(path, with_lines(LONG_LINE, 9)), "100 times"),
    "one line over and over, packed": (lambda path: packed(path, with_lines(b"{}\n" * 5_000_000, 5_000_000)), "100 times"),
    "empty lines": (lambda path: pack(path, with_lines(b"\n" * 5_000_000, 5_000_000)), "no JSON"),
    "many tiny lines": (lambda path: pack(path, with_lines(TINY, 10_001)), "messages are missing"),
    "a deep line": (lambda path: pack(path, with_lines(NESTED, 1)), "more than 100 levels|more than 65536 values"),
    "a wide line": (lambda path: pack(path, with_lines(WIDE, 1)), "more than 65536 values"),
    "a message of all tokens": (lambda path: pack(path, with_lines(line(1, 0, 1 << 20), 1, 1 << 20)), "more tokens than"),
    "tokens, packed": (lambda path: packed(path, with_lines(line(1, 0, 1 << 23), 1, 1 << 23)), "100 times"),
    "more tokens than messages": (lambda path: pack(path, with_lines(line(1, 0, 9), 1, 1 << 22)), "do not end together"),
    "memory, packed": (
        lambda path: packed(path, described({**conversation(1), "memory.f16": bytes(1 << 24)}, 1, segments=1 << 18)),
        "its files are not|100 times",
    ),
    "a huge manifest": (
        lambda path: pack(path, conversation(1), written_by="x" * 5_000_000),
        "its manifest is over 64 KiB",
    ),
    "a deep manifest": (
        lambda path: raw(path, list((conversation(1) | {"manifest.json": b"[" * 20_000 + b"]" * 20_000}).items())),
        "more than 100 levels",
    ),
    "10**18 segments": (lambda path: pack(path, conversation(3), segments=10**18), "the number of segments"),
    "10**9 segments of no size": (lambda path: pack(path, conversation(3) | {"memory.f16": b""}, segments=10**9), "segments"),
    "10**18 messages": (lambda path: pack(path, conversation(3), messages=10**18), "the number of messages"),
    "10**9 messages": (lambda path: pack(path, conversation(3), messages=10**9), "messages are not as many"),
    "10**9 tokens": (lambda path: pack(path, conversation(3), tokens=10**9), "tokens are not as many"),
    "20000 members": (many_members, "larger than that of so few files"),
    "two members of one name": (twice, "its files are not"),
    "a fifth member": (lambda path: raw(path, [*conversation(3).items(), ("more", b"")]), "its files are not"),
    "overlapping members": (
        lambda path: raw(path, list(conversation(3).items()), {"memory.f16": {"offset": 0}}),
        "its files overlap",
    ),
    "a member over the directory": (
        lambda path: raw(path, list(conversation(3).items()), {"memory.f16": {"size": 999, "packed": 999}}),
        "its files overlap",
    ),
    "a member of 2**60 bytes": (
        lambda path: raw(path, list(conversation(3).items()), {"memory.f16": {"size": 1 << 60}}),
        "100 times",
    ),
    "a member packed into 2**60 bytes": (
        lambda path: raw(path, list(conversation(3).items()), {"memory.f16": {"size": 1 << 60, "packed": 1 << 60}}),
        "its files overlap",
    ),
    "a member beyond the end": (
        lambda path: raw(path, list(conversation(3).items()), {"memory.f16": {"offset": 1 << 60}}),
        "its files overlap",
    ),
    "a directory of 2**60 bytes": (
        lambda path: raw(path, list(conversation(3).items()), length_64=1 << 60),
        "larger than that of so few files",
    ),
    "a ZIP64 end elsewhere": (
        lambda path: raw(path, list(conversation(3).items()), length_64=222, place=7),
        "its ZIP directory is damaged",
    ),
    "a directory of 4 GiB": (
        lambda path: raw(path, list(conversation(3).items()), length=0xFFFFFFFF),
        "larger than that of so few files",
    ),
    "a directory before the file": (lambda path: raw(path, list(conversation(3).items()), length=8000), "directory|damaged"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_claims_too_much_is_refused_in_bounded_memory(store: MemoryStore, tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    path = make(tmp_path / "bomb")
    largest = layout.MOST_MESSAGE_BYTES if "huge line" in name or "wide" in name else 0

    def refused() -> None:
        with pytest.raises(StoreDamagedError, match=reason):
            store.import_session(path)

    assert peak(refused) < ROOM + 2 * largest
    assert store.sessions() == []


def test_a_pipe_is_not_waited_for(store: MemoryStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreDamagedError, match="it is no file"):
        store.import_session(tmp_path / "pipe")
