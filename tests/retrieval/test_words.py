"""Words: their index against counting by hand, through saving, joining and damage; and what they choose in a session."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.retrieval import lexical
from hmt_memory.store.index.words import WordIndex

TOKENIZER = byte_tokenizer()
MODEL = light_model(config=REMEMBERING, tokenizer=TOKENIZER)
BY_WORDS = MODEL.with_config(selection="words")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


def by_hand(texts: list[str], query: str) -> np.ndarray[Any, Any]:
    """BM25 with squared rarity, and a quarter to each neighbour, from the definition."""
    counted = [lexical.terms(text) for text in texts]
    usual = sum(map(len, counted)) / len(counted)
    values = []
    for held in counted:
        value = 0.0
        for word in set(lexical.terms(query)):
            holding = sum(word in other for other in counted)
            rarity = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5)) ** 2
            value += rarity * held.count(word) * 2.2 / (held.count(word) + 1.2 * (0.25 + 0.75 * len(held) / usual))
        values.append(value)
    padded = np.array([0.0, *values, 0.0])
    return padded[1:-1] + 0.25 * (padded[:-2] + padded[2:])


def texts_of(session: Any) -> list[str]:
    """What each closed segment says, decoded."""
    with session._database.reading() as db:
        from hmt_memory.store import lineage

        (parts, count, _) = session._own_shard(session._snapshot()).shelf.volumes[0]
        spans = [row.tokens for row in lineage.segments(db, parts, 0, count)]
        return [TOKENIZER.decode(lineage.tokens(db, parts, *span).tolist(), skip_special_tokens=True) for span in spans]


def scores_of(session: Any, query: str) -> np.ndarray[Any, Any]:
    shard = session._own_shard(session._snapshot())
    return lexical.scores([shard.find(lexical.distinct_terms(query))])[0]


def test_scores_are_those_of_the_definition_however_the_session_grew(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    chance = random.Random(0)
    for _ in range(40):
        session.add(user(" ".join(chance.choice(["ant", "bee", "cow", "dog", "elk"]) for _ in range(chance.randrange(1, 20)))))
        if chance.random() < 0.3:
            scores_of(session, "ant")  # the index grows in pieces
    for query in ("ant", "dog elk dog", "nothing", "bee cow"):
        np.testing.assert_allclose(scores_of(session, query), by_hand(texts_of(session), query), rtol=1e-9)


def test_the_index_is_the_same_after_reopening_and_after_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        for turn in range(30):
            session.add(user(f"number {turn} and word{turn % 7}"))
        found = scores_of(session, "word3 number")
    (path,) = (tmp_path / "indexes").glob("*.words")
    whole = path.read_bytes()
    for content in (whole, whole[:-9], whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :], b"", None):
        caplog.clear()
        path.unlink() if content is None else path.write_bytes(content)
        with MemoryStore(tmp_path) as store:
            np.testing.assert_allclose(scores_of(store.session("alice", MODEL), "word3 number"), found)
        assert bool(caplog.records) == (content not in (whole, None))


def test_documents_are_no_neighbours(store: MemoryStore) -> None:
    corpus = store.corpus("both", MODEL)
    corpus.add_documents([{"name": "one", "text": "zebra " * 20}, {"name": "two", "text": "quagga " * 20}])
    shard = corpus._shard()
    values = lexical.scores([shard.find(["quagg"])])[0]
    first = shard.shelf.volumes[0][1]
    assert (values[:first] == 0).all() and (values[first:] > 0).all()


def test_what_is_forgotten_is_in_no_word_index(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    session.add(user("first things first " * 3))
    ids = session.add(user("xylophone " * 6))
    session.add(user("and others follow " * 5))
    assert scores_of(session, "xylophone").any()
    session.forget(ids)
    assert not scores_of(session, "xylophone").any()
    np.testing.assert_allclose(scores_of(session, "follow"), by_hand(texts_of(session), "follow"))


def test_a_session_s_words_never_depend_on_another(store: MemoryStore) -> None:
    alice, bob = store.session("alice", BY_WORDS), store.session("bob", BY_WORDS)
    alice.add([user("the red door is open " * 3), user("a blue cup " * 4)])
    before = [(one.text, one.weight) for one in alice.recall("red cup", 9)]
    for turn in range(20):
        bob.add(user(f"red {turn} cup"))
    assert [(one.text, one.weight) for one in alice.recall("red cup", 9)] == before
    assert all(one.source == "alice" for one in alice.recall("red cup", 9))


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["words", "fused"])
def test_a_fact_comes_back_by_its_words(store: MemoryStore, selection: Any) -> None:
    untrained = HMTModel.wrap(MODEL.backbone.causal_lm, TOKENIZER, replace(REMEMBERING, selection=selection)).eval()
    session = store.session("alice", untrained)
    chance = random.Random(1)
    for turn in range(60):
        session.add(user("The door code is 4071." if turn == 21 else "".join(chance.choice("abcdef ") for _ in range(40))))
    found = session.recall("What is the code of the door?", top_k=3)
    assert "4071" in " ".join(one.text for one in found) and found[0].weight > 0.1  # segments of 16 characters
    reply = session.reply(user("What is the code of the door?"), max_new_tokens=1).finish()
    assert reply.recalled and {one.segment for one in reply.recalled} <= {one.segment for one in found}


def test_weights_are_a_softmax_and_coverage_a_lower_bound_of_what_they_leave_out(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    for turn in range(30):
        session.add(user(f"{turn} {'red' if turn % 3 else 'blue'} " * 5))
    everything = session.recall("7 red", top_k=1000)
    assert sum(one.weight for one in everything) == pytest.approx(1) and everything.coverage == pytest.approx(1)
    few = session.recall("7 red", top_k=2)
    assert 0 < few.coverage <= 1 and [one.weight for one in few] == sorted((one.weight for one in few), reverse=True)


def test_without_words_in_common_recall_decides(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    session.add([user("one two three four five six " * 4)])
    by_recall = store.session("alice", MODEL.with_config(selection="recall"))
    assert [one.weight for one in session.recall("zzz", 5)] == [one.weight for one in by_recall.recall("zzz", 5)]


def test_terms_of_many_scripts() -> None:
    assert lexical.terms("Straße, naïve ÉCOLE") == ["stras", "naïve", "école"]
    assert lexical.terms("") == [] and lexical.terms("!?") == []
    assert lexical.distinct_terms("a b a") == ["a", "b"]


def test_blocks_stay_few(tmp_path: Path) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        for turn in range(64):
            session.add(user(f"turn number {turn}"))
            scores_of(session, "turn")
        index = next(iter(store.open_indexes._open.values())).words
        assert isinstance(index, WordIndex) and index.count > 64 and len(index._blocks) < 10
