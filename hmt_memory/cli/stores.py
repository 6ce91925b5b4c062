"""The store that a command opens, and `hmt backup`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, StoreDamagedError
from ..store.open import DATABASE, default_store, keep_tenants_apart, place_of
from ..store.open import shown as shown_place
from . import options
from .output import counted, done, print_table, when
from .terminal import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..sessions.memory_store import MemoryStore
    from ..sessions.stored_corpus import StoredCorpus
    from ..sessions.stored_session import StoredSession


def open_store(place: str | None, *, create: bool = False) -> MemoryStore:
    """Open the store at a place (None: the default).

    Raises:
        InputError: there is no store, and `create` is false.
    """
    from ..sessions.memory_store import MemoryStore

    chosen = default_store() if place is None else place_of(place)
    if isinstance(chosen, Path) and not create and not (chosen / DATABASE).exists():
        raise InputError(
            f"there is no store in {chosen}. hmt chat --session NAME begins one, and so does hmt read; --store names another "
            "folder."
        )
    return MemoryStore(chosen, background=True)


def stats_of(name: str, opened: Callable[[str], StoredSession | StoredCorpus]) -> dict[str, Any]:
    """Return counts and times of a session or corpus; of a damaged one, its name and what is wrong."""
    try:
        return opened(name).stats()
    except StoreDamagedError as error:
        return {"name": name, "problem": str(error)}


def print_stats(kind: str, content: str, stats: Sequence[dict[str, Any]], screen: Screen) -> None:
    """Print the counts of sessions or corpora, then what is wrong with damaged ones.

    Args:
        kind: the head of the column of names.
        content: what is counted in them beside tokens.
        stats: as `stats_of` returns them.
        screen: where the table goes.
    """
    rows = [
        (
            counts["name"],
            counts.get(content, "?"),
            counts.get("tokens", "?"),
            when(counts.get("updated_at", "?")),
            _model_name(counts),
        )
        for counts in stats
    ]
    print_table((kind, content, "tokens", "updated (UTC)", "model"), rows, screen)
    for damaged in (counts for counts in stats if "problem" in counts):
        screen.note(f"{damaged['name']!r}: {damaged['problem']}", style="")


def _model_name(stats: dict[str, Any]) -> str:
    return str(stats.get("model") or "").partition(" (")[0]


def backup(
    folder: Annotated[
        str, typer.Argument(help="A new folder for the copy, or an empty one; or postgresql://host/database, without a store.")
    ],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Copy all sessions and corpora, as of one moment, and check the copy. Others may write meanwhile."""
    from ..sessions.memory_store import MemoryStore

    screen = Screen.standard()
    with open_store(store) as opened:
        opened.backup(folder)
    with MemoryStore(folder, read_only=True) as copy:
        sessions, corpora, size, place = len(copy.sessions()), len(copy.corpora()), copy.database.size(), copy.place
    held = f"{counted(sessions, 'session')} and {corpora} {'corpus' if corpora == 1 else 'corpora'}"
    said = f"{held} are copied to {place} and checked ({size / 1e6:,.1f} MB). It is a store of its own: --store {place}"
    done(said, {"folder": place, "sessions": sessions, "corpora": corpora, "bytes": size}, screen, as_json=as_json)


def tenants(
    roles: Annotated[list[str], typer.Argument(metavar="ROLE...", help="Database roles: tenants, or groups of tenants.")],
    existing: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="The tenant that everything belongs to which the store holds.", show_default=False),
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Keep tenants apart in PostgreSQL: each role sees and writes rows of its own only. Run it as the owner of the tables."""
    place = default_store() if store is None else place_of(store)
    keep_tenants_apart(place, roles, existing=existing)
    said = f"Each tenant of {shown_place(place)} has rows of its own; these roles may be tenants now: {', '.join(roles)}."
    done(said, {"store": shown_place(place), "roles": roles, "existing": existing}, Screen.standard(), as_json=as_json)
