"""`hmt serve` in a process of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from places import SUPPORT
from processes import start
from scripts import apart


class Served(NamedTuple):
    """The server, as a client and as a process."""

    api: httpx.Client
    process: Any


@contextmanager
def serving(folder: Path, model: str, *options: str, script: str = "hmt_command.py", **environment: str) -> Iterator[Served]:
    """Run `hmt serve` at a free port, and stop it as systemd does.

    Args:
        folder: of its store and its output.
        model: answers and reads.
        *options: further ones of the command.
        script: of `tests/support`, which is the command.
        **environment: variables that it has besides this process's own; of OpenTelemetry's it has no others.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [folder / name for name in ("in", "out", "err")]
    for file in files:
        file.touch()
    given = ("serve", "--port", str(port), "--store", str(folder / "store"), "--model", model, "--reader", "same", *options)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = start(apart, str(SUPPORT / script), given, kept | environment, [str(file) for file in files])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as api:
            while not _answers(api):
                assert process.is_alive(), files[2].read_text()
                time.sleep(0.05)
            yield Served(api, process)
        process.terminate()
        process.join(30)
        assert process.exitcode is not None
    finally:
        process.kill()
        process.join()


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").is_success
    except httpx.ConnectError:
        return False
