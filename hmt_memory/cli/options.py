"""The arguments that several commands take, and how a shell completes them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..config import DEFAULT_MODEL
from ..engine import places
from ..errors import HMTError

__all__ = ["DEFAULT_MODEL"]


class Dtype(str, Enum):
    """The values of --dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def session_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the sessions whose names begin with `incomplete`."""
    return _names(context, "session", incomplete)


def corpus_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the corpora whose names begin with `incomplete`."""
    return _names(context, "corpus", incomplete)


def model_names(incomplete: str) -> list[str]:
    """Return the bundled models whose names begin with `incomplete`."""
    return [name for name in places.BUNDLED if name.startswith(incomplete)]


def _names(context: typer.Context, kind: str, incomplete: str) -> list[str]:
    """Return names in the store of the command line.

    There are none where the store cannot be opened: a shell that completes shows no error.
    """
    from ..sessions.memory_store import MemoryStore
    from ..sessions.names import is_aside
    from ..store.open import default_store

    try:
        with MemoryStore(context.params.get("store") or default_store(), read_only=True) as store:
            known = store.sessions() if kind == "session" else store.corpora()
    except (HMTError, OSError):
        return []
    return [name for name in known if name.startswith(incomplete) and not is_aside(name)]


Name = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="HMT_MODEL",
        help="Bundled name, hub id, model folder or .gguf file.",
        autocompletion=model_names,
    ),
]
Reader = Annotated[
    str | None,
    typer.Option(
        help="The model that reads and remembers, with --adapter; --model answers from its notes. same: --model itself. By "
        "default the bundled model reads for those whose memory is not trained.",
        show_default=False,
    ),
]
Answering = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="HMT_MODEL",
        help="Bundled name, hub id, model folder or .gguf file; or a server of OpenAI's API that answers from notes: "
        "http://host:port/v1, with #name where it has several models, or openai:name.",
        autocompletion=model_names,
    ),
]
VLLM = Annotated[
    str | None,
    typer.Option(
        "--vllm",
        metavar="ADDRESS",
        help="A vLLM server, http://host:port/v1, that has the weights of --model (hmt export) and writes its answers; reading "
        "stays here.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder with trained memory parameters; none: untrained.", show_default=False)
]
Precision = Annotated[Dtype, typer.Option(help="Precision of the backbone; auto: what this hardware multiplies natively.")]
Device = Annotated[str, typer.Option(help="auto (CUDA, else MPS, else CPU), or a torch device such as cuda:1.")]

MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token; higher varies more.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens with this much probability.")]
Penalty = Annotated[
    float,
    typer.Option("--repetition-penalty", min=0.01, help="Above 1 makes what was said already less likely; 1 is none."),
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)]
System = Annotated[str | None, typer.Option(help="System prompt; it never scrolls away.", show_default=False)]

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="HMT_STORE",
        help="Folder of sessions and corpora, by default in your data folder; or postgresql://host/database.",
        show_default=False,
    ),
]
Hot = Annotated[
    int,
    typer.Option(
        "--hot-mib",
        envvar="HMT_HOT_MIB",
        min=0,
        help="MiB of memory, on devices too, for indexes, memories and views of sessions that are not in use.",
    ),
]
Warm = Annotated[
    int | None,
    typer.Option(
        "--warm-mib",
        envvar="HMT_WARM_MIB",
        min=0,
        help="MiB of this machine's disk for index files; no limit if not given.",
        show_default=False,
    ),
]
WarmFolder = Annotated[
    Path | None,
    typer.Option(
        "--warm-folder",
        envvar="HMT_WARM_FOLDER",
        help="Folder of index files on this machine's disk; by default in the store's folder, or in HMT_CACHE for PostgreSQL.",
        show_default=False,
    ),
]
FetchAhead = Annotated[
    bool,
    typer.Option(
        "--fetch-ahead/--no-fetch-ahead",
        envvar="HMT_FETCH_AHEAD",
        help="Make the next view of a session after each answer, and when its messages are listed.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Top = Annotated[int, typer.Option(min=1, help="How many at most.")]
Query = Annotated[list[str], typer.Argument(metavar="WORDS...", help="What to search for.")]

Session = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A session; hmt sessions list shows them.", autocompletion=session_names),
]
Corpus = Annotated[
    str, typer.Argument(metavar="NAME", help="A corpus; hmt corpora list shows them.", autocompletion=corpus_names)
]
Corpora = Annotated[
    list[str],
    typer.Argument(metavar="CORPUS...", help="What hmt read has read.", autocompletion=corpus_names),
]
