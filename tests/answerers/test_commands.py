"""The commands and the server with models elsewhere: addresses as --model, --vllm, and the weights that are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import APIStatusError, OpenAI
from stored import user
from terminal_input import run
from told import READER
from writers import recording_vllm

from hmt_memory import Assistant, HMTModel, MemoryStore
from hmt_memory.answerers import ChatServer, VLLMServer
from hmt_memory.cli import talking
from hmt_memory.errors import AnswererError
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings


class Said:
    """Stands for a server that answers from notes."""

    def __init__(self, address: str) -> None:
        self.name = address

    def reach(self) -> None:
        if "away" in self.name:
            raise AnswererError(f"{self.name} cannot be reached.")

    def answer(self, messages: Any, **options: Any) -> Any:
        if "fail" in messages[-1]["content"]:
            raise AnswererError(f"{self.name} cannot be reached: secret. Start it.")
        yield f"{self.name} with {sorted(options)}"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmt_memory.answerers.chat_server.ChatServer", Said)


def ask(chatty: str, store: Path, *options: str) -> int:
    return run("ask", "--corpus", "book", "Which word?", "--store", str(store), "--passages", "0", *options)


@pytest.fixture
def store(chatty: str, tmp_path: Path) -> Path:
    model = HMTModel.from_pretrained(chatty, dtype="float32", device="cpu")
    with MemoryStore(tmp_path / "store") as opened:
        opened.corpus("book", model).add_documents([("page", "The word is zanzibar.")])
    return tmp_path / "store"


def test_a_command_takes_an_address_as_its_model(
    chatty: str, store: Path, said: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", "http://host/v1", "--reader", chatty, "--dtype", "float32", "--device", "cpu")
    assert ask(chatty, store, *asked) == 0
    assert "http://host/v1 with ['max_new_tokens'" in capsys.readouterr().out
    assert ask(chatty, store, "--model", "openai:gpt", "--reader", "same") == 1
    assert "only answers" in capsys.readouterr().err
    assert ask(chatty, store, *asked, "--vllm", "http://host/v1") == 1
    assert "needs the weights" in capsys.readouterr().err
    assert run("ask", __file__, "Which word?", "--model", "http://host/v1") == 2
    assert run("read", "--corpus", "book", __file__, "--model", "http://host/v1", "--store", str(store)) == 1
    assert "only answers. Name a model that runs here" in capsys.readouterr().err


def test_a_server_that_is_away_leaves_no_session_behind(
    chatty: str, said: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--reader", chatty, "--dtype", "float32", "--device", "cpu", "--session", "work")
    assert run("chat", "--model", "http://away/v1", *given, "--store", str(tmp_path)) == 1
    assert "cannot be reached" in capsys.readouterr().err
    with MemoryStore(tmp_path) as opened:
        assert not list(opened.sessions())


def test_penalties_of_small_models_are_not_sent_to_others(
    chatty: str, said: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(talking.dialogue, "chat", lambda *_, decoding, **__: seen.append(decoding["repetition_penalty"]))
    for model, given in ((chatty, ()), ("http://host/v1", ()), ("http://host/v1", ("--repetition-penalty", "1.3"))):
        reader = ("--reader", "same" if model == chatty else chatty)
        assert run("chat", "--model", model, *reader, "--dtype", "float32", "--device", "cpu", *given) == 0
    assert seen == [1.1, 1.0, 1.3]


def test_exported_weights_write_what_the_model_writes(
    chatty: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "merged"
    assert run("export", str(folder), "--model", chatty, "--dtype", "float32") == 0
    assert "vllm serve" in capsys.readouterr().err
    merged = HMTModel.from_pretrained(str(folder), dtype="float32", device="cpu", engine="torch")
    app = recording_vllm(merged)
    http = TestClient(app, base_url="http://testserver")
    monkeypatch.setattr("hmt_memory.answerers.vllm_server.VLLMServer", lambda address: VLLMServer(address, http_client=http))
    own = ("--model", chatty, "--reader", "same", "--dtype", "float32", "--device", "cpu", "--max-tokens", "8")
    assert ask(chatty, store, *own) == 0
    plain = capsys.readouterr().out
    assert ask(chatty, store, *own, "--vllm", "http://testserver/v1") == 0
    assert capsys.readouterr().out == plain and len(app.state.calls) > 4
    assistant = Assistant(chatty, reader="same", dtype="float32", device="cpu", vllm="http://testserver/v1", store=store)
    before = len(app.state.calls)
    assistant.reply([user("Hi.")], max_new_tokens=3).finish()
    assert len(app.state.calls) > before and assistant.model.writer is not None
    assert run("export", str(folder), "--model", chatty) == 1, "it holds something"


def test_a_server_answers_by_another_one_and_says_when_that_is_away(said: None, tmp_path: Path) -> None:
    assistant = Assistant("http://host/v1#big", reader=READER, store=tmp_path / "store")
    with TestClient(create_app(assistant, Settings(hosts=("testserver",)))) as http:
        client = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
        made = client.chat.completions.create(model=assistant.name, messages=[user("Hi.")])  # type: ignore[list-item]
        assert str(made.choices[0].message.content).startswith("http://host/v1#big with")
        with pytest.raises(APIStatusError) as failed:
            client.chat.completions.create(model=assistant.name, messages=[user("fail")])  # type: ignore[list-item]
        assert failed.value.status_code == 502 and "secret" not in str(failed.value)
        with pytest.raises(APIStatusError, match="no raw text"):
            client.completions.create(model=assistant.name, prompt="Once")
    assert ChatServer is not Said
