"""Where a worker keeps what it has made of the record: in memory (hot), on its own disk (warm); the record itself is cold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """How much of what is made of the record a worker keeps in memory and on its disk, and whether it is made ahead.

    Raises:
        ConfigError: a number of bytes is negative.

    >>> Tiers(hot_bytes=1 << 30).fetch_ahead
    False
    """

    hot_bytes: int = 512 << 20  # indexes, memories and views, in memory and on devices, of all sessions and corpora together
    warm_bytes: int | None = None  # of index files on this machine's disk; None: any number; 0: none are written
    warm_folder: str | None = None  # where they lie; None: in the store's folder, or in HMT_CACHE for a store in PostgreSQL
    fetch_ahead: bool = False  # whether the next view of a session is made when it has answered, and when it is looked at

    def __post_init__(self) -> None:
        for name in ("hot_bytes", "warm_bytes"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
                raise ConfigError(f"{name}={size!r} must be a number of bytes, 0 or more.")

    @classmethod
    def of_environment(cls) -> Tiers:
        """Return what HMT_HOT_MIB, HMT_WARM_MIB, HMT_WARM_FOLDER and HMT_FETCH_AHEAD say; where they are silent, the defaults.

        Raises:
            ConfigError: one of them says something else.
        """
        hot, warm = _number("HMT_HOT_MIB"), _number("HMT_WARM_MIB")
        folder, ahead = os.environ.get("HMT_WARM_FOLDER") or None, _switch("HMT_FETCH_AHEAD")
        return cls.of_mebibytes(cls.hot_bytes // _MIB if hot is None else hot, warm, folder=folder, fetch_ahead=ahead)

    @classmethod
    def of_mebibytes(cls, hot: int, warm: int | None, *, folder: str | Path | None, fetch_ahead: bool) -> Tiers:
        """Return tiers of sizes in MiB.

        Args:
            hot: in memory.
            warm: on disk; None: no limit.
            folder: of the files on disk.
            fetch_ahead: whether views are made ahead.
        """
        return cls(
            hot_bytes=hot * _MIB,
            warm_bytes=None if warm is None else warm * _MIB,
            warm_folder=None if folder is None else str(folder),
            fetch_ahead=fetch_ahead,
        )

    @property
    def folder(self) -> Path | None:
        """The folder of index files, if one is named."""
        return None if self.warm_folder is None else Path(self.warm_folder).expanduser()


def _number(name: str) -> int | None:
    said = os.environ.get(name) or None
    if said is not None and not said.isdecimal():
        raise ConfigError(f"{name}={said} is no size. Set it to a number of MiB, such as 512.")
    return None if said is None else int(said)


def _switch(name: str) -> bool:
    said = os.environ.get(name) or "0"
    if said not in ("0", "1"):
        raise ConfigError(f"{name}={said} is not known. Set it to 1 or 0.")
    return said == "1"
