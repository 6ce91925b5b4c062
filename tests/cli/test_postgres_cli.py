"""The commands on a store in PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crash_worker
import postgres
import pytest
from stored import user
from tenants import Apart

from hmt_memory import MemoryStore
from hmt_memory.cli import main

MODEL = crash_worker.MODEL


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def url(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with MemoryStore(postgres_url) as store:
        store.session("alice", MODEL).add([user("the key is under the pot"), user("a secret")])
    monkeypatch.setenv("HMT_STORE", postgres_url)
    return postgres_url


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_sessions(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sessions", "list", "--json") == 0 and told(capsys)["sessions"][0]["name"] == "alice"
    assert run("sessions", "forget", "alice", "2", "--yes", "--json") == 0
    capsys.readouterr()
    assert run("sessions", "show", "alice", "--store", url, "--json") == 0
    assert "secret" not in (out := capsys.readouterr().out) and "under the pot" in out
    assert run("sessions", "verify", "--json") == 0 and run("sessions", "compact", "--json") == 0
    capsys.readouterr()
    assert run("sessions", "list", "--store", "postgresql:/db/x") == 1
    assert "begins with postgresql://" in capsys.readouterr().err


def test_tenants(url: str, postgres_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = Apart(postgres_server, url)
    ann, bob = apart.role(), apart.role()
    try:
        assert run("tenants", bob) == 1 and "--existing ROLE" in capsys.readouterr().err
        assert run("tenants", bob, "--existing", ann, "--json") == 0 and told(capsys)["roles"] == [bob]
        for role, names in ((ann, ["alice"]), (bob, [])):
            assert run("sessions", "list", "--store", apart.of(role), "--json") == 0
            assert [session["name"] for session in told(capsys)["sessions"]] == names
        assert run("sessions", "list") == 1 and "superuser" in capsys.readouterr().err
        assert run("tenants", bob, "--store", str(tmp_path)) == 1 and "SQLite has no tenants" in capsys.readouterr().err
    finally:
        apart.drop()


def test_a_store_moves_to_a_folder_and_back(
    url: str, tmp_path: Path, postgres_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, another = str(tmp_path / "copy"), postgres.new_store(postgres_server)
    try:
        assert run("backup", folder, "--json") == 0 and told(capsys)["sessions"] == 1
        assert run("backup", another, "--store", folder, "--json") == 0 and told(capsys)["bytes"] > 0
        with MemoryStore(another) as store:
            assert [message.content for message in store.session("alice").messages()] == [
                "the key is under the pot",
                "a secret",
            ]
    finally:
        postgres.drop(another)
