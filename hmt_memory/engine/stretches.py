"""The stretches of a segment that get a key by meaning each. Knows token ids; no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

LONGEST = 32  # tokens of a stretch; a longer one is cut into equal parts
_SHORTEST = 3  # tokens; a shorter one, such as what opens a turn, gets no key of its own


def stretches(ids: Sequence[int], end_ids: Iterable[int]) -> list[tuple[int, int]]:
    """Cut a segment where turns end, and further where that is too long: [start, stop) of its tokens, in order.

    >>> stretches([5, 6, 7, 0, 5, 6, 7, 8, 0], {0})
    [(0, 4), (4, 9)]

    Args:
        ids: its token ids.
        end_ids: of the tokens that end a turn; one belongs to what it ends.
    """
    ends = set(end_ids)
    cuts = [0, *(number + 1 for number, token in enumerate(ids) if token in ends), len(ids)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        parts = -(-(stop - start) // LONGEST)
        edges = [start + (stop - start) * part // parts for part in range(parts + 1)] if parts else []
        found += [(low, high) for low, high in itertools.pairwise(edges) if high - low >= _SHORTEST]
    return found
