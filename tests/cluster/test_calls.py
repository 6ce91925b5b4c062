"""What stands between a call and a replica: which calls belong together, calls and answers as values, metrics added up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from background_answers import Calling, Pen
from prometheus_client.parser import text_string_to_metric_families
from scripted import MODEL, ScriptedAssistant
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from hmt_memory import MemoryStore
from hmt_memory.cluster.affinity import key_of
from hmt_memory.cluster.asgi import Sent, answered, received
from hmt_memory.cluster.connection import check_place, connect
from hmt_memory.cluster.measuring import merged
from hmt_memory.cluster.serving import Scale
from hmt_memory.errors import InputError, MissingDependencyError
from hmt_memory.server.app import create_app
from hmt_memory.server.items import Stem
from hmt_memory.server.metrics import Metrics
from hmt_memory.server.settings import Settings
from hmt_memory.sessions.answer import Answer

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
RESPONSE = Stem(7, 3, "0123456789abcdef").response


def key(path: str, body: Any = None, **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return key_of(path, Headers(named), b"" if body is None else json.dumps(body).encode())


@pytest.mark.parametrize(
    "named",
    [
        key(CHAT, {}, x_hmt_session="alice"),
        key(CHAT, {}, x_session_id="alice"),
        key(CHAT, {"metadata": {"session_id": "alice"}}),
        key(CHAT, {"stream": True}, x_openwebui_chat_id="alice"),
        key(CHAT, {"metadata": {"session_id": "bob"}}, x_hmt_session="alice"),
        key(CHAT, {"metadata": {"session_id": "alice"}}, idempotency_key="once"),
        key(RESPONSES, {"conversation": "alice"}),
        key(RESPONSES, {"conversation": {"id": "alice"}}),
        key("/v1/sessions/alice"),
        key("/v1/sessions/alice/messages"),
        key("/v1/conversations/alice/items/msg_1"),
        key("/mcp/alice"),
    ],
)
def test_calls_about_a_session_belong_together(named: str | None) -> None:
    assert named == "session:alice"


def test_other_calls_are_told_apart() -> None:
    assert key("/v1/corpora/alice/recall") == "corpus:alice"
    assert key("/v1/sessions/trips/2026/fork") == "session:trips/2026"
    assert key(RESPONSES, {"previous_response_id": RESPONSE}) == key(f"/v1/responses/{RESPONSE}/input_items") == "number:7"
    assert key(CHAT, {"messages": []}, idempotency_key="once") == "key:once"


@pytest.mark.parametrize(
    "body", [{}, [], {"metadata": 1}, {"metadata": {"session_id": 1}}, {"previous_response_id": "nothing"}]
)
def test_what_names_nothing_may_go_anywhere(body: Any) -> None:
    assert key(CHAT, body) is None
    assert key(RESPONSES, body) is None
    assert key_of(CHAT, Headers({}), b"{not json") is None


async def called(app: Any, body: bytes = b"", parts: int = 1) -> Sent:
    chunks = [{"type": "http.request", "body": body[place::parts], "more_body": place < parts - 1} for place in range(parts)]

    async def receive() -> Any:
        return chunks.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"a", b"b")], "app": app}
    call = await received(scope, receive)
    assert call is not None and "app" not in call.scope
    return call


async def test_a_call_is_received_whole_and_answered_in_pieces() -> None:
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])
            await asyncio.sleep(0.01)

    async def echo(request: Request) -> Response:
        return StreamingResponse(pieces(await request.body()), media_type="text/event-stream")

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    call = await called(app, b"aaa", parts=3)
    lists = [messages async for messages in answered(app, call)]
    told = [message for messages in lists for message in messages]
    assert told[0]["status"] == 200 and b"".join(message.get("body", b"") for message in told) == b"aaa"
    assert len(lists) >= 3  # not kept back until the end


async def test_whoever_goes_away_stops_the_answer() -> None:
    stopped = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        stopped.set()

    answers = answered(endless, Sent({"type": "http"}, b""))
    await anext(answers)
    await answers.aclose()
    assert stopped.is_set()


async def test_what_an_application_fails_with_is_raised() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        async for _ in answered(failing, Sent({"type": "http"}, b"")):
            pass


async def test_whoever_ends_an_application_waits_for_its_answers_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pen, real = Pen(), Answer.__next__

    def slowly(answer: Answer) -> str:
        pen.used.set()
        assert pen.free.wait(30)
        return real(answer)

    monkeypatch.setattr(Answer, "__next__", slowly)
    pen.free.clear()
    assistant = ScriptedAssistant(MODEL, reader="same", store=tmp_path / "store")
    app = create_app(assistant, Settings(hosts=("testserver",)))
    async with app.router.lifespan_context(app):
        taken = (await Calling(app, "POST", RESPONSES, input="Hello.", background=True).whole()).json()
        ending = asyncio.ensure_future(app.state.door.background.finished())
        try:
            assert await asyncio.to_thread(pen.used.wait, 10)
            assert await asyncio.wait({ending}, timeout=0.3) == (set(), {ending})
        finally:
            pen.free.set()
        await asyncio.wait_for(ending, 30)
        done = (await Calling(app, "GET", f"{RESPONSES}/{taken['id']}").whole()).json()
    assert (taken["status"], done["status"]) == ("queued", "completed")
    assistant.store.close()


class Nodes:
    """Stands for Ray: says what nodes the cluster has."""

    def __init__(self, *hosts: str, gone: tuple[str, ...] = ()) -> None:
        self._hosts, self._gone = hosts, gone

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"NodeManagerHostname": host, "Alive": True} for host in self._hosts]
        return alive + [{"NodeManagerHostname": host, "Alive": False} for host in self._gone]


def test_a_folder_serves_workers_of_one_machine() -> None:
    with pytest.raises(InputError, match=r"folder /memories, which serves one machine, and the cluster has 2\..*postgresql://"):
        check_place(Nodes("one", "two", "two"), "/memories")
    for ray in (Nodes("one", "one"), Nodes("one", gone=("two",))):
        check_place(ray, "/memories")
    check_place(Nodes("one", "two"), "postgresql://host/database")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"hmt-memory\[ray\]"):
        connect()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("replicas", ["0", "3-2", "two", "1-", "-1", ""])
def test_impossible_numbers_of_replicas_are_refused(replicas: str) -> None:
    with pytest.raises(InputError, match="replicas"):
        Scale.of(replicas)


@pytest.mark.parametrize("other", [{"calls": 0}, {"calls": float("nan")}, {"up_after": -1}, {"down_after": -1}])
def test_impossible_needs_of_replicas_are_refused(other: dict[str, float]) -> None:
    with pytest.raises(InputError, match="replicas"):
        Scale.of("1-4", **other)


def test_metrics_of_replicas_are_added_up(tmp_path: Path) -> None:
    first, second = Metrics(), Metrics()
    for metrics, calls in ((first, 2), (second, 3)):
        metrics.calls.labels("/health", "200").inc(calls)
        metrics.first.observe(0.2)
    second.calls.labels("/ready", "503").inc()
    with MemoryStore(tmp_path) as store:
        text = merged([first.text(store), second.text(store)]).decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["hmt_calls_total", "/health", "200"] == 5 and values["hmt_calls_total", "/ready", "503"] == 1
    assert values["hmt_first_token_seconds_bucket", "0.25"] == 2 and values["hmt_first_token_seconds_count",] == 2
    since = values["hmt_calls_created", "/health", "200"]
    assert since == first.calls.labels("/health", "200")._created
