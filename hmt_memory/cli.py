"""The `hmt` command: arguments, exit codes and one-line errors. No logic; torch is imported inside the commands only.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .config import DEFAULT_MODEL
from .documents import open_documents
from .errors import HMTError

app = typer.Typer(
    name="hmt",
    help="A memory without end for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_UsageError: Any = typer.BadParameter.__base__  # typer's base of all usage errors; it has no public name there


class Dtype(str, Enum):
    """What --dtype takes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TrainMode(str, Enum):
    """What --mode takes."""

    hmt = "hmt"
    rmt = "rmt"
    plain = "plain"


Name = Annotated[
    str,
    typer.Option("--model", "-m", envvar="HMT_MODEL", help="Bundled name, hub id, model folder or .gguf file."),
]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder with trained memory parameters; none: untrained.", show_default=False)
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token; higher varies more.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens with this much probability.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)]
Precision = Annotated[Dtype, typer.Option(help="Precision of the backbone; auto: what this hardware multiplies natively.")]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="HMT_STORE",
        help="Folder of sessions and corpora; by default in your data folder.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Session = Annotated[str, typer.Argument(metavar="NAME", help="A session; hmt sessions list shows them.")]
Device = Annotated[str, typer.Option(help="auto (CUDA, else MPS, else CPU), or a torch device such as cuda:1.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hmt-memory {__version__}")
        raise typer.Exit


def _check_question(text: str, files: Sequence[str], corpora: Sequence[str]) -> None:
    if text == "-" or _is_file(text):
        raise typer.BadParameter(f"{text} is a file. End with the question: hmt ask {text} 'What is this about?'")
    if not text.strip():
        raise typer.BadParameter("the question is empty. End with the question, in quotes.")
    if bool(files) == bool(corpora):
        wanted = "name files or a --corpus, not both." if files else "name files before the question, or a --corpus."
        raise typer.BadParameter(wanted)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a file name can be
        return False


@app.callback()
def hmt(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.ensure_object(dict)["debug"] = debug


@app.command(
    no_args_is_help=True, epilog="Examples: hmt ask notes.md 'When is the meeting?'; hmt ask --corpus handbook 'How long?'"
)
def ask(
    question: Annotated[
        list[str],
        typer.Argument(metavar="[FILE]... QUESTION", help="Text or markdown files (- is standard input), then the question."),
    ],
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", help="Answer from what hmt read has read; may be repeated.", show_default=False),
    ] = None,
    store: Store = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    passages: Annotated[int, typer.Option(min=0, help="How many recalled passages to show.")] = 3,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Read files of any length, or recall what was read before, and answer a question."""
    from . import manage, terminal

    *files, text = question
    _check_question(text, files, corpus or [])
    screen = terminal.Screen.standard()
    terminal.check_text(text)
    documents = open_documents(files, screen)
    decoding = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if not corpus:
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        return terminal.ask(loaded, documents, text, screen, passages=passages, decoding=decoding)
    with manage.open_store(store) as opened:
        manage.check_corpora(opened, corpus)
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        manage.ask(opened, corpus, text, screen, model=loaded, passages=passages, decoding=decoding)


@app.command(no_args_is_help=True, epilog="Example: hmt read --corpus handbook docs/*.md")
def read(
    corpus: Annotated[str, typer.Option("--corpus", help="What the documents are read into; made if it does not exist.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Text or markdown; - is standard input.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read what it has already anew, with this model.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the corpus, for good.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
    store: Store = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    as_json: Json = False,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Read documents once, to ask about them at any time; a file that was read before is replaced where it has changed."""
    from . import manage, terminal

    screen = terminal.Screen.standard()
    documents = open_documents(files or [], screen)
    if not (documents or rebuild or delete):
        raise typer.BadParameter("name the files to read.")
    with manage.open_store(store, create=not (rebuild or delete)) as opened:
        if delete:
            return manage.delete(opened, "corpus", corpus, screen, yes=yes, as_json=as_json)
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        if rebuild:
            manage.rebuild(opened, "corpus", corpus, screen, model=loaded, as_json=as_json)
        if documents:
            manage.add_documents(opened, corpus, documents, screen, model=loaded, as_json=as_json)


@app.command()
def chat(
    session: Annotated[
        str | None,
        typer.Option("--session", "-s", help="Keep the conversation under this name, or go on with it.", show_default=False),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", help="Let the session recall from a corpus, from now on; may be repeated.", show_default=False
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; it never scrolls away.", show_default=False)] = None,
    store: Store = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Talk with the model; /help inside lists the commands. Without --session nothing is stored."""
    from . import dialogue, manage, terminal

    if corpus and session is None:
        raise typer.BadParameter("--corpus needs a --session to attach it to; hmt ask --corpus answers a single question.")
    screen = terminal.Screen.standard()
    decoding = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if session is None:
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        dialogue.chat(loaded, dialogue.typed_lines(screen), screen, system=system, decoding=decoding)
        return
    with manage.open_store(store, create=True) as opened:
        manage.check_corpora(opened, corpus or [])
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        kept = opened.session(session, loaded)
        kept.attach(*corpus or [])
        dialogue.resume(kept, loaded, dialogue.typed_lines(screen), screen, system=system, decoding=decoding)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Check what is installed and whether the default model can run."""
    from . import doctor as diagnosis

    findings = diagnosis.examine()
    (diagnosis.print_json if as_json else diagnosis.print_table)(findings)
    raise typer.Exit(0 if findings.ok else 1)


sessions = typer.Typer(no_args_is_help=True, help="Look at stored sessions and change them.", pretty_exceptions_enable=False)
app.add_typer(sessions, name="sessions")


@sessions.command("list")
def list_sessions(store: Store = None, as_json: Json = False) -> None:
    """All sessions and corpora."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        manage.list_all(opened, terminal.Screen.standard(), as_json=as_json)


@sessions.command()
def show(
    name: Session,
    last: Annotated[int | None, typer.Option(min=1, help="Only so many of the latest messages.", show_default=False)] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """A session's messages, with ids and times."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        manage.show(opened, name, terminal.Screen.standard(), last=last, as_json=as_json)


@sessions.command()
def recall(
    name: Session,
    query: Annotated[str, typer.Argument(help="What to recall for, in quotes.")],
    top: Annotated[int, typer.Option(min=1, help="How many segments.")] = 5,
    store: Store = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    as_json: Json = False,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """What a session remembers most for a text."""
    from . import manage, terminal

    screen = terminal.Screen.standard()
    with manage.open_store(store) as opened:
        opened.session(name)
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        found = opened.session(name, loaded).recall(query, top_k=top)
        manage.show_recall(found, found.coverage, screen, as_json=as_json)


@sessions.command()
def fork(
    name: Session,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the fork.")],
    upto: Annotated[int | None, typer.Option(help="Id of the last message to share.", show_default=False)] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """A new session that shares the past of another and goes its own way."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        found = opened.session(name).fork(new, upto=upto).stats()
        said = f"{new!r} shares {found['messages']:,} messages with {name!r}."
        manage.done(said, found, terminal.Screen.standard(), as_json=as_json)


@sessions.command()
def forget(
    name: Session,
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Message ids, as hmt sessions show lists them.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Erase messages for good, and everything that was made of them."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        manage.forget(opened, name, ids, terminal.Screen.standard(), as_json=as_json)


@sessions.command()
def attach(
    name: Session,
    corpus: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="What hmt read has read.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Let a session recall from corpora."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        opened.session(name).attach(*corpus)
        manage.done(
            f"{name!r} recalls from {', '.join(corpus)} too.", {"attached": corpus}, terminal.Screen.standard(), as_json=as_json
        )


@sessions.command()
def detach(
    name: Session,
    corpus: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="What it should recall from no more.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """The opposite of attach."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        opened.session(name).detach(*corpus)
        manage.done(
            f"{name!r} recalls from {', '.join(corpus)} no more.",
            {"detached": corpus},
            terminal.Screen.standard(),
            as_json=as_json,
        )


@sessions.command()
def export(
    name: Session,
    file: Annotated[Path, typer.Argument(help="Where to write it; replaced if it exists.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write a whole session into one file."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        opened.session(name).export(file)
        content = {"name": name, "file": str(file), "bytes": file.stat().st_size}
        said = f"{name!r} is in {file} ({content['bytes']:,} bytes)."
        manage.done(said, content, terminal.Screen.standard(), as_json=as_json)


@sessions.command("import")
def import_session(
    file: Annotated[Path, typer.Argument(help="What hmt sessions export wrote.")],
    name: Annotated[str | None, typer.Option(help="Another name for it.", show_default=False)] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check an exported session and add it."""
    from . import manage, terminal

    with manage.open_store(store, create=True) as opened:
        found = opened.import_session(file, name=name).stats()
        said = f"{found['name']!r} is there: {found['messages']:,} messages, {found['segments']:,} segments."
        manage.done(said, found, terminal.Screen.standard(), as_json=as_json)


@sessions.command()
def rebuild(
    name: Session,
    store: Store = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    as_json: Json = False,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Read a session anew with a model: another one, or after damage."""
    from . import manage, terminal

    screen = terminal.Screen.standard()
    with manage.open_store(store) as opened:
        opened.session(name)
        loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
        manage.rebuild(opened, "session", name, screen, model=loaded, as_json=as_json)


@sessions.command()
def delete(
    name: Session,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete a session for good."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        manage.delete(opened, "session", name, terminal.Screen.standard(), yes=yes, as_json=as_json)


@sessions.command()
def compact(store: Store = None, as_json: Json = False) -> None:
    """Give the room of what was erased back to the disk; it is used again without this. Nobody can write meanwhile."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        manage.compact(opened, terminal.Screen.standard(), as_json=as_json)


@sessions.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One session; all of the store if left out.", show_default=False)] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check every row and digest of the store; exit code 1 if something is wrong."""
    from . import manage, terminal

    with manage.open_store(store) as opened:
        whole = manage.verify(opened, name, terminal.Screen.standard(), as_json=as_json)
    raise typer.Exit(0 if whole else 1)


@app.command(
    no_args_is_help=True,
    epilog="Example: hmt train books/ notes.jsonl --recipe paper-lora --out run; the same command resumes.",
)
def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Text files, .jsonl files, folders of them, or one hf:NAME[:SPLIT[:COLUMN]]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoints and, at the end, the adapter.")] = Path(
        "hmt-run"
    ),
    recipe: Annotated[str, typer.Option(help="A preset (paper, paper-lora, compact) or a JSON file.")] = "compact",
    mode: Annotated[
        TrainMode, typer.Option(help="rmt, plain: the twin without recall or memory, to compare with.")
    ] = TrainMode.hmt,
    scale: Annotated[float, typer.Option(min=0.0001, help="This share of the recipe's steps.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.", show_default=False)] = None,
    start: Annotated[
        Path | None, typer.Option(help="An adapter to go on from, instead of untrained memory.", show_default=False)
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: a slow first step, then about twice as fast on a CPU.")
    ] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the recipe as JSON and stop.")] = False,
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Train memory for a model; LoRA or full fine-tune. Killed at any moment, the same command goes on."""
    from . import experiments, terminal

    chosen = experiments.changed(experiments.find_recipe(recipe), mode=mode.value, seed=seed, scale=scale)
    if show_recipe:
        print(chosen.to_json())
        return
    experiments.check_sources(sources or [])
    screen = terminal.Screen.standard()
    experiments.train(
        sources or [],
        out,
        screen,
        recipe=chosen,
        start=start,
        compiled=compiled,
        model=model,
        dtype=dtype.value,
        device=device,
    )


evaluation = typer.Typer(no_args_is_help=True, help="Measure what memory gains; each writes JSON, Markdown and a picture.")
app.add_typer(evaluation, name="eval")
Results = Annotated[Path, typer.Option("--out", help="Folder for the results.")]


@evaluation.command(no_args_is_help=True)
def perplexity(
    text: Annotated[str, typer.Argument(help="A long text that the model was not trained on.")],
    adapter: Adapter = None,
    rmt: Annotated[Path | None, typer.Option(help="Adapter of the twin trained with --mode rmt.", show_default=False)] = None,
    plain: Annotated[
        Path | None, typer.Option(help="Adapter of the twin trained with --mode plain.", show_default=False)
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="Another text, to exchange memories with: what memory itself carries.", show_default=False),
    ] = None,
    visible: Annotated[
        list[int] | None,
        typer.Option(help="Compare with --plain seeing so many tokens before a segment, too; repeat it.", show_default=False),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens of the text.")] = 30_000,
    out: Results = Path("hmt-eval"),
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Perplexity against length for each kind of memory, with the same visible tokens."""
    from . import experiments, terminal

    experiments.perplexity(
        text,
        out,
        terminal.Screen.standard(),
        adapters={"hmt": adapter, "rmt": rmt, "plain": plain},
        other=other,
        visible=visible or [],
        tokens=tokens,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@evaluation.command("recall", no_args_is_help=True)
def evaluate_recall(
    conversations: Annotated[str, typer.Argument(help="QMSum's .jsonl or LoCoMo's .json.")],
    adapter: Adapter = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Folder of a sentence encoder to compare with.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many conversations.", show_default=False)] = None,
    out: Results = Path("hmt-eval"),
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """How much of the evidence for a question lies inside what is recalled, beside BM25 and the most recent turns."""
    from . import experiments, terminal

    experiments.recall(
        conversations,
        out,
        terminal.Screen.standard(),
        encoder=encoder,
        adapter=adapter,
        limit=limit,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@evaluation.command()
def passkey(
    length: Annotated[
        list[int] | None, typer.Option(min=256, help="Tokens of a text; may be repeated. 1,024 to 1,048,576 if left out.")
    ] = None,
    depths: Annotated[int, typer.Option(min=1, max=16, help="How many depths.")] = 9,
    text: Annotated[
        str | None, typer.Option(help="A text to hide them in; repeated where it is too short.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses names, numbers and filler.")] = 0,
    adapter: Adapter = None,
    out: Results = Path("hmt-eval"),
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Hide facts at every depth of texts from 1,000 to 1,000,000 tokens, and ask for each."""
    from . import experiments, terminal

    experiments.passkey(
        text,
        out,
        terminal.Screen.standard(),
        lengths=length or [],
        depths=depths,
        seed=seed,
        adapter=adapter,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@evaluation.command(no_args_is_help=True)
def questions(
    samples: Annotated[str, typer.Argument(help="PubMedQA's .json, or its rows as .jsonl.")],
    limit: Annotated[int, typer.Option(min=1, help="How many questions.")] = 50,
    seed: Annotated[int, typer.Option(help="Chooses the other contexts and their order.")] = 0,
    adapter: Adapter = None,
    out: Results = Path("hmt-eval"),
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Questions over 2 to 10 abstracts: perplexity of the long answer, accuracy of yes, no, maybe."""
    from . import experiments, terminal

    screen = terminal.Screen.standard()
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "dtype": dtype.value, "device": device}
    experiments.questions(samples, out, screen, limit=limit, seed=seed, **chosen)


@evaluation.command(no_args_is_help=True)
def behaviour(
    text: Annotated[str, typer.Argument(help="A long text.")],
    other: Annotated[str, typer.Argument(help="Another one, to interleave it with.")],
    tokens: Annotated[int, typer.Option(min=256, help="How many tokens of each.")] = 16_384,
    adapter: Adapter = None,
    out: Results = Path("hmt-eval"),
    model: Name = DEFAULT_MODEL,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """How far back memory recalls, interleaved and diluted texts, sensory memory, memories kept."""
    from . import experiments, terminal

    screen = terminal.Screen.standard()
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "dtype": dtype.value, "device": device}
    experiments.behaviour(text, other, out, screen, tokens=tokens, **chosen)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments` (None: the process's own) and exit with its code."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # on a busy machine torch's default is many times slower: docs/LOG.md
    options: dict[str, Any] = {"debug": False}
    try:
        code = app(arguments, prog_name="hmt", standalone_mode=False, obj=options)
    except _UsageError as error:
        code = _complain(_usage_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except HMTError as error:
        code = _complain(str(error), 1, debug=options["debug"])
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error} (hmt --debug shows where)"
        code = _complain(message, 1, debug=options["debug"])
    _flush_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Any) -> str:
    """What is wrong and where help is; empty where the help itself was shown."""
    message = error.format_message().strip()
    command = error.ctx.command_path if error.ctx else "hmt"
    return f"{message} (help: {command} --help)" if message else ""


def _complain(message: str, code: int, *, debug: bool = False) -> int:
    """Report the exception being handled in one line, or in `debug` with its traceback; the exit code."""
    if debug:
        traceback.print_exc()
    elif message:
        print("hmt:", " ".join(message.split()), file=sys.stderr)
    return code


def _flush_stdout() -> None:
    """Flush now, and drop what a reader that has gone (`hmt ask ... | head`) will never take."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
