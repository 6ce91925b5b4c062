"""`hmt read`, which makes corpora, and `hmt corpora`, which shows and changes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, SessionNotFoundError
from . import options
from .documents import open_documents
from .models import ModelChoice
from .options import DEFAULT_MODEL, Dtype
from .output import confirmed, counted, done, print_json, print_table, progress_of, these
from .searching import show_found, show_recalled
from .stores import open_store, print_stats, stats_of
from .terminal import Screen, printable

if TYPE_CHECKING:
    from ..cluster.reading import RayEngine
    from ..sessions.corpus import Corpus
    from ..sessions.stored_corpus import Document as StoredDocument
    from .documents import Document

app = typer.Typer(no_args_is_help=True, help="Look at what hmt read has read and change it.", pretty_exceptions_enable=False)
Documents = Annotated[list[str], typer.Argument(metavar="DOCUMENT...", help="Names or ids, as hmt corpora show lists them.")]


def read(
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            help="What the documents are read into; made if it does not exist.",
            autocompletion=options.corpus_names,
        ),
    ],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Text, PDF, Word or HTML; - is standard input.")],
    ray: Annotated[bool, typer.Option("--ray", help="Read by workers on a Ray cluster, which share the store.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: at most so many; else one for each CPU.", show_default=False)
    ] = None,
    store: options.Store = None,
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Read documents once, to ask about them at any time; a file that was read before is replaced if it has changed."""
    screen = Screen.standard()
    if workers is not None and not ray:
        raise InputError("--workers says how many read on a Ray cluster: give it with --ray.")
    engine = _on_ray(workers, device) if ray else None
    documents = open_documents(files, screen)
    with open_store(store, create=True) as opened:
        known = [opened.corpus(corpus)] if opened.has("corpus", corpus) else []
        loaded = ModelChoice(model, adapter, dtype.value, device, opened.place).load(screen, *known)
        done(*_added(opened.corpus(corpus, loaded), documents, screen, engine), screen, as_json=as_json)


def _on_ray(workers: int | None, device: str) -> RayEngine:
    """Return what reads on a Ray cluster; on GPUs, if the model does."""
    from ..cluster.reading import RayEngine

    return RayEngine(workers, gpus=float(device.startswith("cuda")))


def _added(
    corpus: Corpus, documents: Sequence[Document], screen: Screen, engine: RayEngine | None
) -> tuple[str, dict[str, Any]]:
    """Read documents into a corpus, each in place of an earlier one of its name.

    Args:
        corpus: takes them.
        documents: their names and texts.
        screen: shows the progress.
        engine: reads them; None: this process does.

    Returns:
        A sentence and the counts.
    """
    known = {document.name: document for document in corpus.documents()}
    named = {os.path.normpath(document.name): document.text for document in documents}
    fresh = {name: text for name, text in named.items() if name not in known or known[name].text != text}
    replaced = [known[name].id for name in fresh if name in known]
    same = len(named) - len(fresh)
    with progress_of(screen) as progress:
        ids = corpus.add_documents(fresh.items(), replace_named=True, progress=progress, engine=engine)
    stats = corpus.stats()
    parts = [f"{counted(len(ids), 'document')} read"]
    parts += [f"{len(replaced)} of them in place of older ones"] * bool(replaced) + [f"{same} unchanged"] * bool(same)
    holds = f"{counted(stats['documents'], 'document')}, {counted(stats['tokens'], 'token')}"
    said = f"Corpus {corpus.name!r}: {', '.join(parts)}. It holds {holds}."
    return said, stats | {"added": ids, "replaced": replaced, "unchanged": same}


@app.command("list")
def list_corpora(store: options.Store = None, as_json: options.Json = False) -> None:
    """List all corpora, with their sizes and times."""
    screen = Screen.standard()
    with open_store(store) as opened:
        stats = [stats_of(name, opened.corpus) for name in opened.corpora()]
    if as_json:
        return print_json({"corpora": stats}, screen)
    if not stats:
        return screen.note(f"{opened.place} holds no corpora yet. hmt read --corpus NAME FILE... begins one.")
    print_stats("corpus", "documents", stats, screen)


@app.command()
def show(
    name: options.Corpus,
    document: Annotated[
        str | None, typer.Argument(metavar="[DOCUMENT]", help="Its name or id: print its text.", show_default=False)
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show the documents of a corpus, or the text of one."""
    screen = Screen.standard()
    with open_store(store) as opened:
        corpus = opened.corpus(name)
        documents, stats = corpus.documents(), corpus.stats()
    if document is not None:
        (chosen,) = _chosen(name, documents, [document])
        if as_json:
            return print_json(_as_dict(chosen) | {"text": chosen.text}, screen)
        text = printable(chosen.text) if screen.out.isatty() else chosen.text
        return print(text.removesuffix("\n"), file=screen.out)
    if as_json:
        return print_json(stats | {"documents": [_as_dict(document) for document in documents]}, screen)
    if not documents:
        return screen.note(f"{name!r} holds no documents yet. hmt read --corpus {name} FILE... adds some.")
    rows = [
        (str(document.id), document.name, len(document.text), f"{document.created_at:%Y-%m-%d %H:%M}") for document in documents
    ]
    print_table(("id", "document", "characters", "read (UTC)"), rows, screen)


def _as_dict(document: StoredDocument) -> dict[str, Any]:
    about = {"id": document.id, "name": document.name, "characters": len(document.text)}
    return about | {"created_at": document.created_at.isoformat(), "metadata": document.metadata}


def _chosen(name: str, documents: Sequence[StoredDocument], wanted: Sequence[str]) -> list[StoredDocument]:
    """Return the documents that have these names or ids.

    Raises:
        SessionNotFoundError: a document is not there.
    """
    by_name = {str(document.id): document for document in documents} | {document.name: document for document in documents}
    if missing := [name_or_id for name_or_id in wanted if name_or_id not in by_name]:
        raise SessionNotFoundError(f"corpus {name!r} has no document {', '.join(missing)}. List them: hmt corpora show {name}")
    return list({by_name[name_or_id].id: by_name[name_or_id] for name_or_id in wanted}.values())


@app.command(no_args_is_help=True)
def search(
    query: options.Query,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", help="Search this one only; may be repeated.", autocompletion=options.corpus_names, show_default=False
        ),
    ] = None,
    top: options.Top = 10,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Search the paragraphs of all corpora by their words. Runs no model; recall searches one corpus by meaning too."""
    words = " ".join(query)
    with open_store(store) as opened:
        texts = opened.search_corpora(words, top_k=top, names=corpus or None)
    show_found(texts, words, Screen.standard(), as_json=as_json)


@app.command()
def recall(
    name: options.Corpus,
    query: Annotated[str, typer.Argument(help="What to recall for, in quotes.")],
    top: options.Top = 5,
    store: options.Store = None,
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Show the passages of a corpus that a text recalls; hmt ask --corpus answers from them."""
    screen = Screen.standard()
    with open_store(store) as opened:
        loaded = ModelChoice(model, adapter, dtype.value, device, opened.place).load(screen, opened.corpus(name))
        recalled = opened.corpus(name, loaded).recall(query, top_k=top)
    show_recalled(recalled, recalled.coverage, screen, as_json=as_json)


@app.command()
def remove(
    name: options.Corpus,
    documents: Documents,
    yes: options.Yes = False,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Erase documents of a corpus for good, and everything that was made of them."""
    screen = Screen.standard()
    with open_store(store) as opened:
        corpus = opened.corpus(name)
        chosen = _chosen(name, corpus.documents(), documents)
        for document in chosen if screen.interactive and not yes else ():
            screen.note(f"{document.id} {document.name}", style="")
        if not (yes or confirmed(f"Erase {these(len(chosen), 'document')} of {name!r} for good?", screen)):
            return screen.note("Nothing was erased.")
        corpus.remove([document.id for document in chosen])
    said = f"{counted(len(chosen), 'document')} of {name!r} {'is' if len(chosen) == 1 else 'are'} erased."
    done(said, {"name": name, "removed": [document.id for document in chosen]}, screen, as_json=as_json)


@app.command()
def rename(
    name: options.Corpus,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Give a corpus another name; sessions that it is attached to go on recalling from it."""
    with open_store(store) as opened:
        opened.rename_corpus(name, new)
    done(f"{name!r} is called {new!r} now.", {"name": new, "before": name}, Screen.standard(), as_json=as_json)


@app.command()
def rebuild(
    name: options.Corpus,
    store: options.Store = None,
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Read a corpus again with a model: another one, or after damage."""
    screen = Screen.standard()
    with open_store(store) as opened:
        corpus = opened.corpus(name)
        loaded = ModelChoice(model, adapter, dtype.value, device).load(screen)
        with progress_of(screen) as progress:
            stats = corpus.rebuild(loaded, progress=progress).stats()
    said = f"{name!r} is read anew: {counted(stats['tokens'], 'token')} by {stats['model']}."
    done(said, stats, screen, as_json=as_json)


@app.command()
def delete(name: options.Corpus, yes: options.Yes = False, store: options.Store = None, as_json: options.Json = False) -> None:
    """Delete a corpus for good."""
    screen = Screen.standard()
    with open_store(store) as opened:
        count = counted(opened.corpus(name).stats()["documents"], "document")
        if not (yes or confirmed(f"Delete corpus {name!r} with its {count} for good?", screen)):
            return screen.note("Nothing was deleted.")
        opened.delete_corpus(name)
    done(f"Corpus {name!r} is deleted.", {"deleted": name}, screen, as_json=as_json)
