"""Codes of 8 bits for float16 rows, whose products with a query are known to within an error that is proven.

A row x has coordinates y = T x, digits c and decoded coordinates z = centre + step * c. A query is q = T' a + p, and
a = scale * w + b with whole numbers w. Then, whatever T is,

    q x = a z + a (y - z) + p x = scale * step * (w c) + a centre + step * (b c) + a (y - z) + p x

FAISS computes the whole number w c for all rows. By Cauchy-Schwarz the last three terms are at most
|b| |step c| + |a| |y - z| + |p| |x|, of which the norms on the rows' side are measured when a row is added.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]
Numbers = NDArray[np.int64]

_TOP = 127  # the largest digit of a code and of a whole query
_LANES = 16  # FAISS multiplies whole numbers where a code's width is a multiple of this
_BLOCK = 512  # rows that are encoded at a time
_SAMPLE = 8192  # rows that centre, step and limits are fitted to
_LOOSE_SHARE = 50  # codes do not pay when more than 1/50 of the rows are loose
_EXACT = 1e-10  # far above the relative rounding error of any sum of doubles here
_HUGE_PAGE, _MADV_HUGEPAGE, _MADV_COLLAPSE = 2 << 20, 14, 25  # Linux; kernels without the last ignore it


class EncodedQuery(NamedTuple):
    """A query as the codes are asked it."""

    whole: Doubles  # [digits] whole numbers up to 127
    unit: float  # a product of whole numbers times this, plus the offset, is an estimate
    offset: float
    error: float  # of any estimate of a row that is not loose


class Codes:
    """Codes of 8 bits for rows. A row whose error or norm is unusually large is loose: its code is zero and no bound holds."""

    def __init__(self, faiss: Any, turn: Turn, rows: Halves) -> None:
        """Fit centre, step and limits to a sample of the rows, and encode them all."""
        self._turn, self._faiss = turn, faiss
        self.digits = -(-turn.count // _LANES) * _LANES
        quantizer = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self.index: Any = faiss.IndexScalarQuantizer(self.digits, quantizer, faiss.METRIC_INNER_PRODUCT)
        self.index.is_trained = True
        self.loose = np.zeros(0, np.bool_)
        sample = rows[:: max(1, len(rows) // _SAMPLE)].astype(np.float64)
        turned = turn(sample)
        self._centre = turned.mean(axis=0)
        largest = np.abs(turned - self._centre).max(axis=1)
        self._step = _usual(largest) / _TOP or 1.0
        _, *norms = self._measure(sample)
        self._limits = [_usual(values) for values in norms]
        self._most = [0.0] * len(norms)  # the largest error, decoded norm and norm of a row that is not loose
        self.add(rows)
        self._fitted = len(rows)

    @property
    def too_loose(self) -> bool:
        """Whether the rows without a bound are too many for the codes to pay."""
        return int(self.loose.sum()) * _LOOSE_SHARE > len(self.loose)

    @property
    def outgrown(self) -> bool:
        """Whether codes that were fitted to the present rows may do better."""
        return self.too_loose and len(self.loose) >= 1.5 * self._fitted

    def add(self, rows: Halves) -> None:
        """Append rows."""
        loose = []
        for start in range(0, len(rows), _BLOCK):
            digits, *norms = self._measure(rows[start : start + _BLOCK].astype(np.float64))
            wild = np.any([values > limit for values, limit in zip(norms, self._limits, strict=True)], axis=0)
            digits[wild] = 0
            self._most = [max(most, values[~wild].max(initial=0)) for most, values in zip(self._most, norms, strict=True)]
            codes = np.full((len(digits), self.digits), 128, np.uint8)
            codes[:, : self._turn.count] = digits + 128
            self.index.add_sa_codes(codes)
            loose.append(wild)
        self.loose = np.concatenate([self.loose, *loose])

    def remove(self, rows: Numbers) -> None:
        """Remove rows; the bounds of the others hold."""
        self.index.remove_ids(rows)
        self.loose = np.delete(self.loose, rows)

    def asked(self, query: Doubles) -> EncodedQuery:
        """Round a query [d] to whole numbers and bound the error of every estimate."""
        coordinates, outside = self._turn.split(query)
        scale = float(np.abs(coordinates).max()) / _TOP or 1.0
        rounded = np.rint(coordinates / scale)
        error, size, norm = self._most
        size_of = np.linalg.norm
        bound = float(size_of(coordinates) * error + size_of(coordinates - scale * rounded) * size + size_of(outside) * norm)
        whole = np.zeros(self.digits)
        whole[: len(rounded)] = rounded
        unit = scale * self._step
        sums = unit * _TOP**2 * self.digits * 2.0**-23  # FAISS returns float32, which is exact below 2^24
        arithmetic = _EXACT * float(size_of(query)) * (norm + size + float(size_of(self._centre)))
        return EncodedQuery(whole, unit, float(coordinates @ self._centre), bound * (1 + _EXACT) + sums + arithmetic)

    def all_digits(self) -> NDArray[np.int16]:
        """Return the codes [n, digits] as whole numbers from -127 to 127."""
        codes = content_of(self._faiss, self.index).reshape(-1, self.digits)
        digits: NDArray[np.int16] = codes.astype(np.int16) - 128
        return digits

    def _measure(self, rows: Doubles) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Return digits [n, r] of rows [n, d], and bounds [n] on the norms of y - z, step * c and x."""
        centred = self._turn(rows) - self._centre
        digits = np.clip(np.rint(centred / self._step), -_TOP, _TOP)
        decoded = digits * self._step
        norms = _norms(rows)
        rounding = _EXACT * (norms + float(np.linalg.norm(self._centre)))
        return digits, _norms(centred - decoded) + rounding, _norms(decoded) + rounding, norms + rounding


class Turn:
    """Coordinates of vectors in which no single one matters: a random rotation, within the directions if there are any.

    Without directions it rotates the rows and then the columns of the vector laid out as a matrix, which is much faster than
    a full rotation and mixes as well.
    """

    _left: Doubles | None  # None: `_right` [d, r] holds all directions

    def __init__(self, width: int, directions: NDArray[Any] | None) -> None:
        chance = np.random.default_rng(0)
        if directions is None:
            tall = next(size for size in range(int(width**0.5), 0, -1) if width % size == 0)
            self.count = width
            self._left, self._right = _orthogonal(tall, chance), _orthogonal(width // tall, chance)
            return
        span, _ = np.linalg.qr(np.asarray(directions, np.float64).T)  # [d, r]
        self.count = span.shape[1]
        self._left, self._right = None, span @ _orthogonal(self.count, chance)

    def __call__(self, vectors: Doubles) -> Doubles:
        """Return the coordinates [n, r] of vectors [n, d]."""
        if self._left is None:
            flat: Doubles = vectors @ self._right
            return flat
        tall, long = len(self._left), len(self._right)
        turned: Doubles = self._left @ (vectors.reshape(-1, long) @ self._right).reshape(-1, tall, long)
        return turned.reshape(len(vectors), -1)

    def back(self, coordinates: Doubles) -> Doubles:
        """Return the vector [d] within the directions that has these coordinates [r]."""
        if self._left is None:
            inside: Doubles = self._right @ coordinates
            return inside
        matrix: Doubles = self._left.T @ coordinates.reshape(len(self._left), -1) @ self._right.T
        return matrix.ravel()

    def split(self, query: Doubles) -> tuple[Doubles, Doubles]:
        """Split a query [d] into coordinates [r] and what they leave out [d]."""
        coordinates = self(query[None])[0]
        return coordinates, query - self.back(coordinates)


def _orthogonal(size: int, chance: np.random.Generator) -> Doubles:
    """Return a random orthogonal matrix [size, size]."""
    matrix: Doubles = np.linalg.qr(chance.standard_normal((size, size)))[0]
    return matrix


def _norms(vectors: Doubles) -> Doubles:
    norms: Doubles = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return norms


def _usual(values: Doubles) -> float:
    """Return a limit that all but a few values keep, however large those are."""
    most, nearly_all = np.quantile(values, [0.999, 0.985])
    return float(min(most * 1.05, 2 * nearly_all))


def content_of(faiss: Any, index: Any) -> NDArray[np.uint8]:
    """Return the bytes that an index holds, without a copy."""
    size = int(index.ntotal) * int(index.code_size)
    content: NDArray[np.uint8] = faiss.rev_swig_ptr(index.codes.data(), size) if size else np.zeros(0, np.uint8)
    return content


def use_huge_pages(address: int, size: int) -> None:
    """Ask Linux to lay memory [address, address + size) in huge pages: a scan of it is then a quarter faster. Costs a copy."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        start = -(-address // _HUGE_PAGE) * _HUGE_PAGE
        length = (address + size - start) // _HUGE_PAGE * _HUGE_PAGE
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
