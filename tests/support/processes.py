"""Processes of a fork server, and the journals that they write."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any
from unittest import mock

from places import SUPPORT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm", "crash_worker"])
_ENVIRONMENT = threading.Lock()  # held by whoever changes it for a moment


def begin() -> None:
    """Start the server as a fork of this process, which has imported everything and runs no thread that computes yet."""
    if sys.platform != "linux":
        return  # it is started when a process is first asked for, and imports what it has to preload
    SERVER.set_forkserver_preload([])
    sys.__stdout__.flush()  # type: ignore[union-attr]
    with mock.patch.object(util, "spawnv_passfds", _fork):
        forkserver.ensure_running()


def _fork(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Do in a fork what Python is to be started for; return the fork's id."""
    if child := os.fork():
        return child
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, nowhere, *passed}:
            if os.path.exists(f"/proc/self/fd/{number}"):
                os.dup2(nowhere, number)  # not closed, so that no other file takes its number
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as where Python starts
            warnings.simplefilter("ignore", kind)
        exec(arguments[-1])
    finally:
        os._exit(0)


def _with_caches(caches: str | None, work: Callable[..., None], *arguments: Any) -> None:
    if caches is not None:
        os.environ["HMT_CACHE"] = caches
    work(*arguments)


def start(work: Callable[..., None], *arguments: Any) -> Any:
    """Start a process; whatever it can make again goes to the same folder as this one's."""
    process = SERVER.Process(target=_with_caches, args=(os.environ.get("HMT_CACHE"), work, *arguments), daemon=True)
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])  # where it finds what to preload
    with _ENVIRONMENT, mock.patch.dict(os.environ, PYTHONPATH=path):
        process.start()
    return process


def journal_of(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
