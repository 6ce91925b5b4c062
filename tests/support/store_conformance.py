"""What any database of a store has to do, as tests to inherit: a subclass gives the fixture `backend`.

Everything goes through `backend.Backend` and its transactions. A capability that a database lacks skips the tests that need it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_conformance import CrashConformance

from hmt_memory.errors import SessionBusyError, StoreDamagedError
from hmt_memory.store import lineage, sweeping
from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.open import open_backend
from hmt_memory.store.rows import CollectionRow, DocumentRow, Lineage, MessageRow, SegmentRow, StreamRow, chain
from hmt_memory.store.shelf import shelf_of, volume_of
from hmt_memory.store.transaction import Transaction

L = 8  # tokens of a segment
MODEL = {"config": {"segment_length": L, "mode": "hmt"}, "start_ids": [], "backbone": {"name": "none"}}


def message(number: int, start: int, length: int, **changes: Any) -> MessageRow:
    row = MessageRow(0, number, number, False, {"role": "user", "content": f"text {number} é"}, 100.0 + number, (0, 0), (0, 0))
    span = (start, start + length)
    return row._replace(tokens=span, content=(start + 1, start + length), **changes)


def talk(db: Transaction, stream: int, numbers: range, length: int = 5) -> None:
    """Append messages whose tokens are their own numbers."""
    end = db.stream(stream)
    rows = [message(n, end.tokens + at * length, length, seq=end.messages + at) for at, n in enumerate(numbers)]
    lineage.append_messages(db, stream, rows, np.repeat(np.array(numbers, np.uint32), length))


def close_segments(db: Transaction, parts: Lineage) -> None:
    """Close every full segment, each with an embedding made of its number; every other one is stored in 8 bits."""
    first = lineage.segment_count(db, parts)
    digest, rows = lineage.digest_at(db, parts, first), []
    for at in range(first, lineage.size(parts)[1] // L):
        span, data = (at * L, at * L + L), np.full(4, at % 100, "<f2").tobytes()
        digest = chain(digest, span, data, None)
        rows.append(SegmentRow(at, span, data, None, digest, bits=16 if at % 2 else 8))
    lineage.append_segments(db, parts, rows)


def session(backend: Backend, name: str, count: int) -> CollectionRow:
    """A session of so many messages of five tokens, all of it read."""
    with backend.writing() as db:
        row = db.add_collection("session", name, stream=lineage.add_stream(db), now=1.0)
        talk(db, row.stream or 0, range(1, count + 1))
        close_segments(db, lineage.of(db, row))
        return db.update_collection(replace(row, model=db.add_model("digest", MODEL), next_id=count + 1))


def fork(backend: Backend, row: CollectionRow, name: str, messages: int) -> CollectionRow:
    with backend.writing() as db:
        parts = lineage.of(db, row)
        cut = {"messages": messages, "tokens": messages * 5, "segments": messages * 5 // L}
        new = db.add_collection("session", name, stream=lineage.add_stream(db, parts, **cut), now=2.0)
        return db.update_collection(replace(new, model=row.model, next_id=row.next_id))


def said(backend: Backend, row: CollectionRow) -> list[int]:
    """The ids of a session's messages, after checking that its tokens and its segments are theirs."""
    with backend.reading() as db:
        now = db.collection(row.id)
        assert now is not None
        parts = lineage.of(db, now)
        ids = [one.id for one in lineage.messages(db, parts)]
        assert lineage.tokens(db, parts, 0, 1 << 40).tolist() == [id for id in ids for _ in range(5)]
        count, digest = lineage.segment_count(db, parts), b""
        for segment in lineage.segments(db, parts, 0, count):
            digest = chain(digest, segment.tokens, segment.memory, segment.keys)
            assert segment.digest == digest
        return ids


def erase(backend: Backend, work: Callable[[Transaction, int], None]) -> None:
    """Erase in one transaction and the steps after it."""

    def begun(db: Transaction) -> int:
        erasure = db.begin_erasure()
        work(db, erasure)
        return erasure

    sweeping.finish(backend, backend.erasing(begun))


class RecordStoreConformance(CrashConformance):
    """Inherit and give `backend` and `place`; `damage(backend, statement)` changes a stored value behind its back."""

    def damage(self, backend: Backend, statement: str) -> None:
        raise NotImplementedError

    # --- rows come back as they were written --------------------------------------------------------------------------

    def test_values_and_their_types_come_back(self, backend: Backend) -> None:
        row = session(backend, "alice é", 7)
        with backend.reading() as db:
            assert db.find_collection("session", "alice é") == row == db.collection(row.id)
            assert db.find_collection("corpus", "alice é") is None and db.collection(10**6) is None
            (first, *_) = lineage.messages(db, lineage.of(db, row), 0, 1)
            assert first == message(1, 0, 5) and isinstance(first.created_at, float) and isinstance(first.pinned, bool)
            for at, segment in enumerate(lineage.segments(db, lineage.of(db, row), 0, 2)):
                assert (segment.memory, segment.keys) == (np.full(4, at, "<f2").tobytes(), None)
                assert isinstance(segment.memory, bytes) and segment.bits == (16 if at % 2 else 8)
            model = db.model(row.model or 0)
            assert (model.digest, model.parts) == ("digest", MODEL)

    def test_facts_are_remembered_and_forgotten(self, backend: Backend) -> None:
        with backend.writing() as db:
            db.set_fact("one", "1")
            db.set_fact("one", "2")
            db.set_fact("two", "3")
            db.set_fact("two", None)
        with backend.reading() as db:
            assert (db.fact("one"), db.fact("two"), db.fact("three")) == ("2", None, None)

    def test_documents_by_id_and_name(self, backend: Backend) -> None:
        with backend.writing() as db:
            row = db.add_collection("corpus", "papers", stream=None, now=1.0)
            for id, name in enumerate(("a", "b", "a"), 1):
                stream = lineage.add_stream(db)
                lineage.append_messages(db, stream, [], np.arange(10, dtype=np.uint32))
                db.add_document(row.id, DocumentRow(id, stream, {"name": name, "text": f"text {id}", "metadata": {}}, 3.0))
        with backend.reading() as db:
            assert [one.id for one in db.documents(row.id)] == [1, 2, 3]
            assert [one.id for one in db.documents_named(row.id, "a")] == [1, 3]
            found = db.find_document(row.id, 2)
            assert found is not None and found.body["text"] == "text 2" and db.find_document(row.id, 9) is None
            assert [(one.document, one.tokens, one.segments) for one in db.document_streams(row.id)] == [
                (1, 10, 0),
                (2, 10, 0),
                (3, 10, 0),
            ]
        erase(backend, lambda db, erasure: db.delete_document(row.id, found, erasure))
        with backend.reading() as db:
            assert [one.id for one in db.documents(row.id)] == [1, 3] and not db.has_stream(found.stream)

    def test_messages_of_a_stretch_of_tokens(self, backend: Backend) -> None:
        row = session(backend, "alice", 9)
        with backend.reading() as db:
            parts = lineage.of(db, row)
            assert [one.id for one in lineage.messages_in(db, parts, 4, 11)] == [1, 2, 3]
            assert [one.id for one in lineage.messages_in(db, parts, 5, 10)] == [2]
            assert lineage.messages_in(db, parts, 7, 7) == []
            assert lineage.positions(db, parts, [3, 9, 77]) == {3: 2, 9: 8}
            assert lineage.earliest(db, parts, 4) == 105.0 and lineage.earliest(db, parts, 9) == float("inf")

    def test_a_message_without_tokens_stands_in_no_stretch_of_them(self, backend: Backend) -> None:
        row = session(backend, "alice", 2)
        with backend.writing() as db:
            pinned = message(3, 10, 0, seq=2, pinned=True)
            later = message(4, 10, 5, seq=3)
            lineage.append_messages(db, row.stream or 0, [pinned, later], np.full(5, 4, np.uint32))
        with backend.reading() as db:
            parts = lineage.of(db, row)
            assert [one.id for one in lineage.messages(db, parts)] == [1, 2, 3, 4]
            for first in (0, 7, 10):
                assert 3 not in [one.id for one in lineage.messages_in(db, parts, first, 15)]

    # --- transactions -------------------------------------------------------------------------------------------------

    def test_a_transaction_is_made_whole_or_not_at_all(self, backend: Backend) -> None:
        row = session(backend, "alice", 3)
        with pytest.raises(ZeroDivisionError), backend.writing() as db:
            talk(db, row.stream or 0, range(4, 8))
            db.add_collection("session", "bob", stream=lineage.add_stream(db), now=1.0)
            raise ZeroDivisionError
        assert said(backend, row) == [1, 2, 3]
        with backend.reading() as db:
            assert [one.name for one in db.collections("session")] == ["alice"]

    def test_names_are_those_of_one_kind_in_their_order(self, backend: Backend) -> None:
        for name in ("bob", "alice"):
            session(backend, name, 3)
        with backend.writing() as db:
            db.add_collection("corpus", "manual", stream=None, now=1.0)
        with backend.reading() as db:
            assert (db.names("session"), db.names("corpus")) == (["alice", "bob"], ["manual"])

    def test_a_name_that_says_something_else_is_an_error(self, backend: Backend) -> None:
        session(backend, "alice", 3)
        self.damage(backend, "UPDATE collections SET name_check = name_check + 1")
        with pytest.raises(StoreDamagedError, match="the record of session"), backend.reading() as db:
            db.names("session")

    def test_a_view_is_one_moment(self, backend: Backend) -> None:
        row = session(backend, "alice", 3)
        with backend.reading() as db:
            before = [one.id for one in lineage.messages(db, lineage.of(db, row))]
            other = threading.Thread(target=lambda: self._add(backend, row))
            other.start()
            other.join()
            with backend.reading() as inner:
                assert [one.id for one in lineage.messages(inner, lineage.of(inner, row))] == before == [1, 2, 3]
        assert said(backend, row) == [1, 2, 3, 4]

    def test_a_copy_holds_what_was_there_and_goes_its_own_way(self, backend: Backend, tmp_path: Path) -> None:
        row = session(backend, "alice", 3)
        (tmp_path / "copy").mkdir()
        backend.copy_to(tmp_path / "copy")
        with backend.writing() as db:
            talk(db, row.stream or 0, range(4, 6))
        copy = open_backend(tmp_path / "copy", timeout=1.0, read_only=True)
        assert copy.problems() == [] and len(said(copy, row)) == 3 and len(said(backend, row)) == 5
        copy.close()

    def _add(self, backend: Backend, row: CollectionRow) -> None:
        with backend.writing() as db:
            talk(db, row.stream or 0, range(4, 5))

    def test_threads_that_write_wait_for_one_another(self, backend: Backend) -> None:
        row = session(backend, "alice", 1)

        def write(number: int) -> None:
            with backend.writing() as db:
                talk(db, row.stream or 0, range(number, number + 1))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(2, 12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said(backend, row)) == list(range(1, 12))

    def test_a_lock_is_held_by_one(self, backend: Backend) -> None:
        held, done, errors = threading.Event(), threading.Event(), []

        def hold() -> None:
            with backend.lock("mine"):
                held.set()
                done.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        with backend.lock("another", timeout=0):
            try:
                with backend.lock("mine", timeout=0):
                    raise AssertionError("two hold it")
            except SessionBusyError as error:
                errors.append(error)
        done.set()
        thread.join()
        with backend.lock("mine", timeout=1):
            pass
        backend.forget_lock("mine")
        assert len(errors) == 1

    # --- lineages -----------------------------------------------------------------------------------------------------

    def test_a_fork_shares_what_was_said_and_goes_its_own_way(self, backend: Backend) -> None:
        first = session(backend, "first", 8)
        second = fork(backend, first, "second", 5)
        third = fork(backend, second, "third", 3)
        with backend.writing() as db:
            talk(db, second.stream or 0, range(60, 63))
            talk(db, first.stream or 0, range(20, 21))
            for row in (first, second, third):
                close_segments(db, lineage.of(db, row))
        assert said(backend, first) == [*range(1, 9), 20]
        assert said(backend, second) == [1, 2, 3, 4, 5, 60, 61, 62]
        assert said(backend, third) == [1, 2, 3]
        with backend.reading() as db:
            assert db.showing(first.stream or 0, 1, besides=first.id) == ["second", "third"]
            assert db.showing(first.stream or 0, 4, besides=first.id) == ["second"]
            assert db.showing(first.stream or 0, 5, besides=first.id) == []

    def test_what_a_fork_shows_outlives_its_parent(self, backend: Backend) -> None:
        first = session(backend, "first", 8)
        second = fork(backend, first, "second", 5)
        erase(backend, lambda db, erasure: db.delete_collection(first, erasure))
        assert said(backend, second) == [1, 2, 3, 4, 5]
        with backend.reading() as db:
            assert db.stream(first.stream or 0).messages == 5 and db.find_collection("session", "first") is None
        erase(backend, lambda db, erasure: db.delete_collection(second, erasure))
        with backend.reading() as db:
            assert not db.has_stream(first.stream or 0) and not db.has_stream(second.stream or 0)

    def test_messages_move_without_their_content_and_keep_it(self, backend: Backend) -> None:
        """As forgetting does: what follows goes to a new stream, and both refer to one text until the old one is swept."""
        row = session(backend, "alice", 8)
        other = fork(backend, row, "other", 8)

        def forget(db: Transaction, erasure: int) -> None:
            parts = lineage.of(db, row)
            stream = lineage.add_stream(db, parts, messages=2, tokens=10, segments=1)
            lineage.append_kept(db, stream, lineage.kept(db, parts, 3, 8))
            db.update_collection(replace(row, stream=stream, epoch=1))
            db.sweep_later(erasure, "stream", row.stream or 0)

        erase(backend, forget)
        assert said(backend, row) == [1, 2, 4, 5, 6, 7, 8] and said(backend, other) == list(range(1, 9))
        erase(backend, lambda db, erasure: db.delete_collection(other, erasure))
        assert said(backend, row) == [1, 2, 4, 5, 6, 7, 8]
        with backend.writing() as db:
            now = db.collection(row.id)
            assert now is not None
            joined = lineage.compact(db, now)
            assert len(lineage.of(db, joined)) == 1
        assert said(backend, row) == [1, 2, 4, 5, 6, 7, 8]

    def test_a_message_may_lose_its_first_tokens(self, backend: Backend) -> None:
        row = session(backend, "alice", 3)
        with backend.writing() as db:
            parts = lineage.of(db, row)
            (second, third) = lineage.kept(db, parts, 1, 3)
            stream = lineage.add_stream(db)
            shorter = lineage.shortened(db, second, lineage.tokens(db, parts, *second.row.tokens), 2)
            lineage.append_kept(db, stream, [shorter, third])
            new = lineage.of_stream(db, stream)
            assert lineage.tokens(db, new, 0, 99).tolist() == [2, 2, 2, 3, 3, 3, 3, 3]
            assert [one.tokens for one in lineage.messages(db, new)] == [(0, 3), (3, 8)]

    def test_a_shelf_numbers_the_segments_of_all_documents(self, backend: Backend) -> None:
        with backend.writing() as db:
            row = db.add_collection("corpus", "papers", stream=None, now=1.0)
            for id, tokens in enumerate((20, 3, 40), 1):
                stream = lineage.add_stream(db)
                lineage.append_messages(db, stream, [], np.full(tokens, id, np.uint32))
                close_segments(db, lineage.of_stream(db, stream))
                db.add_document(row.id, DocumentRow(id, stream, {"name": str(id), "text": "x", "metadata": {}}, 0.0))
            shelf = shelf_of(db, row)
            assert shelf.total == 7 and shelf.locate(2) == (2, 0) and shelf.documents == (1, 2, 3)
            assert [one.seq for one in shelf.rows(db, 1, 5)] == [1, 0, 1, 2]
            assert shelf.volumes[2] == volume_of(db, shelf.volumes[2].stream)
            assert shelf.check(db, 7) == shelf.digest() != shelf.check(db, 3)

    # --- erasing ------------------------------------------------------------------------------------------------------

    def test_an_erasure_goes_on_where_it_was_left(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        row = session(backend, "long", 900)
        monkeypatch.setattr(sweeping, "_ROWS_PER_STEP", 50)
        monkeypatch.setattr(sweeping, "_BYTES_PER_STEP", 5_000)
        with backend.writing() as db:
            erasure = db.begin_erasure()
            db.delete_collection(row, erasure)
        steps = 0
        while backend.erasing(lambda db: sweeping._some_steps(db, erasure)):
            steps += 1
            if steps == 5:
                with backend.reading() as db:
                    assert db.erasures() == [erasure] and db.has_stream(row.stream or 0)
        assert steps > 20
        sweeping.take_up(backend, erasure)
        with backend.reading() as db:
            assert db.erasures() == [] and not db.has_stream(row.stream or 0)
            assert Capability.ERASES_BYTES not in backend.capabilities or db.vacant_bytes() > 900 * 20

    def test_a_corpus_is_deleted_with_all_of_its_documents(self, backend: Backend) -> None:
        with backend.writing() as db:
            row = db.add_collection("corpus", "papers", stream=None, now=1.0)
            streams = [lineage.add_stream(db) for _ in range(5)]
            for id, stream in enumerate(streams, 1):
                db.add_document(row.id, DocumentRow(id, stream, {"name": str(id), "text": "x", "metadata": {}}, 0.0))
        erase(backend, lambda db, erasure: db.delete_collection(row, erasure))
        with backend.reading() as db:
            assert db.documents(row.id) == [] and not any(db.has_stream(stream) for stream in streams)

    def test_a_renamed_session_is_found_by_its_new_name_only(self, backend: Backend) -> None:
        row = session(backend, "alice", 1)
        erase(backend, lambda db, erasure: db.rename_collection(row, "bob", erasure))
        with backend.reading() as db:
            found = db.find_collection("session", "bob")
            assert found is not None and found.id == row.id and db.find_collection("session", "alice") is None

    def test_streams_that_are_being_written_are_not_swept(self, backend: Backend) -> None:
        row = session(backend, "alice", 2)
        with backend.writing() as db:
            stream = lineage.add_stream(db)
            talk(db, stream, range(50, 53))
            db.add_draft(stream, row.id)
        erase(backend, lambda db, erasure: db.sweep_later(erasure, "stream", stream))
        with backend.writing() as db:
            assert db.has_stream(stream) and db.drafts(row.id) == [stream] and db.drafted() == [row.id]
            db.remove_draft(stream)
        erase(backend, lambda db, erasure: db.sweep_later(erasure, "stream", stream))
        with backend.reading() as db:
            assert not db.has_stream(stream)

    # --- damage -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("UPDATE messages SET created_at = created_at + 1 WHERE id = 2", "message 2 is damaged"),
            ("UPDATE tokens SET ids_size = ids_size - 4 WHERE start = 5", "tokens 5 of stream"),
            ("UPDATE segments SET token_stop = token_stop + 1 WHERE seq = 0", "segment 0 of stream"),
            ("UPDATE collections SET next_id = next_id + 1", "the record of session"),
            ("UPDATE streams SET tokens = tokens - 1", "the record of stream"),
            ("UPDATE models SET digest = 'another'", "the record of model"),
            ("DELETE FROM messages WHERE id = 2", "messages are missing"),
            ("DELETE FROM tokens WHERE start = 5", "tokens are missing"),
            ("DELETE FROM segments WHERE seq = 0", "segments are missing"),
            ("UPDATE payloads SET data = substr(data, 2) WHERE id = (SELECT body FROM messages WHERE id = 2)", "message 2"),
        ],
    )
    def test_a_row_that_says_something_else_is_an_error(self, backend: Backend, statement: str, problem: str) -> None:
        row = session(backend, "alice", 6)
        self.damage(backend, statement)
        with pytest.raises(StoreDamagedError, match=problem), backend.reading() as db:
            db.collections("session")
            db.model(row.model or 0)
            parts = lineage.of(db, row)
            lineage.messages(db, parts)
            lineage.tokens(db, parts, 0, 99)
            list(lineage.segments(db, parts, 0, 3))

    def test_a_stream_that_is_gone_is_named(self, backend: Backend) -> None:
        with pytest.raises(StoreDamagedError, match="the record of stream 99 is missing"), backend.reading() as db:
            db.stream(99)
        with pytest.raises(StoreDamagedError, match="the record of model 99 is missing"), backend.reading() as db:
            db.model(99)
        with backend.writing() as db:
            broken = db.add_stream(StreamRow(0, None, 3, 9, 1, 3, 9))
            with pytest.raises(StoreDamagedError, match="continues one that is gone"):
                lineage.of_stream(db, broken)
