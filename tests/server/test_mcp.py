"""A session as tools of the Model Context Protocol: what agents find, add and erase, over HTTP and on standard streams."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.guard import Caller
from hmt_memory.server.mcp import Subject, tools
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
LOOKING = {"recall", "list_messages", "list_sessions", "status"}
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def client_of(assistant: Assistant, name: str = "notes", *, read_only: bool = False) -> AsyncIterator[Client]:
    subject = Subject(Caller(read_only=read_only), name)
    async with Client(tools(assistant, lambda _: subject, read_only=read_only)) as client:
        yield client


async def called(client: Client, tool: str, **arguments: Any) -> Any:
    """Call a tool; return what it found."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    found = result.structured_content
    return found["result"] if set(found or {}) == {"result"} else found


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool that fails; return what it says."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


async def test_what_is_remembered_is_recalled_listed_and_erased(assistant: Assistant) -> None:
    async with client_of(assistant) as client:
        assert await called(client, "list_messages") == [] == await called(client, "recall", query="What is my dog called?")
        assert await called(client, "status") == {"name": "notes", "messages": 0, "tokens": 0}
        assert assistant.store.sessions() == [], "looking makes nothing"
        dog = (await called(client, "remember", text="The user's dog is called Rex."))["message_id"]
        town = (await called(client, "remember", text="The user was born in Bremen."))["message_id"]
        (first, *_) = await called(client, "recall", query="dog called", top_k=2)
        expected = assistant.recall("dog called", session="notes", top_k=2)[0]
        assert first["text"] == expected.text and "Rex" in first["text"] and first["source"] == "notes"
        assert first["message_ids"] == [message.id for message in expected.messages] and dog in first["message_ids"]
        assert set(first["said_by"]) == {"user"}
        listed = await called(client, "list_messages")
        assert [(message["id"], message["text"]) for message in listed] == [
            (dog, "The user's dog is called Rex."),
            (town, "The user was born in Bremen."),
        ]
        assert [message["id"] for message in await called(client, "list_messages", start=-1)] == [town]
        assert [message["id"] for message in await called(client, "list_messages", start=0, stop=1)] == [dog]
        assert await called(client, "list_messages", start=5) == []
        assert (await called(client, "status"))["messages"] == 2 and await called(client, "list_sessions") == ["notes"]
        assert await called(client, "forget", message_ids=[dog]) == {"forgotten": 1, "also_in": []}
        assert [message["id"] for message in await called(client, "list_messages")] == [town]
        assert "no session" in await refused(client, "forget", message_ids=[dog])


async def test_tools_say_what_they_do_to_what_is_stored(assistant: Assistant) -> None:
    async with client_of(assistant) as client:
        hints = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    assert set(hints) == {*LOOKING, "remember", "forget"}
    for name, hint in hints.items():
        assert hint is not None and hint.read_only_hint == (name in LOOKING) and hint.open_world_hint is False
    assert hints["forget"] is not None and hints["forget"].destructive_hint
    assert hints["remember"] is not None and hints["remember"].destructive_hint is False


async def test_a_reader_finds_no_tools_that_change_something(assistant: Assistant) -> None:
    async with client_of(assistant, read_only=True) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == LOOKING


async def test_what_makes_no_sense_is_refused_in_words(assistant: Assistant) -> None:
    async with client_of(assistant) as client:
        assert "query" in await refused(client, "recall", query="")
        assert "top_k" in await refused(client, "recall", query="a", top_k=0)
        await called(client, "remember", text="One.")
        assert "message" in await refused(client, "forget", message_ids=[99])
    assert [message.content for message in assistant.store.session("notes").messages()] == ["One."]


@asynccontextmanager
async def calling(app: FastAPI, token: str = "none") -> AsyncIterator[httpx2.AsyncClient]:
    """Start an application; yield what calls it with a token."""
    headers = {"Authorization": f"Bearer {token}"}
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            yield http


@asynccontextmanager
async def over_http(app: FastAPI, name: str, token: str = "none") -> AsyncIterator[Client]:
    async with calling(app, token) as http, Client(streamable_http_client(f"/mcp/{name}", http_client=http)) as client:
        yield client


async def test_over_http_each_token_sees_its_own_sessions(assistant: Assistant, tmp_path: Path) -> None:
    kept = Tokens(tmp_path)
    ann, eve = kept.make("ann"), kept.make("eve")
    looks = kept.make("phone", of="ann", read_only=True)

    def app() -> FastAPI:
        return create_app(assistant, Settings(hosts=("*",)), tokens=kept)

    async with over_http(app(), "work/notes", ann) as client:
        await called(client, "remember", text="The code is 4071.")
    async with over_http(app(), "work/notes", eve) as client:
        assert await called(client, "list_messages") == [] == await called(client, "list_sessions")
        assert await called(client, "recall", query="code") == []
    async with over_http(app(), "work/notes", looks) as client:
        assert await called(client, "list_sessions") == ["work/notes"]
        (passage,) = await called(client, "recall", query="code")
        assert "The code is 4071." in passage["text"] and passage["source"] == "work/notes"
        assert "look only" in await refused(client, "remember", text="Another one.")
        assert "look only" in await refused(client, "forget", message_ids=passage["message_ids"])
    assert assistant.store.sessions() == ["ann/work/notes"]


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
JSON = {"Accept": "application/json, text/event-stream"}


async def test_nothing_but_calls_is_taken_and_nobody_holds_a_place(assistant: Assistant) -> None:
    async with calling(create_app(assistant, Settings(looking=1, waiting=0))) as http:
        for method in ("GET", "DELETE", "PUT"):
            refusal = await http.request(method, "/mcp/notes", headers={"Accept": "text/event-stream"})
            assert refusal.status_code == 405 and refusal.headers["allow"] == "POST"
        assert (await http.get("/v1/sessions")).status_code == 200


async def test_calls_without_a_known_token_or_a_name_are_refused(assistant: Assistant, tmp_path: Path) -> None:
    kept = Tokens(tmp_path)
    async with calling(create_app(assistant, Settings(hosts=("*",)), tokens=kept), kept.make("ann")) as http:
        assert (await http.post("/mcp/notes", json=LIST, headers=JSON | {"Authorization": "Bearer x"})).status_code == 401
        assert (await http.post("/mcp/notes", json=LIST, headers=JSON)).status_code == 200
        for name in ("", "messages", "x" * 300):
            assert (await http.post(f"/mcp/{name}", json=LIST, headers=JSON)).status_code == 400


async def test_without_tokens_pages_of_other_sites_are_refused(assistant: Assistant) -> None:
    async with calling(create_app(assistant)) as http:
        assert (await http.post("/mcp/notes", json=LIST, headers=JSON)).status_code == 200
        refusal = await http.post("/mcp/notes", json=LIST, headers=JSON | {"Origin": "http://evil.example"})
        assert refusal.status_code == 403
        assert (await http.post("/mcp/notes", json=LIST, headers=JSON | {"Host": "evil.example"})).status_code == 400


def command(store: Path, reader: str, *options: str) -> StdioServerParameters:
    given = ["mcp", "--session", "notes", "--store", str(store), "--reader", reader, "--device", "cpu", *options]
    return StdioServerParameters(command=sys.executable, args=["-c", "from hmt_memory.cli import main; main()", *given])


@pytest.mark.slow
async def test_an_agent_starts_the_command_and_what_it_adds_is_on_disk(chatty: str, tmp_path: Path) -> None:
    async with Client(command(tmp_path, chatty)) as client:
        told = await called(client, "remember", text="The user's cat is called Minka.")
        (passage,) = await called(client, "recall", query="cat called")
        assert "The user's cat is called Minka." in passage["text"] and passage["message_ids"] == [told["message_id"]]
    (message,) = Assistant(chatty, reader="same", store=tmp_path, **CPU).store.session("notes").messages()
    assert (message.id, message.content) == (told["message_id"], "The user's cat is called Minka.")


@pytest.mark.slow
async def test_the_command_lets_nothing_be_added_where_it_may_look_only(chatty: str, tmp_path: Path) -> None:
    told = Assistant(chatty, reader="same", store=tmp_path, **CPU)
    told.session("notes").add({"role": "user", "content": "The user's cat is called Minka."})
    told.store.close()
    async with Client(command(tmp_path, chatty, "--read-only")) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == LOOKING
        assert "Unknown tool" in await refused(client, "remember", text="Another one.")
        assert "Unknown tool" in await refused(client, "forget", message_ids=[1])
        (message,) = await called(client, "list_messages")
        assert message["text"] == "The user's cat is called Minka."
