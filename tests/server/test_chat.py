"""OpenAI's own client in front of the memory: answers, chunks, sessions, errors, and whoever may not call."""

from __future__ import annotations

import gc
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from openai import AuthenticationError, BadRequestError, ConflictError, NotFoundError, OpenAI, PermissionDeniedError
from served import sent_until

from hmt_memory import Assistant
from hmt_memory.errors import InputError, StoreError
from hmt_memory.server.app import create_app
from hmt_memory.server.bodies import ChatMessage, ChatRequest
from hmt_memory.server.chat import ChatCall
from hmt_memory.server.door import Door
from hmt_memory.server.guard import Caller
from hmt_memory.server.metrics import Metrics
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import FILE, Tokens

HELLO = [{"role": "user", "content": "My dog is called Rex."}]
SHORT: dict[str, Any] = {"max_tokens": 6}


def client_of(assistant: Assistant, settings: Settings | None = None, **options: Any) -> OpenAI:
    key = options.pop("api_key", "none")
    app = create_app(assistant, settings or Settings(hosts=("testserver",)), **options)
    return OpenAI(base_url="http://testserver/v1", api_key=key, http_client=TestClient(app), max_retries=0)


@pytest.fixture
def client(assistant: Assistant) -> Iterator[OpenAI]:
    yield client_of(assistant)


def test_an_answer_is_the_assistants(client: OpenAI, assistant: Assistant) -> None:
    (model,) = client.models.list().data
    assert model.id == assistant.name and client.models.retrieve(model.id).owned_by == "hmt-memory"
    answer = client.chat.completions.create(model=model.id, messages=HELLO, **SHORT)  # type: ignore[arg-type]
    expected = assistant.reply(HELLO, max_new_tokens=6).finish()
    assert answer.choices[0].message.content == expected.text and answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None and answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens > 0
    assert assistant.store.sessions() == []


def test_chunks_add_up_to_the_answer(client: OpenAI, assistant: Assistant) -> None:
    whole = client.chat.completions.create(model=assistant.name, messages=HELLO, **SHORT)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(
            model=assistant.name,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            **SHORT,  # type: ignore[arg-type]
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("way", ["x-hmt-session", "x-session-id", "metadata", "open webui"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_session_remembers_and_histories_that_are_sent_again_are_no_news(
    client: OpenAI, assistant: Assistant, way: str, stream: bool
) -> None:
    named: dict[str, Any] = {"extra_headers": {way: "alice"}}
    if way == "metadata":
        named = {"metadata": {"session_id": "alice"}}
    elif way == "open webui":
        named = {"extra_headers": {"X-OpenWebUI-Chat-Id": "alice"}}

    def say(messages: list[dict[str, str]]) -> str:
        answer = client.chat.completions.create(model=assistant.name, messages=messages, stream=stream, **SHORT, **named)  # type: ignore[call-overload]
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    first = say(HELLO)
    if way == "open webui" and not stream:
        assert assistant.store.sessions() == [], "its calls for titles have the same header"
        return
    second = [*HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "And my cat?"}]
    say(second)
    assert assistant.store.sessions() == ["alice"]
    messages = assistant.session("alice").messages()
    assert [message.role for message in messages] == ["user", "assistant"] * 2
    assert [message.content for message in messages[:3]] == [message["content"] for message in second]


def test_what_was_recalled_and_stored_stands_beside_the_answer(client: OpenAI, assistant: Assistant) -> None:
    assistant.add("alice", [{"role": "user", "content": "Rex barks at noon."}, {"role": "assistant", "content": "I see."}])
    assistant.add(
        "alice", [{"role": role, "content": f"{n} is fine." * 4} for n in range(60) for role in ("user", "assistant")]
    )
    answer = client.chat.completions.create(
        model=assistant.name,
        messages=[{"role": "user", "content": "What does Rex do?"}],
        extra_headers={"X-HMT-Session": "alice"},
        **SHORT,  # type: ignore[arg-type]
    )
    about = answer.model_extra["hmt"]  # type: ignore[index]
    assert about["session"] == "alice" and about["message_ids"] == [
        message.id for message in assistant.session("alice").messages()[-2:]
    ]
    assert about["recalled"] and all(passage["source"] == "alice" for passage in about["recalled"])


def test_parts_of_text_are_one_text_and_pictures_are_refused(client: OpenAI, assistant: Assistant) -> None:
    parts = [{"type": "text", "text": "My dog"}, {"type": "text", "text": "is Rex."}]
    ask: Any = client.chat.completions.create
    said = [
        ask(model=assistant.name, messages=[{"role": "user", "content": content}], **SHORT)
        for content in (parts, "My dog\nis Rex.")
    ]
    assert said[0].choices == said[1].choices and said[0].usage == said[1].usage
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(BadRequestError, match=r"image_url.*holds text"):
        ask(model=assistant.name, messages=[{"role": "user", "content": picture}], **SHORT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user\n", "content": "x"}]}, "role"),
        ({"n": 2}, "n=2 cannot be given"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "tools": [{"type": "function", "function": {"name": "f"}}]}, "logprobs cannot be given with tools"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "", "tool_calls": [{"function": "x"}]}]}, "tool_calls"),
        ({"metadata": {"session_id": "a/messages"}}, "Choose another name"),
        ({"metadata": {"session_id": " a"}}, "Choose another name"),
        ({"metadata": {"session_id": 3}}, "a string"),
        ({"stop": ["a"] * 5}, "stop has 5 strings"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(
    client: OpenAI, assistant: Assistant, given: Any, message: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**{"model": assistant.name, "messages": HELLO, "stream": stream, **given})
    assert message in str(caught.value.body) and isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"


def test_another_model_is_not_here(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="no model 'gpt-5' here"):
        client.chat.completions.create(model="gpt-5", messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no model 'gpt-5' here"):
        client.models.retrieve("gpt-5")


def test_nulls_stand_for_what_is_usual(client: OpenAI, assistant: Assistant) -> None:
    body = {
        "model": None,
        "messages": HELLO,
        "max_tokens": 6,
        "temperature": None,
        "top_p": None,
        "n": None,
        "stop": None,
        "stream": None,
    }
    answer = client._client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b"{bad", b"x", b"[]", b"3", b""])
def test_what_is_no_json_object_is_said_to_be_none(client: OpenAI, body: bytes) -> None:
    answer = client._client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and ("no JSON object" in answer.text or not body), answer.text


def test_calls_of_functions_come_as_such(client: OpenAI, assistant: Assistant) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"at": {"enum": ["a"]}}, "required": ["at"]},
        },
    }
    asked: dict[str, Any] = {
        "model": assistant.name,
        "messages": HELLO,
        "tools": [tool],
        "tool_choice": "required",
        "max_tokens": 120,
    }
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look" and json.loads(call.function.arguments) == {"at": "a"}
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in streamed] == ["look"] and streamed[0].index == 0


@pytest.mark.parametrize("session", [None, "alice"])
def test_log_probabilities_are_the_models(client: OpenAI, assistant: Assistant, session: str | None) -> None:
    asked: dict[str, Any] = {"model": assistant.name, "messages": HELLO, "logprobs": True, "top_logprobs": 3, "max_tokens": 12}
    asked["extra_headers"] = {"X-HMT-Session": session} if session else {}
    told = client.chat.completions.create(**asked).choices[0].logprobs.content
    generation = assistant.reply(HELLO, max_new_tokens=12, logprobs=3).finish()
    assert [(one.token, one.logprob) for one in told] == [each.chosen for each in generation.chances]
    for one in told:
        assert one.logprob == max(other.logprob for other in one.top_logprobs), "the likeliest token was chosen"
        assert len(one.top_logprobs) == 3 and sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1
    if session:
        assistant.store.delete(session)
    chunks = client.chat.completions.create(**asked, stream=True)
    streamed = [one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]
    assert streamed == told
    assert assistant.reply(HELLO, max_new_tokens=12).finish().chances == []


def test_log_probabilities_end_where_a_stop_string_cuts(client: OpenAI, assistant: Assistant) -> None:
    asked: dict[str, Any] = {"model": assistant.name, "messages": HELLO, "logprobs": True, "max_tokens": 12, "temperature": 1.0}
    asked["seed"] = 5
    whole = client.chat.completions.create(**asked).choices[0]
    stop = next(one.token for one in whole.logprobs.content[4:] if one.bytes and one.token)
    expected = []
    for one in whole.logprobs.content:
        if one.token == stop:
            break
        expected.append(one)
    cut = client.chat.completions.create(**asked, stop=stop).choices[0]
    streamed = client.chat.completions.create(**asked, stop=stop, stream=True)
    pieces = [one for chunk in streamed for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]
    assert cut.logprobs.content == pieces == expected


# --- who may call -------------------------------------------------------------------------------------------------------


def test_tokens_are_asked_for_and_each_has_a_name_space(assistant: Assistant, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    secrets = {name: tokens.make(name) for name in ("ann", "bob")}
    assert not any(secret in (tmp_path / FILE).read_text() for secret in secrets.values())
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    for key in ("none", "hmt-", secrets["ann"] + "x"):
        with pytest.raises(AuthenticationError, match="no token"):
            client_of(assistant, tokens=tokens, api_key=key).models.list()
    for name, secret in secrets.items():
        known = client_of(assistant, tokens=Tokens(tmp_path), api_key=secret)
        answer = known.chat.completions.create(
            model=assistant.name,
            messages=[{"role": "user", "content": f"I am {name}."}],
            extra_headers={"X-HMT-Session": "own"},
            **SHORT,  # type: ignore[arg-type]
        )
        assert answer.model_extra["hmt"]["session"] == "own"  # type: ignore[index]
    assert sorted(assistant.store.sessions()) == ["ann/own", "bob/own"]
    assert next(message.content for message in assistant.session("bob/own").messages()) == "I am bob."
    tokens.remove("ann")
    with pytest.raises(AuthenticationError):
        client_of(assistant, tokens=Tokens(tmp_path), api_key=secrets["ann"]).models.list()


def test_a_token_that_may_look_only_adds_to_no_session(assistant: Assistant, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.make("ann")
    known = client_of(assistant, tokens=tokens, api_key=tokens.make("guest", of="ann", read_only=True))
    known.chat.completions.create(model=assistant.name, messages=HELLO, **SHORT)  # type: ignore[arg-type]
    with pytest.raises(PermissionDeniedError, match="look only"):
        known.chat.completions.create(model=assistant.name, messages=HELLO, extra_headers={"X-HMT-Session": "a"}, **SHORT)  # type: ignore[arg-type]
    assert assistant.store.sessions() == []


def test_tokens_are_named_once_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.make("a")
    for name in ("a", "a/b", "x" * 60):
        with pytest.raises(InputError, match="Choose another name"):
            tokens.make(name)
    with pytest.raises(InputError, match="cannot be a name"):
        tokens.make("")
    tokens.make("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    with pytest.raises(InputError, match="taken"):
        tokens.make("cafe\N{COMBINING ACUTE ACCENT}")
    with pytest.raises(InputError, match="Known: a"):
        tokens.make("b", of="none")
    with pytest.raises(InputError, match="Known: a"):
        tokens.remove("b")
    (tmp_path / FILE).write_text("{")
    with pytest.raises(StoreError, match="make new tokens"):
        Tokens(tmp_path)


def test_other_sites_names_and_large_bodies_are_refused(assistant: Assistant) -> None:
    app = create_app(assistant, Settings(hosts=("testserver", "localhost", "[::1]"), most_bytes=400, most_imported=900))
    plain = TestClient(app)
    assert plain.get("/health").json() == {"status": "ok"} and plain.get("/ready").status_code == (
        200 if assistant.is_loaded else 503
    )
    assert plain.get("/v1/models", headers={"Origin": "http://localhost:3000"}).status_code == 200
    assert plain.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert plain.get("/v1/models", headers={"Origin": "null"}).status_code == 403
    for origin in ("http://[", "app://elsewhere"):
        assert plain.get("/v1/models", headers={"Origin": origin}).status_code == 403
    assert plain.get("/v1/models", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    for passed_on in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        refused = plain.get("/v1/models", headers={passed_on: "for=1.2.3.4"})
        assert refused.status_code == 403 and "--token" in refused.json()["error"]["message"]
    assert plain.get("/v1/models", headers={"Host": "[::1]:8399"}).status_code == 200
    elsewhere = plain.get("/v1/models", headers={"Host": "evil.example"})
    assert elsewhere.status_code == 400 and "--allow-host" in elsewhere.json()["error"]["message"]
    assert plain.post("/v1/sessions/a/import", content=b"x" * 1000).status_code == 413
    assert plain.post("/v1/sessions/a/import", content=b"x" * 800).status_code == 400, "it is no session, but not too large"
    long = {"messages": [{"role": "user", "content": "x" * 500}]}
    assert plain.post("/v1/chat/completions", json=long).status_code == 413
    parts = iter([b'{"messages": [', b'{"role": "user", "content": "', b"x" * 500, b'"}]}'])
    answer = plain.post("/v1/chat/completions", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "400 bytes" in answer.json()["error"]["message"]
    assert plain.get("/nowhere").json()["error"]["type"] == "not_found_error"


def test_more_calls_than_may_wait_are_told_to_come_again(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    reply = assistant.reply

    def slow(*given: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return reply(*given, **options)

    monkeypatch.setattr(assistant, "reply", slow)
    app = create_app(assistant, Settings(hosts=("testserver",), answers=1, waiting=0))
    body = {"messages": HELLO, "max_tokens": 4}
    with TestClient(app) as plain:
        first: list[httpx.Response] = []
        writing = threading.Thread(target=lambda: first.append(plain.post("/v1/chat/completions", json=body)))
        writing.start()
        assert begun.wait(20)
        refused = plain.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        go_on.set()
        writing.join(20)
        assert first[0].status_code == 200
        assert plain.post("/v1/chat/completions", json=body | {"stream": True}).status_code == 200
        assert plain.post("/v1/chat/completions", json=body).status_code == 200, "its place is free again"


def test_an_answer_that_takes_too_long_is_given_up_and_stores_nothing(assistant: Assistant) -> None:
    assistant.reply(HELLO, max_new_tokens=1).finish()
    plain = TestClient(create_app(assistant, Settings(hosts=("testserver",), seconds=0.0)), raise_server_exceptions=False)
    body = {"messages": HELLO, "max_tokens": 400}
    answer = plain.post("/v1/chat/completions", json=body, headers={"X-HMT-Session": "alice"})
    assert answer.status_code == 504 and "too long" in answer.json()["error"]["message"]
    streamed = plain.post("/v1/chat/completions", json=body | {"stream": True}, headers={"X-HMT-Session": "alice"})
    assert "too long" in streamed.text and streamed.text.rstrip().endswith("[DONE]")
    assert assistant.session("alice").messages() == []


def test_a_session_in_which_another_call_is_answered_is_busy(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, reply = threading.Event(), threading.Event(), assistant.reply

    def slow(*given: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return reply(*given, **options)

    monkeypatch.setattr(assistant, "reply", slow)
    named: Any = {"model": assistant.name, "messages": HELLO, "extra_headers": {"X-HMT-Session": "alice"}, **SHORT}
    app = create_app(assistant, Settings(hosts=("testserver",)))
    with TestClient(app) as http:
        client = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
        writing = threading.Thread(target=lambda: client.chat.completions.create(**named))
        writing.start()
        assert begun.wait(20)
        with pytest.raises(ConflictError, match="another call is being answered"):
            client.chat.completions.create(**named)
        go_on.set()
        writing.join(20)
        assert len(assistant.session("alice").messages()) == 2
        client.chat.completions.create(**named | {"messages": [{"role": "user", "content": "And now?"}]})


def test_what_fails_unforeseen_tells_no_secrets(assistant: Assistant, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        finish_reason, chances, is_whole = None, (), False

        def __init__(self) -> None:
            self.pieces = iter(["one"])

        def __next__(self) -> str:
            for piece in self.pieces:
                return piece
            raise RuntimeError("secret")

        def __iter__(self) -> Any:
            return self

    assistant.reply = lambda *_, **__: Failing()  # type: ignore[method-assign, assignment, return-value]
    plain = TestClient(create_app(assistant, Settings(hosts=("testserver",))), raise_server_exceptions=False)
    whole = plain.post("/v1/chat/completions", json={"messages": HELLO})
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error" and "secret" not in whole.text
    streamed = plain.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert "not foreseen" in streamed.text and "secret" not in streamed.text and streamed.text.rstrip().endswith("[DONE]")


def test_open_webui_s_temporary_chats_are_not_stored_and_names_may_have_any_letters(
    client: OpenAI, assistant: Assistant
) -> None:
    ask: Any = client.chat.completions.create
    for chat in ("local:1", "channel:2"):
        list(ask(model=assistant.name, messages=HELLO, stream=True, extra_headers={"X-OpenWebUI-Chat-Id": chat}, **SHORT))
    assert assistant.store.sessions() == []
    named: Any = [(b"X-HMT-Session", "Zoë".encode())]
    assert client._client.post("/v1/chat/completions", json={"messages": HELLO, **SHORT}, headers=named).status_code == 200
    assert assistant.store.sessions() == ["Zoë"]


def test_an_answer_has_no_more_tokens_than_the_server_allows(assistant: Assistant) -> None:
    known = client_of(assistant, Settings(hosts=("testserver",), longest=5))
    answer = known.chat.completions.create(model=assistant.name, messages=HELLO, max_tokens=10**9)  # type: ignore[arg-type]
    assert answer.usage is not None and answer.usage.completion_tokens <= 5


@pytest.mark.anyio
async def test_a_client_that_goes_away_leaves_nothing_and_gives_its_place_back(assistant: Assistant) -> None:
    settings, caller = Settings(answers=1), Caller()
    door = Door(settings, Metrics())
    body = ChatRequest(messages=[ChatMessage(**HELLO[0])], max_tokens=300, stream=True, metadata={"session_id": "alice"})
    request = Request({"type": "http", "headers": []}, receive=anyio.sleep_forever)
    answer = await door.answer(ChatCall(assistant, settings, body, request.headers, caller), request, caller)
    assert door._gate._free.locked() and door._answering == {"alice"}
    sent = await sent_until(answer, 4)
    assert 4 <= len(sent) < 200 and b"[DONE]" not in sent[-1].get("body", b"")
    assert not door._gate._free.locked() and not door._answering
    gc.collect()
    assert assistant.session("alice").messages() == []
    assert assistant.reply(HELLO, session="alice", max_new_tokens=2).finish().text is not None, "nobody holds the session"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
