"""Search on GPUs: the same answers as the host's, however many devices there are and whatever is asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpus import BLOCK, PIECE, D, Machine, check, query, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from hmt_memory.store.index import gpu, search

faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["random", "anisotropic", "tied"])
def test_the_best_are_found_on_any_number_of_devices(machine: Callable[..., Machine], kind: str, count: int) -> None:
    there, rows = machine(count), vectors(kind, 730)
    found = there.search(rows)
    assert found.name == "faiss GPU Flat fp16" and found.exact
    for seed in range(4):
        for k in (1, 7, 64, 300, 729, 730):
            check(found(query(seed), k), rows, query(seed), k)
    assert found.unsettled == 0 or kind == "tied"
    assert np.array_equal(found.vectors(np.array([3, 700])), rows[[3, 700]])
    sizes = [there.faiss.uploaded[device] for device in range(count)]
    assert sum(sizes) == 730 and max(sizes) - min(sizes) <= BLOCK
    assert found.device_bytes == {number: size * (2 * D + 4) for number, size in enumerate(sizes)}
    assert there.held == sum(found.device_bytes.values()) == found.beside


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 260), st.integers(1, 300), st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["a", "t", "r"]))
def test_whatever_is_asked_the_best_are_found(size: int, k: int, seed: int, count: int, kind: str) -> None:
    there, rows = Machine(count), vectors({"a": "anisotropic", "t": "tied", "r": "random"}[kind], size, seed)
    found = there.search(rows[: size // 2])
    found.add(rows[size // 2 :])
    check(found(query(seed), min(k, size)), rows, query(seed), min(k, size))
    del found
    there.close()


def test_growing_uploads_the_new_rows_and_no_others(machine: Callable[..., Machine]) -> None:
    there, rows = machine(2), vectors("random", 600)
    found, total = there.search(), 0
    for size in (1, 30, 0, 90, 5, 200, 1, 273):
        found.add(rows[total : total + size])
        total += size
        assert sum(there.faiss.uploaded) == total
        check(found(query(), 9), rows[:total], query(), 9)
    assert total == 600 and there.faiss.largest_upload <= PIECE * 4 * D
    assert [block.rows for block in found._blocks] == [BLOCK] * 6
    assert [block.device.number for block in found._blocks] == [0, 1] * 3


def test_rows_that_half_precision_does_not_rank_are_ranked_by_the_host(machine: Callable[..., Machine]) -> None:
    """They differ by less than rounding the query changes."""
    there, chance = machine(2), np.random.default_rng(0)
    rows = np.tile(vectors("random", 1), (700, 1))
    rows[:, :3] = (rows[:, :3].astype(np.float64) * (1 + chance.integers(-2, 3, (700, 3)) * 2.0**-10)).astype(np.float16)
    found, asked = there.search(rows), query(1)
    truth = rows.astype(np.float64) @ asked.astype(np.float64)
    rounded = rows.astype(np.float64) @ asked.astype(np.float16).astype(np.float64)
    assert truth[np.argsort(-rounded)[: 2 * 8 + gpu._EXTRA]].min() > truth.min(), "the test needs more rows left out"
    for k in (1, 8, 40):
        check(found(asked, k), rows, asked, k)
    assert found.unsettled and found.name == "faiss GPU Flat fp16"


def test_the_edge_is_proved_and_not_hoped_for(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """With no rows to spare, the device's order decides who is a candidate: some searches cannot be settled, none is wrong."""
    monkeypatch.setattr(gpu, "_EXTRA", 0)
    there, rows = machine(2), (vectors("random", 900) * 0.02 + vectors("random", 1, 3)).astype(np.float16)
    found = there.search(rows)
    for seed in range(60):
        check(found(query(seed), 2), rows, query(seed), 2, off=2e-7)
    assert 0 < found.unsettled < 60


def test_rows_along_what_rounding_the_query_takes_from_it(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device ranks them by what it has lost too: here those of its only block, of which it lists four."""
    monkeypatch.setattr(gpu, "_EXTRA", 0)
    there = machine()
    for seed in range(60):
        asked = query(seed).astype(np.float64)
        lost = asked - asked.astype(np.float16)
        lost -= lost @ asked / (asked @ asked) * asked
        chance, size = np.random.default_rng(seed), np.linalg.norm(lost)
        worth = 3 * size * chance.standard_normal(90)
        rows = np.outer(worth, asked / (asked @ asked)) + np.outer(chance.standard_normal(90), lost / size)
        rows = rows.astype(np.float16)
        check(there.search(rows)(query(seed), 2), rows, query(seed), 2, off=2e-7)


def test_more_rows_than_are_selected_of_a_block(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    there, rows = machine(2), vectors("random", 9000)
    monkeypatch.setattr(gpu, "_BLOCK", 2500 * 2 * D)
    found = there.search(rows)
    for k in (2047, 2048, 2049, 4000):
        check(found(query(), k), rows, query(), k)
    assert found.unsettled == 0, "the best are spread over the blocks"
    together = rows[np.argsort(-(rows.astype(np.float64) @ query()))]
    found = there.search(together)
    for k in (1000, 2049, 4000, 9000):
        check(found(query(), k), together, query(), k)
    assert found.unsettled == 3, "one block has more of the best than FAISS selects"
    assert found.name == "faiss GPU Flat fp16"


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1, 1e6, 1e30])
def test_queries_of_any_size(machine: Callable[..., Machine], scale: float) -> None:
    """Half precision ends at 65504, and at 6e-8."""
    there, rows = machine(), vectors("anisotropic", 300)
    found, asked = there.search(rows), query() * np.float32(scale)
    check(found(asked, 10), rows, asked, 10)
    assert found.unsettled == 0 and found.name == "faiss GPU Flat fp16"


def test_queries_of_few_numbers_and_rows_of_any_size(machine: Callable[..., Machine]) -> None:
    there, rows = machine(), vectors("random", 300)
    rows[::3] *= np.float16(1000)
    rows[1::3] *= np.float16(1e-4)
    rows[0], rows[1] = 65504, 0
    found = there.search(rows)
    mixed = query()
    mixed[::2] *= 1e-9
    for asked in (np.zeros(D), np.eye(D)[2], -np.eye(D)[0], mixed):
        check(found(asked.astype(np.float32), 10), rows, asked.astype(np.float32), 10)
    assert found.name == "faiss GPU Flat fp16"


def test_removing_uploads_the_blocks_that_have_lost_rows(machine: Callable[..., Machine]) -> None:
    there, rows = machine(3), vectors("random", 650)
    found = there.search(rows)
    for low, high, again in ((220, 240, 80), (380, 480, 0), (0, 1, 99), (5, 5, 0), (330, 490, 90)):
        before, kept = sum(there.faiss.uploaded), np.ones(len(rows), bool)
        kept[low:high] = False
        assert found.keep(kept)
        assert sum(there.faiss.uploaded) == before + again
        rows = rows[kept]
        check(found(query(), 20), rows, query(), 20)
    assert [block.rows for block in found._blocks] == [99, 100, 80, 51, 39]
    found.add(rows[:30])
    rows = np.concatenate([rows, rows[:30]])
    check(found(query(), 20), rows, query(), 20)
    assert there.held == sum(found.device_bytes.values()) == len(rows) * (2 * D + 4)


def test_blocks_that_have_become_small_are_joined(machine: Callable[..., Machine]) -> None:
    there, rows = machine(2), vectors("random", 1000)
    found, kept = there.search(rows), np.arange(1000) % 10 == 0
    assert found.keep(kept)
    assert [block.rows for block in found._blocks] == [BLOCK] and there.held == BLOCK * (2 * D + 4)
    check(found(query(), 9), rows[kept], query(), 9)
    assert found.keep(np.zeros(100, bool)) and there.held == 0
    found.add(rows)
    check(found(query(), 9), rows, query(), 9)
    assert found.unsettled == 0 and found.name == "faiss GPU Flat fp16"


def test_what_the_host_has_saved_is_loaded_to_the_devices_and_back(machine: Callable[..., Machine]) -> None:
    there, rows = machine(2), vectors("random", 333)
    host = search.FlatSearch(faiss, D)
    host.add(rows)
    saved = b"".join(host.dump())
    found = there.search()
    found.load(memoryview(saved), 333)
    assert sum(there.faiss.uploaded) == 333 and found.kind == host.kind
    check(found(query(), 9), rows, query(), 9)
    assert b"".join(found.dump()) == saved and found.unsettled == 0
    again = search.FlatSearch(faiss, D)
    again.load(memoryview(b"".join(found.dump())), 333)
    assert np.array_equal(again.codes(), rows)
    with pytest.raises(ValueError, match="another number of keys"):
        found.load(memoryview(saved), 332)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("needs a GPU build of FAISS")
    monkeypatch.setattr(gpu, "_BLOCK", 20_000 * 2 * D)
    rows = vectors("anisotropic", 50_000)
    found = search.new_search("SQfp16", D)
    assert isinstance(found, gpu.GpuSearch)
    for start in range(0, 50_000, 7000):
        found.add(rows[start : start + 7000])
    for k in (1, 300, 2049):
        check(found(query(), k), rows, query(), k)
    kept = np.arange(50_000) % 3 > 0
    assert found.keep(kept)
    check(found(query(), 300), rows[kept], query(), 300)
    assert found.unsettled == 0 and found.name == "faiss GPU Flat fp16" and sum(found.device_bytes.values())
