"""Reads a SQLite file by its published format (https://sqlite.org/fileformat2.html), to look at the bytes that no row owns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_LEAF_TABLE, _INNER_TABLE = 13, 5


class Pages:
    """The pages of a database file without a WAL."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.size = int.from_bytes(self._data[16:18], "big") or 65536

    def page(self, number: int) -> bytes:
        return self._data[(number - 1) * self.size : number * self.size]

    def leaves(self, root: int) -> Iterator[bytes]:
        """The leaf pages of a table whose first page is `root`."""
        page = self.page(root)
        if page[0] == _LEAF_TABLE:
            yield page
            return
        assert page[0] == _INNER_TABLE
        cells = (_number(page, 12 + 2 * at) for at in range(_number(page, 3)))
        for child in [int.from_bytes(page[cell : cell + 4], "big") for cell in cells] + [int.from_bytes(page[8:12], "big")]:
            yield from self.leaves(child)

    def owned(self, leaf: bytes) -> set[int]:
        """The bytes of a leaf that its header, its cell pointers and its cells take."""
        count = _number(leaf, 3)
        taken = set(range(8 + 2 * count))
        for at in range(count):
            cell = _number(leaf, 8 + 2 * at)
            payload, after = _varint(leaf, cell)
            _, after = _varint(leaf, after)
            local, overflows = self._local(payload)
            taken |= set(range(cell, after + local + (4 if overflows else 0)))
        return taken

    def free_lists(self, leaf: bytes) -> set[int]:
        """The bytes of a leaf's list of free blocks that say where the next is and how long this one is."""
        found: set[int] = set()
        block = _number(leaf, 1)
        while block:
            found |= set(range(block, block + 4))
            block = _number(leaf, block)
        return found

    def _local(self, payload: int) -> tuple[int, bool]:
        most = self.size - 35
        if payload <= most:
            return payload, False
        least = (self.size - 12) * 32 // 255 - 23
        local = least + (payload - least) % (self.size - 4)
        return (local if local <= most else least), True

    def stray_bytes(self, root: int) -> int:
        """How many bytes of a table's leaves belong to no row and are not zero."""
        total = 0
        for leaf in self.leaves(root):
            taken = self.owned(leaf) | self.free_lists(leaf)
            total += sum(byte != 0 for at, byte in enumerate(leaf) if at not in taken)
        return total


def _number(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 2], "big")


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for offset in range(9):
        byte = page[at + offset]
        if offset == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + offset + 1
    raise AssertionError
