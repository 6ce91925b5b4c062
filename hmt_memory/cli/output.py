"""The output of commands: tables and JSON on stdout, notes and questions on stderr. Knows consoles; no store, no model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from .terminal import Screen, printable, reading_bar

if TYPE_CHECKING:
    from ..sessions.reading import Progress


def done(what: str, content: Mapping[str, Any], screen: Screen, *, as_json: bool) -> None:
    """Say that something was done, to a person or to a machine.

    Args:
        what: a sentence for a person.
        content: the same for a machine.
        screen: where it goes.
        as_json: whether a machine reads it.
    """
    if as_json:
        print_json(content, screen)
    else:
        screen.note(what)


def print_json(content: Any, screen: Screen) -> None:
    """Print one JSON value."""
    print(json.dumps(content, ensure_ascii=False, indent=2), file=screen.out)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]], screen: Screen) -> None:
    """Print rows under their heads, or nothing where there are no rows. Lines are folded for a terminal only.

    Args:
        heads: the names of the columns.
        rows: a value for each column.
        screen: where the table goes.
    """
    if not rows:
        return
    table = Table(*heads, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(printable(_shown(value))) for value in row))
    console(screen).print(table)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_lines(lines: Sequence[str], screen: Screen) -> None:
    """Print lines without their control characters."""
    for line in lines:
        console(screen).print(Text(printable(line)), soft_wrap=True)


def console(screen: Screen) -> Console:
    """Make a console that writes to stdout."""
    return Console(file=screen.out, highlight=False, width=None if screen.out.isatty() else 200)


def counted(number: int, noun: str) -> str:
    """Write a number of things, such as "1 message" or "1,200 messages"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def these(number: int, noun: str) -> str:
    """Refer to a number of things, such as "this message" or "these 2 messages"."""
    return f"this {noun}" if number == 1 else f"these {counted(number, noun)}"


def when(time: str) -> str:
    """Write an ISO time to the minute."""
    return time[:16].replace("T", " ")


def confirmed(question: str, screen: Screen) -> bool:
    """Ask a person and return whether the answer was yes.

    Raises:
        InputError: nobody is there to answer.
    """
    if not screen.interactive:
        raise InputError(f"{question} Nobody can be asked here: add --yes.")
    screen.notes.print(Text(f"{question} [y/N] "), end="")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        screen.notes.print()
        return False


@contextmanager
def progress_of(screen: Screen, what: str = "reading") -> Iterator[Progress]:
    """Show a bar while something is read into a store."""
    with reading_bar(screen.notes) as bar:
        task = bar.add_task(what, total=0, pace="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        yield advance
