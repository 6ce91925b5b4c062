"""`hmt sessions` and `hmt read`: look at a store and change it. Knows consoles and the store's public calls.

Tables and JSON go to stdout, progress and notes to stderr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .documents import Document
from .errors import InputError, StoreDamagedError
from .terminal import Screen, beginning, note_if_untrained, printable, reading_bar, show_recalled, stream

if TYPE_CHECKING:
    from .memory_store import MemoryStore
    from .model import HMTModel
    from .recollection import RecalledSegment
    from .stored_corpus import StoredCorpus
    from .stored_session import StoredSession
    from .streams import Progress


def open_store(folder: Path | None, *, create: bool = False) -> MemoryStore:
    """The store in `folder` (None: the default). Raises InputError where there is none and none is to be made."""
    from .memory_store import MemoryStore
    from .store.open import default_folder

    chosen = default_folder() if folder is None else folder.expanduser()
    if not create and not (chosen / "memory.db").exists():
        raise InputError(f"there is no store in {chosen}. hmt chat --session NAME begins one; --store names another folder.")
    return MemoryStore(chosen)


# --- looking ----------------------------------------------------------------------------------------------------------


def list_all(store: MemoryStore, screen: Screen, *, as_json: bool) -> None:
    """Sessions and corpora with their sizes and times."""
    sessions = [_stats(name, store.session) for name in store.sessions()]
    corpora = [_stats(name, store.corpus) for name in store.corpora()]
    if as_json:
        return _print_json({"sessions": sessions, "corpora": corpora}, screen)
    if not sessions and not corpora:
        return screen.note(f"{store.folder} holds no sessions yet. hmt chat --session NAME begins one.")
    columns = ("messages", "tokens", "segments", "updated_at", "model")
    _print_table("session", columns, sessions, screen)
    _print_table("corpus", ("documents", *columns[1:]), corpora, screen)
    for damaged in [one for one in (*sessions, *corpora) if "problem" in one]:
        screen.note(f"{damaged['name']!r}: {damaged['problem']}")


def _stats(name: str, opened: Callable[[str], StoredSession | StoredCorpus]) -> dict[str, Any]:
    """Counts and times of a session or corpus; of a damaged one its name and what is wrong."""
    try:
        return opened(name).stats()
    except StoreDamagedError as error:
        return {"name": name, "problem": str(error)}


def show(store: MemoryStore, name: str, screen: Screen, *, last: int | None, as_json: bool) -> None:
    """A session's messages, the last `last` of them (None: all), with ids and times."""
    session = store.session(name)
    messages = session.messages(start=0 if last is None else -last)
    if as_json:
        content = [one.to_dict() | {"id": one.id, "created_at": one.created_at.isoformat()} for one in messages]
        return _print_json(session.stats() | {"messages": content}, screen)
    table = Table("id", "time (UTC)", "role", "content", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for message in messages:
        text = Text(printable(message.content))
        table.add_row(str(message.id), f"{message.created_at:%Y-%m-%d %H:%M}", printable(message.role), text)
    _console(screen).print(table)


def show_recall(found: Sequence[RecalledSegment], coverage: float, screen: Screen, *, as_json: bool) -> None:
    """Recalled segments with what they cite."""
    if as_json:
        content = [
            {
                "segment": one.segment,
                "weight": one.weight,
                "text": one.text,
                "source": one.source,
                "messages": [message.id for message in one.messages],
                "token_span": one.token_span,
                "created_at": one.created_at.isoformat(),
            }
            for one in found
        ]
        return _print_json({"coverage": coverage, "segments": content}, screen)
    if not found:
        return screen.note("Nothing to recall yet: no segment is full.")
    table = Table("source", "segment", "weight", "messages", "text", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for one in found:
        ids = ", ".join(str(message.id) for message in one.messages)
        cited = (printable(one.source), str(one.segment), f"{one.weight:.3f}", ids, beginning(one.text))
        table.add_row(*map(Text, cited))
    _console(screen).print(table)
    screen.note(f"The weights are shares of at least {coverage:.1%} of the recall softmax.")


def verify(store: MemoryStore, name: str | None, screen: Screen, *, as_json: bool) -> bool:
    """Check the record and say what was found; whether it is whole."""
    found = store.verify(name)
    if as_json:
        _print_json({"ok": found.ok, **found._asdict()}, screen)
    else:
        for line in [*found.problems, *found.notes]:
            _console(screen).print(Text(printable(line)), soft_wrap=True)
        screen.note("The record is whole." if found.ok else f"{len(found.problems)} problems.")
    return found.ok


# --- changing ---------------------------------------------------------------------------------------------------------


@contextmanager
def progress_of(screen: Screen, what: str = "reading") -> Iterator[Progress]:
    """A bar for what reads into a store."""
    with reading_bar(screen.notes) as bar:
        task = bar.add_task(what, total=0, pace="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        yield advance


def forget(store: MemoryStore, name: str, ids: Sequence[int], screen: Screen, *, as_json: bool) -> None:
    """Erase messages; what came after is read again by the next chat."""
    found = store.session(name).forget(ids)
    if as_json:
        return _print_json({"name": name, **found._asdict()}, screen)
    erased = "1 message of {!r} is" if found.messages == 1 else f"{found.messages} messages of {{!r}} are"
    screen.note(f"{erased.format(name)} erased; what came after is read again when the session is next used.")
    for other in found.also_in:
        screen.note(f"{other!r} shares some of them and keeps them: hmt sessions forget {other} ...", style="")


def add_documents(
    store: MemoryStore, name: str, documents: Sequence[Document], screen: Screen, *, model: HMTModel, as_json: bool
) -> None:
    """Read documents into a corpus; one of a name that it has already takes the place of that one."""
    corpus = store.corpus(name, model)
    known = {document.name: document for document in corpus.documents()}
    named = {os.path.normpath(one.name): one.text for one in documents}
    fresh = {name: text for name, text in named.items() if name not in known or known[name].text != text}
    replaced = [known[name].id for name in fresh if name in known]
    same = [name for name in named if name not in fresh]
    with progress_of(screen) as progress:
        ids = corpus.add_documents(fresh.items(), replace_named=True, progress=progress)
    found = corpus.stats()
    if as_json:
        return _print_json(found | {"added": ids, "replaced": replaced, "unchanged": len(same)}, screen)
    screen.note(
        f"Corpus {name!r}: {len(ids)} documents read, {len(replaced)} of them in place of older ones, {len(same)} unchanged; "
        f"now {found['documents']:,} documents, {found['tokens']:,} tokens, {found['segments']:,} segments."
    )


def check_corpora(store: MemoryStore, names: Sequence[str]) -> None:
    """Raises SessionNotFoundError unless there are such corpora, before a model is loaded for nothing."""
    for name in names:
        store.corpus(name)


def ask(
    store: MemoryStore,
    names: Sequence[str],
    question: str,
    screen: Screen,
    *,
    model: HMTModel,
    passages: int,
    decoding: Mapping[str, Any],
) -> None:
    """Stream the answer to a question about corpora, then show the passages it was given."""
    note_if_untrained(model, screen)
    first, *others = [store.corpus(name, model) for name in names]
    answer = first.ask(question, *others, **decoding)
    stream(answer, screen.out)
    if answer.finish_reason == "length":
        screen.note("(cut at --max-tokens)")
    if passages:
        show_recalled(answer.recalled[:passages], screen)


def rebuild(store: MemoryStore, kind: str, name: str, screen: Screen, *, model: HMTModel, as_json: bool) -> None:
    """Read a session or corpus anew with `model`."""
    opened = store.session(name) if kind == "session" else store.corpus(name)
    with progress_of(screen) as progress:
        found = opened.rebuild(model, progress=progress).stats()
    said = f"{kind} {name!r} is read anew: {found['tokens']:,} tokens, {found['segments']:,} segments by {found['model']}."
    done(said, found, screen, as_json=as_json)


def delete(store: MemoryStore, kind: str, name: str, screen: Screen, *, yes: bool, as_json: bool) -> None:
    """Delete a session or corpus, after asking."""
    opened = store.session(name) if kind == "session" else store.corpus(name)
    if not (yes or confirmed(f"Delete {kind} {opened.name!r} for good?", screen)):
        return screen.note("Nothing was deleted.")
    (store.delete if kind == "session" else store.delete_corpus)(name)
    done(f"{kind} {name!r} is deleted.", {"deleted": name}, screen, as_json=as_json)


def compact(store: MemoryStore, screen: Screen, *, as_json: bool) -> None:
    """Give the room of what was erased back to the disk."""
    given = store.compact()
    done(f"{given / 1e6:,.1f} MB are given back to the disk.", {"bytes": given}, screen, as_json=as_json)


def done(what: str, content: Mapping[str, Any], screen: Screen, *, as_json: bool) -> None:
    """Say that something was done, to a person or to a machine."""
    if as_json:
        _print_json(content, screen)
    else:
        screen.note(what)


def confirmed(question: str, screen: Screen) -> bool:
    """Ask a person.

    Raises:
        InputError: nobody is there to answer.
    """
    if not screen.interactive:
        raise InputError(f"{question} Nobody can be asked here: add --yes.")
    screen.notes.print(f"{question} [y/N] ", end="")
    return input().strip().lower() in ("y", "yes")


def _print_table(kind: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], screen: Screen) -> None:
    if not rows:
        return
    table = Table(
        kind, *(name.replace("_at", " (UTC)") for name in columns), box=None, header_style="bold", padding=(0, 2, 0, 0)
    )
    for row in rows:
        values = (f"{value:,}" if isinstance(value := row.get(name, "?"), int) else str(value or "") for name in columns)
        table.add_row(*(Text(printable(value)) for value in (row["name"], *values)))
    _console(screen).print(table)


def _print_json(content: Any, screen: Screen) -> None:
    print(json.dumps(content, ensure_ascii=False, indent=2), file=screen.out)


def _console(screen: Screen) -> Console:
    width = None if screen.out.isatty() else 200
    return Console(file=screen.out, highlight=False, width=width)
