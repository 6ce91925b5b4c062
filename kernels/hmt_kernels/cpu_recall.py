"""Exact top-k by inner product on a CPU, for less than one pass over the 16-bit rows. Knows FAISS.

A scan of 8-bit codes estimates every score to within an error that is proven (`Estimate.error`); only rows that may belong to
the k best by that bound get exact scores. A row takes 2 d bytes as float16, r bytes of code (r = d, or the number of
directions that queries lie in; rounded up to a multiple of 16) and one byte that says whether its error is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .byte_codes import Codes, Doubles, Halves, Numbers, Turn, content_of, use_huge_pages

_BLOCK = 4096  # rows whose norms are computed at a time
_CACHED = 48  # rows that are scored at a time: as doubles they stay in the second-level cache
_SHARE = 16  # a scan of codes that leaves more than 1/16 of the rows is given up
_LARGE = 32 << 20  # bytes of a matrix for which huge pages are worth asking


class BestRows(NamedTuple):
    """The k best rows of a query."""

    scores: NDArray[np.float32]  # [k] falling; the exact inner product, rounded once
    rows: Numbers  # [k]; of equal scores the earlier row is first
    ceiling: float  # no row left out scores higher; -inf where none is left out
    checked: int  # rows that were scored from their 16 bits


class Estimate(NamedTuple):
    """Scores as the codes tell them."""

    scores: Doubles  # [n]
    error: float  # no row that is not loose is further from its score
    loose: NDArray[np.bool_]  # [n] rows that have no bound and are always scored exactly


class _Kept(NamedTuple):
    """Rows that may be among the k best."""

    rows: Numbers
    scores: NDArray[np.float32]  # exact, rounded once
    needed: int  # rows of a scan that had to be looked at
    checked: int  # rows that were scored from their 16 bits


class BoundedScan:
    """A growing matrix of float16 rows, searched exactly. Many may search at once, but none while it is changed.

    FAISS should be limited to one thread by the caller: one query gains nothing from more.

    Args:
        width: d.
        directions: [m, d] whose span holds the queries, such as a key projection: codes then have m digits instead of d.
            Any other query is answered exactly too, only more slowly.
        fewest: the number of rows from which on codes are kept; fewer are scanned in 16 bits.

    Raises:
        ImportError: FAISS is not installed.
    """

    def __init__(self, width: int, directions: NDArray[Any] | None = None, *, fewest: int = 16_384) -> None:
        import faiss

        self._faiss, self.width, self._fewest = faiss, width, fewest
        self._turn = Turn(width, directions)
        self._halves: Any = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._halves.is_trained = True
        self._largest = 0.0  # norm of the longest row there ever was
        self._codes: Codes | None = None
        self._wanted = 0.0  # rows that late searches needed from the scan of codes
        self._advised: dict[str, int] = {}  # the address for which huge pages were last asked

    def __len__(self) -> int:
        return int(self._halves.ntotal)

    @property
    def rows(self) -> Halves:
        """The rows [n, d], without a copy; until the next change."""
        rows: Halves = content_of(self._faiss, self._halves).view(np.float16).reshape(-1, self.width)
        return rows

    @property
    def nbytes(self) -> int:
        """The bytes of memory that rows and codes take."""
        return len(self) * self.width * 2 + (0 if self._codes is None else len(self) * (self._codes.digits + 1))

    def add(self, rows: Halves) -> None:
        """Append rows [n, d].

        Raises:
            ValueError: they have another width, or hold NaN or infinity; then none is added.
        """
        rows = np.ascontiguousarray(rows, np.float16)
        if rows.ndim != 2 or rows.shape[1] != self.width or not np.isfinite(rows).all():
            raise ValueError(f"rows must be finite and of width {self.width}, not shape {rows.shape} with NaN or infinity.")
        if not len(rows):
            return
        self._halves.add_sa_codes(rows.view(np.uint8))
        for start in range(0, len(rows), _BLOCK):
            norms = np.linalg.norm(rows[start : start + _BLOCK].astype(np.float32), axis=1)
            self._largest = max(self._largest, float(norms.max()) * (1 + 2.0**-23 * (self.width + 4)))
        if self._codes is not None:
            self._codes.add(rows)
        if len(self) >= self._fewest and (self._codes is None or self._codes.outgrown):
            self._codes = Codes(self._faiss, self._turn, self.rows)
        self._use_huge_pages()

    def remove(self, rows: Numbers) -> None:
        """Remove rows [m]; those behind them move up. Takes time in proportion to all rows.

        Raises:
            IndexError: there is no such row; then none is removed.
        """
        gone = np.unique(np.asarray(rows, np.int64))
        if len(gone) and not 0 <= gone[0] <= gone[-1] < len(self):
            raise IndexError(f"rows to remove must be from 0 to {len(self) - 1}, not {gone[0]} to {gone[-1]}.")
        if len(gone):
            self._halves.remove_ids(gone)
            if self._codes is not None:
                self._codes.remove(gone)

    def search(self, query: NDArray[Any], k: int) -> BestRows:
        """Find the k rows with the largest inner products; all of them when k >= n.

        Args:
            query: [d], taken as float32.
            k: how many are wanted.

        Raises:
            ValueError: the query is not finite or of another width.
        """
        wide = self._checked(query)
        k = min(k, len(self))
        if k < 1:
            return BestRows(np.zeros(0, np.float32), np.zeros(0, np.int64), float("-inf") if not len(self) else float("inf"), 0)
        kept = self._by_codes(wide, k) or self._by_halves(wide, k) or self._all(wide)
        best = np.lexsort((kept.rows, -kept.scores))[:k]
        scores = kept.scores[best]
        ceiling = float("-inf") if k == len(self) else float(np.nextafter(scores[-1], np.float32(np.inf)))
        return BestRows(scores, kept.rows[best], ceiling, kept.checked)

    def estimate(self, query: NDArray[Any]) -> Estimate | None:
        """Compute what the codes tell of all rows; None while there are no codes. For checks: slower than a search."""
        if self._codes is None:
            return None
        asked = self._codes.asked(self._checked(query))
        digits = self._codes.all_digits().astype(np.float64)
        return Estimate(digits @ asked.whole * asked.unit + asked.offset, asked.error, self._codes.loose)

    def _checked(self, query: NDArray[Any]) -> Doubles:
        narrow = np.asarray(query, np.float32)
        if narrow.shape != (self.width,) or not np.isfinite(narrow).all():
            raise ValueError(f"a query must be {self.width} finite numbers, not shape {narrow.shape} with NaN or infinity.")
        if float(np.linalg.norm(narrow.astype(np.float64))) * self._largest > float(np.finfo(np.float32).max):
            raise ValueError("the query is so large that its scores may not fit into float32.")
        return narrow.astype(np.float64)

    def _all(self, query: Doubles) -> _Kept:
        every = np.arange(len(self))
        return _Kept(every, self._scores(every, query), len(every), len(every))

    def _scores(self, rows: Numbers, query: Doubles) -> NDArray[np.float32]:
        """Compute the exact scores of rows [m]: products of a half and a float fit into a double."""
        scores = [floats.astype(np.float64) @ query for floats in self._floats(rows)]
        return np.concatenate([np.zeros(0), *scores]).astype(np.float32)

    def _near(self, rows: Numbers, query: Doubles, worst: float) -> Numbers:
        """Return those of some rows that may score `worst` or more, by single precision and its error."""
        scaled, unit, error = self._scaled(query)
        scores = [floats @ scaled for floats in self._floats(rows)]
        near: Numbers = rows[np.concatenate([np.zeros(0), *scores]) * unit + error >= worst]
        return near

    def _floats(self, rows: Numbers) -> Iterator[NDArray[np.float32]]:
        """Yield rows [m] as float32 [some, d], in pieces that stay in the second-level cache. torch converts fastest."""
        import torch

        matrix = self.rows
        for start in range(0, len(rows), _CACHED):
            yield torch.from_numpy(matrix[rows[start : start + _CACHED]]).float().numpy()

    def _scaled(self, query: Doubles) -> tuple[NDArray[np.float32], float, float]:
        """Scale a query so that nothing underflows. Returns it, its unit, and a bound on the error of scores in float32."""
        unit = float(np.ldexp(1.0, np.frexp(np.abs(query).max())[1]))
        error = 2.0**-23 * (self.width + 2) * float(np.linalg.norm(query)) * self._largest + 1e-30 * unit
        return (query / unit).astype(np.float32), unit, error

    def _by_codes(self, query: Doubles, k: int) -> _Kept | None:
        """Return what may be among the k best; None where the codes do not narrow it down enough."""
        codes, most = self._codes, len(self) // _SHARE
        self._wanted *= 0.95
        count = max(k + k // 2, int(1.3 * self._wanted)) + 16
        if codes is None or codes.too_loose or count > most:
            return None
        asked, loose = codes.asked(query), np.flatnonzero(codes.loose)
        while count <= most:
            sums, rows = codes.index.search(asked.whole[None].astype(np.float32), count)
            estimates = sums[0].astype(np.float64) * asked.unit + asked.offset
            tame = ~codes.loose[rows[0]]
            every = np.concatenate([rows[0][tame], loose])
            kept = self._sieve(query, k, every, estimates[tame], asked.error, float(estimates[-1]))
            if isinstance(kept, _Kept):
                self._wanted = max(self._wanted, float(kept.needed))
                return kept
            count = _further(count, most, estimates, kept)
        self._wanted = float(most)
        return None

    def _by_halves(self, query: Doubles, k: int) -> _Kept | None:
        """Return what may be among the k best; None where too many scores are alike to single precision."""
        scaled, unit, error = self._scaled(query)
        count = min(len(self), k + k // 4 + 32)
        sums, rows = self._halves.search(scaled[None], count)
        estimates = sums[0].astype(np.float64) * unit
        lowest = float(estimates[-1]) if count < len(self) else float("-inf")
        kept = self._sieve(query, k, rows[0], estimates, error, lowest)
        return kept if isinstance(kept, _Kept) else None

    def _sieve(self, query: Doubles, k: int, rows: Numbers, estimates: Doubles, error: float, lowest: float) -> _Kept | float:
        """Score exactly whatever may be among the k best.

        Args:
            query: [d].
            k: how many are wanted.
            rows: [m]: first those with estimates, by falling estimate, then those without.
            estimates: [<= m] of scores.
            error: of any estimate, at most.
            lowest: no row that is not in `rows` has a higher estimate.

        Returns:
            If a row that is not in `rows` may be among the k best, the estimate down to which rows are needed.
        """
        if len(estimates) < k:
            return float("-inf")
        scores = self._scores(rows[:k], query)
        worst = float(np.nextafter(scores.min(), np.float32(-np.inf)))  # what is below it rounds to less
        if lowest + error >= worst:
            return worst - error
        needed = k + int(np.count_nonzero(estimates[k:] + error >= worst))
        rest = np.concatenate([rows[k:needed], rows[len(estimates) :]])
        near = self._near(rest, query, worst)
        return _Kept(
            np.concatenate([rows[:k], near]), np.concatenate([scores, self._scores(near, query)]), needed, k + len(rest)
        )

    def _use_huge_pages(self) -> None:
        for name, index in (("halves", self._halves), ("codes", self._codes and self._codes.index)):
            content = content_of(self._faiss, index) if index is not None else np.zeros(0, np.uint8)
            if content.nbytes >= _LARGE and content.ctypes.data != self._advised.get(name):  # it has moved to grow
                self._advised[name] = content.ctypes.data
                use_huge_pages(content.ctypes.data, content.nbytes)


def _further(count: int, most: int, estimates: Doubles, down_to: float) -> int:
    """Guess how many rows a scan should return to reach far enough, from how fast their number grew; beyond `most`: too many.

    Args:
        count: the number of rows that did not suffice.
        most: what may be asked for.
        estimates: [<= count], falling, of these rows.
        down_to: the estimate to reach.
    """
    half = len(estimates) // 2
    fallen = float(estimates[half] - estimates[-1]) if half else 0.0
    if count >= most or fallen <= 0:
        return most + 1
    doublings = min(1.2 * (float(estimates[-1]) - down_to) / fallen, 40.0)
    wanted = int(count * 2.0**doublings) + count // 4
    return min(wanted, most) if wanted < 4 * most else most + 1  # the growth slows down, so this guesses high
