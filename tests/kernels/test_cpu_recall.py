"""The bounded scan: exactly the k best of the 16-bit rows, whatever the rows, the query, k, and what was added and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")

from hmt_kernels.cpu_recall import BoundedScan
from hmt_memory import HMTModel

D = 40  # no multiple of 16
Matrix = np.ndarray[Any, Any]


def drifting(count: int, chance: np.random.Generator) -> Matrix:
    """As memories are: anisotropic, with a common mean, each near the one before, of unequal norms."""
    steps = chance.standard_normal((count, D)) * 0.2
    rows = np.cumsum(steps, axis=0) * np.arange(1, D + 1) ** -0.5 + 2 * chance.standard_normal(D)
    return rows * np.exp(0.15 * chance.standard_normal((count, 1)))


def clustered(count: int, chance: np.random.Generator) -> Matrix:
    centres = 3 * chance.standard_normal((12, D))
    return centres[chance.integers(0, 12, count)] + 0.1 * chance.standard_normal((count, D))


def nearly_equal(count: int, chance: np.random.Generator) -> Matrix:
    return chance.standard_normal(D) + 2e-4 * chance.standard_normal((count, D))


def outliers(count: int, chance: np.random.Generator) -> Matrix:
    rows = chance.standard_normal((count, D))
    rows[chance.integers(0, count, 1 + count // 40)] *= 5000
    return rows


def all_norms(count: int, chance: np.random.Generator) -> Matrix:
    return chance.standard_normal((count, D)) * 10.0 ** chance.uniform(-6, 3, (count, 1))


def repeated(count: int, chance: np.random.Generator) -> Matrix:
    return chance.standard_normal((7, D))[chance.integers(0, 7, count)]


def zeros(count: int, chance: np.random.Generator) -> Matrix:
    return np.zeros((count, D)) * chance.standard_normal()


def one_dimension(count: int, chance: np.random.Generator) -> Matrix:
    rows = chance.standard_normal((count, D))
    rows[:, 3] = 900 + 300 * chance.standard_normal(count)
    return rows


def moving_away(count: int, chance: np.random.Generator) -> Matrix:
    """Grown 300-fold since the codes were fitted."""
    return chance.standard_normal((count, D)) * np.geomspace(0.1, 30, count)[:, None]


KINDS = {
    make.__name__: make
    for make in (drifting, clustered, nearly_equal, outliers, all_norms, repeated, zeros, one_dimension, moving_away)
}
SLOW = settings(max_examples=40, deadline=None)
kinds, seeds = st.sampled_from(sorted(KINDS)), st.integers(0, 1000)
queries = st.sampled_from(["white", "a row", "zero", "one dimension", "tiny", "large"])


def rows_of(kind: str, count: int, seed: int) -> Matrix:
    return KINDS[kind](count, np.random.default_rng(seed)).astype(np.float16)


def query_of(kind: str, rows: Matrix, seed: int) -> Matrix:
    chance = np.random.default_rng(seed + 5)
    white = chance.standard_normal(D)
    made = {
        "white": white,
        "a row": rows[chance.integers(0, len(rows))].astype(np.float64),
        "zero": np.zeros(D),
        "one dimension": np.eye(D)[3],
        "tiny": white * 1e-40,
        "large": white * 1e25,
    }
    return made[kind].astype(np.float32)


def best(rows: Matrix, query: Matrix, k: int) -> tuple[Matrix, Matrix]:
    """The k best scores and rows, of equal ones the earlier."""
    scores = (rows.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], order


def check(scan: BoundedScan, rows: Matrix, query: Matrix, k: int) -> None:
    found = scan.search(query, k)
    scores, order = best(rows, query, k)
    assert np.array_equal(found.rows, order) and np.array_equal(found.scores, scores)
    every = rows.astype(np.float64) @ query.astype(np.float64)
    left_out = np.delete(every, found.rows)
    assert found.ceiling >= left_out.max(initial=-np.inf)
    assert found.ceiling == (float("-inf") if k >= len(rows) else np.nextafter(scores[-1], np.float32(np.inf)))
    assert len(found.rows) <= found.checked <= len(rows)


@SLOW
@given(kinds, queries, st.sampled_from([1, 7, 63, 100, 1000, 3000]), st.sampled_from([1, 2, 9, 40, 5000]), seeds)
def test_it_finds_exactly_the_best(kind: str, asked: str, count: int, k: int, seed: int) -> None:
    rows = rows_of(kind, count, seed)
    scan = BoundedScan(D, fewest=50)
    for start in range(0, count, 700):
        scan.add(rows[start : start + 700])
    for number in range(2):  # the second time it remembers how many rows the first needed
        check(scan, rows, query_of(asked, rows, seed + number), k)


@SLOW
@given(kinds, queries, st.sampled_from([4, 16, 25, 60]), seeds)
def test_no_row_is_further_from_its_estimate_than_the_bound(kind: str, asked: str, directions: int, seed: int) -> None:
    """Also for queries outside the directions, and for directions that are not independent."""
    rows = rows_of(kind, 1500, seed)
    span = np.random.default_rng(seed).standard_normal((directions, D))
    span[1] = span[0]
    for scan in (BoundedScan(D, fewest=1000), BoundedScan(D, span, fewest=1000)):
        scan.add(rows[:1100])
        scan.add(rows[1100:])
        for query in (query_of(asked, rows, seed), (span.T @ span @ query_of(asked, rows, seed) / D).astype(np.float32)):
            scores = rows.astype(np.float64) @ query.astype(np.float64)
            estimate = scan.estimate(query)
            assert estimate is not None and len(estimate.scores) == len(estimate.loose) == 1500
            tame = ~estimate.loose
            assert (np.abs(estimate.scores - scores)[tame] <= estimate.error).all()
            check(scan, rows, query, 20)


def test_the_bound_is_nearly_reached_by_a_row_and_query_made_for_it() -> None:
    """A bound of half the size would be wrong."""
    rows = rows_of("drifting", 2000, 1)
    scan = BoundedScan(D, fewest=1000)
    scan.add(rows)
    codes = scan._codes
    assert codes is not None
    turned = codes._turn(rows.astype(np.float64)) - codes._centre
    left = turned - codes.all_digits()[:, :D] * codes._step
    row = int(np.argmax(np.where(codes.loose, 0, np.linalg.norm(left, axis=1))))
    worst = codes._turn.back(np.rint(127 * left[row] / np.abs(left[row]).max())).astype(np.float32)
    estimate = scan.estimate(worst)
    assert estimate is not None
    error = abs(estimate.scores[row] - rows[row].astype(np.float64) @ worst.astype(np.float64))
    assert 0.9 * estimate.error < error <= estimate.error


@pytest.mark.parametrize("width", [1, 7, 16, D, 144])
def test_the_scan_of_codes_sums_whole_numbers_without_error(width: int) -> None:
    """FAISS cuts a query off to bytes at some widths of code, so what it is asked must be whole."""
    chance = np.random.default_rng(width)
    scan = BoundedScan(width, fewest=100)
    scan.add(chance.standard_normal((500, width)).astype(np.float16))
    codes = scan._codes
    assert codes is not None
    asked = codes.asked(chance.standard_normal(width))
    assert np.abs(asked.whole).max() == 127 and not (asked.whole % 1).any()
    for whole in (asked.whole, np.full(codes.digits, 127.0), np.full(codes.digits, -127.0)):
        sums, rows = codes.index.search(whole[None].astype(np.float32), 500)
        assert sorted(rows[0]) == list(range(500))
        assert np.array_equal(sums[0], codes.all_digits()[rows[0]].astype(np.float64) @ whole)


@SLOW
@given(kinds, seeds, st.lists(st.tuples(st.integers(0, 600), st.floats(0, 1)), min_size=1, max_size=6))
def test_it_keeps_up_with_what_is_added_and_removed(kind: str, seed: int, changes: list[tuple[int, float]]) -> None:
    chance = np.random.default_rng(seed)
    scan, rows = BoundedScan(D, fewest=300), np.zeros((0, D), np.float16)
    for number, (more, share) in enumerate(changes):
        new = rows_of(kind, more, seed + number) if more else np.zeros((0, D), np.float16)
        scan.add(new)
        rows = np.concatenate([rows, new])
        gone = np.flatnonzero(chance.random(len(rows)) < share / 2)
        scan.remove(gone)
        rows = np.delete(rows, gone, axis=0)
        assert len(scan) == len(rows) and np.array_equal(scan.rows, rows)
        if len(rows):
            check(scan, rows, query_of("white", rows, seed), 12)
        else:
            assert scan.search(np.ones(D), 3).ceiling == float("-inf") and not len(scan.search(np.ones(D), 3).rows)


@pytest.mark.parametrize("directions", [None, 8])
def test_few_rows_need_exact_scores(directions: int | None) -> None:
    """Of 20,000 drifting memories, for queries near one of them or within the directions."""
    chance = np.random.default_rng(0)
    rows = rows_of("drifting", 20_000, 0)
    span = None if directions is None else chance.standard_normal((directions, D))
    scan = BoundedScan(D, span, fewest=1000)
    scan.add(rows)
    assert scan.nbytes == 20_000 * (2 * D + (48 if span is None else 16) + 1)
    for number in range(5):
        query = rows[number * 3000].astype(np.float32)
        query = query if span is None else (span.T @ span @ query / D).astype(np.float32)
        check(scan, rows, query, 50)
        assert scan.search(query, 50).checked < 1000


def test_codes_are_fitted_anew_when_rows_outgrow_them() -> None:
    rows = rows_of("moving_away", 6000, 0)
    scan = BoundedScan(D, fewest=500)
    for start in range(0, 6000, 500):
        scan.add(rows[start : start + 500])
    assert scan._codes is not None and scan._codes._fitted > 500
    scan.add(rows[:10])
    check(scan, np.concatenate([rows, rows[:10]]), np.ones(D, np.float32), 30)


def test_a_loose_row_is_found() -> None:
    """One far beyond all others has no bound, yet it may be the best or the worst."""
    rows = rows_of("drifting", 3000, 0)
    scan = BoundedScan(D, fewest=1000)
    scan.add(rows)
    far = np.full((1, D), 3e4, np.float16)
    scan.add(far)
    estimate = scan.estimate(np.ones(D))
    assert estimate is not None and estimate.loose[-1] and estimate.loose.sum() < 30
    rows = np.concatenate([rows, far])
    for query in (np.ones(D, np.float32), -np.ones(D, np.float32)):
        check(scan, rows, query, 10)
        check(scan, rows, query, 3001)


def test_loose_rows_that_draw_the_centre_to_them_are_counted_once() -> None:
    """Their codes stand for the centre, which is here among the best."""
    rows = rows_of("drifting", 3000, 0)
    rows[::90] += np.float16(3e4)
    scan = BoundedScan(D, fewest=1000)
    scan.add(rows)
    estimate = scan.estimate(np.ones(D))
    assert estimate is not None and 34 <= estimate.loose.sum() < 60
    for k in (10, 34, 60):
        check(scan, rows, np.ones(D, np.float32), k)


@pytest.mark.real
@pytest.mark.slow
@torch.no_grad()
def test_memories_of_the_default_model_and_its_own_questions(smollm2: HMTModel) -> None:
    """The queries lie in the span of its key projection, and there the bound holds."""
    text = (Path(__file__).parents[2] / "docs" / "log.md").read_text()[:12_000]
    ids = torch.tensor(smollm2.backbone.encode(text)[: 20 * smollm2.config.segment_length])
    state = smollm2.read(ids)
    memory = state.memory.float().reshape(-1, smollm2.config.memory_tokens, state.memory.shape[-1])
    rows = memory[:, -smollm2.recalled_slots :].flatten(0, 1).numpy().astype(np.float16)
    directions = smollm2.recall.key.weight.float().numpy()
    scan = BoundedScan(rows.shape[1], directions, fewest=50)
    scan.add(rows)
    assert len(directions) < rows.shape[1] and len(rows) >= 60
    for start in range(0, 600, 60):
        summary, _ = smollm2.asked(ids[start : start + 24])
        query = smollm2.recall.fold(summary[None])[0].float().numpy()
        estimate = scan.estimate(query)
        assert estimate is not None and estimate.loose.mean() < 0.5
        scores = rows.astype(np.float64) @ query.astype(np.float64)
        assert (np.abs(estimate.scores - scores)[~estimate.loose] <= estimate.error).all()
        for k in (1, 9):
            check(scan, rows, query, k)


def test_what_is_no_row_or_no_query_is_refused() -> None:
    scan = BoundedScan(D)
    scan.add(np.ones((3, D), np.float16))
    for rows in (np.full((1, D), np.nan), np.full((1, D), np.inf), np.ones((1, D + 1)), np.ones(D)):
        with pytest.raises(ValueError, match="must be finite and of width 40"):
            scan.add(rows.astype(np.float16))
    for query in (np.full(D, np.nan), np.full(D, np.inf), np.ones(D - 1), np.ones((1, D))):
        with pytest.raises(ValueError, match="must be 40 finite numbers"):
            scan.search(query, 1)
    with pytest.raises(ValueError, match="so large"):
        scan.search(np.full(D, 1e38), 1)
    for gone in ([3], [-1]):
        with pytest.raises(IndexError, match="from 0 to 2"):
            scan.remove(np.array(gone))
    assert len(scan) == 3 and not len(scan.search(np.ones(D), 0).rows) and scan.estimate(np.ones(D)) is None
