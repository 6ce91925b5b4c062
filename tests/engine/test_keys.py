"""Keys by meaning: where a text is cut, what makes them, and that they are a function of the stream and the weights."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL, byte_tokenizer, tiny_causal_lm, tiny_model

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.engine.checkpoint import load_memory
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.engine.stretches import LONGEST, stretches
from hmt_memory.errors import CheckpointError, ConfigError
from hmt_memory.retrieval import ranking
from hmt_memory.retrieval.passages import Choice, ranked
from hmt_memory.retrieval.sources import StreamShard
from hmt_memory.store import lineage

DIM = 6


def with_keys(**changes: Any) -> HMTModel:
    """A tiny model with random keys by meaning."""
    model = tiny_model(config=replace(SMALL, **{"key_dim": DIM, **changes}), tokenizer=byte_tokenizer())
    assert model.keys is not None
    model.keys.unit.data.fill_(1.0)
    return model


@given(st.lists(st.integers(0, 5), max_size=200))
def test_stretches_lie_in_order_end_with_turns_and_are_never_too_long(ids: list[int]) -> None:
    found = stretches(ids, {0})
    assert all(3 <= stop - start <= LONGEST for start, stop in found)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
    assert all(0 not in ids[start : stop - 1] for start, stop in found), "a turn's end is a stretch's end"
    covered = {place for start, stop in found for place in range(start, stop)}
    left = [place for place in range(len(ids)) if place not in covered]
    assert all(0 in ids[max(0, place - 2) : place + 3] or len(ids) < 3 for place in left if place < len(ids) - 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 3))
def test_keys_do_not_depend_on_how_the_stream_is_cut_into_calls(cuts: list[int], seed: int) -> None:
    model = with_keys()
    ids = torch.randint(3, 250, (sum(cuts),), generator=torch.Generator().manual_seed(seed))
    whole = model.read(ids)
    state = None
    for piece in ids.split(cuts):
        state = model.read(piece, state)
    assert state is not None and len(state.keys) == len(whole.keys) == whole.segments
    for ours, theirs in zip(state.keys, whole.keys, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == torch.float16
        assert torch.allclose(ours.float(), theirs.float(), atol=2e-3)


def test_a_key_is_a_unit_vector_of_its_own_stretch() -> None:
    model = with_keys()
    assert model.keys is not None
    embeddings, hidden = torch.randn(9, 32), torch.randn(9, 32)
    both = model.keys.of_stretches(embeddings, hidden, [(0, 4), (4, 9)])
    assert both.shape == (2, DIM) and torch.allclose(both.norm(dim=1), torch.ones(2), atol=1e-5)
    alone = model.keys.of_stretches(embeddings[4:], hidden[4:], [(0, 5)])
    assert torch.allclose(both[1:], alone, atol=1e-5) and not torch.allclose(both[0], both[1], atol=1e-2)
    assert model.keys.of_stretches(embeddings, hidden, []).shape == (0, DIM)


def test_untrained_keys_favour_nothing() -> None:
    model = HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), replace(SMALL, key_dim=DIM)).eval()
    state = model.read(torch.arange(3, 60))
    assert state.keys and all(not keys.any() for keys in state.keys)
    question = model.question_key(torch.arange(3, 9))
    assert question is not None and not question.any() and model.question_key(torch.arange(0)) is None


@pytest.mark.parametrize("length", [1, 8, 9, 300])
def test_summary_and_key_of_a_question_are_those_of_two_passes(length: int) -> None:
    """A question of up to j tokens takes one row, a longer one two."""
    model = with_keys()
    ids = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(length))
    summary, key = model.asked(ids)
    (expected,) = model.summarize([ids[-8:]])
    alone = model.question_key(ids)
    assert key is not None and alone is not None
    assert torch.allclose(summary, expected, atol=1e-4) and torch.allclose(key, alone, atol=1e-4)
    without = tiny_model(tokenizer=byte_tokenizer()).asked(ids)
    assert without[1] is None and without[0].shape == summary.shape


def test_a_model_without_keys_makes_none() -> None:
    model = tiny_model(tokenizer=byte_tokenizer())
    assert model.keys is None and model.read(torch.arange(3, 60)).keys == () and model.question_key(torch.arange(3, 9)) is None


def test_keys_are_saved_and_are_part_of_what_a_memory_depends_on(tmp_path: Path) -> None:
    model = with_keys()
    model.save_pretrained(tmp_path / "with")
    loaded = HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), replace(SMALL, key_dim=DIM)).eval()
    assert fingerprint(loaded).digest != fingerprint(model).digest
    load_memory(loaded, tmp_path / "with")
    assert fingerprint(loaded).digest == fingerprint(model).digest
    with pytest.raises(CheckpointError, match="unknown tensors keys"):
        load_memory(tiny_model(tokenizer=byte_tokenizer()), tmp_path / "with")
    with pytest.raises(ConfigError, match="key_dim decides"):
        model.with_config(key_dim=None)
    with pytest.raises(ConfigError, match="key_dim"):
        with_keys(key_dim=1 << 22)


def test_a_session_stores_a_key_for_each_stretch_and_compares_a_question_with_all_of_them(tmp_path: Path) -> None:
    model = with_keys(segment_length=64)
    texts = ["the boat lies in the harbour", "quince jam keeps long", "nobody rang today", "seven grey geese", "it snows"]
    with MemoryStore(tmp_path) as store:
        session = store.session("s", model)
        for text in texts:
            session.add([{"role": "user", "content": text}, {"role": "assistant", "content": "mhm"}])
        shard = session._own_shard(session._snapshot())
        with shard.database.reading() as db:
            rows = list(shard.shelf.rows(db, 0, shard.total))
            ids = lineage.tokens(db, shard.shelf.volumes[0].parts, 0, 10_000).tolist()
        question = model.question_key(torch.tensor(model.backbone.encode("zzz vvv")))
        assert question is not None and len(rows) > 2
        expected = {}
        for row in rows:
            keys = np.frombuffer(row.keys or b"", "<f2").reshape(-1, DIM)
            spans = [
                (row.tokens[0] + low, row.tokens[0] + high)
                for low, high in stretches(ids[slice(*row.tokens)], model.backbone.end_ids)
            ]
            assert len(keys) == len(spans) and shard.stretches(row.seq) == spans
            expected |= {(row.seq, number): float(key @ question.numpy()) for number, key in enumerate(keys)}
        found = ranking.nearest(model, [shard], question)
        scores = {(place[1], number): score for place, own in found.items() for number, score in own.items()}
        assert scores.keys() == expected.keys() and all(abs(scores[place] - expected[place]) < 5e-3 for place in scores)
        assert list(found) == sorted(found, key=lambda place: -max(found[place].values()))
        assert not ranking.nearest(model.with_config(selection="words"), [shard], question)
        recalled = [passage.text for passage in session.recall("zzz vvv", top_k=20)]
        assert {text for text in texts if text in recalled} == set(texts)


def test_passages_are_scored_by_the_keys_that_stand_for_a_part_of_them(tmp_path: Path) -> None:
    model = with_keys(segment_length=64)
    with MemoryStore(tmp_path) as store:
        session = store.session("s", model)
        session.add([{"role": "user", "content": f"message {number} says nothing"} for number in range(12)])
        shard = session._own_shard(session._snapshot())
        places = [(0, position) for position in range(shard.total)]
        spans = shard.stretches(1)
        number = len(spans) // 2
        chosen = Choice(places, [1 / len(places)] * len(places), 1.0, {}, {(0, 1): {number: 0.75}})
        best, *others = ranked([shard], chosen, "zzz")
        start, stop = best.cited.token_span
        assert best.evidence.meaning == 0.75 and start < spans[number][1] and stop > spans[number][0]
        assert all(other.evidence.meaning == 0 for other in others if other.cited.token_span[0] >= spans[number][1])
        without = ranked([shard], chosen._replace(nearest={}), "zzz")
        assert len(without) == len(others) + 1 and all(other.evidence.meaning == 0 for other in without)


def test_a_stream_in_memory_is_compared_like_a_stored_one(tmp_path: Path) -> None:
    """What was read without a store has the same keys, and those of the question itself do not count."""
    model = with_keys(segment_length=64)
    messages = [{"role": "user", "content": f"message {number} says nothing"} for number in range(12)]
    with MemoryStore(tmp_path) as store:
        session = store.session("s", model)
        session.add(messages)
        stored = session._own_shard(session._snapshot())
        with stored.database.reading() as db:
            ids = lineage.tokens(db, stored.shelf.volumes[0].parts, 0, 10_000).tolist()
        state = model.read(torch.tensor(ids))
        stream = StreamShard("text", ids, model.backbone.decode, length=64, slots=model.recalled_slots, until=3 * 64)
        stream.end_ids = model.backbone.end_ids
        stream.know([keys.numpy() for keys in state.keys], state.segments)
        key = ranking.key_of(model, "zzz")
        found, known = ranking.nearest(model, [stream], key), ranking.nearest(model, [stored], key)
        assert set(found) == {place for place in known if place[1] < 3} and len(known) > 3
        for place, scores in found.items():
            assert stream.stretches(place[1]) == stored.stretches(place[1])
            assert all(abs(score - known[place][number]) < 5e-3 for number, score in scores.items())
