"""`hmt mcp`: a session as tools for agents, on standard streams."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import MissingDependencyError
from . import options
from .options import DEFAULT_MODEL, Dtype


def mcp(
    session: Annotated[str, typer.Option(help="The session that is recalled and added to; made if it is new.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="Let nothing be added or forgotten.")] = False,
    store: options.Store = None,
    reader: Annotated[
        str,
        typer.Option(
            help="The model that reads and remembers: bundled name, hub id, model folder or .gguf file.",
            envvar="HMT_MODEL",
            autocompletion=options.model_names,
        ),
    ] = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Serve a session to agents by the Model Context Protocol, on standard input and output. Start it from the agent."""
    try:
        from ..server.mcp import Subject, tools
    except ImportError as error:
        raise MissingDependencyError(f"serving needs {error.name}. Run: pip install 'hmt-memory[serve]'") from error
    from ..assistant import Assistant
    from ..server.guard import Caller

    assistant = Assistant(reader, adapter=adapter, reader="same", store=store, dtype=dtype.value, device=device)
    subject = Subject(Caller(read_only=read_only), session)
    subject.caller.own(session)  # a name that cannot be is refused now
    tools(assistant, lambda _: subject, read_only=read_only).run("stdio")
