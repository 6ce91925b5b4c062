"""Processes of a fork server, and the journals that they write."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from places import SUPPORT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm", "crash_worker"])
_ENVIRONMENT = threading.Lock()  # held by whoever changes it for a moment


def start(work: Callable[..., None], *arguments: Any) -> Any:
    process = SERVER.Process(target=work, args=arguments, daemon=True)
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])  # where the server finds what to preload
    with _ENVIRONMENT, mock.patch.dict(os.environ, PYTHONPATH=path):
        process.start()
    return process


def journal_of(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
