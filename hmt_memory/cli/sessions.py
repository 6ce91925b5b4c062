"""`hmt sessions`: commands that show stored conversations and change them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..sessions.names import is_aside
from . import options
from .models import ModelChoice
from .options import DEFAULT_MODEL, Dtype
from .output import confirmed, counted, done, print_json, print_lines, print_table, progress_of, these
from .searching import show_found, show_recalled
from .stores import open_store, print_stats, stats_of
from .terminal import Screen, beginning, printable

if TYPE_CHECKING:
    from ..retrieval.citations import Message
    from ..sessions.stored_session import StoredSession

app = typer.Typer(no_args_is_help=True, help="Look at stored sessions and change them.", pretty_exceptions_enable=False)


@app.command("list")
def list_sessions(
    every: Annotated[bool, typer.Option("--all", help="Also those that a server keeps for its responses.")] = False,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """List all sessions, with their sizes and times."""
    screen = Screen.standard()
    with open_store(store) as opened:
        names = opened.sessions()
        listed = [name for name in names if every or not is_aside(name)]
        stats = [stats_of(name, opened.session) for name in listed]
        corpora = len(opened.corpora())
    if as_json:
        return print_json({"sessions": stats}, screen)
    if aside := len(names) - len(listed):
        screen.note(f"A server keeps {counted(aside, 'more session')} for its responses: --all lists them.")
    if not stats:
        also = f" It has corpora: hmt corpora list shows {'it' if corpora == 1 else 'them'}." if corpora else ""
        return screen.note(f"{opened.place} holds no sessions yet. hmt chat --session NAME begins one.{also}")
    print_stats("session", "messages", stats, screen)


@app.command()
def show(
    name: options.Session,
    last: Annotated[int | None, typer.Option(min=1, help="Only so many of the latest messages.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown document, to keep or to send.")] = False,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show the messages of a session, with ids and times."""
    screen = Screen.standard()
    if markdown and as_json:
        raise typer.BadParameter("--markdown or --json, not both.")
    with open_store(store) as opened:
        session = opened.session(name)
        messages, stats = session.messages(start=0 if last is None else -last), session.stats()
    if as_json:
        content = [message.to_dict() | {"id": message.id, "created_at": message.created_at.isoformat()} for message in messages]
        return print_json(stats | {"messages": content}, screen)
    if markdown:
        return print(_markdown(session.name, messages, terminal=screen.out.isatty()), file=screen.out)
    if not messages:
        return screen.note(f"{name!r} holds no messages yet.")
    rows = [(str(message.id), f"{message.created_at:%Y-%m-%d %H:%M}", message.role, message.content) for message in messages]
    print_table(("id", "time (UTC)", "role", "content"), rows, screen)


def _markdown(name: str, messages: Sequence[Message], *, terminal: bool) -> str:
    """Write a conversation as Markdown: each message verbatim under a heading."""
    parts = [f"# {name}"]
    for message in messages:
        parts += [f"## {message.role.capitalize()}, {message.created_at:%Y-%m-%d %H:%M} UTC", message.content.strip()]
    text = "\n\n".join(part for part in parts if part)
    return printable(text) if terminal else text


@app.command(no_args_is_help=True)
def search(
    query: options.Query,
    session: Annotated[
        list[str] | None,
        typer.Option(
            "--session",
            "-s",
            help="Search this one only; may be repeated.",
            autocompletion=options.session_names,
            show_default=False,
        ),
    ] = None,
    top: options.Top = 10,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Search the messages of all sessions by their words. Runs no model; recall searches one session by meaning too."""
    words = " ".join(query)
    with open_store(store) as opened:
        texts = opened.search(words, top_k=top, names=session or None)
    show_found(texts, words, Screen.standard(), as_json=as_json)


@app.command()
def recall(
    name: options.Session,
    query: Annotated[str, typer.Argument(help="What to recall for, in quotes.")],
    top: options.Top = 5,
    store: options.Store = None,
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Show what a session remembers most for a text."""
    screen = Screen.standard()
    with open_store(store) as opened:
        choice = ModelChoice(model, adapter, dtype.value, device, opened.place)
        loaded = choice.load(screen, opened.session(name))
        recalled = opened.session(name, loaded).recall(query, top_k=top)
    show_recalled(recalled, recalled.coverage, screen, as_json=as_json)


@app.command()
def fork(
    name: options.Session,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the fork.")],
    upto: Annotated[int | None, typer.Option(help="Id of the last message to share.", show_default=False)] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Make a new session that shares the past of another and goes its own way."""
    with open_store(store) as opened:
        stats = opened.session(name).fork(new, upto=upto).stats()
    said = f"{new!r} shares {counted(stats['messages'], 'message')} with {name!r}."
    done(said, stats, Screen.standard(), as_json=as_json)


@app.command()
def rename(
    name: options.Session,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Give a session another name."""
    with open_store(store) as opened:
        opened.rename(name, new)
    done(f"{name!r} is called {new!r} now.", {"name": new, "before": name}, Screen.standard(), as_json=as_json)


@app.command()
def forget(
    name: options.Session,
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Message ids, as hmt sessions show lists them.")],
    yes: options.Yes = False,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Erase messages for good, and everything that was made of them."""
    screen = Screen.standard()
    with open_store(store) as opened:
        session = opened.session(name)
        if not (yes or _may_forget(session, ids, screen)):
            return screen.note("Nothing was erased.")
        forgotten = session.forget(ids)
    if as_json:
        return print_json({"name": name, **forgotten._asdict()}, screen)
    erased = f"{counted(forgotten.messages, 'message')} of {name!r} {'is' if forgotten.messages == 1 else 'are'} erased"
    screen.note(f"{erased}; what came after is read again when the session is next used.")
    for other in forgotten.also_in:
        screen.note(f"{other!r} shares some of them and keeps them: hmt sessions forget {other} ...", style="")


def _may_forget(session: StoredSession, ids: Sequence[int], screen: Screen) -> bool:
    """Show messages and ask whether to erase them. Ids that are not there are left for `forget` to refuse."""
    chosen = [message for message in session.messages() if message.id in set(ids)]
    if len(chosen) < len(set(ids)):
        return True
    for message in chosen if screen.interactive else ():
        screen.note(f"{message.id} {message.role}: {beginning(message.content)}", style="")
    return confirmed(f"Erase {these(len(chosen), 'message')} of {session.name!r} for good?", screen)


@app.command()
def retention(
    name: options.Session,
    messages: Annotated[int | None, typer.Option(min=1, help="Keep at most so many.", show_default=False)] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="Keep none that is older.", show_default=False)] = None,
    off: Annotated[bool, typer.Option("--off", help="Keep everything from now on.")] = False,
    yes: options.Yes = False,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show how long a session's messages are kept, or set it: messages beyond a limit are forgotten, now and from now on."""
    screen = Screen.standard()
    if off and (messages or days):
        raise typer.BadParameter("--off or limits, not both.")
    with open_store(store) as opened:
        session = opened.session(name)
        if off:
            session.set_retention()
        elif messages or days:
            limits = _limits(session.stats()["retention"], messages, days)
            if not (yes or confirmed(f"Keep {_kept(limits)} of {name!r}, and erase the others for good?", screen)):
                return screen.note("Nothing was changed.")
            age = limits.get("seconds")
            session.set_retention(messages=limits.get("messages"), age=None if age is None else timedelta(seconds=age))
        stats = session.stats()
    content = {"name": name, "retention": stats["retention"], "messages": stats["messages"]}
    said = f"{name!r} keeps {_kept(stats['retention'])}; it holds {counted(stats['messages'], 'message')}."
    done(said, content, screen, as_json=as_json)


def _limits(before: dict[str, Any], messages: int | None, days: float | None) -> dict[str, Any]:
    """Merge the limits that are set with the new ones."""
    given = {"messages": messages, "seconds": None if days is None else days * 86_400}
    return before | {key: value for key, value in given.items() if value is not None}


def _kept(limits: dict[str, Any]) -> str:
    """Say in words what limits keep."""
    parts = [f"the latest {counted(limits['messages'], 'message')}"] if "messages" in limits else []
    if "seconds" in limits:
        days = limits["seconds"] / 86_400
        parts.append(f"{'' if parts else 'messages '}of the last {days:,g} day{'s' * (days != 1)}")
    return " ".join(parts) or "every message"


@app.command()
def attach(name: options.Session, corpus: options.Corpora, store: options.Store = None, as_json: options.Json = False) -> None:
    """Let a session recall from corpora."""
    with open_store(store) as opened:
        opened.session(name).attach(*corpus)
    done(f"{name!r} recalls from {', '.join(corpus)} too.", {"attached": corpus}, Screen.standard(), as_json=as_json)


@app.command()
def detach(name: options.Session, corpus: options.Corpora, store: options.Store = None, as_json: options.Json = False) -> None:
    """Let a session no longer recall from corpora."""
    with open_store(store) as opened:
        opened.session(name).detach(*corpus)
    said = f"{name!r} recalls from {', '.join(corpus)} no more."
    done(said, {"detached": corpus}, Screen.standard(), as_json=as_json)


@app.command()
def export(
    name: options.Session,
    file: Annotated[Path, typer.Argument(help="Where to write it; replaced if it exists.")],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Write a whole session into one file, which import takes; show --markdown writes it for people."""
    with open_store(store) as opened:
        opened.session(name).export(file)
    content = {"name": name, "file": str(file), "bytes": file.stat().st_size}
    done(f"{name!r} is in {file} ({content['bytes']:,} bytes).", content, Screen.standard(), as_json=as_json)


@app.command("import")
def import_session(
    file: Annotated[Path, typer.Argument(help="What hmt sessions export wrote.")],
    name: Annotated[str | None, typer.Option(help="Another name for it.", show_default=False)] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Check an exported session and add it."""
    with open_store(store, create=True) as opened:
        stats = opened.import_session(file, name=name).stats()
    said = f"{stats['name']!r} is there: {counted(stats['messages'], 'message')}, {counted(stats['tokens'], 'token')}."
    done(said, stats, Screen.standard(), as_json=as_json)


@app.command()
def rebuild(
    name: options.Session,
    store: options.Store = None,
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Read a session again with a model: another one, or after damage."""
    screen = Screen.standard()
    with open_store(store) as opened:
        session = opened.session(name)
        loaded = ModelChoice(model, adapter, dtype.value, device).load(screen)
        with progress_of(screen) as progress:
            stats = session.rebuild(loaded, progress=progress).stats()
    said = f"{name!r} is read anew: {counted(stats['tokens'], 'token')} by {stats['model']}."
    done(said, stats, screen, as_json=as_json)


@app.command()
def delete(name: options.Session, yes: options.Yes = False, store: options.Store = None, as_json: options.Json = False) -> None:
    """Delete a session for good."""
    screen = Screen.standard()
    with open_store(store) as opened:
        count = counted(opened.session(name).stats()["messages"], "message")
        if not (yes or confirmed(f"Delete session {name!r} with its {count} for good?", screen)):
            return screen.note("Nothing was deleted.")
        opened.delete(name)
    done(f"Session {name!r} is deleted.", {"deleted": name}, screen, as_json=as_json)


@app.command()
def compact(store: options.Store = None, as_json: options.Json = False) -> None:
    """Give the space of erased data back to the disk; it is used again without this. Nobody can write meanwhile."""
    with open_store(store) as opened:
        given = opened.compact()
    done(f"{given / 1e6:,.1f} MB are given back to the disk.", {"bytes": given}, Screen.standard(), as_json=as_json)


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One session; all of the store if left out.", autocompletion=options.session_names, show_default=False
        ),
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Check every row and digest of the store; exit code 1 if something is wrong."""
    screen = Screen.standard()
    with open_store(store) as opened:
        findings = opened.verify(name)
    if as_json:
        print_json({"ok": findings.ok, **findings._asdict()}, screen)
    else:
        print_lines([*findings.problems, *findings.notes], screen)
        screen.note("The record is whole." if findings.ok else f"{counted(len(findings.problems), 'problem')}.")
    raise typer.Exit(0 if findings.ok else 1)
