"""The search by codes finds what the scan of the rows finds, before and after there are enough rows for codes."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from indexed import D, Rows, drifting

from hmt_kernels import cpu_recall
from hmt_memory.store.index import bounded, search
from hmt_memory.store.index.bounded import BoundedSearch
from hmt_memory.store.index.vectors import MemoryIndex

RANK = 8
DIRECTIONS = np.random.default_rng(3).standard_normal((RANK, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let codes begin early."""
    monkeypatch.setattr(bounded, "MANY", 300)
    monkeypatch.setattr(cpu_recall.BoundedScan.__init__, "__kwdefaults__", {"fewest": 100})


def query(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(RANK).astype(np.float32) @ DIRECTIONS


def pair() -> tuple[BoundedSearch, search.FlatSearch]:
    made = search.new_search("SQfp16", D, DIRECTIONS)
    assert type(made) is BoundedSearch
    return made, search.FlatSearch(faiss, D)


def assert_same(one: BoundedSearch, other: search.FlatSearch, k: int = 9) -> None:
    for seed in range(5):
        (scores, rows), (expected, places) = one(query(seed), k), other(query(seed), k)
        assert rows.tolist() == places.tolist()
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_growing_past_where_codes_begin_and_shrinking_changes_nothing_of_what_is_found() -> None:
    one, other = pair()
    rows = drifting(500)[:, 0]
    for part in np.array_split(rows, 7):
        one.add(part)
        other.add(part)
        assert_same(one, other)
    assert "codes of 8 bytes" in one.name and one.beside > 0
    kept = np.arange(500) % 3 > 0
    assert one.keep(kept) and other.keep(kept)
    assert_same(one, other)
    np.testing.assert_array_equal(one.vectors(np.array([5, 0, 17])), other.vectors(np.array([5, 0, 17])))


def test_what_one_has_dumped_the_other_loads() -> None:
    one, other = pair()
    rows = drifting(400)[:, 0]
    one.add(rows)
    other.add(rows)
    assert b"".join(one.dump()) == b"".join(other.dump()) and one.kind == other.kind
    again, plain = pair()
    again.load(memoryview(b"".join(other.dump())), 400)
    plain.load(memoryview(b"".join(one.dump())), 400)
    assert_same(again, other)
    assert_same(one, plain)


@pytest.mark.parametrize("directions", [None, np.eye(D, dtype=np.float32)], ids=["unknown", "all"])
def test_queries_that_may_lie_anywhere_are_answered_by_the_rows(directions: np.ndarray | None) -> None:
    assert type(search.new_search("SQfp16", D, directions)) is search.FlatSearch


def test_an_index_searches_so_and_its_ceiling_holds(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "store")
    rows.add(drifting(400))
    index = MemoryIndex(tmp_path / "a.index", width=D, slots=1, directions=DIRECTIONS)
    plain = MemoryIndex(tmp_path / "b.index", width=D, slots=1)
    held = drifting(400)[:, 0].astype(np.float64)
    for seed in range(5):
        found, expected = rows.search(index, query(seed), 9), rows.search(plain, query(seed), 9)
        assert found.positions.tolist() == expected.positions.tolist()
        left = np.delete(held @ query(seed).astype(np.float64), found.positions)
        assert left.max() <= found.ceiling and left.max() <= expected.ceiling
    assert "codes" in index.describe()["backend"] and index.describe()["exact"]
    rows.database.close()


def test_an_index_that_was_interrupted_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(tmp_path / "store")
    rows.add(drifting(400))
    index = MemoryIndex(tmp_path / "a.index", width=D, slots=1, directions=DIRECTIONS)
    plain = MemoryIndex(tmp_path / "b.index", width=D, slots=1)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cpu_recall.BoundedScan, "add", interrupted)
        rows.search(index, query(0), 9)
    found, expected = rows.search(index, query(0), 9), rows.search(plain, query(0), 9)
    assert found.positions.tolist() == expected.positions.tolist() and index.describe()["keys"] == 400
    rows.database.close()
