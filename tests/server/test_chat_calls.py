"""Calls of chat as clients make them: the session they name, the form they want; clients that go away, and browsers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from openai import OpenAI

from hmt_memory import Assistant
from hmt_memory.server import calls
from hmt_memory.server.app import create_app
from hmt_memory.server.bodies import ChatRequest
from hmt_memory.server.chat import ChatCall
from hmt_memory.server.door import Door
from hmt_memory.server.guard import Caller
from hmt_memory.server.metrics import Metrics
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens
from hmt_memory.sessions.answer import Answer

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello."}]}
NAMES = ("X-HMT-Session", "x-session-id", "metadata", "X-OpenWebUI-Chat-Id")  # the first that a call has counts


@pytest.mark.parametrize("left_out", range(5))
def test_the_first_of_the_names_that_a_call_has_counts_and_the_users_never(
    http: TestClient, saying: Any, left_out: int
) -> None:
    given = {name: f"by {name}" for name in NAMES[left_out:]}
    metadata = {"session_id": given.pop("metadata")} if "metadata" in given else {}
    body = HELLO | {"stream": True, "user": "by user", "safety_identifier": "by user", "metadata": {"user": "x"} | metadata}
    assert http.post("/v1/chat/completions", json=body, headers=given).status_code == 200
    assert saying.store.sessions() == [f"by {name}" for name in NAMES[left_out : left_out + 1]]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
NUMBER = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("form", "says"), [(NUMBER, '{"n":3}'), ({"type": "json_object"}, '{"m":[]}')])
def test_an_answer_has_the_form_that_is_asked_for(client: OpenAI, saying: Any, form: Any, says: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": saying.name, **HELLO, "response_format": form, "stream": stream}
    saying.says = says
    answer = client.chat.completions.create(**asked)
    if stream:
        *pieces, last = answer
        assert len(pieces) > 2 and "".join(piece.choices[0].delta.content or "" for piece in pieces) == says
    else:
        last = answer
        assert last.choices[0].message.content == says
    assert last.choices[0].finish_reason == "stop"
    saying.says = '{"m":3]'  # which begins as it should
    if stream:
        with pytest.raises(Exception, match="not foreseen"):
            list(client.chat.completions.create(**asked))
    else:
        with pytest.raises(AssertionError, match="the grammar does not allow"):
            client.chat.completions.create(**asked)


class Leaving:
    """A client that is there until it is gone."""

    gone = False

    async def receive(self) -> dict[str, str]:
        if not self.gone:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}


async def answered(saying: Any, leaving: Leaving) -> tuple[int, Door]:
    settings, request = Settings(answers=1), Request({"type": "http", "headers": []}, receive=leaving.receive)
    door, body = Door(settings, Metrics()), ChatRequest(**HELLO, metadata={"session_id": "alice"})
    answer = await door.answer(ChatCall(saying, settings, body, request.headers, Caller()), request, Caller())
    return answer.status_code, door


@pytest.mark.parametrize("after", [0, 3], ids=["before its turn", "while it is answered"])
async def test_a_whole_answer_whose_client_goes_away_is_given_up(
    saying: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(calls, "_LOOKS", 0.001)
    saying.says, leaving, pieces, real = "Hello. " * 30, Leaving(), [], Answer.__next__
    leaving.gone = not after

    def leave(answer: Answer) -> str:
        pieces.append(real(answer))
        time.sleep(0.005)
        leaving.gone = len(pieces) >= after
        return pieces[-1]

    monkeypatch.setattr(Answer, "__next__", leave)
    status, door = await answered(saying, leaving)
    assert status == 499 and not door._answering and not door._gate._free.locked()
    assert (after <= len(pieces) < 100) if after else not pieces, "nothing is written for nobody"
    assert not saying.store.has("session", "alice") or saying.session("alice").messages() == []
    leaving.gone, after = False, 1000
    status, door = await answered(saying, leaving)
    assert status == 200 and len(saying.session("alice").messages()) == 2


@pytest.mark.parametrize("origin", ["http://testserver", "https://evil.example", "null"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/sessions", "/mcp/notes", "/health"])
def test_a_browser_is_never_told_that_other_sites_may_call(
    assistant: Assistant, tmp_path: Path, origin: str, path: str
) -> None:
    tokens = Tokens(tmp_path)
    tokens.make("ann")
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for settings, known in ((Settings(hosts=("testserver",)), None), (Settings(hosts=("*",)), tokens)):
        with TestClient(create_app(assistant, settings, tokens=known)) as http:
            for answer in (http.options(path, headers=asks), http.get(path, headers={"Origin": origin})):
                assert not [name for name in answer.headers if name.startswith("access-control-")], answer.headers
            assert not http.options(path, headers=asks).is_success


def test_keys_are_gone_after_a_restart_and_the_call_is_a_new_one(chatty: str, tmp_path: Path) -> None:
    ids, body = [], HELLO | {"max_tokens": 3, "metadata": {"session_id": "alice"}}
    for _ in range(2):
        assistant = Assistant(chatty, reader="same", store=tmp_path, dtype="float32", device="cpu")
        with TestClient(create_app(assistant, Settings(hosts=("testserver",)))) as http:
            same = [http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "a"}).json() for _ in range(2)]
            assert same[0]["id"] == same[1]["id"]
            ids.append(same[0]["id"])
        stored = len(assistant.session("alice").messages())
        assistant.store.close()
    assert ids[0] != ids[1] and stored == 4
