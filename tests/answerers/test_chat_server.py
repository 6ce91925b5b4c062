"""A chat model behind a server of OpenAI's API: our own server answers, and one that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from stored import user
from told import READER, TALK

from hmt_memory import Assistant, MemoryStore, Session, ToolCall, ViewConfig
from hmt_memory.answerers import ChatServer
from hmt_memory.answerers.connection import split
from hmt_memory.errors import AnswererError, InputError, ModelNotFoundError
from hmt_memory.sessions.chat_model import Ending

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def delta(**said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def ends(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 77, "completion_tokens": 5, "total_tokens": 82}}
ZANZIBAR = (delta(role="assistant", content="Zan"), delta(content="zibar."), ends(), USAGE)


class Server:
    """Says what it is told to, and keeps the bodies of calls."""

    def __init__(self, *chunks: Any, status: int = 200, models: tuple[str, ...] = ("big",)) -> None:
        self.chunks, self.status, self.bodies, self.keys = chunks or ZANZIBAR, status, [], []  # type: ignore[var-annotated]
        self.app = app = FastAPI()

        @app.get("/v1/models")
        async def listed() -> Any:
            return {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in models],
            }

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            self.bodies.append(await request.json())
            self.keys.append(request.headers["authorization"])
            if self.status != 200:
                return JSONResponse({"error": {"message": "No.", "type": "x"}}, self.status, {"x-should-retry": "false"})
            common = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "big"}
            lines = [f"data: {json.dumps(common | chunk)}\n\n" for chunk in self.chunks]
            return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    def model(self, address: str = "http://testserver/v1", **options: Any) -> ChatServer:
        return ChatServer(address, http_client=TestClient(self.app, base_url="http://testserver"), **options)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with MemoryStore(tmp_path / "store") as store:
        opened = store.session("alice", READER)
        opened.add([{"role": "system", "content": "Be brief."}, *TALK, {"role": "assistant", "content": "All right."}])
        yield opened


def test_it_answers_from_turns_and_notes(session: Session) -> None:
    server = Server()
    reply = session.reply(
        user("Which secret word?"), answerer=server.model(), view=ViewConfig(recent_tokens=40, note_tokens=120), stop="\n"
    )
    assert list(reply) == ["Zan", "zibar."] and reply.finish_reason == "stop"
    assert (reply.usage.view_tokens, reply.usage.completion_tokens) == (77, 5)
    (body,) = server.bodies
    assert body["model"] == "big" and body["stop"] == ["\n"] and body["stream_options"] == {"include_usage": True}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "zanzibar" in body["messages"][1]["content"] and body["messages"][1]["content"].endswith("Which secret word?")
    assert set(body) == {"model", "messages", "stream", "stream_options", "stop"}, "what nobody asks for is left to the server"
    assert session.messages()[-1].content == "Zanzibar."


def test_options_are_sent_as_such_servers_know_them() -> None:
    server = Server()
    asked: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.0, "top_p": 0.5, "seed": 3, "top_k": 4, "min_new_tokens": 2}
    asked |= {"repetition_penalty": 1.2, "tools": TOOLS, "tool_choice": "add", "schema": {"type": "object"}}
    list(server.model().answer([user("Hi.")], **asked))
    (body,) = server.bodies
    assert {name: body[name] for name in ("max_tokens", "temperature", "top_p", "seed", "top_k", "min_tokens")} == {
        **{"max_tokens": 9, "temperature": 0.0, "top_p": 0.5, "seed": 3, "top_k": 4, "min_tokens": 2}
    }
    assert body["repetition_penalty"] == 1.2 and body["tools"] == TOOLS
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    list(server.model().answer([user("Hi.")], top_k=0, repetition_penalty=1.0, min_new_tokens=0, logits_processors=()))
    assert set(server.bodies[-1]) == {"model", "messages", "stream", "stream_options"}
    for name, value in (("logprobs", 2), ("logits_processors", [len]), ("abstain_from", 0.5)):
        with pytest.raises(InputError, match=name):
            list(server.model().answer([user("Hi.")], **{name: value}))


def test_calls_of_functions_come_in_parts() -> None:
    parts = [
        {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}},
        {"index": 1, "id": "c2", "function": {"name": "stop", "arguments": ""}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    server = Server(*(delta(tool_calls=[part]) for part in parts), ends("tool_calls"))
    (ending,) = server.model().answer([user("Add.")], tools=TOOLS)
    assert ending == Ending("tool_calls", [ToolCall("add", {"a": 1}, "c1"), ToolCall("stop", {}, "c2")])
    broken = Server(delta(tool_calls=[parts[0]]), ends("tool_calls"))
    with pytest.raises(AnswererError, match="no JSON object"):
        list(broken.model().answer([user("Add.")], tools=TOOLS))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, InputError, "refuses the call: No"),
        (401, AnswererError, r"\$HMT_API_KEY"),
        (404, ModelNotFoundError, "has no model"),
        (429, AnswererError, "breaks off"),
        (500, AnswererError, "breaks off"),
    ],
)
def test_failures_are_ours_and_leave_nothing(session: Session, status: int, error: type[Exception], message: str) -> None:
    before = len(session.messages())
    with pytest.raises(error, match=message):
        session.reply(user("Hi."), answerer=Server(status=status).model()).finish()
    assert len(session.messages()) == before


def test_half_an_answer_is_not_stored(session: Session) -> None:
    before = len(session.messages())
    with pytest.raises(AnswererError, match="before its answer ends"):
        session.reply(user("Hi."), answerer=Server(delta(content="Zan")).model()).finish()
    assert len(session.messages()) == before


def test_a_server_that_is_not_there_is_named(session: Session) -> None:
    def nowhere(scope: Any, receive: Any, send: Any) -> None:
        raise ConnectionRefusedError("nobody listens")

    http = TestClient(nowhere, base_url="http://testserver")  # type: ignore[arg-type]
    with pytest.raises(AnswererError, match=r"testserver/v1 (cannot be reached|breaks off)"):
        session.reply(user("Hi."), answerer=ChatServer("http://testserver/v1", "big", http_client=http)).finish()


def test_one_of_several_models_has_to_be_named() -> None:
    server = Server(models=("big", "small"))
    with pytest.raises(InputError, match="serves big, small"):
        list(server.model().answer([user("Hi.")]))
    list(server.model("http://testserver/v1#small").answer([user("Hi.")]))
    assert server.bodies[-1]["model"] == "small"


def test_a_key_goes_only_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy/v1")
    assert split("openai:gpt", None) == ("http://proxy/v1", "gpt", "secret")
    assert split("http://host/v1/", None) == ("http://host/v1", None, None)
    server = Server()
    list(server.model().answer([user("Hi.")]))
    monkeypatch.setenv("HMT_API_KEY", "own")
    list(server.model().answer([user("Hi.")]))
    list(server.model(api_key="given").answer([user("Hi.")]))
    assert server.keys == ["Bearer none", "Bearer own", "Bearer given"]


def test_an_answer_that_is_left_is_not_read_on(session: Session) -> None:
    closed = []

    class Leaving:
        def answer(self, messages: Any, **options: Any) -> Iterator[str]:
            try:
                yield from ("Zan", "zi", "bar")
            finally:
                closed.append(True)

    reply = session.reply(user("Hi."), answerer=Leaving())
    next(reply)
    del reply
    assert closed == [True]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    http = TestClient(server.app, base_url="http://testserver")
    plain = ChatServer.__init__
    monkeypatch.setattr(ChatServer, "__init__", lambda self, address: plain(self, address, http_client=http))
    return server


def test_an_assistant_takes_an_address_as_its_model(served: Server, tmp_path: Path) -> None:
    assistant = Assistant("http://testserver/v1#big", reader=READER, store=tmp_path / "store")
    assert assistant.name == "http://testserver/v1#big" and assistant.model is READER
    reply = assistant.reply([user("Which?")], session="alice", max_new_tokens=9).finish()
    assert reply.text == "Zanzibar." and served.bodies[-1]["max_tokens"] == 9
    assert [message.content for message in assistant.session("alice").messages()] == ["Which?", "Zanzibar."]
    assert assistant.reply([user("Which?")]).finish().text == "Zanzibar."
    assistant.corpus("book").add_documents([("page", "The word is zanzibar.")])
    assert assistant.ask("Which word?", ["book"]).finish().text == "Zanzibar."
    assistant.store.close()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    from hmt_memory.assistant.continuing import continued

    with pytest.raises(InputError, match="only answers"):
        Assistant("http://testserver/v1", reader="same", store=tmp_path)
    with pytest.raises(InputError, match="only answers"):
        Assistant("openai:gpt", vllm="http://testserver/v1", store=tmp_path)
    with pytest.raises(InputError, match="with_writer"):
        Assistant(READER, vllm="http://testserver/v1", store=tmp_path)
    with pytest.raises(InputError, match="no raw text"):
        continued(Assistant("openai:gpt", reader=READER, store=tmp_path), "Once")
