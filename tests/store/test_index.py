"""The index of a collection: exact by default, whatever searches; approximate only where asked, and honest about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faiss_gpu import FakeFaiss
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed import D, Rows, drifting

import hmt_kernels
from hmt_memory.errors import ConfigError, InputError, MissingDependencyError, SessionBusyError, StoreDamagedError
from hmt_memory.store.index import derived, devices, flat, gpu, search
from hmt_memory.store.index.vectors import KeyIndex, MemoryIndex
from hmt_memory.store.shelf import Shelf


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    found = Rows(tmp_path / "store")
    yield found
    found.database.close()


@pytest.fixture(params=["faiss", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    return str(request.param)


def index_of(tmp_path: Path, **options: Any) -> MemoryIndex:
    return MemoryIndex(tmp_path / "indexes" / "1.index", **{"width": D, "slots": 1, **options})


@pytest.mark.parametrize("slots", [1, 2])
def test_the_default_finds_exactly_the_largest_scores(rows: Rows, tmp_path: Path, backend: str, slots: int) -> None:
    memory = drifting(500, slots=slots)
    rows.add(memory)
    index = index_of(tmp_path, slots=slots)
    query = np.random.default_rng(1).standard_normal(D)
    hits = rows.search(index, query, 40)
    assert index.describe()["backend"].startswith(backend) and index.describe()["exact"]
    scores = memory.astype(np.float64).reshape(-1, D) @ query
    best = np.argsort(-scores, kind="stable")[: 40 * slots]
    assert list(hits.positions) == list(dict.fromkeys(int(row) // slots for row in best))
    assert np.array_equal(hits.memory, memory[hits.positions])
    left_out = np.delete(memory, hits.positions, axis=0).astype(np.float64) @ query
    assert left_out.max() <= hits.ceiling


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 120), st.integers(1, 150), st.integers(0, 10_000), st.integers(1, 2))
def test_coverage_is_a_true_lower_bound_and_exact_when_all_are_kept(
    tmp_path_factory: pytest.TempPathFactory, count: int, k: int, seed: int, slots: int
) -> None:
    """On anisotropic data, for any k, also where a segment has several embeddings."""
    folder = tmp_path_factory.mktemp("bound")
    rows = Rows(folder / "store")
    memory = drifting(count, seed, slots)
    rows.add(memory)
    query = np.random.default_rng(seed + 1).standard_normal(D).astype(np.float32) / 2
    hits = rows.search(index_of(folder, slots=slots), query, k)
    for slot in range(slots):
        found = hmt_kernels.recall(
            torch.from_numpy(query)[None],
            torch.from_numpy(hits.memory[:, slot])[None],
            dropped=count - len(hits.positions),
            ceiling=torch.tensor([hits.ceiling]),
        )
        scores = torch.from_numpy(memory[:, slot].astype(np.float64)) @ torch.from_numpy(query).double()
        truth = torch.softmax(scores, dim=0)[torch.from_numpy(hits.positions)]
        assert float(found.coverage) <= float(truth.sum()) + 1e-5
        assert torch.allclose(found.weights[0].double(), truth / truth.sum(), atol=1e-4)
        if k >= count:
            assert len(hits.positions) == count and float(found.coverage) == 1
    rows.database.close()


def test_a_large_matrix_is_searched_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving it into huge pages changes no row."""
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(flat, "_LARGE", 1 << 20)
    rows = np.random.default_rng(0).standard_normal((200_000, D)).astype(np.float16)
    found = search.FlatSearch(faiss, D)
    for start in range(0, len(rows), 50_000):
        found.add(rows[start : start + 50_000])
    assert found._advised and np.array_equal(found.codes(), rows)
    query = np.ones(D, np.float32)
    assert list(found(query, 9)[1]) == list(np.argsort(-(rows.astype(np.float64) @ query), kind="stable")[:9])


def test_it_keeps_up_with_the_rows(rows: Rows, tmp_path: Path, backend: str) -> None:
    memory = drifting(300)
    index = index_of(tmp_path)
    query = np.ones(D)
    assert len(rows.search(index, query, 5).positions) == 0
    for start in range(0, 300, 100):
        rows.add(memory[start : start + 100])
        found = rows.search(index, query, 5).positions
        wanted = np.argsort(-(memory[: start + 100, 0].astype(np.float64) @ query))[:5]
        assert list(found) == list(wanted)


def test_rows_that_are_no_longer_those_it_was_made_of_replace_it(rows: Rows, tmp_path: Path) -> None:
    """Rewritten in the middle of a process's life: fewer, as many, or more segments than before."""
    index = index_of(tmp_path)
    for count, seed in ((50, 1), (30, 2), (30, 3), (60, 4)):
        rows.restart()
        memory = drifting(count, seed)
        rows.add(memory)
        found = rows.search(index, np.ones(D), 100)
        assert sorted(found.positions) == list(range(count))
        assert np.array_equal(found.memory, memory[found.positions])


def test_a_saved_index_is_not_loaded_into_one_that_holds_rows(rows: Rows, tmp_path: Path) -> None:
    """After a shelf that is older than the index, which starts it anew, and one that is newer."""
    memory = drifting(60)
    rows.add(memory[:40])
    rows.search(first := index_of(tmp_path), np.ones(D), 5)
    rows.save(first, always=True)
    index, older = index_of(tmp_path), rows.shelf()
    rows.add(memory[40:])
    rows.search(index, np.ones(D), 5)
    with rows.database.reading() as db:
        assert max(index.search(db, older, np.ones(D, np.float32), 100).positions) == 39
    found = rows.search(index, np.ones(D), 100)
    assert sorted(found.positions) == list(range(60)) and np.array_equal(found.memory, memory[found.positions])


def test_an_older_shelf_of_the_same_epoch_is_served_without_starting_anew(rows: Rows, tmp_path: Path) -> None:
    memory = drifting(60)
    rows.add(memory[:40])
    older = Shelf(rows.shelf().volumes, (1, 0, 1))
    rows.add(memory[40:])
    newer = Shelf(rows.shelf().volumes, (1, 0, 2))
    index, query = index_of(tmp_path), np.ones(D, np.float32)
    with rows.database.reading() as db:
        index.search(db, newer, query, 5)
        hits = index.search(db, older, query, 7)
        assert index.count == 60
        assert list(hits.positions) == list(np.argsort(-(memory[:40, 0].astype(np.float64) @ query))[:7])
        assert sorted(index.search(db, older, query, 99).positions) == list(range(40))
        with pytest.raises(SessionBusyError, match="rewritten meanwhile"):
            index.search(db, Shelf(newer.volumes, (1, 1, 3)), query, 5)
            index.search(db, older, query, 5)


@pytest.mark.parametrize("factory", ["SQfp16", "Flat", "SQ8", "IVF4,SQfp16;nprobe=2", "IVF4,Flat;nprobe=4"])
def test_it_is_the_same_after_saving_and_loading(
    rows: Rows, tmp_path: Path, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any index_factory string; IVF is trained once there are enough keys."""
    memory = drifting(200)
    rows.add(memory[:100])
    index = index_of(tmp_path, factory=factory)
    query = np.random.default_rng(1).standard_normal(D)
    rows.search(index, query, 10)
    rows.save(index, always=True)
    assert [path.name for path in index.path.parent.iterdir()] == ["1.index"]
    rows.add(memory[100:])
    rows.save(index)
    for again in (index_of(tmp_path, factory=factory), index):
        found = rows.search(again, query, 10)
        assert again.count == 200 and np.array_equal(found.memory, memory[found.positions])
        rows.save(again, always=True)
    loaded = index_of(tmp_path, factory=factory)
    assert np.array_equal(rows.search(loaded, query, 10).positions, found.positions)
    scores = memory[:, 0].astype(np.float64) @ query
    left_out = np.delete(scores, found.positions)
    assert left_out.max() <= found.ceiling, "an index that may miss some has no better bound than their norm"
    assert not caplog.records


def test_torch_and_faiss_share_their_file(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = drifting(100)
    rows.add(memory)
    index = index_of(tmp_path)
    expected = rows.search(index, np.ones(D), 7).positions
    rows.save(index, always=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    other = index_of(tmp_path)
    assert np.array_equal(rows.search(other, np.ones(D), 7).positions, expected) and other._saved == 100
    assert other.describe()["backend"] == "torch"


def test_keys_by_meaning_are_searched_apart_from_memory(rows: Rows, tmp_path: Path, backend: str) -> None:
    """A segment has as many keys as it has stretches, none too; a hit says which of them it is."""
    memory, width = drifting(80, 1), 6
    chance = np.random.default_rng(2)
    keys = [chance.standard_normal((number % 4, width)).astype(np.float16) for number in range(80)]
    rows.add(memory, keys)
    index = KeyIndex(tmp_path / "indexes" / "1.keys", width=width)
    query = chance.standard_normal(width)
    hits = rows.search(index, query, 10)
    scores = {
        (segment, number): float(key.astype(np.float64) @ query)
        for segment, own in enumerate(keys)
        for number, key in enumerate(own)
    }
    assert [(hit.position, hit.number) for hit in hits] == sorted(scores, key=lambda place: -scores[place])[:10]
    assert all(abs(hit.score - scores[hit.position, hit.number]) < 1e-2 for hit in hits)
    rows.save(index, always=True)
    assert rows.search(KeyIndex(index.path, width=width), query, 10) == hits
    with pytest.raises(InputError, match="must be 6 finite numbers"):
        rows.search(index, np.ones(7), 3)
    found = rows.search(index_of(tmp_path), np.ones(D), 20)
    assert list(found.positions) == list(np.argsort(-(memory[:, 0].astype(np.float64) @ np.ones(D)), kind="stable")[:20])


def test_what_is_not_recalled_is_no_key_and_is_not_given_back(rows: Rows, tmp_path: Path, backend: str) -> None:
    memory = drifting(200, slots=3)
    rows.add(memory)
    index = index_of(tmp_path, slots=1, others=2)
    query = np.random.default_rng(1).standard_normal(D)
    hits = rows.search(index, query, 20)
    assert list(hits.positions) == list(np.argsort(-(memory[:, 2].astype(np.float64) @ query), kind="stable")[:20])
    assert hits.memory.shape == (20, 1, D) and np.array_equal(hits.memory, memory[hits.positions][:, 2:])
    assert index.describe()["exact"] and index.describe()["keys"] == 200
    rows.save(index, always=True)
    assert np.array_equal(rows.search(index_of(tmp_path, slots=1, others=2), query, 20).positions, hits.positions)


def test_a_graph_index_is_refused_with_the_reason(tmp_path: Path) -> None:
    for factory in ("HNSW32", "HNSW32,SQfp16", "IDMap2,hnsw16"):
        with pytest.raises(ConfigError, match=r"only 29 to 41 %.*Use 'SQfp16'"):
            index_of(tmp_path, factory=factory)
    with pytest.raises(ConfigError, match="does not know the index 'Nonsense'"):
        index_of(tmp_path, factory="Nonsense")
    with pytest.raises(ConfigError, match="does not know the index"):
        index_of(tmp_path, factory="IVF4,Flat;nonsense=3")


def test_rows_that_end_alike_are_told_apart(rows: Rows, tmp_path: Path) -> None:
    """The digest of a row is of all before it too."""
    memory = drifting(20)
    rows.add(memory)
    index = index_of(tmp_path)
    rows.search(index, np.ones(D), 5)
    other = memory.copy()
    other[3] = other[4]
    rows.restart()
    rows.add(other)
    assert np.array_equal(np.sort(rows.search(index, np.ones(D), 99).positions), np.arange(20))
    found = rows.search(index, np.ones(D), 99)
    assert np.array_equal(found.memory, other[found.positions])


def test_an_index_that_needs_faiss_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        index_of(tmp_path, factory="IVF4,Flat")


def test_bad_queries_and_bad_rows_are_refused(rows: Rows, tmp_path: Path) -> None:
    index = index_of(tmp_path)
    rows.add(drifting(3))
    for query in (np.full(D, np.nan), np.full(D, np.inf), np.ones(D - 1), np.ones((1, D))):
        with pytest.raises(InputError, match="finite numbers"):
            rows.search(index, query, 3)
    rows.add(np.full((1, 1, D), np.nan, np.float16))
    with pytest.raises(StoreDamagedError, match="segment 3 does not hold"):
        rows.search(index_of(tmp_path), np.ones(D), 3)


def test_an_index_that_cannot_be_saved_is_only_reported(rows: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "indexes").write_text("a file where the folder should be")
    index = index_of(tmp_path)
    rows.add(drifting(3))
    rows.search(index, np.ones(D), 3)
    rows.save(index)
    assert "could not be saved" in caplog.text


def test_removing_takes_what_a_crash_left_too(rows: Rows, tmp_path: Path) -> None:
    index = index_of(tmp_path)
    rows.add(drifting(3))
    rows.search(index, np.ones(D), 3)
    rows.save(index)
    index.path.with_name("1.index.4711.12").write_bytes(b"half")
    index.path.with_name("11.index").write_bytes(b"another's")
    derived.remove(index.path)
    assert [path.name for path in index.path.parent.iterdir()] == ["11.index"]


def test_gpus_find_the_same_and_share_the_file(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins; what one has saved the other loads."""
    fake = FakeFaiss(pytest.importorskip("faiss"), devices=2)
    memory, query = drifting(500), np.random.default_rng(1).standard_normal(D)
    rows.add(memory[:400])
    expected = rows.search(host := index_of(tmp_path), query, 40)
    rows.save(host, always=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", fake)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "mem_get_info", fake.mem_get_info)
        process = devices._Process()
        for module in (devices, gpu):
            patch.setattr(module, "process", process)
        index = index_of(tmp_path)
        found = rows.search(index, query, 40)
        assert index.describe()["backend"] == "faiss GPU Flat fp16" and index._saved == 400
        assert np.array_equal(found.positions, expected.positions) and found.ceiling == pytest.approx(expected.ceiling)
        rows.add(memory[400:])
        found = rows.search(index, query, 40)
        assert sum(fake.uploaded) == 500 and index._search.unsettled == 0  # type: ignore[attr-defined]
        assert (np.delete(memory, found.positions, axis=0).astype(np.float64) @ query).max() <= found.ceiling
        rows.save(index, always=True)
        del index
    again = index_of(tmp_path)
    assert np.array_equal(rows.search(again, query, 40).positions, found.positions)
    assert again._saved == 500 and again.describe()["backend"] == "faiss SQfp16" and fake.broken == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same(rows: Rows, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("needs a GPU build of FAISS")
    memory = drifting(5000)
    rows.add(memory)
    index = index_of(tmp_path)
    query = np.random.default_rng(1).standard_normal(D)
    found = rows.search(index, query, 100)
    assert index.describe()["backend"] == "faiss GPU Flat fp16"
    assert list(found.positions) == list(np.argsort(-(memory[:, 0].astype(np.float64) @ query), kind="stable")[:100])
