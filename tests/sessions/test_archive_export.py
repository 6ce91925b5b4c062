"""Where an export is written: whole or not at all, for its owner only, and never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from archives import MODEL, parts_of
from stored import user

from hmt_memory import MemoryStore
from hmt_memory.errors import StoreDamagedError, StoreError
from hmt_memory.store import lineage
from hmt_memory.store.sqlite.transaction import SqliteTransaction


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        opened.session("alice", MODEL).add(user("hello"))
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o22])
def test_only_the_owner_can_read_it(store: MemoryStore, folder: Path, umask: int) -> None:
    (folder / "alice").write_text("")
    (folder / "alice").chmod(0o644)
    before = os.umask(umask)
    try:
        store.session("alice").export(folder / "alice")
        store.session("alice").export(folder / "new")
    finally:
        os.umask(before)
    assert mode_of(folder / "alice") == mode_of(folder / "new") == 0o600


def test_a_link_is_replaced_and_not_followed(store: MemoryStore, folder: Path) -> None:
    (folder / "victim").write_text("mine")
    (folder / "alice").symlink_to(folder / "victim")
    (folder / f".alice.{os.getpid()}").symlink_to(folder / "victim")  # whatever name it is written under first
    store.session("alice").export(folder / "alice")
    assert (folder / "victim").read_text() == "mine"
    assert not (folder / "alice").is_symlink() and "manifest.json" in parts_of(folder / "alice")


def test_it_is_written_under_a_name_that_nobody_can_foresee(store: MemoryStore, folder: Path) -> None:
    names = []

    def look(source: Any, target: Any) -> None:
        names.append(Path(source).name)
        assert Path(source).parent == folder and mode_of(Path(source)) == 0o600

    for _ in range(2):
        with mock.patch.object(os, "replace", look):
            store.session("alice").export(folder / "alice")
    assert len(set(names)) == 2 and str(os.getpid()) not in "".join(names)


def test_it_is_on_disk_before_it_takes_the_place_of_another(store: MemoryStore, folder: Path) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def note_replace(source: Any, target: Any) -> None:
        done.append("replace")
        replace(source, target)

    with mock.patch.object(os, "fsync", note_sync), mock.patch.object(os, "replace", note_replace):
        store.session("alice").export(folder / "alice")
    assert done == ["file", "replace", "folder"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(store: MemoryStore, folder: Path, error: BaseException) -> None:
    (folder / "alice").write_text("before")
    expected = StoreError if isinstance(error, OSError) else KeyboardInterrupt
    with mock.patch.object(os, "fsync", side_effect=error), pytest.raises(expected):
        store.session("alice").export(folder / "alice")
    assert [path.name for path in folder.iterdir()] == ["alice"] and (folder / "alice").read_text() == "before"


def test_damage_of_the_store_is_told_as_that(store: MemoryStore, folder: Path) -> None:
    """Not as a file that cannot be written."""
    damage = mock.patch.object(lineage, "tokens", side_effect=StoreDamagedError("tokens are missing."))
    with damage, pytest.raises(StoreDamagedError, match="tokens are missing"):
        store.session("alice").export(folder / "alice")
    assert list(folder.iterdir()) == []


def test_a_model_whose_path_cannot_be_printed(store: MemoryStore, folder: Path) -> None:
    """Its name is no part of its digest: the session is taken all the same."""
    with store.database.writing() as db:
        row = db.find_collection("session", "alice")
        assert row is not None and row.model is not None
        stored = db.model(row.model)
    parts = {**stored.parts, "backbone": {**stored.parts["backbone"], "name": "/models/a\x1b\udcff\u00a0b"}}
    with mock.patch.object(SqliteTransaction, "model", lambda db, id: stored._replace(parts=parts)):
        store.session("alice").export(folder / "alice")
    assert store.import_session(folder / "alice", name="again", model=MODEL).messages() == store.session("alice").messages()
