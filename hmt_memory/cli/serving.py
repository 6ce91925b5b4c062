"""`hmt serve`: the memory behind OpenAI's protocol, for any client on this machine, or with a token on others."""

from __future__ import annotations

import os
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, MissingDependencyError
from ..server import logs
from ..server.logs import LogFormat
from . import options
from .options import DEFAULT_MODEL, Dtype
from .terminal import Screen

if TYPE_CHECKING:
    from ..server.readiness import Readiness

_ANY = ("0.0.0.0", "::")
_SECONDS = 30  # in which a server starts
_HERE = ("127.0.0.1", "localhost", "::1")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8399,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which clients call; may be repeated.", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Make a token of this name, print it, and require one from now on.", show_default=False)
    ] = None,
    of: Annotated[str | None, typer.Option(help="The token whose sessions that of --token sees.", show_default=False)] = None,
    remove_token: Annotated[
        str | None, typer.Option(help="Remove a token first; its sessions stay.", show_default=False)
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="The token of --token may look only.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="Answers that are written at once.")] = 4,
    together: Annotated[
        int, typer.Option(min=0, help="Answers that share their steps, for GPUs; then at least so many are written at once.")
    ] = 0,
    no_load: Annotated[
        bool, typer.Option("--no-load", help="Load the model with the first call that needs it, not as the server starts.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Form of the lines on standard error; with json, one for each call.")
    ] = LogFormat.text,
    show: Annotated[bool, typer.Option("--open", help="Open the page that shows what is remembered.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Answer on a Ray cluster, by replicas that share the store.")] = False,
    replicas: Annotated[
        str | None, typer.Option(help="With --ray: how many, as 2, or 1-4 by need; one if not given.", show_default=False)
    ] = None,
    replica_calls: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="With --replicas 1-4: calls under way for which there is one replica each; --answers if not given.",
            show_default=False,
        ),
    ] = None,
    scale_up_after: Annotated[
        float, typer.Option(min=0, help="With --replicas 1-4: seconds of more calls before there are more replicas.")
    ] = 30.0,
    scale_down_after: Annotated[
        float, typer.Option(min=0, help="With --replicas 1-4: seconds of fewer calls before there are fewer.")
    ] = 600.0,
    replica_cpus: Annotated[float, typer.Option(min=0, help="With --ray: CPUs that each replica takes.")] = 1.0,
    replica_gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs that each replica takes.")] = 0.0,
    hot_mib: options.Hot = 512,
    warm_mib: options.Warm = None,
    warm_folder: options.WarmFolder = None,
    fetch_ahead: options.FetchAhead = False,
    store: options.Store = None,
    model: options.Answering = DEFAULT_MODEL,
    reader: options.Reader = None,
    vllm: options.VLLM = None,
    adapter: options.Adapter = None,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Serve the memory to OpenAI's clients, at http://127.0.0.1:8399/v1, and show it at http://127.0.0.1:8399.

    The header X-HMT-Session of a call names its session.
    """
    try:
        import uvicorn

        from ..cluster import serving as replicated
        from ..server import tracing
        from ..server.app import create_app
    except ImportError as error:
        raise MissingDependencyError(f"serving needs {error.name}. Run: pip install 'hmt-memory[serve]'") from error
    from ..assistant import Assistant
    from ..server.guard import LOCAL_HOSTS
    from ..server.settings import Settings
    from ..server.tokens import Tokens
    from ..sessions.tiers import Tiers
    from ..store.open import data_folder, default_store, place_of

    if replicas is not None and not ray:
        raise InputError("--replicas says how many answer on a Ray cluster: give it with --ray.")
    if ray and no_load:
        raise InputError("replicas load the model before they are called: leave out --no-load.")
    tracing.start()
    screen = Screen.standard()
    place = default_store() if store is None else place_of(store)
    folder = place if isinstance(place, Path) else data_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tokens = Tokens(folder)
    if remove_token is not None:
        tokens.remove(remove_token)
    if host not in _HERE and not len(tokens) and token is None:
        token = "default"  # its name
    if token is not None:
        secret = tokens.make(token, of=of, read_only=read_only)
        screen.note(f"The token {token!r}, which is shown this once: {secret}")
    elif read_only or of is not None:
        raise InputError("--read-only and --of are about a new token: name it with --token.")
    # A page of another site that leads a browser here by a name of its own has no token to show.
    hosts = ("*",) if len(tokens) and not allow_host else (*LOCAL_HOSTS, host, *(allow_host or ()))
    tiers = Tiers.of_mebibytes(hot_mib, warm_mib, folder=warm_folder, fetch_ahead=fetch_ahead)
    assistant = Assistant(
        model,
        adapter=adapter,
        reader=reader,
        store=place,
        dtype=dtype.value,
        device=device,
        vllm=vllm,
        together=together,
        tiers=tiers,
    )
    settings, required = Settings(hosts=hosts, answers=max(answers, together)), tokens if len(tokens) else None
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    said = f"{assistant.name} answers at {address}/v1, and {address} shows what is remembered."
    here = address if host not in _ANY else f"http://127.0.0.1:{port}"
    opening = threading.Thread(target=_open, args=(here,), daemon=True)
    if ray:
        scale = replicated.Scale.of(
            replicas or "1",
            cpus=replica_cpus,
            gpus=replica_gpus,
            calls=replica_calls,
            up_after=scale_up_after,
            down_after=scale_down_after,
        )
        told = replicated.told_to_stop()
        with screen.notes.status("starting the replicas"):
            replicated.serve(assistant, settings, tokens=required, scale=scale, host=host, port=port, form=log_format)
        screen.note(said)
        if show:
            opening.start()
        told.wait()
        replicated.stop()
        return
    if show:
        opening.start()
    app = create_app(assistant, settings, tokens=required, load=not no_load)
    screen.note(said)
    with _not_waiting(app.state.readiness):
        uvicorn.run(app, host=host, port=port, log_level="warning", log_config=logs.settings(log_format), server_header=False)


@contextmanager
def _not_waiting(readiness: Readiness) -> Iterator[None]:
    """Serve inside; if the model is still being loaded then, end the process at once.

    Python would end that thread in the middle of torch, and the process with it.
    """
    code = 0
    try:
        yield
    except SystemExit:  # as where the port is taken; the server has said so
        code = 1
    if readiness.is_loading:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


def _open(address: str) -> None:
    """Open a page in the user's browser as soon as the server answers."""
    import urllib.request

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(_SECONDS * 10):
        try:
            direct.open(f"{address}/health", timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            webbrowser.open(address)
            return
