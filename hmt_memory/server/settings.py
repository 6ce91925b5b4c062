"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from .guard import LOCAL_HOSTS


@dataclass(frozen=True)
class Settings:
    """What a server allows."""

    hosts: tuple[str, ...] = LOCAL_HOSTS  # names by which it is called; "*": any
    most_bytes: int = 8 << 20  # of a body
    most_imported: int = 1 << 30  # of the body of an import
    answers: int = 4  # written at once
    looking: int = 8  # calls about sessions and corpora that work at once
    waiting: int = 64  # calls of either kind that wait for their turn
    usual: int = 1024  # tokens of an answer at most, where nothing is said
    longest: int = 8192  # the same, whatever is said
    seconds: float = 600.0  # that one answer may take
