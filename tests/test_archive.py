"""Exported sessions: the same again, in an open format, and nothing accepted that is not whole."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_laws import memory_of, tokens_of
from test_session import FAST, user
from tiny import LONG, REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore
from hmt_memory.errors import SessionExistsError, StoreDamagedError, StoreError

TOKENIZER = byte_tokenizer()
MODEL = tiny_model(config=REMEMBERING, tokenizer=TOKENIZER)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def exported(store: MemoryStore, tmp_path: Path) -> Path:
    session = store.session("alice", MODEL)
    session.add([{"role": "system", "content": "Be kind."}, user("hello \U0001f600\u2028 " * 10)])
    session.forget(session.add(user("never mind")))
    session.set_retention(messages=1000)
    path = tmp_path / "alice.hmt"
    session.export(path)
    return path


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, parts: dict[str, bytes], **changes: Any) -> Path:
    """An archive of these parts, with digests that fit, and a manifest changed so."""
    manifest = json.loads(parts["manifest.json"]) | changes
    for name, stated in manifest["files"].items():
        stated |= {"bytes": len(parts[name]), "sha256": hashlib.sha256(parts[name]).hexdigest()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**parts, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, data)
    return path


def test_an_imported_session_is_the_same(store: MemoryStore, exported: Path) -> None:
    session = store.session("alice", MODEL)
    again = store.import_session(exported, name="again", model=MODEL)
    assert [(one.id, one.to_dict(), one.created_at) for one in again.messages()] == [
        (one.id, one.to_dict(), one.created_at) for one in session.messages()
    ]
    assert tokens_of(again) == tokens_of(session) and np.array_equal(memory_of(again), memory_of(session))
    for key in ("created_at", "retention", "model", "segments"):
        assert again.stats()[key] == session.stats()[key]
    assert again.add(user("next")) == session.add(user("next")) == [4]
    assert again.reply(**FAST).finish().text == session.reply(**FAST).finish().text
    assert store.verify() == ([], [])


def test_the_format_is_open(exported: Path) -> None:
    """A ZIP of JSON and raw numbers, as `docs/FORMAT.md` says; the same session gives the same bytes."""
    parts = parts_of(exported)
    assert list(parts) == ["manifest.json", "messages.jsonl", "tokens.u32", "memory.f16"]
    manifest = json.loads(parts["manifest.json"])
    messages = [json.loads(line) for line in parts["messages.jsonl"].decode().split("\n")[:-1]]
    assert [message["body"]["role"] for message in messages] == ["system", "user"]
    assert messages[1]["tokens"][1] == manifest["tokens"] == len(parts["tokens.u32"]) // 4
    assert len(parts["memory.f16"]) == manifest["segments"] * 2 * 32
    assert (manifest["format"], manifest["version"], manifest["next_id"]) == ("hmt-session", 1, 4)
    described = (Path(__file__).parent.parent / "docs" / "FORMAT.md").read_text()
    for name in [*parts, *manifest, *messages[0]]:
        assert f"`{name}`" in described, f"docs/FORMAT.md does not name {name}"


def test_the_same_session_gives_the_same_file(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    store.session("alice").export(tmp_path / "twice")
    assert (tmp_path / "twice").read_bytes() == exported.read_bytes()


def test_it_can_be_read_anew_for_another_model(store: MemoryStore, exported: Path) -> None:
    other = tiny_model(config=REMEMBERING, tokenizer=TOKENIZER, seed=1)
    again = store.import_session(exported, name="again", model=other)
    assert tokens_of(again) == tokens_of(store.session("alice", MODEL)) and again.recall("hello")
    assert not np.allclose(memory_of(again), memory_of(store.session("alice", MODEL)))


def test_a_name_that_is_taken(store: MemoryStore, exported: Path) -> None:
    with pytest.raises(SessionExistsError, match="'alice' already"):
        store.import_session(exported)
    store.delete("alice")
    assert store.import_session(exported).name == "alice"


def test_an_empty_session(store: MemoryStore, tmp_path: Path) -> None:
    store.session("empty", MODEL).export(tmp_path / "empty")
    assert store.import_session(tmp_path / "empty", name="again", model=MODEL).messages() == []


def lines(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        messages = [json.loads(line) for line in parts["messages.jsonl"].decode().split("\n")[:-1]]
        change(messages)
        parts["messages.jsonl"] = "".join(json.dumps(message) + "\n" for message in messages).encode()

    return apply


TAMPERED: dict[str, tuple[Callable[[dict[str, bytes]], None], dict[str, Any]]] = {
    "another format": (lambda parts: None, {"format": "other"}),
    "a hole between messages": (lines(lambda rows: rows[1].update(tokens=[3, rows[1]["tokens"][1]])), {}),
    "a message beyond the tokens": (lines(lambda rows: rows[1].update(tokens=[0, 10**9])), {}),
    "negative spans": (lines(lambda rows: rows[1].update(content=[-5, 2])), {}),
    "one id twice": (lines(lambda rows: rows[1].update(id=rows[0]["id"])), {}),
    "an id to come": (lines(lambda rows: rows[1].update(id=99)), {}),
    "a body that is no message": (lines(lambda rows: rows[1].update(body=["x"])), {}),
    "a message less": (lines(lambda rows: rows.pop()), {}),
    "unknown tokens": (lambda parts: parts.update({"tokens.u32": b"\xff" * len(parts["tokens.u32"])}), {}),
    "a token more": (lambda parts: parts.update({"tokens.u32": parts["tokens.u32"] + bytes(4)}), {}),
    "half a token": (lambda parts: parts.update({"tokens.u32": parts["tokens.u32"] + b"x"}), {}),
    "NaN": (lambda parts: parts.update({"memory.f16": b"\xff" * len(parts["memory.f16"])}), {}),
    "a memory less": (lambda parts: parts.update({"memory.f16": parts["memory.f16"][64:]}), {}),
    "more segments than tokens": (lambda parts: parts.update({"memory.f16": bytes(64 * 999)}), {"segments": 999}),
    "memories of no model": (lambda parts: None, {"model": None}),
    "a foreign digest": (lambda parts: None, {"model": {"digest": "0" * 32, "parts": {"backbone": {}}}}),
    "no counts": (lambda parts: None, {"messages": None}),
    "text for numbers": (lambda parts: None, {"segments": "many"}),
    "a time that no calendar has": (lines(lambda rows: rows[0].update(created_at=1e300)), {}),
    "no time": (lambda parts: None, {"updated_at": float("nan")}),
    "an id beyond all": (lines(lambda rows: rows[1].update(id=1 << 63)), {"next_id": 1 << 64}),
    "a billion segments": (lambda parts: None, {"segments": 10**12}),
    "a list for the retention": (lambda parts: None, {"retention": [1]}),
    "a limit that is none": (lambda parts: None, {"retention": {"messages": "all"}}),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_file_with_fitting_digests_is_refused(store: MemoryStore, exported: Path, tmp_path: Path, name: str) -> None:
    change, manifest = TAMPERED[name]
    parts = parts_of(exported)
    change(parts)
    with pytest.raises(StoreDamagedError, match=r"not a whole exported session"):
        store.import_session(pack(tmp_path / "tampered", parts, **manifest), name="again", model=MODEL)
    assert store.sessions() == ["alice"]


def test_any_damage_is_noticed(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    content, chance = exported.read_bytes(), random.Random(0)
    path = tmp_path / "damaged"
    for round in range(2000 if LONG else 150):
        damaged = bytearray(content)
        if round % 3:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            again = store.import_session(path, name="again")
        except StoreError:
            assert store.sessions() == ["alice"]
            continue
        assert [one.to_dict() for one in again.messages()] == [one.to_dict() for one in store.session("alice").messages()]
        assert tokens_of(again) == tokens_of(store.session("alice"))
        store.delete("again")


def test_a_part_that_is_not_the_one_that_was_written_is_refused(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    """Well formed, of the same length, and packed again: only its digest tells."""
    parts = parts_of(exported)
    parts["messages.jsonl"] = parts["messages.jsonl"].replace(b"Be kind.", b"Be rude.")
    with zipfile.ZipFile(tmp_path / "changed", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(StoreDamagedError, match=r"messages.jsonl is not whole"):
        store.import_session(tmp_path / "changed", name="again")


def test_a_file_that_unpacks_to_more_than_it_says_is_refused(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    parts = parts_of(exported)
    manifest = json.loads(parts["manifest.json"])
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("messages.jsonl", b" " * 50_000_000)
    with pytest.raises(StoreDamagedError, match="longer than it says"):
        store.import_session(tmp_path / "bomb", name="again")


def test_other_files_and_other_versions(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        store.import_session(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreDamagedError, match="not a whole exported session"):
        store.import_session(tmp_path / "text")
    with pytest.raises(StoreError, match="Upgrade hmt-memory"):
        store.import_session(pack(tmp_path / "new", parts_of(exported), version=2), name="again")
    with pytest.raises(StoreError, match="cannot be written"):
        store.session("alice").export(tmp_path / "no" / "such" / "folder")
