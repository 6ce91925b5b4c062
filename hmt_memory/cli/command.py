"""The `hmt` command itself: its list of commands, exit codes and one-line errors."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from .._version import __version__
from ..config import DEFAULT_MODEL
from ..errors import HMTError
from . import benching, corpora, evaluation, exporting, options, serving, sessions, stores, talking, tools, training

app = typer.Typer(
    name="hmt",
    help="A memory without end for local language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_UsageError: Any = typer.BadParameter.__base__  # typer's base of all usage errors; it has no public name there


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hmt-memory {__version__}")
        raise typer.Exit


@app.callback()
def hmt(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Note the options that stand before every command."""
    context.ensure_object(dict)["debug"] = debug


def doctor(model: options.Name = DEFAULT_MODEL, as_json: options.Json = False) -> None:
    """Check what is installed and whether the default model can run; and what the weights of another model are."""
    from . import doctor as diagnosis

    findings = diagnosis.examine(model)
    (diagnosis.print_json if as_json else diagnosis.print_table)(findings)
    raise typer.Exit(0 if findings.ok else 1)


app.command(
    no_args_is_help=True, epilog="Examples: hmt ask notes.md 'When is the meeting?'; hmt ask --corpus handbook 'How long?'"
)(talking.ask)
app.command()(talking.chat)
app.command(no_args_is_help=True, epilog="Example: hmt read --corpus handbook docs/*.md lease.pdf")(corpora.read)
app.add_typer(sessions.app, name="sessions")
app.add_typer(corpora.app, name="corpora")
app.command(no_args_is_help=True)(stores.backup)
app.command(
    no_args_is_help=True,
    epilog="Example: hmt tenants acme --store postgresql://owner@db.example/memory; then serve it as postgresql://acme@...",
)(stores.tenants)
app.command()(doctor)
app.command(epilog="Example: hmt serve; then point any OpenAI client to http://127.0.0.1:8399/v1")(serving.serve)
app.command(epilog="Example, as an agent starts it: hmt mcp --session notes")(tools.mcp)
app.command()(benching.bench)
app.command(
    no_args_is_help=True,
    epilog="Example: hmt train books/ notes.jsonl --recipe paper-lora --out run; the same command resumes.",
)(training.train)
app.command(no_args_is_help=True, epilog="Example: hmt export merged; then vllm serve merged --enable-prompt-embeds")(
    exporting.export
)
app.add_typer(evaluation.app, name="eval")


@cache
def _command() -> Any:
    """Return the command with all below it, put together once in a process."""
    return get_command(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments` (None: the process's own) and exit with its code."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # on a busy machine torch's default is many times slower: docs/log.md
    options: dict[str, Any] = {"debug": False}
    try:
        code = _command()(arguments, prog_name="hmt", standalone_mode=False, obj=options)
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
    """Say what is wrong and where help is; empty where the help itself was shown."""
    message = error.format_message().strip()
    command = error.ctx.command_path if error.ctx else "hmt"
    return f"{message} (help: {command} --help)" if message else ""


def _complain(message: str, code: int, *, debug: bool = False) -> int:
    """Report the exception being handled in one line, or in `debug` with its traceback. Returns the exit code."""
    if debug:
        traceback.print_exc()
    elif message:
        print("hmt:", " ".join(message.split()), file=sys.stderr)
    return code


def _flush_stdout() -> None:
    """Flush now; drop the rest of the output if its reader has gone (`hmt ask ... | head`)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
