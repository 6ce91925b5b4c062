"""Notes: what was said, word for word, as a view shows it next to the question. Knows texts and origins; no store, no model.

A note stands inside the user's own turn, before the question: its words have no more authority than the user's, and a chat
template needs no place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

HEADING = "Notes of what was said before, word for word:"
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Note:
    """A message, a sentence of one, or a passage of a document."""

    text: str  # verbatim
    origin: datetime | str | None = None  # when it was said, or the document it stands in; None: nobody knows
    speaker: str = ""  # the role of who said it; empty in a document


def day(moment: datetime) -> str:
    """Write a day as notes have it.

    >>> day(datetime(2026, 3, 9))
    '9 March 2026'
    """
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def written(notes: Sequence[Note]) -> str:
    r"""Write notes as a view shows them before a question, each behind the day it was said or its document.

    Args:
        notes: in the order in which they were said; none give an empty text.

    >>> written([Note("Her name is Rex.", datetime(2026, 3, 9), "user")]).splitlines()[1:]
    ['[9 March 2026]', 'user: Her name is Rex.', '']
    """
    if not notes:
        return ""
    lines = [HEADING]
    before = None
    for note in notes:
        origin = day(note.origin) if isinstance(note.origin, datetime) else note.origin
        if origin is not None and origin != before:
            lines.append(f"[{origin}]")
        before = origin
        lines.append(f"{note.speaker}: {note.text}" if note.speaker else note.text)
    return "\n".join(lines) + "\n\n"
