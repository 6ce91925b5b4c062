"""Responses of the background that are streamed: followed, left and joined again, and how their streams end."""

from __future__ import annotations

import logging.config
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from background_answers import Calling, Pen, ask
from fastapi.testclient import TestClient
from open_responses import Response, events_of
from openai import OpenAI
from scripted import MODEL
from serving_apart import serving

from hmt_memory import Assistant
from hmt_memory.cluster.serving import Replica
from hmt_memory.server import background, background_streams
from hmt_memory.server.app import create_app
from hmt_memory.server.background_streams import Stream, Streams
from hmt_memory.server.logs import LogFormat
from hmt_memory.server.response_events import Events
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens
from hmt_memory.sessions.answer import Answer

SECRET = "Mark-secret."
DELTA = "response.output_text.delta"


@asynccontextmanager
async def running(assistant: Any, *, tokens: Tokens | None = None, **settings: Any) -> AsyncIterator[Any]:
    app = create_app(assistant, Settings(hosts=("testserver",), **settings), tokens=tokens)
    async with app.router.lifespan_context(app):
        yield app


async def asked(app: Any, **about: Any) -> Calling:
    """A call whose stream is read until nothing but the answer is missing."""
    call = Calling(app, "POST", "/v1/responses", **{"input": "I am Ann.", "background": True, "stream": True, **about})
    await call.until("response.in_progress")
    return call


def id_of(call: Calling) -> str:
    return str(call.told[0]["response"]["id"])


def joined(app: Any, name: str, after: int | None = None, **about: Any) -> Calling:
    query = "" if after is None else f"&starting_after={after}"
    return Calling(app, "GET", f"/v1/responses/{name}?stream=true{query}", **about)


async def refused(call: Calling) -> Any:
    """The error of a call that gets no stream."""
    answer = await call.whole()
    assert answer.status_code >= 400, answer.text
    return answer.json()["error"] | {"status": answer.status_code}


async def looked(app: Any, name: str) -> Any:
    return (await Calling(app, "GET", f"/v1/responses/{name}").whole()).json()


async def holds(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


def test_openais_client_follows_and_gets_the_same_again(client: OpenAI, saying: Any) -> None:
    saying.says = "Hello. Hello."
    events = list(ask(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [event.response.status for event in events[:3]] == ["queued", "queued", "in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    name, done = events[0].response.id, events[-1].response
    assert done.output_text == "".join(event.delta for event in events if event.type == DELTA) == saying.says
    assert done.background and done.model_dump() == client.responses.retrieve(name).model_dump() | {"hmt": done.hmt}
    assert list(client.responses.retrieve(name, stream=True)) == events
    assert list(client.responses.retrieve(name, stream=True, starting_after=4)) == events[5:]
    assert list(client.responses.retrieve(name, stream=True, starting_after=10**6)) == []


async def test_a_client_that_goes_away_joins_again_from_where_it_was(saying: Any, pen: Pen) -> None:
    saying.says = "Hello." * 4
    async with running(saying) as app:
        pen.let(6)
        first = await asked(app)
        await first.until(DELTA)
        await first.leave()
        name, seen = id_of(first), first.told[-1]["sequence_number"]
        await holds(lambda: not pen.free.is_set())
        one, other = joined(app, name), joined(app, name, after=seen)
        await one.until(DELTA, 2)
        await other.until(DELTA)
        assert other.told[0]["sequence_number"] == seen + 1 and "response.completed" not in str(one.told)
        pen.free.set()
        events = await one.events()
        assert events[: seen + 1] == first.told and events[seen + 1 :] == await other.events(seen + 1)
        assert len([event for event in events if event["type"] == DELTA]) > 3
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == saying.says
    (session,) = saying.store.sessions()
    assert [message.content for message in saying.store.session(session).messages()] == ["I am Ann.", saying.says]


async def test_an_answer_is_written_when_nobody_follows(saying: Any, pen: Pen) -> None:
    async with running(saying) as app:
        pen.free.clear()
        call = await asked(app)
        await call.leave()
        pen.free.set()
        with anyio.fail_after(10):
            while (found := await looked(app, id_of(call)))["status"] != "completed":
                await anyio.sleep(0.01)
        assert Response.model_validate(found).output[0].content[0].text == "Hello."


async def test_any_answer_of_the_background_can_be_joined(saying: Any, pen: Pen) -> None:
    async with running(saying) as app:
        pen.free.clear()
        name = (await Calling(app, "POST", "/v1/responses", input="Hi.", background=True).whole()).json()["id"]
        following = joined(app, name)
        await following.until("response.in_progress")
        pen.free.set()
        assert (await following.events())[-1]["type"] == "response.completed"
        again = await Calling(app, "POST", "/v1/responses", input="And?", conversation="alice").whole()
        error = await refused(joined(app, again.json()["id"]))
        assert error["status"] == 410 and "Ask for it without stream" in error["message"]


async def test_what_is_cancelled_ends_its_stream(saying: Any, pen: Pen) -> None:
    async with running(saying) as app:
        pen.free.clear()
        call = await asked(app, instructions=SECRET)
        name = id_of(call)
        assert (await Calling(app, "POST", f"/v1/responses/{name}/cancel").whole()).json()["status"] == "cancelled"
        pen.free.set()
        last = (await call.events())[-1]
        assert last["type"] == "response.cancelled" and last["response"]["status"] == "cancelled"
        assert (await refused(joined(app, name)))["code"] == "stream_not_found"
        assert not app.state.door.background.streams._streams


async def test_what_waits_and_is_cancelled_ends_its_stream(saying: Any, pen: Pen) -> None:
    async with running(saying, answers=1) as app:
        pen.free.clear()
        working = await asked(app)
        waiting = Calling(app, "POST", "/v1/responses", input="Hi.", background=True, stream=True)
        await waiting.until("response.queued")
        await Calling(app, "POST", f"/v1/responses/{id_of(waiting)}/cancel").whole()
        kinds = [event["type"] for event in await waiting.events()]
        assert kinds == ["response.created", "response.queued", "response.cancelled"]
        pen.free.set()
        assert (await working.events())[-1]["type"] == "response.completed"


async def test_what_is_cancelled_when_it_is_stored_is_told_whole(saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = background.Background._to_the_end

    async def cancelled_late(self: Any, call: Any, *others: Any) -> None:
        await real(self, call, *others)
        self.stop(call.id)
        await anyio.sleep(1)

    monkeypatch.setattr(background.Background, "_to_the_end", cancelled_late)
    async with running(saying) as app:
        call = await asked(app)
        assert (await call.events())[-1]["type"] == "response.completed"


async def test_what_is_deleted_is_given_no_more(saying: Any, pen: Pen) -> None:
    saying.says = SECRET * 4
    async with running(saying) as app:
        streams = app.state.door.background.streams._streams
        pen.let(4)
        call = await asked(app, instructions=SECRET)
        await call.until(DELTA)
        name = id_of(call)
        stream = streams[name]
        await Calling(app, "DELETE", f"/v1/responses/{name}").whole()
        assert not streams and not [event for event in stream._told[:-1] if event is not None]
        pen.free.set()
        last = (await call.events())[-1]
        assert (last["type"], last["code"]) == ("error", "response_not_found") and SECRET not in str(last)
        assert (await refused(joined(app, name)))["status"] == 404
        done = await asked(app)
        await done.events()
        await holds(lambda: any(stream.has_ended for stream in streams.values()))
        await Calling(app, "DELETE", f"/v1/responses/{id_of(done)}").whole()
        assert not streams and (await refused(joined(app, id_of(done))))["status"] == 404


async def test_what_another_server_deletes_ends_its_stream(saying: Any, pen: Pen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOKS", 0.0)
    saying.says = "Hello. " * 100
    async with running(saying) as app, running(type(saying)(MODEL, reader="same", store=saying.folder)) as other:
        pen.let(4)
        call = await asked(app)
        await call.until(DELTA)
        error = await refused(joined(other, id_of(call)))
        assert error["status"] == 410 and "written by another server" in error["message"]
        await Calling(other, "DELETE", f"/v1/responses/{id_of(call)}").whole()
        pen.free.set()
        assert (await call.events())[-1]["type"] == "error"
        assert not app.state.door.background.streams._streams


async def test_what_fails_ends_its_stream_with_what_it_failed_of(saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(saying) as app:
        long = [{"role": "system", "content": SECRET * 400}, {"role": "user", "content": "Hi."}]
        last = (await (await asked(app, input=long)).events())[-1]
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "context_length_exceeded")
        monkeypatch.setattr(Answer, "__next__", lambda _: 1 / 0)
        call = await asked(app)
        last = (await call.events())[-1]
        assert last["response"] == await looked(app, id_of(call)) | {"instructions": None}
        assert last["response"]["status"] == "failed" and last["response"]["error"]["code"] == "ZeroDivisionError"
        assert (await refused(joined(app, id_of(call))))["status"] == 410


@pytest.mark.parametrize("told", [True, False])
async def test_a_server_that_stops_ends_its_streams(saying: Any, pen: Pen, told: bool) -> None:
    async with running(saying, answers=1) as app:
        pen.free.clear()
        working = await asked(app)
        waiting = Calling(app, "POST", "/v1/responses", input="Hi.", background=True, stream=True)
        await waiting.until("response.queued")
        if told:
            app.state.door.background.stopping.set()
        pen.free.set()
        if told:
            ends = [(await call.events())[-1] for call in (working, waiting)]
            assert (await refused(Calling(app, "POST", "/v1/responses", input="Hi.", background=True)))["status"] == 503
    if not told:
        ends = [(await call.events())[-1] for call in (working, waiting)]
    for last in ends:
        assert last["type"] == "response.failed" and "was stopped" in last["response"]["error"]["message"]


async def test_events_are_kept_for_a_while_only(saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_streams, "_LOOKS", 0.01)
    monkeypatch.setattr(background_streams, "_SECONDS", 0.3)
    async with running(saying) as app:
        call = await asked(app)
        events = await call.events()
        assert await joined(app, id_of(call)).events() == events
        await holds(lambda: not app.state.door.background.streams._streams)
        assert (await refused(joined(app, id_of(call))))["status"] == 410
        assert (await looked(app, id_of(call)))["status"] == "completed"


async def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_streams, "_MOST", 2)
    streams = Streams()

    def add(name: str, said: str = "", *, ends: bool = True) -> None:
        stream = Stream(Events({"id": name, "said": said}, "msg"), lambda: True)
        stream.add(stream.events.queued())
        streams.open(name, stream)
        if ends:
            stream.end()
            group.start_soon(streams.keep, name)

    async with anyio.create_task_group() as group:
        add("written", ends=False)
        for name in "abc":
            add(name)
            await anyio.wait_all_tasks_blocked()
        assert [name for name in ("written", *"abc") if await streams.find(name)] == ["written", "b", "c"]
        monkeypatch.setattr(background_streams, "_MOST_BYTES", 1000)
        add("d", "x" * 2000)
        await anyio.wait_all_tasks_blocked()
        assert list(streams._streams) == ["written"]
        group.cancel_scope.cancel()


@pytest.mark.parametrize("by", ["find", "look"])
async def test_what_is_forgotten_of_its_session_is_given_no_more(saying: Any, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(background_streams, "_LOOKS", 0.01 if by == "look" else 60.0)
    async with running(saying) as app:
        call = await asked(app, conversation="alice")
        ids = (await call.events())[-1]["response"]["hmt"]["message_ids"]
        assert (await joined(app, id_of(call)).whole()).status_code == 200
        await Calling(app, "DELETE", f"/v1/sessions/alice/messages?id={ids[0]}").whole()
        if by == "look":
            await holds(lambda: not app.state.door.background.streams._streams)
        assert (await refused(joined(app, id_of(call))))["status"] == 410 and not app.state.door.background.streams._streams


async def test_what_was_recalled_is_told_once(assistant: Assistant) -> None:
    assistant.corpus("garden").add_documents([{"text": "Rex barks at noon. " * 9}])
    assistant.session("alice").attach("garden")
    async with running(assistant) as app:
        call = await asked(app, input="What does Rex do?", conversation="alice", max_output_tokens=6)
        events = await call.events()
        cited = [event for event in events if event["type"] == "response.output_text.annotation.added"]
        assert cited and events[-1]["response"]["hmt"]["recalled"] and "Rex barks" in str(events)
        await holds(lambda: app.state.door.background.streams._streams[id_of(call)].has_ended)
        again = joined(app, id_of(call))
        text = (await again.whole()).text
        assert "garden" not in text and "Rex barks" not in text
        numbers = [event["sequence_number"] for event in events if event not in cited]
        assert [event["sequence_number"] for event in again.told] == numbers, "what is left out keeps its number"
        assert again.told[-1]["response"] == await looked(app, id_of(call)) | {"hmt": again.told[-1]["response"]["hmt"]}


async def test_each_token_joins_its_own(saying: Any, tmp_path: Path, pen: Pen) -> None:
    tokens = Tokens(tmp_path)
    ann, bob, guest = tokens.make("ann"), tokens.make("bob"), tokens.make("guest", of="ann", read_only=True)
    async with running(saying, tokens=tokens) as app:
        pen.free.clear()
        call = await asked(app, key=ann)
        for key, status in ((bob, 404), ("hmt-none", 401)):
            assert (await refused(joined(app, id_of(call), key=key)))["status"] == status
        following = joined(app, id_of(call), key=guest)
        await following.until("response.in_progress")
        pen.free.set()
        assert await following.events() == await call.events()
        assert (await joined(app, id_of(call), key=guest).whole()).status_code == 200
        assert (await refused(joined(app, id_of(call), key=bob)))["status"] == 404


async def test_so_many_join_as_may_wait(saying: Any, pen: Pen) -> None:
    async with running(saying, waiting=1) as app:
        pen.free.clear()
        call = await asked(app)
        one = joined(app, id_of(call))
        await one.until("response.in_progress")
        assert (await refused(joined(app, id_of(call))))["status"] == 429
        await one.leave()
        again = joined(app, id_of(call))
        await again.until("response.in_progress")
        pen.free.set()
        assert await again.events() == await call.events()


async def test_whoever_follows_takes_no_place_of_calls_that_look(saying: Any, pen: Pen) -> None:
    async with running(saying) as app:
        pen.free.clear()
        call = await asked(app)
        one = joined(app, id_of(call))
        await one.until("response.in_progress")
        assert app.state.looking._inside == 0
        pen.free.set()
        await one.events()


def test_a_call_that_comes_again_gets_its_stream_again(http: TestClient, saying: Any) -> None:
    def post(**more: Any) -> httpx.Response:
        body = {"input": "I am Ann.", "background": True, "stream": True, "conversation": "alice", **more}
        return http.post("/v1/responses", json=body, headers={"Idempotency-Key": "k"})

    first = post()
    assert events_of(post()) == events_of(first) and len(saying.store.session("alice").messages()) == 2
    assert post(stream=False).status_code == 400, "it is another call"
    assert http.delete("/v1/sessions/alice/messages", params={"id": 1}).is_success
    assert post().status_code == 410


async def test_a_replica_that_goes_writes_first_what_nobody_follows(
    saying: Any, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Replica.__del__
    monkeypatch.delattr(Replica, "__del__")  # which Ray awaits, and Python would not
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    replica = Replica(saying, Settings(hosts=("testserver",)), None, LogFormat.text)
    await replica._alive()
    pen.free.clear()
    call = await asked(replica._app)
    await call.leave()
    async with anyio.create_task_group() as group:
        group.start_soon(end, replica)
        await anyio.wait_all_tasks_blocked()
        pen.free.set()
    async with running(type(saying)(MODEL, reader="same", store=saying.folder)) as other:
        assert (await looked(other, id_of(call)))["status"] == "completed"


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_server_of_its_own_is_followed_left_and_stopped(chatty: str, tmp_path: Path) -> None:
    schema = {"type": "string", "minLength": 8000}  # or it might end before
    form: Any = {"format": {"type": "json_schema", "name": "long", "schema": schema}}
    with serving(tmp_path, chatty) as (api, process), httpx.Client(trust_env=False) as http:
        client = OpenAI(base_url=f"{api.base_url}/v1", api_key="none", http_client=http)
        with ask(client, "Hi.", stream=True, max_output_tokens=8192, text=form) as following:
            name = next(following).response.id
            seen = next(event for event in following if event.type == DELTA)
        again = client.responses.retrieve(name, stream=True, starting_after=seen.sequence_number)
        assert next(again).sequence_number == seen.sequence_number + 1
        process.terminate()
        *_, last = again
        assert last.type == "response.failed" and "was stopped" in last.response.error.message
