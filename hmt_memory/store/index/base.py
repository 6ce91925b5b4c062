"""The interface of a search, whatever library does it: a growing matrix of float16 rows. Knows no library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Halves: TypeAlias = "NDArray[np.float16]"
DEFAULT = "SQfp16"  # the name of the exact search


class Search:
    """Inner-product search over a growing matrix of float16 rows."""

    name = kind = "none"
    exact = True
    rounding = 1e-5  # difference between its scores and the true ones, as a share of the norms of query and row

    @property
    def beside(self) -> int:
        """The bytes of memory that it takes beside its rows."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Describe what else there is to say of it, ready for JSON."""
        return {}

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores [k] and rows [k], best first."""
        raise NotImplementedError

    def add(self, rows: Halves) -> None:
        """Append rows [n, d]."""
        raise NotImplementedError

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the rows where `kept` [n] is False. Returns False where that is impossible; then nothing is changed."""
        return False

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        """Return rows as they were added, or None if they are not kept so."""
        raise NotImplementedError

    def dump(self) -> Iterator[bytes]:
        """Yield in pieces what `load` takes."""
        raise NotImplementedError

    def load(self, data: memoryview, rows: int) -> None:
        """Append the `rows` rows that `dump` wrote."""
        raise NotImplementedError


def dumped(rows: Halves) -> Iterator[bytes]:
    """Yield rows [n, d] in pieces, as `matrix` loads them."""
    for start in range(0, len(rows), 65_536):
        yield rows[start : start + 65_536].astype("<f2", copy=False).tobytes()


def matrix(data: memoryview, rows: int, width: int) -> Halves:
    """Load rows [rows, width] as they were dumped.

    Args:
        data: float16, little-endian.
        rows: the number of rows.
        width: the width of a row.

    Raises:
        ValueError: the data has another size.
    """
    import numpy as np

    if len(data) != rows * width * 2:
        raise ValueError("it holds another number of keys than its header says")
    loaded: Halves = np.frombuffer(data, "<f2").reshape(rows, width)
    return loaded
