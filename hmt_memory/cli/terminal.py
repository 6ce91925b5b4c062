"""The terminal that commands write to: notes, answers as they come, passages.

Knows consoles and text; no model. Answers go to `Screen.out`, everything else to `Screen.notes`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from ..errors import InputError
from . import keyboard

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..retrieval.ranking import RecalledSegment

_PASSAGE_CHARACTERS = 200
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Screen:
    """The place where a command writes; it also tells whether a person types to it."""

    notes: Console  # progress, passages, hints
    out: TextIO  # answers, and nothing else
    interactive: bool = False

    @classmethod
    def standard(cls) -> Screen:
        """Wrap the process's own streams; characters that stdout cannot encode are replaced."""
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        width = None if sys.stderr.isatty() else 240
        return cls(Console(stderr=True, highlight=False, width=width), sys.stdout, sys.stdin.isatty())

    def unechoed(self) -> AbstractContextManager[None]:
        """Hide what a person types meanwhile; it is there for the next prompt."""
        return keyboard.unechoed() if self.interactive else contextlib.nullcontext()

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line for the person, its characters taken literally. Only a terminal's lines are wrapped."""
        self.notes.print(Text(text, style=style), soft_wrap=not self.notes.is_terminal)


def reading_bar(console: Console) -> Progress:
    """Make a progress bar that is drawn when it moves: a thread that redraws it would take time from the model."""
    from rich.progress import BarColumn, Progress, TextColumn

    count = TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TextColumn("{task.fields[pace]}"))
    return Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)


def stream(pieces: Iterable[str], screen: Screen) -> None:
    """Write pieces as they come and end the line. A terminal gets no control characters, which could be commands."""
    with screen.unechoed():
        _write(pieces, screen.out)


def _write(pieces: Iterable[str], out: TextIO) -> None:
    terminal = out.isatty()
    last = ""
    try:
        for piece in pieces:
            out.write(_CONTROL_CHARACTERS.sub("", piece) if terminal else piece)
            out.flush()
            last = piece
    except KeyboardInterrupt:
        out.write("\n")
        raise
    if not last.endswith("\n"):
        out.write("\n")
    out.flush()


def show_recalled(passages: Sequence[RecalledSegment], screen: Screen) -> None:
    """Print a line for each recalled segment: its source, when it was said, its weight, and how its text begins."""
    if not passages:
        return screen.note("Nothing was recalled: nothing that is not in view anyway bears on it.")
    rows = [
        (f"{passage.source} #{passage.segment}", f"{passage.created_at:%Y-%m-%d %H:%M}", f"{passage.weight:.2f}", passage.text)
        for passage in passages
    ]
    show_rows("Recalled (source and segment, time in UTC, weight, text)", rows, screen)


def show_rows(title: str, rows: Sequence[tuple[str, ...]], screen: Screen) -> None:
    """Print rows under a title, the last column shortened.

    Args:
        title: stands above the rows.
        rows: the columns of each.
        screen: where they go.
    """
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for *columns, text in rows:
        table.add_row(*(Text(printable(column)) for column in columns), Text(beginning(text)))
    screen.note(title)
    screen.notes.print(table, style="dim")


def beginning(text: str, characters: int = _PASSAGE_CHARACTERS) -> str:
    """Return the first `characters` of a text on one line."""
    words = " ".join(text.split())
    return printable(words[:characters] + ("…" if len(words) > characters else ""))


def printable(text: str) -> str:
    """Remove control characters, which a terminal could take for commands."""
    return _CONTROL_CHARACTERS.sub("", text)


def check_text(text: str) -> None:
    """Raise InputError if `text` holds bytes that did not decode in the terminal's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the text is not UTF-8. Set the terminal to UTF-8, such as with LC_ALL=C.UTF-8.") from error
