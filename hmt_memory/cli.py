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


DEFAULT_MODEL = "smollm2-135m-instruct"  # as in weights.py, which imports torch
Name = Annotated[
    str,
    typer.Option("--model", "-m", envvar="HMT_MODEL", help="Bundled name, hub id, model folder or .gguf file."),
]
Adapter = Annotated[Path | None, typer.Option(help="Folder with trained memory parameters.", show_default=False)]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token; higher varies more.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens with this much probability.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)]
Precision = Annotated[Dtype, typer.Option(help="Precision of the backbone; auto: what this hardware multiplies natively.")]
Device = Annotated[str, typer.Option(help="auto (CUDA, else MPS, else CPU), or a torch device such as cuda:1.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hmt-memory {__version__}")
        raise typer.Exit


def _question(text: str) -> str:
    if text == "-" or _is_file(text):
        raise typer.BadParameter(f"{text} is a file. End with the question: hmt ask {text} 'What is this about?'")
    if not text.strip():
        raise typer.BadParameter("it is empty. End with the question, in quotes.")
    return text


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


@app.command(no_args_is_help=True, epilog="Example: hmt ask notes.md 'When is the meeting?'")
def ask(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Text or markdown; - is standard input.")],
    question: Annotated[
        str,
        typer.Argument(metavar="QUESTION", callback=_question, is_eager=True, help="The last argument, in quotes."),
    ],
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
    """Read files of any length, then answer a question about them."""
    from . import terminal

    screen = terminal.Screen.standard()
    terminal.check_text(question)
    documents = terminal.open_documents(files, screen)
    loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
    decoding = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    terminal.ask(loaded, documents, question, screen, passages=passages, decoding=decoding)


@app.command()
def chat(
    system: Annotated[str | None, typer.Option(help="System prompt; it never scrolls away.", show_default=False)] = None,
    model: Name = DEFAULT_MODEL,
    adapter: Adapter = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    dtype: Precision = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Talk with the model; /help inside lists the commands. Nothing is stored."""
    from . import dialogue, terminal

    screen = terminal.Screen.standard()
    loaded = terminal.load_model(model, screen, adapter=adapter, dtype=dtype.value, device=device)
    decoding = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    dialogue.chat(loaded, dialogue.typed_lines(screen), screen, system=system, decoding=decoding)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Check what is installed and whether the default model can run."""
    from . import doctor as diagnosis

    findings = diagnosis.examine()
    (diagnosis.print_json if as_json else diagnosis.print_table)(findings)
    raise typer.Exit(0 if findings.ok else 1)


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
