"""`/ready`: what it says before the model is loaded, while it is, when that fails, and after."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from places import SUPPORT
from serving_apart import serving
from typer.testing import CliRunner

from hmt_memory import Assistant, HMTModel
from hmt_memory.cli.command import app as command
from hmt_memory.errors import InputError
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

HELLO = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
LOCAL = Settings(hosts=("testserver",))


def loaded(api: Any) -> None:
    """Wait for the thread that loads."""
    thread = api.app.state.readiness.loading
    thread.join(60)
    assert not thread.is_alive()


def ready(api: Any) -> tuple[int, str]:
    answer = api.get("/ready")
    return answer.status_code, answer.json()["status"]


def test_the_model_is_loaded_ahead_and_nobody_has_to_call(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    load, go_on = HMTModel.from_pretrained, threading.Event()

    def slow(*given: Any, **options: Any) -> HMTModel:
        assert go_on.wait(60)
        return load(*given, **options)

    monkeypatch.setattr(HMTModel, "from_pretrained", slow)
    with TestClient(create_app(assistant, LOCAL, load=True)) as api:
        assert ready(api) == (503, "the model is being loaded") and api.get("/health").status_code == 200
        go_on.set()
        loaded(api)
        assert ready(api) == (200, "ready")


def test_it_is_left_to_the_first_answer_unless_it_is_asked_for(assistant: Assistant) -> None:
    with TestClient(create_app(assistant, LOCAL)) as api:
        assert ready(api) == (503, "the model is loaded with the first answer")
        assert api.post("/v1/chat/completions", json=HELLO).status_code == 200
        assert ready(api) == (200, "ready")


def test_a_reader_has_to_be_loaded_too(chatty: str, plain: str, tmp_path: Path) -> None:
    assistant = Assistant(chatty, reader=plain, store=tmp_path, dtype="float32", device="cpu")
    assert assistant.reader is not None and not assistant.is_ready
    assistant.load()
    other = Assistant(chatty, reader=plain, store=tmp_path, dtype="float32", device="cpu")
    assert assistant.is_ready and other.is_ready, "weights are shared"
    late = Assistant(chatty, reader=str(shutil.copytree(plain, tmp_path / "late")), dtype="float32", device="cpu")
    assert late.is_loaded and not late.is_ready


def test_why_it_could_not_be_loaded_is_said_and_an_answer_tries_again(
    chatty: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later.gguf"
    assistant = Assistant(str(folder), reader=chatty, store=tmp_path / "store", dtype="float32", device="cpu")
    with TestClient(create_app(assistant, LOCAL, load=True)) as api:
        loaded(api)
        status, why = ready(api)
        assert status == 503 and why.startswith("the model could not be loaded: there is no file") and str(folder) in why
        (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
        assert str(folder) in record.getMessage()
        assert api.post("/v1/chat/completions", json=HELLO).status_code == 404
        assistant._weights.settings = Assistant(chatty).settings  # now there is a model
        assert api.post("/v1/chat/completions", json=HELLO).status_code == 200
        assert ready(api) == (200, "ready")


def test_whoever_shows_no_token_is_told_no_folder(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.make("ann")
    assistant = Assistant(str(tmp_path / "none.gguf"), reader="same", store=tmp_path)
    with TestClient(create_app(assistant, LOCAL, tokens=tokens, load=True)) as api:
        loaded(api)
        assert ready(api) == (503, "the model could not be loaded. The server's own output says more.")


def test_what_fails_unforeseen_is_written_without_its_words(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Assistant, "load", lambda _: [][0])
    with TestClient(create_app(assistant, LOCAL, load=True)) as api:
        loaded(api)
        assert ready(api) == (503, "the model could not be loaded. The server's own output says more.")
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info and record.exc_info[0] is IndexError and "index" not in record.getMessage()


@pytest.mark.parametrize("option", ["--no-load", None])
def test_the_command_loads_ahead_unless_it_is_told_not_to(
    chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str | None
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda application, **_: served.append(application))
    given = ["serve", "--store", str(tmp_path / "store"), "--model", chatty, "--reader", "same", "--device", "cpu"]
    assert CliRunner().invoke(command, [*given, *filter(None, [option])], obj={"debug": False}).exit_code == 0
    with TestClient(served[0], base_url="http://localhost") as api:
        if option == "--no-load":
            assert served[0].state.readiness.loading is None
        else:
            loaded(api)
            assert ready(api) == (200, "ready")


def test_replicas_load_in_any_case(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["serve", "--store", str(tmp_path), "--ray", "--no-load"], obj={"debug": False})
    assert isinstance(done.exception, InputError) and "leave out --no-load" in str(done.exception)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_server_that_is_stopped_while_it_loads_does_not_wait_for_that(chatty: str, tmp_path: Path) -> None:
    with serving(tmp_path, chatty, script="stuck_command.py") as server:
        assert ready(server.api) == (503, "the model is being loaded")
        server.process.terminate()
        server.process.join(30)
        assert server.process.exitcode == -signal.SIGTERM


@contextmanager
def alone(chatty: str, folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The server as a process that is no fork, whose end is another."""
    given = ["serve", "--port", str(port), "--store", str(folder / "store"), "--model", chatty, "--reader", "same"]
    command = [sys.executable, str(SUPPORT / "stuck_command.py"), *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.enable_socket
def test_an_interrupt_while_torch_is_at_work_ends_it_as_at_any_other_time(chatty: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with alone(chatty, tmp_path, port) as process, httpx.Client(trust_env=False) as http:
        while process.poll() is None and not answers(http, port):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 0 and "terminate" not in said, said


def answers(http: httpx.Client, port: int) -> bool:
    try:
        return http.get(f"http://127.0.0.1:{port}/ready").status_code == 503
    except httpx.ConnectError:
        return False


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_port_that_is_taken_is_said_while_torch_is_at_work(chatty: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, alone(chatty, tmp_path, taken.getsockname()[1]) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1 and "in use" in said and "terminate" not in said, said
