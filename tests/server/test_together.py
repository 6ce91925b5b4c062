"""`hmt serve --together`: answers that share their steps are those that are written alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from hmt_memory import Assistant
from hmt_memory.cli.command import app as command
from hmt_memory.errors import InputError
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

SESSIONS = 5


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_ENGINE", "torch")


def assistant_of(folder: Path, model: str, together: int) -> Assistant:
    return Assistant(model, reader="same", store=folder, dtype="float32", device="cpu", together=together)


def told(http: TestClient, number: int) -> tuple[str, int]:
    body = {
        "messages": [{"role": "user", "content": f"My number is {number}. " * (number + 1)}],
        "max_tokens": 40,
        "metadata": {"session_id": f"s{number}"},
    }
    answer = http.post("/v1/chat/completions", json=body).json()
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def answers(assistant: Assistant, threads: int) -> list[tuple[str, int]]:
    app = create_app(assistant, Settings(hosts=("testserver",), answers=SESSIONS))
    with TestClient(app) as http, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda number: told(http, number), range(SESSIONS)))


@pytest.mark.slow
def test_sessions_that_are_answered_at_once_are_told_what_they_are_told_alone(chatty: str, tmp_path: Path) -> None:
    alone = answers(assistant_of(tmp_path / "alone", chatty, 0), 1)
    together = assistant_of(tmp_path / "together", chatty, SESSIONS)
    assert answers(together, SESSIONS) == alone
    batching = together.model.backbone.batching
    assert batching is not None and batching.most == SESSIONS and batching.tokens > batching.steps > 0
    assert assistant_of(tmp_path / "alone", chatty, 0).model.backbone.batching is None, "others have weights of their own"


def test_the_command_shares_steps_where_it_is_asked_for_and_lets_as_many_be_written_at_once(
    chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **_: served.append(app.state))
    for given, most, at_once in (([], 0, 4), (["--together", "6"], 6, 6), (["--together", "2"], 2, 4)):
        done = CliRunner().invoke(command, ["serve", "--store", str(tmp_path), "--model", chatty, *given], obj={"debug": False})
        assert done.exit_code == 0, done.output
        assert served[-1].assistant.settings.together == most and served[-1].settings.answers == at_once


@pytest.mark.parametrize("given", [{"model": "http://127.0.0.1:1/v1"}, {"vllm": "http://127.0.0.1:1/v1"}])
def test_what_does_not_write_here_shares_no_steps(chatty: str, tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="together= is about a model by name"):
        Assistant(**{"model": chatty, "store": tmp_path, "together": 4, **given})  # type: ignore[arg-type]


def test_a_pickled_assistant_goes_on_sharing(chatty: str, tmp_path: Path) -> None:
    made, settings = assistant_of(tmp_path, chatty, 3).__reduce__()
    assert made(*settings).settings.together == 3, "as each replica of a Ray cluster has it"
