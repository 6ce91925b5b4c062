"""What looks after a whole store: backups, renaming, searching by words, limits without a model, locks that nobody holds."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore
from hmt_memory.errors import InputError, SessionExistsError, SessionNotFoundError, StoreDamagedError, StoreError

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """A store with the sessions `alice` and `bob` and the corpus `book`."""
    opened = MemoryStore(tmp_path / "store")
    alice = opened.session("alice", MODEL)
    alice.add([{"role": "system", "content": "Be brief."}, user("The door code is 4071.")])
    alice.add({"role": "assistant", "content": "Noted: 4071."})
    opened.session("bob", MODEL).add([user("The boat leaves at noon."), user("Which door is open?")])
    notice = [("notice.md", "# Notice\n\nThe notice period is three months."), ("rent.md", "The rent is due on Monday.")]
    opened.corpus("book", MODEL).add_documents(notice)
    return opened


# --- backups ----------------------------------------------------------------------------------------------------------


def test_a_backup_is_the_store_without_what_can_be_made_again(store: MemoryStore, tmp_path: Path) -> None:
    store.session("alice", MODEL).recall("door")
    store.backup(tmp_path / "copies" / "today")
    assert [path.name for path in (tmp_path / "copies").rglob("*")] == ["today", "memory.db"]
    assert (tmp_path / "copies" / "today" / "memory.db").stat().st_mode & 0o777 == 0o600
    store.session("alice").forget([2])
    with MemoryStore(tmp_path / "copies" / "today") as copy:
        assert copy.verify() == ([], []) and copy.sessions() == ["alice", "bob"] and copy.corpora() == ["book"]
        assert [one.content for one in copy.session("alice").messages()][1] == "The door code is 4071."
        assert copy.session("alice", MODEL).recall("door code")[0].text
    assert store.verify() == ([], [])


def test_a_backup_is_of_one_moment_while_others_write(store: MemoryStore, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        other = MemoryStore(store.folder)
        session = other.session("busy", MODEL)
        while not stop.is_set():
            session.add([user("one"), user("two")])
        other.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            store.backup(tmp_path / f"{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        with MemoryStore(tmp_path / f"{number}", read_only=True) as copy:
            assert copy.verify().ok
            assert not copy.has("session", "busy") or len(copy.session("busy").messages()) % 2 == 0


def test_a_backup_takes_the_place_of_nothing(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(InputError, match="Name a new folder"):
            store.backup(tmp_path / place)
    with pytest.raises(StoreError, match="cannot be written"):
        store.backup(tmp_path / "file" / "inside")
    (tmp_path / "empty").mkdir()
    store.backup(tmp_path / "empty")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine" and (tmp_path / "empty" / "memory.db").is_file()


def test_a_damaged_store_makes_no_backup(store: MemoryStore, tmp_path: Path) -> None:
    with store.database.writing() as db:
        db.execute("UPDATE streams SET tokens = tokens + 1 WHERE id = 1")
    with pytest.raises(StoreDamagedError, match=r"the copy of .* is not whole: .*stream 1"):
        store.backup(tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_corpus_gets_another_name(store: MemoryStore) -> None:
    store.session("alice").attach("book")
    store.rename_corpus("book", "handbook")
    assert store.corpora() == ["handbook"] and store.session("alice").stats()["corpora"] == ["handbook"]
    store.corpus("other", MODEL)
    with pytest.raises(SessionExistsError):
        store.rename_corpus("other", "handbook")
    with pytest.raises(SessionNotFoundError):
        store.rename_corpus("book", "new")


# --- searching --------------------------------------------------------------------------------------------------------


def test_words_are_found_in_all_sessions_without_a_model(store: MemoryStore) -> None:
    found = store.search("the DOOR's code?")
    assert (found[0].source, found[0].id, found[0].role) == ("alice", 2, "user")
    assert {(one.source, one.text) for one in found} >= {("bob", "Which door is open?")}
    assert found[0].score > found[1].score and found[0].created_at.tzinfo is not None
    assert store.search("door", top_k=1, names=["bob"])[0].text == "Which door is open?"
    assert store.search("submarine") == []


def test_words_are_found_in_the_paragraphs_of_documents(store: MemoryStore) -> None:
    (first, *_) = store.search_corpora("notice period")
    assert (first.source, first.id, first.text) == ("book/notice.md", 1, "The notice period is three months.")
    assert [one.source for one in store.search_corpora("rent", names=["book"])] == ["book/rent.md"]


def test_a_search_needs_words_and_names_that_exist(store: MemoryStore) -> None:
    for query, top_k in (("?!", 5), ("door", 0)):
        with pytest.raises(InputError):
            store.search(query, top_k=top_k)
    with pytest.raises(SessionNotFoundError):
        store.search("door", names=["carol"])


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_set_without_a_model(store: MemoryStore) -> None:
    session = store.session("bob")
    session.set_retention(messages=1, age=timedelta(days=3))
    assert [one.content for one in session.messages()] == ["Which door is open?"]
    assert session.stats()["retention"] == {"messages": 1, "seconds": 259200.0}
    assert store.verify() == ([], []) and store.session("bob", MODEL).recall("door") is not None


# --- locks ------------------------------------------------------------------------------------------------------------


def test_locks_that_nobody_holds_leave_no_files(store: MemoryStore) -> None:
    folder = store.folder / "locks"
    assert len(list(folder.iterdir())) > 1
    with store.database.lock("session-1"):
        MemoryStore(store.folder).close()
        assert {path.name for path in folder.iterdir()} == {"session-1.lock", "store.lock"}
    (folder / "session-999.lock").touch()  # of a process that was killed
    MemoryStore(store.folder)
    assert not (folder / "session-999.lock").exists()
    store.session("alice", MODEL).add(user("more"))
    store.close()
    assert {path.name for path in folder.iterdir()} <= {"store.lock"}


def test_a_lock_stays_one_while_its_file_is_removed(tmp_path: Path) -> None:
    store, inside, most = MemoryStore(tmp_path / "store"), [0], [0]

    def hold() -> None:
        for _ in range(50):
            with store.database.lock("session-1", timeout=30):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    holders = [threading.Thread(target=hold) for _ in range(4)]
    [one.start() for one in holders]
    while any(one.is_alive() for one in holders):
        MemoryStore(store.folder).close()
    assert most == [1]
