"""Corpora: documents read to their ends, each on its own, and recalled from sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from stored import FAST, bytes_in, user
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Corpus, MemoryStore
from hmt_memory.errors import (
    InputError,
    ModelMismatchError,
    SessionBusyError,
    SessionNotFoundError,
    StoreDamagedError,
    StoreError,
)
from hmt_memory.store import lineage

TOKENIZER = byte_tokenizer()
MODEL = light_model(config=replace(REMEMBERING, pinned_tokens=60, replay_tokens=150), tokenizer=TOKENIZER)
TEXTS = ["the first text of the handbook, four segments and a bit", "short", "x" * 16, "the last one " * 30]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def corpus(store: MemoryStore) -> Corpus:
    return store.corpus("handbook", MODEL)


def memories(corpus: Corpus) -> list[np.ndarray[Any, Any]]:
    """[n, 32] of each document."""
    shard = corpus._shard()
    with corpus._database.reading() as db:
        rows = [[row.memory for row in lineage.segments(db, one.parts, 0, one.segments)] for one in shard.shelf.volumes]
    return [np.frombuffer(b"".join(document), "<f2").reshape(-1, 32).astype(np.float32) for document in rows]


def test_every_document_is_a_stream_of_its_own_read_to_its_end(corpus: Corpus) -> None:
    """Its full segments as any stream's; the last one, however short, leaves a memory too."""
    corpus.add_documents(TEXTS)
    for text, memory in zip(TEXTS, memories(corpus), strict=True):
        ids = torch.tensor(MODEL.backbone.encode(text))
        assert len(memory) == -(-len(ids) // 16)
        state = MODEL.read(ids, MODEL.empty_state(torch.float16))
        np.testing.assert_allclose(memory[: state.segments], state.memory.numpy(), atol=2e-3)
        if len(state.open_ids):
            summary = MODEL.summarize([state.open_ids])
            prompt = MODEL.prompt(list(summary), [MODEL.by_segment(state)[-REMEMBERING.recall_window :]])
            last = MODEL.augment(prompt, [state.recent_ids[-REMEMBERING.sensory_length :]], [state.open_ids]).memory
            np.testing.assert_allclose(memory[-1], last[0, 0].detach().numpy(), atol=2e-3)
    found = corpus.stats()
    assert (found["documents"], found["segments"], found["tokens"]) == (
        4,
        sum(map(len, memories(corpus))),
        sum(map(len, TEXTS)),
    )


def test_documents_do_not_depend_on_their_neighbours(store: MemoryStore, corpus: Corpus) -> None:
    corpus.add_documents(TEXTS)
    other = store.corpus("other", MODEL)
    for text in reversed(TEXTS):
        other.add_documents([text])
    for one, two in zip(memories(corpus), reversed(memories(other)), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)


def test_all_forms_of_documents(corpus: Corpus) -> None:
    ids = corpus.add_documents(
        ["a text", ("named.md", "b text"), {"text": "c text", "name": "c", "metadata": {"page": 3}}, {"text": "y" * 60}]
    )
    documents = corpus.documents()
    assert [one.id for one in documents] == ids == [1, 2, 3, 4]
    assert [one.name for one in documents] == ["a text", "named.md", "c", "y" * 39 + "…"]
    assert documents[2].metadata == {"page": 3} and documents[3].text == "y" * 60
    for bad in ("", " ", 7, {"name": "x"}, ("a", 7), "\ud800", {"text": "x", "metadata": {"o": object()}}):
        with pytest.raises(InputError):
            corpus.add_documents(["good", bad])
    assert len(corpus.documents()) == 4 and corpus.add_documents([]) == []


def test_documents_take_the_place_of_others_by_their_ids(corpus: Corpus) -> None:
    first, second = corpus.add_documents([("same", "one text"), ("same", "two texts")])
    (third,) = corpus.add_documents([("new", "three texts")], replacing=[first, 99])
    assert [one.id for one in corpus.documents()] == [second, third]
    with pytest.raises(InputError):
        corpus.add_documents(["good", ""], replacing=[second])
    assert [one.id for one in corpus.documents()] == [second, third], "all or nothing"


def test_recall_cites_the_document(corpus: Corpus) -> None:
    first, _ = corpus.add_documents([{"name": "one.md", "text": TEXTS[0], "metadata": {"page": 3}}, ("two.md", TEXTS[3])])
    found = corpus.recall("text", top_k=100)
    assert {one.metadata.get("page") for one in found if one.document == first} == {3}
    assert {one.metadata.get("page") for one in found if one.document != first} == {None}
    assert sum(one.weight for one in found) == pytest.approx(1) and {one.source for one in found} == {
        "handbook/one.md",
        "handbook/two.md",
    }
    for one in found:
        text = TEXTS[0] if one.source.endswith("one.md") else TEXTS[3]
        assert one.text in text[slice(*one.token_span)] and one.text == one.text.strip() and one.messages == ()


def test_a_session_recalls_from_its_own_past_and_from_attached_corpora(store: MemoryStore, corpus: Corpus) -> None:
    """All of them compete in one softmax; detached, they are gone."""
    corpus.add_documents([("one.md", TEXTS[0])])
    session = store.session("alice", MODEL)
    session.add(user("word " * 40))
    alone = session.recall("text", top_k=100)
    session.attach("handbook")
    both = session.recall("text", top_k=100)
    assert {one.source for one in both} == {"alice", "handbook/one.md"} and len(both) == len(alone) + 1
    assert sum(one.weight for one in both) == pytest.approx(1)
    ratio = both[[one.source for one in both].index("alice")].weight
    assert ratio < alone[0].weight
    assert store.session("alice").stats()["corpora"] == ["handbook"]
    reply = session.reply(user("which text?"), **FAST).finish()
    assert [one.source for one in reply.recalled] == ["handbook/one.md"]
    session.forget(reply.message_ids)
    session.detach("handbook")
    assert [one.text for one in session.recall("text", top_k=100)] == [one.text for one in alone]
    with pytest.raises(SessionNotFoundError, match="no corpus 'nothing'"):
        session.attach("nothing")


def test_asking_a_corpus_quotes_it_and_stores_nothing(store: MemoryStore, corpus: Corpus) -> None:
    corpus.add_documents([("one.md", TEXTS[0])])
    answer = corpus.ask("text?", **FAST)
    text = "".join(answer)
    assert text == answer.text and answer.recalled and answer.recalled[0].source == "handbook/one.md"
    plain = MODEL.generate(
        TOKENIZER("<s>user\ntext?</s>\n<s>assistant\n", add_special_tokens=False)["input_ids"],
        pinned=TOKENIZER("<s>system\nDefault.</s>\n", add_special_tokens=False)["input_ids"],
        **FAST,
    )
    assert answer.usage.view_tokens > plain.finish().usage.view_tokens + 20
    other = store.corpus("other", MODEL)
    other.add_documents([("two.md", TEXTS[1])])
    assert {one.source for one in corpus.ask("text?", other, **FAST).recalled} == set()
    both = corpus.ask("text?", other, **FAST)
    next(both)
    assert both._memory.recalled and store.sessions() == []
    assert {one.source.partition("/")[0] for one in corpus.recall("text?", 99, others=[other])} == {"handbook", "other"}


def test_removed_documents_leave_no_byte(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    store = MemoryStore(folder)
    corpus = store.corpus("handbook", MODEL)
    ids = corpus.add_documents(["xyzzy plugh " * 20, TEXTS[0]])
    kept = memories(corpus)[1]
    corpus.recall("x")
    store.open_indexes.save(1, store.open_indexes._open[1])
    assert bytes_in(folder, b"xyzzy plugh") == ["memory.db-wal"] or bytes_in(folder, b"xyzzy plugh")
    with pytest.raises(SessionNotFoundError, match="no document 9"):
        corpus.remove([ids[0], 9])
    corpus.remove([ids[0]])
    assert bytes_in(folder, b"xyzzy plugh") == []
    assert [one.id for one in corpus.documents()] == [2] and corpus.add_documents(["more"]) == [3]
    np.testing.assert_array_equal(memories(corpus)[0], kept)
    assert {one.source for one in corpus.recall("x", top_k=99)} == {f"handbook/{one.name}" for one in corpus.documents()}
    store.close()


def test_what_a_crash_left_unread_is_read_by_the_next_call(
    store: MemoryStore, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.corpus("expected", MODEL)
    expected.add_documents(["many words " * 60, TEXTS[0]])

    class Crash(BaseException):
        pass

    reads = [0]
    real = Corpus._read_chunk

    def crash(self: Corpus, *arguments: Any) -> int:
        reads[0] += 1
        if reads[0] == 2:
            raise Crash
        return real(self, *arguments)

    monkeypatch.setattr(Corpus, "_read_chunk", crash)
    with pytest.raises(Crash):
        corpus.add_documents(["many words " * 60, TEXTS[0]])
    again = store.corpus("handbook", MODEL)
    assert again.stats()["segments"] == 8  # four of each
    again.recall("x")
    for one, two in zip(memories(again), memories(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)


def test_documents_are_read_together_and_are_what_each_alone_is(
    store: MemoryStore, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} is a number, and words follow it. " * (number + 1) for number in range(11)]
    alone = store.corpus("alone", MODEL)
    for text in texts:
        alone.add_documents([text])
    rows: list[int] = []
    read = MODEL.augment
    monkeypatch.setattr(MODEL, "augment", lambda prompt, *rest: rows.append(len(prompt)) or read(prompt, *rest))
    done: list[tuple[int, int]] = []
    corpus.add_documents(texts, progress=lambda *counts: done.append(counts))
    for one, two in zip(memories(corpus), memories(alone), strict=True):
        assert np.linalg.norm(one - two) < 0.1 * np.linalg.norm(two)  # random weights let a rounding grow
    segments = sum(-(-len(text) // 16) for text in texts)
    assert sum(rows) == segments and max(rows) == 8 and len(rows) < segments / 3
    assert done == sorted(done) and done[-1][0] == done[-1][1]


def test_documents_that_are_stored_are_not_reported_as_lost(
    store: MemoryStore, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk fills, or another process keeps writing, between storing and reading them: the next call reads them."""
    caplog.set_level(logging.DEBUG, logger="hmt_memory")
    for error in (StoreError("the disk is full"), SessionBusyError("busy")):
        with monkeypatch.context() as patch:
            patch.setattr(lineage, "append_segments", mock.Mock(side_effect=error))
            assert corpus.add_documents(["many words " * 9])
    assert caplog.text.count("reading it into memory waits") == 2 and corpus.stats()["segments"] == 0
    assert corpus.recall("x") and len(corpus.documents()) == 2


def test_another_model_is_refused_and_may_read_it_anew(store: MemoryStore, corpus: Corpus) -> None:
    corpus.add_documents(TEXTS)
    session = store.session("alice", MODEL)
    session.attach("handbook")
    session.add(user("hello"))
    other = light_model(config=REMEMBERING, tokenizer=TOKENIZER, seed=1)
    with pytest.raises(ModelMismatchError, match="hmt corpora rebuild handbook --model "):
        store.corpus("handbook", other)
    rebuilt = corpus.rebuild(other)
    assert [one.text for one in rebuilt.documents()] == TEXTS and rebuilt.recall("text")
    with pytest.raises(ModelMismatchError, match="corpus 'handbook'"):
        session.recall("x")
    with pytest.raises(ModelMismatchError):
        store.session("bob", MODEL).attach("handbook")


def test_a_deleted_corpus_is_recalled_no_more(store: MemoryStore, corpus: Corpus) -> None:
    corpus.add_documents(TEXTS)
    session = store.session("alice", MODEL)
    session.attach("handbook")
    store.delete_corpus("handbook")
    session.add(user("word " * 20))
    assert {one.source for one in session.recall("x", top_k=99)} == {"alice"}
    assert store.corpora() == [] and session.stats()["corpora"] == []
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        corpus.add_documents(["x"])
    with pytest.raises(SessionNotFoundError, match="no corpus"):
        store.corpus("handbook")


def test_damage_in_a_corpus_is_found(store: MemoryStore, corpus: Corpus) -> None:
    corpus.add_documents(TEXTS)
    assert store.verify() == ([], [])
    with store.database.writing() as db:
        (memory,) = db.execute("SELECT memory FROM segments WHERE seq = 1").fetchone()
        db.execute("UPDATE payloads SET data = zeroblob(64) WHERE id = ?", (memory,))
    assert "segment 1" in store.verify().problems[0]
    with pytest.raises(StoreDamagedError):
        corpus.recall("x")
