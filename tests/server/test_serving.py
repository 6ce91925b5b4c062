"""`hmt serve`: what it listens to, which token it makes, and what it says is missing."""

from __future__ import annotations

import builtins
import io
import threading
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from hmt_memory.cli.command import app
from hmt_memory.server import logs
from hmt_memory.server.tokens import Tokens


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda application, **options: calls.append({"app": application, **options}))
    return calls


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], obj={"debug": False})


def test_it_listens_to_this_machine_alone_and_needs_no_token_then(
    served: list[dict[str, Any]], tmp_path: Path, chatty: str
) -> None:
    done = run("--store", str(tmp_path / "store"), "--model", chatty)
    assert done.exit_code == 0 and "http://127.0.0.1:8399/v1" in done.output
    (call,) = served
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0
    assert call["log_config"] == logs.settings(logs.LogFormat.text)
    assert call["host"] == "127.0.0.1" and len(Tokens(tmp_path / "store")) == 0
    local, elsewhere = (
        TestClient(call["app"], base_url="http://localhost"),
        TestClient(call["app"], base_url="http://evil.example"),
    )
    assert local.get("/v1/models").status_code == 200 and elsewhere.get("/v1/models").status_code == 400


@pytest.mark.slow
def test_another_address_needs_a_token_which_is_printed_once(served: list[dict[str, Any]], tmp_path: Path, chatty: str) -> None:
    given = ("--store", str(tmp_path), "--model", chatty, "--host", "0.0.0.0", "--port", "9000")
    done = run(*given, "--log-format", "json")
    assert served[0]["log_config"] == logs.settings(logs.LogFormat.json)
    assert done.exit_code == 0 and served[0]["host"] == "0.0.0.0" and served[0]["port"] == 9000
    secret = next(word for word in done.output.split() if word.startswith("hmt-"))
    anywhere = TestClient(served[0]["app"], base_url="http://memory.example:9000")
    assert anywhere.get("/v1/models").status_code == 401
    assert anywhere.get("/v1/models", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert "hmt-" not in run(*given).output, "it is known by then"
    assert run(*given, "--token", "guest", "--of", "default", "--read-only").output.count("hmt-") == 1
    assert Tokens(tmp_path).names() == ["default", "guest"]
    assert run(*given, "--remove-token", "guest").exit_code == 0 and Tokens(tmp_path).names() == ["default"]
    only = run(*given, "--allow-host", "memory.example")
    assert only.exit_code == 0
    named = TestClient(served[-1]["app"], base_url="http://other.example")
    assert named.get("/v1/models").status_code == 400


def test_what_does_not_go_together_is_said(served: list[dict[str, Any]], tmp_path: Path) -> None:
    for alone in (["--read-only"], ["--of", "ann"]):
        done = run("--store", str(tmp_path), *alone)
        assert done.exit_code != 0 and "name it with --token" in str(done.exception) and not served


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = builtins.__import__

    def missing(name: str, *given: Any, **options: Any) -> Any:
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return load(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    done = run("--store", str(tmp_path))
    assert "pip install 'hmt-memory[serve]'" in str(done.exception)


def test_the_page_is_opened_once_the_server_answers(
    served: list[dict[str, Any]], tmp_path: Path, chatty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, shown = [], []

    def answer(opener: Any, url: str, timeout: float) -> Any:
        asked.append(url)
        if len(asked) < 3:
            raise URLError("nobody listens yet")
        return io.BytesIO()

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", answer)
    monkeypatch.setattr(webbrowser, "open", shown.append)
    before = set(threading.enumerate())
    run("--store", str(tmp_path), "--model", chatty, "--port", "81", "--host", "0.0.0.0", "--open")
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert served and asked == ["http://127.0.0.1:81/health"] * 3 and shown == ["http://127.0.0.1:81"]
