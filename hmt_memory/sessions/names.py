"""The names of sessions and corpora: which are allowed, and the search for one."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from ..errors import InputError, SessionExistsError, SessionNotFoundError

if TYPE_CHECKING:
    from ..store.rows import CollectionRow
    from ..store.transaction import Transaction

_LONGEST_NAME = 200
# Characters that leave no trace on the screen and yet count as printable: two names must not look alike (Unicode's
# Default_Ignorable_Code_Point, as far as `str.isprintable` lets it pass; the variation selectors of emoji are left).
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\ufe00-\ufe0e]")


ASIDE = ".responses/"  # the names of sessions that a server keeps for answers which belong to no named session


def is_aside(name: str) -> bool:
    """Return whether a session is one of those, in whichever name space.

    >>> is_aside("ann/.responses/1f") and not is_aside("ann/trip")
    True
    """
    return f"/{ASIDE}" in f"/{name}"


def normal(name: str) -> str:
    """Return a name as it is stored: names that look the same to a reader are the same name."""
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else name


def check_name(name: str) -> None:
    """Raise InputError unless `name` is 1 to 200 characters that show, on one line."""
    fits = isinstance(name, str) and len(name.strip()) > 0 and len(name) <= _LONGEST_NAME
    if not fits or not name.isprintable() or _UNSEEN.search(name):
        raise InputError(f"{name!r} cannot be a name: it takes 1 to {_LONGEST_NAME} characters that show, on one line.")


def find(db: Transaction, kind: str, name: str, *, folder: object) -> CollectionRow:
    """Return the row of the session or corpus of a name.

    Args:
        db: the transaction to look in.
        kind: "session" or "corpus".
        name: its name.
        folder: of the store, for the error.

    Raises:
        InputError: the name is impossible.
        SessionNotFoundError: nothing has that name.
    """
    check_name(name)
    row = db.find_collection(kind, normal(name))
    if row is None:
        known = ", ".join(repr(other) for other in db.names(kind)[:5]) or "none yet"
        raise SessionNotFoundError(f"there is no {kind} {name!r} in {folder}. There are: {known}.")
    return row


def check_new(db: Transaction, kind: str, name: str) -> None:
    """Check that a name is possible and free.

    Args:
        db: the transaction to look in.
        kind: "session" or "corpus".
        name: the new name.

    Raises:
        InputError: the name is impossible.
        SessionExistsError: the name is taken.
    """
    check_name(name)
    if db.find_collection(kind, normal(name)) is not None:
        raise SessionExistsError(f"there is a {kind} {name!r} already. Choose another name, or delete it first.")
