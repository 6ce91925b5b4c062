"""Random changes of an exported session: what it then says is what is stored, or nothing is."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from archives import MODEL, pack, parts_of, row_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored import DECODING, user
from tiny import LONG

from hmt_memory import MemoryStore
from hmt_memory.engine.fingerprint import digest_of
from hmt_memory.errors import HMTError, InputError, StoreError
from hmt_memory.sessions.archive import settle

FUZZ = settings(
    max_examples=5000 if LONG else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
NUMBERS = [0, -1, 1, 2, 7, 1.5, 1e300, float("nan"), float("inf"), 1 << 31, 1 << 53, 1 << 64, 10**30]
TEXTS = ["", "a", "system", "assistant", "hmt", "plain", "\ud800", "\x00", "é" * 300, "0" * 16, "0" * 64]
JUNK = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS, [], {}, [0, 0], [1, 2, 3], {"a": 1}, [[[[]]]]]),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
)


@cache
def original() -> tuple[bytes, dict[str, bytes]]:
    """The bytes and the files of an exported session with every kind of message."""
    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder, clock=lambda: 5.0) as store:
        session = store.session("alice", MODEL)
        session.add([{"role": "system", "content": "Be kind."}, user("hello, who are you?")])
        session.reply(**DECODING).finish()
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
        session.add([user("add"), {"role": "assistant", "content": None, "tool_calls": [call]}])
        session.add([{"role": "tool", "content": "2", "tool_call_id": "1"}])
        session.set_retention(messages=100)
        session.export(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes(), parts_of(Path(folder) / "file")


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store")


def rows_of(store: MemoryStore) -> dict[str, int]:
    with store.database.reading() as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}


def meaning(path: Path) -> Any:
    """What an exported session says, whoever wrote it under whatever name."""
    parts = parts_of(path)
    manifest = json.loads(parts["manifest.json"], parse_constant=str)
    lines = parts["messages.jsonl"].decode().split("\n")[:-1]
    messages = [json.loads(line, parse_constant=str) for line in lines]
    kept = {name: value for name, value in manifest.items() if name not in ("written_by", "name", "files")}
    if kept["model"] is not None:
        kept["model"]["parts"]["backbone"]["name"] = None  # a store knows a model by the first name that it met
    return kept, messages, parts["tokens.u32"], parts["memory.f16"]


def check(store: MemoryStore, path: Path) -> None:
    """It is stored as it is, or nothing is."""
    before = rows_of(store)
    try:
        session = store.import_session(path, name="again")
    except (StoreError, InputError):
        assert rows_of(store) == before and store.sessions() == []
        return
    try:
        again = path.with_name("again")
        session.export(again)
        assert meaning(again) == meaning(path)
        assert store.verify("again").ok and store.sessions() == ["again"] and session.stats() and session.system() is not None
        with suppress(HMTError):  # of another model, or with a message that its template has no place for
            store.session("again", MODEL).add(user("next"))
        with suppress(HMTError):
            settle(store.database, row_of(store, "again"), MODEL)
    finally:
        store.delete("again")


# --- bytes ------------------------------------------------------------------------------------------------------------


@FUZZ
@given(st.data())
def test_changed_bytes(store: MemoryStore, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(original()[0])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:stop] = data.draw(st.binary(max_size=40))
    (tmp_path / "file").write_bytes(content)
    check(store, tmp_path / "file")


# --- what it says -----------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inside for found in places(one, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def changed(value: Any, data: st.DataObject) -> Any:
    """A JSON value with another one, one less, one more, or one from elsewhere in it."""
    value = deepcopy(value)
    path = data.draw(st.sampled_from(places(value)[1:]))
    holder, key = at(value, path[:-1]), path[-1]
    kind = data.draw(st.sampled_from(["replace", "delete", "add", "copy"]))
    if kind == "delete":
        del holder[key]
    elif kind == "add" and isinstance(holder, list):
        holder.insert(key, data.draw(JUNK))
    elif kind == "add":
        holder[data.draw(st.sampled_from(["more", "tool_calls", "pinned", "dtype", "recalled_tokens"]))] = data.draw(JUNK)
    elif kind == "copy":
        holder[key] = deepcopy(at(value, data.draw(st.sampled_from(places(value)[1:]))))
    else:
        holder[key] = data.draw(JUNK)
    return value


def rewritten(parts: dict[str, bytes], data: st.DataObject) -> dict[str, bytes]:
    """Files of which one says something else."""
    name = data.draw(
        st.sampled_from(["manifest.json", "manifest.json", "messages.jsonl", "messages.jsonl", "tokens.u32", "memory.f16"])
    )
    content = parts[name]
    if name == "manifest.json":
        manifest = changed(json.loads(content), data)
        fitting = data.draw(st.booleans())
        with suppress(KeyError, TypeError, AttributeError, ValueError):  # parts of which no digest can be made
            manifest["model"]["digest"] = digest_of(manifest["model"]["parts"]) if fitting else manifest["model"]["digest"]
        return parts | {name: json.dumps(manifest).encode()}
    if name == "messages.jsonl":
        rows = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        rows = data.draw(st.permutations(rows)) if data.draw(st.integers(0, 9)) == 0 else changed(rows, data)
        return parts | {name: "".join(json.dumps(row) + "\n" for row in rows).encode()}
    start = data.draw(st.integers(0, len(content)))
    return parts | {name: content[:start] + data.draw(st.binary(max_size=8)) + content[start + data.draw(st.integers(0, 8)) :]}


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_changed_words_with_fitting_digests(store: MemoryStore, tmp_path: Path, data: st.DataObject) -> None:
    parts = original()[1]
    for _ in range(data.draw(st.integers(1, 2))):
        with suppress(AttributeError, KeyError, TypeError, IndexError):  # nothing is left to change
            parts = rewritten(parts, data)
    try:
        path = pack(tmp_path / "file", parts)
    except (KeyError, TypeError, AttributeError):
        return  # a list of files that no size can be put in
    check(store, path)


@FUZZ
@given(st.binary(max_size=300))
@example(b"")
@example(b"PK\5\6" + bytes(18))
@example(b"PK\6\6" + bytes(52) + b"PK\6\7" + bytes(16) + b"PK\5\6" + bytes(18))
def test_anything_at_all(store: MemoryStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    check(store, tmp_path / "file")
