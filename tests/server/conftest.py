"""Fixtures: an assistant that answers with a tiny model, and one that says what a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from background_answers import Pen
from fastapi.testclient import TestClient
from openai import OpenAI
from scripted import MODEL, Says

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.sessions.answer import Answer


@pytest.fixture
def assistant(chatty: str, tmp_path: Path) -> Assistant:
    return Assistant(chatty, reader="same", store=tmp_path / "store", dtype="float32", device="cpu")


class Saying(Assistant):
    """Says `says`, and keeps what it was shown for its latest answer."""

    says = "Hello."
    latest: Any = None

    def reply(self, messages: Any, **options: Any) -> Any:
        self.latest = super().reply(messages, **options, logits_processors=[Says(self.says)])
        return self.latest

    @property
    def shown(self) -> str:
        return MODEL.backbone.decode(self.latest.view_ids)


@pytest.fixture
def saying(tmp_path: Path) -> Saying:
    return Saying(MODEL, reader="same", store=tmp_path / "store")


@pytest.fixture
def http(saying: Saying) -> Iterator[TestClient]:
    with TestClient(create_app(saying, Settings(hosts=("testserver",)))) as http:
        yield http


@pytest.fixture
def client(http: TestClient) -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture
def pen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pen]:
    pen, real = Pen(), Answer.__next__

    def slowly(answer: Answer) -> str:
        pen.used.set()
        assert pen.free.wait(30)
        piece = real(answer)
        pen.written()
        return piece

    monkeypatch.setattr(Answer, "__next__", slowly)
    yield pen
    pen.free.set()
