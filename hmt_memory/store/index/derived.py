"""Caches made from a collection's segments, kept up with the rows and saved in a file. The rows decide.

Knows shelves of segments and one file format; subclasses know what is made from the segments. On any doubt everything is made
again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import SessionBusyError
from ...files import replacing
from ..shelf import Shelf, Volume
from ..transaction import Transaction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("hmt_memory")
_MAGIC = b"HMTINDEX"
_FORMAT = 1
_ROWS_PER_FETCH = 4096
_LONGEST_HEADER = 1 << 20
_WORTH_WRITING = 16  # segments
_SAVE_ALWAYS_BELOW = 10_000  # segments; a larger file is written when a twentieth of it is new


class RewrittenError(SessionBusyError):
    """The collection was rewritten since the view of it was opened: open another view."""


class Derived:
    """A cache that keeps up with the rows of one collection; thread-safe. A forked process makes its own."""

    read_only = False  # whether its file stays as it is

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid, self._mutex = os.getpid(), threading.Lock()
        self._looked_for_file = False
        self._forget_all()

    def _forget_all(self) -> None:
        self.count, self._check, self._saved = 0, "", 0
        self._version: tuple[int, int, int] | None = None
        self._volumes: tuple[Volume, ...] = ()  # the volumes of the shelf that was last taken over
        self._clear()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread in. A forked process starts again, because a thread of its parent may have been changing the cache."""
        if self._pid != os.getpid():
            self._pid, self._mutex = os.getpid(), threading.Lock()
            self._forget_all()
        with self._mutex:
            yield

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it takes."""
        raise NotImplementedError

    def _clear(self) -> None:
        """Drop everything held."""
        raise NotImplementedError

    def _extend(self, db: Transaction, shelf: Shelf, start: int, stop: int) -> None:
        """Add segments [start, stop), which follow those held."""
        raise NotImplementedError

    def _keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the segments where `kept` [count] is False and close the gaps. Returns False where that is impossible."""
        raise NotImplementedError

    def _wanted(self) -> dict[str, Any]:
        """Return what a file's header must say to be used."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """Return what else the header says."""
        raise NotImplementedError

    def _dump(self) -> Iterator[bytes | memoryview]:
        """Yield the body of the file."""
        raise NotImplementedError

    def _restore(self, header: dict[str, Any], body: memoryview) -> None:
        """Load what `_dump` wrote. A foreign body raises any error."""
        raise NotImplementedError

    def _sync(self, db: Transaction, shelf: Shelf) -> None:
        """Add the rows that are new; start again if the rows held are no longer those of the record."""
        if self._version is not None and shelf.version is not None:
            if shelf.version[:2] == self._version[:2] and shelf.total <= self.count:
                return  # within an epoch rows are only appended, and a search ignores rows beyond the shelf
            if shelf.version[1] < self._version[1]:
                raise RewrittenError("what is searched was rewritten meanwhile. Try again.")
        try:
            self._catch_up(db, shelf)
        except BaseException:  # an interrupt too: what was added by half would be added again
            self._forget_all()
            raise
        self._check = shelf.check(db, self.count)
        self._version, self._volumes = shelf.version, shelf.volumes

    def _catch_up(self, db: Transaction, shelf: Shelf) -> None:
        """Take the file, drop what is gone, and add what is new."""
        if not self._looked_for_file and shelf.total:
            self._looked_for_file = True
            self._load(db, shelf)
        self._let_go(shelf)
        if self.count > shelf.total or (self.count and shelf.check(db, self.count) != self._check):
            self._forget_all()
            self._remove()  # it holds what is no longer there
        for start in range(self.count, shelf.total, _ROWS_PER_FETCH):
            stop = min(start + _ROWS_PER_FETCH, shelf.total)
            self._extend(db, shelf, start, stop)
            self.count = stop

    def _let_go(self, shelf: Shelf) -> None:
        """Drop documents that are gone, if all others stand in their old order."""
        there = {volume.stream for volume in shelf.volumes}
        gone = [volume.stream not in there for volume in self._volumes]
        held = [volume for volume, missing in zip(self._volumes, gone, strict=True) if not missing]
        if not any(gone) or sum(volume.segments for volume in self._volumes) != self.count or not _begins(shelf.volumes, held):
            return
        import numpy as np

        kept = np.repeat(~np.array(gone), [volume.segments for volume in self._volumes])
        if self._keep(kept):
            self.count, self._saved = int(kept.sum()), 0
            self._check = Shelf(tuple(held)).digest()
            self._remove()

    def keep_up(self, db: Transaction, shelf: Shelf) -> None:
        """Load the file, or add the rows that are new, ahead of a search.

        Args:
            db: the transaction to read rows in.
            shelf: the segments.
        """
        with self._alone():
            self._sync(db, shelf)

    @property
    def is_behind(self) -> bool:
        """Whether so much is new that the file is worth writing: a twentieth."""
        return self.count - self._saved >= max(_WORTH_WRITING, self.count / 20)

    def save(self, db: Transaction, shelf: Shelf, *, always: bool = False) -> None:
        """Replace the file, if enough is new and the collection still begins with the segments held.

        A failure loses nothing: the file can be made from the rows again. Nobody may rewrite the rows meanwhile.

        Args:
            db: the transaction to read rows in.
            shelf: the collection as it is now.
            always: whether to write the file even if little is new.
        """
        with self._alone():
            new = self.count - self._saved
            if not new or not (always or self.count < _SAVE_ALWAYS_BELOW or new * 20 >= self.count):
                return
            if self.count > shelf.total or shelf.check(db, self.count) != self._check:
                return
            try:
                self._write()
            except OSError as error:
                log.warning("the index %s could not be saved (%s); it is made again when it is needed.", self.path, error)
            else:
                self._saved = self.count

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = {"format": _FORMAT, "count": self.count, "check": self._check, **self._wanted(), **self._facts()}
        text = json.dumps(header).encode()
        with replacing(self.path, private=True) as file:
            crc = 0
            for piece in (text, *self._dump()):
                crc = zlib.crc32(piece, crc)
                if piece is text:
                    file.write(_MAGIC + len(text).to_bytes(8, "little"))
                file.write(piece)
            file.write(crc.to_bytes(4, "little"))

    def _load(self, db: Transaction, shelf: Shelf) -> None:
        """Start from the file, if it is whole and was made from the present rows."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            return self._distrust(str(error))
        try:
            header, body = _unpack(content)
        except ValueError as error:
            return self._distrust(str(error))
        if any(header.get(name) != value for name, value in self._wanted().items()):
            return self._distrust("it was made for other settings or another model")
        if header["count"] > shelf.total or shelf.check(db, header["count"]) != header["check"]:
            return self._distrust("the record says otherwise")
        try:
            self._restore(header, body)
        except Exception as error:  # whatever FAISS or numpy raises for a foreign file
            return self._distrust(str(error))
        self.count = self._saved = header["count"]
        self._check = header["check"]

    def _distrust(self, reason: str) -> None:
        log.warning("the index %s is made again from the record: %s.", self.path, reason)
        self._forget_all()
        self._remove()

    def _remove(self) -> None:
        """Delete the file."""
        if not self.read_only:
            with contextlib.suppress(OSError):
                remove(self.path)


def _begins(volumes: Sequence[Volume], held: Sequence[Volume]) -> bool:
    """Return whether the volumes begin with the held ones, unchanged."""
    return [(volume.stream, volume.segments, volume.digest) for volume in volumes[: len(held)]] == [
        (volume.stream, volume.segments, volume.digest) for volume in held
    ]


def remove(path: Path) -> None:
    """Delete an index file and any remains of writing it."""
    for file in (path, *path.parent.glob(f"{path.name}.*"), *path.parent.glob(f".{path.name}.*")):
        file.unlink(missing_ok=True)


def stale(path: Path, db: Transaction, shelf: Shelf) -> str | None:
    """Return why an index file would be rejected; None if it is usable or absent.

    Args:
        path: the index file.
        db: the transaction to read rows in.
        shelf: the collection as it is now.
    """
    try:
        header, _ = _unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return str(error)
    agrees = header["count"] <= shelf.total and shelf.check(db, header["count"]) == header["check"]
    return None if agrees else "the record says otherwise"


def outdated(path: Path, db: Transaction, shelf: Shelf) -> bool:
    """Return whether an index file's first lines, which alone are read, say that it holds something else than the record.

    Args:
        path: the index file.
        db: the transaction to read rows in.
        shelf: the collection as it is now.
    """
    start = len(_MAGIC) + 8
    try:
        with path.open("rb") as file:
            begins = file.read(start)
            header = json.loads(file.read(min(int.from_bytes(begins[len(_MAGIC) :], "little"), _LONGEST_HEADER)))
        return bool(header["count"] > shelf.total or shelf.check(db, header["count"]) != header["check"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _unpack(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split an index file into header and body.

    Raises:
        ValueError: the file is not whole.
    """
    start = len(_MAGIC) + 8
    if len(content) < start + 4 or content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is not an index file, or torn")
    inner = memoryview(content)[start:-4]
    if zlib.crc32(inner).to_bytes(4, "little") != content[-4:]:
        raise ValueError("it is damaged: its checksum does not fit")
    length = int.from_bytes(content[len(_MAGIC) : start], "little")
    try:
        header = json.loads(bytes(inner[:length]))
    except ValueError as error:
        raise ValueError("its header is damaged") from error
    if header.get("format") != _FORMAT:
        raise ValueError("it is of another version")
    return header, inner[length:]
