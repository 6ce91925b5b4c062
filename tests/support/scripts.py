"""Scripts run in processes of their own that need not import everything anew: they are forks of a server that has."""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import start


def run_script(
    script: Path, *arguments: str, environment: Mapping[str, str] | None = None, typed: str = "", timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end as `python SCRIPT ARGUMENTS` does; so do the scripts that it starts by `subprocess.run`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("in", "out", "err")]
        for path, text in zip(files, (typed, "", ""), strict=True):
            path.write_text(text)
        process = start(apart, str(script), arguments, dict(environment or os.environ), [str(path) for path in files])
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(str(script), timeout)
        return subprocess.CompletedProcess(
            [str(script), *arguments], process.exitcode, *(path.read_text() for path in files[1:])
        )


def apart(script: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[str]) -> None:
    """Be a process that runs a script.

    Args:
        script: its file.
        arguments: of it.
        environment: all variables that it has.
        files: what its standard input, output and error are.
    """
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY), number)
    sys.stdin = os.fdopen(0, closefd=False)
    subprocess.run = _forked  # type: ignore[assignment]
    atexit._clear()
    sys.exit(_to_its_end(script, arguments))


def _to_its_end(script: str, arguments: Sequence[str]) -> int:
    """Run a script; return its exit status."""
    sys.argv, status = [script, *arguments], 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


_run = subprocess.run


def _forked(command: Sequence[str], *, check: bool = False, **others: Any) -> subprocess.CompletedProcess[Any]:
    """Do what `subprocess.run` does: without starting Python again where that is all it is to do."""
    if others or isinstance(command, str) or str(command[0]) != sys.executable:  # Matplotlib asks for fonts, for one
        return _run(command, check=check, **others)
    script, *arguments = map(str, command[1:])
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os._exit(_to_its_end(script, arguments))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if check and status:
        raise subprocess.CalledProcessError(status, command)
    return subprocess.CompletedProcess(command, status)
