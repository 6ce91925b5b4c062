"""The ZIP file around an exported session, read in pieces of bounded size, whatever its headers say.

Knows ZIP and the manifest's sizes and digests; not what the files mean.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...errors import HMTError, StoreDamagedError, StoreError
from . import layout
from .layout import Unfit, check
from .manifest import Manifest, Stated

BLOCK_BYTES = 1 << 16
_FILES = {len(names) + 1: (layout.MANIFEST, *names) for names in (layout.UNKEYED, layout.KEYED)}  # by how many there are
_HEADER, _ENTRY = 30, 46  # least bytes of a file's header and of its entry in the directory
_MOST_DIRECTORY_BYTES = 1 << 13
_END, _LOCATOR, _END_64 = (
    "<4s4H2LH",
    "<4sLQL",
    "<4sQ2H2L4Q",
)  # structures at the directory's end; the last two in files over 2 GiB
_ENCRYPTED = 0x1
_DAMAGE = (Unfit, zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError)


class ArchiveFile:
    """One file of an archive as it is read: counted, hashed, and never longer than the manifest says."""

    def __init__(self, name: str, member: IO[bytes], stated: Stated) -> None:
        self.name = name
        self._member, self._left, self._expected = member, stated.bytes, stated.sha256
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Unfit if there are not so many."""
        check(size <= self._left, f"{self.name} is not whole")
        try:
            data = self._member.read(size)
        except OSError as error:
            raise Unfit(
                f"{self.name} cannot be read: {error.strerror or error}", "Check the disk, or export it again."
            ) from error
        check(len(data) == size, f"{self.name} is not whole")
        self._digest.update(data)
        self._left -= size
        return data

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield the rest, `size` bytes at a time."""
        while self._left:
            yield self.read(min(size, self._left))

    def lines(self) -> Iterator[bytes]:
        """Yield the rest line by line, each without its end."""
        rest = bytearray()
        for block in self.blocks():
            first, *others = block.split(b"\n")
            rest += first
            check(len(rest) <= layout.MOST_MESSAGE_BYTES, _LONG_LINE.format(self.name))
            for other in others:
                yield bytes(rest)
                rest = bytearray(other)
        check(not rest, f"the last line of {self.name} has no end")

    def finish(self) -> None:
        """Raise Unfit unless all was read, and was what the manifest says."""
        check(not self._left and self._digest.hexdigest() == self._expected, f"{self.name} is not whole")


_OTHER_FILES = f"its files are not {', or '.join(', '.join(files) for files in _FILES.values())}"
_LONG_LINE = f"a line of {{}} is over {layout.MOST_MESSAGE_BYTES >> 20} MiB, the most that a message may be"


class Archive:
    """An exported session in an open file: its manifest, and the other files to be read in pieces, as often as needed.

    Raises:
        Unfit: the file is not an exported session, or its sizes do not fit one another.
    """

    def __init__(self, file: IO[bytes]) -> None:
        length = _directory_at(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except ValueError as error:
            raise Unfit(f"its ZIP directory is damaged: {error}") from error
        members = self._zip.infolist()
        names = sorted(member.filename for member in members)
        check(names in [sorted(files) for files in _FILES.values()], _OTHER_FILES)
        _check_places(members, length)
        for member in members:
            _check_packing(member)
        self.manifest = Manifest.read(self._read_manifest())
        check(names == sorted((layout.MANIFEST, *self.manifest.files)), "its files are not those of its version")
        for name, stated in self.manifest.files.items():
            check(self._zip.getinfo(name).file_size == stated.bytes, f"{name} is longer or shorter than it says")

    def _read_manifest(self) -> bytes:
        size = self._zip.getinfo(layout.MANIFEST).file_size
        check(size <= layout.MOST_MANIFEST_BYTES, f"its manifest is over {layout.MOST_MANIFEST_BYTES >> 10} KiB")
        with self._zip.open(layout.MANIFEST) as member:
            return member.read(size)

    @contextmanager
    def part(self, name: str) -> Iterator[ArchiveFile]:
        """Open one of the other files, all of which must be read inside."""
        with self._zip.open(name) as member:
            part = ArchiveFile(name, member, self.manifest.files[name])
            yield part
            part.finish()


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open the exported session at `path`; anything found wrong with it inside is raised as one error.

    Raises:
        StoreError: the file cannot be read.
        StoreDamagedError: the file is not whole, or beyond a limit of the format.
    """
    try:
        with _open(path) as file:
            yield Archive(file)
    except HMTError:
        raise
    except _DAMAGE as error:
        reason, remedy = str(error) or type(error).__name__, getattr(error, "remedy", "Export it again.")
        raise StoreDamagedError(f"{path} is not a whole exported session: {reason}. {remedy}") from error


def _open(path: Path) -> IO[bytes]:
    try:
        check(path.is_file() or not path.exists(), "it is no file")  # a pipe might wait, or never end
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error


def _directory_at(file: IO[bytes]) -> int:
    """Return the position of the ZIP directory, which must end the file and be small."""
    end, locator, end_64 = struct.calcsize(_END), struct.calcsize(_LOCATOR), struct.calcsize(_END_64)
    length = file.seek(0, 2)
    file.seek(max(0, length - end - locator - end_64))
    tail = file.read().rjust(end + locator + end_64, b"\0")
    mark, _, _, _, entries, size, _, comment = struct.unpack(_END, tail[-end:])
    check(mark == b"PK\5\6" and not comment, "it does not end with a ZIP directory")
    start = length - end
    mark, _, place, _ = struct.unpack(_LOCATOR, tail[-end - locator : -end])
    if mark == b"PK\6\7":
        start -= locator + end_64
        mark, _, _, _, _, _, _, entries, size, _ = struct.unpack(_END_64, tail[:end_64])
        check(mark == b"PK\6\6" and place == start, "its ZIP directory is damaged")
    check(entries in _FILES, _OTHER_FILES)
    check(size <= _MOST_DIRECTORY_BYTES, "its ZIP directory is larger than that of so few files")
    return start - int(size)


def _check_places(members: list[zipfile.ZipInfo], end: int) -> None:
    """Raise Unfit if files overlap one another or the directory."""
    position = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        check(member.header_offset >= position, "its files overlap")
        position = member.header_offset + _HEADER + len(member.filename) + member.compress_size
    check(position <= end, "its files overlap")


def _check_packing(member: zipfile.ZipInfo) -> None:
    name, packed, size = member.filename, member.compress_size, member.file_size
    check(not member.flag_bits & _ENCRYPTED, f"{name} is encrypted")
    check(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{name} is packed in another way")
    check(
        fair(packed, size),
        f"{name} unpacks to over {layout.MOST_RATIO} times its size, the most that it may",
        "Export it again, or pack its files again without compression: zip -0.",
    )


def fair(packed: int, size: int) -> bool:
    """Return whether a file that unpacks to `size` bytes may be packed into so few."""
    return size <= max(layout.SMALL_BYTES, layout.MOST_RATIO * packed)
