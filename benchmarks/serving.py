"""A server in a process of its own: started as anybody starts it, stopped, killed, and looked at from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

_COMMAND = "import sys; from hmt_memory.cli import main; sys.argv[0] = 'hmt'; main()"
_SECONDS = 120  # in which a server starts or stops


class Server:
    """`hmt serve` at a free port.

    Args:
        store: folder of the sessions.
        model: that answers.
        options: further ones of the command.
    """

    def __init__(self, store: Path, model: str, *options: str) -> None:
        self.store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-c", _COMMAND, "serve", "--port", str(self.port)]
        self._command += ["--store", str(store), "--model", model, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.store.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/health", timeout=1).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise RuntimeError(f"the server did not start. {self.store.parent / 'server.log'} says why.")

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> None:
        """Stop it by a signal: SIGTERM lets it finish what it writes, SIGKILL nothing."""
        assert self.process is not None
        self.process.send_signal(kind)
        self.process.wait(_SECONDS)

    def __enter__(self) -> Server:
        self.store.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def megabytes(self) -> float:
        """Return its resident memory (Linux)."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def descriptors(self) -> int:
        """Return the number of its open files and connections (Linux)."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
