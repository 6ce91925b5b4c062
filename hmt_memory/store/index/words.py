"""Places of words in the segments of one collection. A cache of the rows; see `derived.py`.

Holds, for every word, the segments it stands in and how often: blocks of postings, joined as they grow. The caller says what
the words of a text are; they are kept as 64-bit hashes. Other modules decide what a match is worth.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import lineage
from ..shelf import Shelf
from ..transaction import Transaction
from .derived import Derived

Terms = Callable[[str], Sequence[str]]
_LARGEST_BLOCK = 1 << 16  # segments; larger blocks are not joined further


class Postings(NamedTuple):
    """The places of a query's words among the segments of a shelf."""

    lengths: NDArray[np.int64]  # [n] words of each segment
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # per word: positions (rising) and counts
    starts: NDArray[np.int64]  # positions that begin a session or document: no neighbours of those before


class _Block(NamedTuple):
    """Postings of consecutive segments, sorted by word, then by position."""

    words: NDArray[np.uint64]  # [u] distinct, rising
    starts: NDArray[np.int64]  # [u + 1] into the next two
    positions: NDArray[np.int64]
    counts: NDArray[np.int64]
    segments: int


class WordIndex(Derived):
    """The words of a collection's segments.

    Args:
        path: its file; it may be missing, stale or damaged.
        decode: token ids to text.
        terms: a text to its words.
        made_by: digest of the model, whose tokenizer says what the tokens are.
    """

    def __init__(self, path: Path, *, decode: Callable[[Sequence[int]], str], terms: Terms, made_by: str = "") -> None:
        self._decode, self._terms, self._made_by = decode, terms, made_by
        super().__init__(path)

    def find(self, db: Transaction, shelf: Shelf, query: Sequence[str], until: int | None = None) -> Postings:
        """Return the postings of distinct words, as the rows are now.

        Args:
            db: the transaction to read rows in.
            shelf: the segments to search.
            query: the words.
            until: only segments before this one count; None: all.
        """
        with self._alone():
            self._sync(db, shelf)
            total, blocks = shelf.total if until is None else until, list(self._blocks)
            lengths = self._lengths[:total].astype(np.int64)
        starts = np.array(shelf.starts[:-1], np.int64)
        return Postings(lengths, [_of_word(blocks, _hash(word), total) for word in query], starts[starts < total])

    def _clear(self) -> None:
        self._blocks: list[_Block] = []
        self._lengths = np.zeros(0, np.uint16)

    def _extend(self, db: Transaction, shelf: Shelf, start: int, stop: int) -> None:
        counted = [Counter(map(_hash, self._terms(text))) for text in self._texts(db, shelf, start, stop)]
        lengths = [min(sum(counter.values()), 0xFFFF) for counter in counted]
        self._lengths = np.concatenate([self._lengths, np.array(lengths, np.uint16)])
        words = [word for counter in counted for word in counter]
        positions = [start + offset for offset, counter in enumerate(counted) for _ in counter]
        counts = [count for counter in counted for count in counter.values()]
        self._blocks.append(
            _sorted(np.array(words, np.uint64), np.array(positions, np.int64), np.array(counts, np.int64), len(counted))
        )
        while len(self._blocks) > 1 and self._blocks[-2].segments <= 2 * self._blocks[-1].segments <= _LARGEST_BLOCK:
            later, earlier = self._blocks.pop(), self._blocks.pop()
            self._blocks.append(_joined(earlier, later))

    def _texts(self, db: Transaction, shelf: Shelf, start: int, stop: int) -> Iterator[str]:
        for parts, low, high in shelf.stretches(start, stop):
            spans = [row.tokens for row in lineage.segments(db, parts, low, high)]
            ids = lineage.tokens(db, parts, spans[0][0], spans[-1][1])
            for low_token, high_token in spans:
                yield self._decode(ids[low_token - spans[0][0] : high_token - spans[0][0]].tolist())

    def _keep(self, kept: NDArray[np.bool_]) -> bool:
        self._lengths = self._lengths[kept]
        place = np.cumsum(kept) - 1
        first, blocks = 0, []
        for block in self._blocks:
            segments = int(kept[first : first + block.segments].sum())
            first += block.segments
            blocks.append(_restricted(block, kept, place, segments))
        self._blocks = blocks
        return True

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it takes."""
        arrays = [part for block in self._blocks for part in block[:4]]
        return self._lengths.nbytes + sum(part.nbytes for part in arrays)

    def _wanted(self) -> dict[str, Any]:
        return {"kind": "words", "made_by": self._made_by, "terms": 1}

    def _facts(self) -> dict[str, Any]:
        return {"blocks": [(len(block.words), len(block.positions), block.segments) for block in self._blocks]}

    def _dump(self) -> Iterator[bytes | memoryview]:
        yield self._lengths.astype("<u2").tobytes()
        for block in self._blocks:
            yield block.words.astype("<u8").tobytes()
            yield block.starts.astype("<u4").tobytes()
            yield block.positions.astype("<u4").tobytes()
            yield block.counts.astype("<u2").tobytes()

    def _restore(self, header: dict[str, Any], body: memoryview) -> None:
        offset = 0

        def taken(count: int, dtype: str) -> NDArray[Any]:
            nonlocal offset
            array = np.frombuffer(body, dtype, count, offset)
            offset += array.nbytes
            return array

        self._lengths = taken(header["count"], "<u2").astype(np.uint16)
        for words, postings, segments in header["blocks"]:
            held = taken(words, "<u8"), taken(words + 1, "<u4"), taken(postings, "<u4"), taken(postings, "<u2")
            wide = [array.astype(np.int64) for array in held[1:]]
            self._blocks.append(_Block(held[0].astype(np.uint64), wide[0], wide[1], wide[2], segments))
        if offset != len(body) or sum(block.segments for block in self._blocks) != header["count"]:
            raise ValueError("its parts do not fit together")


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _of_word(blocks: Sequence[_Block], word: int, total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    positions, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for block in blocks:
        row = int(np.searchsorted(block.words, np.uint64(word)))
        if row < len(block.words) and int(block.words[row]) == word:
            part = slice(int(block.starts[row]), int(block.starts[row + 1]))
            positions.append(block.positions[part])
            counts.append(block.counts[part])
    places, often = np.concatenate(positions), np.concatenate(counts)
    known = int(np.searchsorted(places, total))
    return places[:known], often[:known]


def _restricted(block: _Block, kept: NDArray[np.bool_], place: NDArray[np.int64], segments: int) -> _Block:
    """Return the postings of the kept segments, at their new places."""
    still = kept[block.positions]
    words = np.repeat(block.words, np.diff(block.starts))[still]
    return _sorted(words, place[block.positions[still]], block.counts[still], segments)


def _sorted(words: NDArray[np.uint64], positions: NDArray[np.int64], counts: NDArray[np.int64], segments: int) -> _Block:
    order = np.argsort(words, kind="stable")  # stable, so that positions rise within a word
    distinct, starts = np.unique(words[order], return_index=True)
    return _Block(distinct, np.append(starts, len(words)).astype(np.int64), positions[order], counts[order], segments)


def _joined(earlier: _Block, later: _Block) -> _Block:
    words = np.concatenate([np.repeat(block.words, np.diff(block.starts)) for block in (earlier, later)])
    positions = np.concatenate([earlier.positions, later.positions])
    counts = np.concatenate([earlier.counts, later.counts])
    return _sorted(words, positions, counts, earlier.segments + later.segments)
