"""Responses that are written in the background, by OpenAI's own client: polled, cancelled, cut off, given up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from background_answers import Pen, ask, client_of, ended, served
from fastapi.testclient import TestClient
from open_responses import Response
from openai import APIStatusError, BadRequestError, ConflictError, NotFoundError, OpenAI, PermissionDeniedError, RateLimitError
from scripted import MODEL
from serving_apart import serving

from hmt_memory.errors import SessionBusyError
from hmt_memory.server import background, stored_responses
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens
from hmt_memory.sessions import owed
from hmt_memory.sessions.answer import Answer

SECRET = "Mark-secret."
SAID: Any = {"instructions": SECRET, "metadata": {"a": SECRET}, "tools": [{"type": "function", "name": SECRET[:4]}]}


def talks(assistant: Any) -> list[list[str]]:
    return sorted([m.content for m in assistant.store.session(name).messages()] for name in assistant.store.sessions())


def bytes_of(assistant: Any) -> bytes:
    return b"".join(path.read_bytes() for path in Path(assistant.folder).rglob("*") if path.is_file())


def whole(client: OpenAI, name: str) -> Response:
    return Response.model_validate(client.responses.with_raw_response.retrieve(name).http_response.json())


def test_an_answer_is_there_when_it_is_asked_for_later(client: OpenAI, saying: Any, pen: Pen) -> None:
    pen.free.clear()
    taken = ask(client, **SAID)
    assert (taken.status, taken.background, taken.output, taken.usage) == ("queued", True, [], None)
    assert pen.used.wait(10)
    writing = whole(client, taken.id)
    assert (writing.status, writing.instructions, writing.metadata) == ("in_progress", SECRET, {"a": SECRET})
    assert writing.created_at == taken.created_at and talks(saying) == [[]]
    pen.free.set()
    done = ended(client, taken.id)
    assert (done.status, done.output_text, done.instructions) == ("completed", "Hello.", SECRET)
    assert done.created_at == taken.created_at <= done.completed_at and done.usage.output_tokens > 0
    assert whole(client, taken.id).output[0].status == "completed" and talks(saying) == [["I am Ann.", "Hello."]]
    assert [item.content[0].text for item in client.responses.input_items.list(taken.id)] == ["I am Ann."]  # type: ignore[union-attr]
    on = ask(client, "Am I?", previous_response_id=taken.id)
    assert ended(client, on.id).previous_response_id == taken.id and "I am Ann." in saying.shown
    assert client.responses.cancel(on.id) == ended(client, on.id), "what has ended stays as it is"
    client.responses.delete(taken.id)
    client.responses.delete(on.id)
    assert saying.store.sessions() == [] and SECRET.encode() not in bytes_of(saying)


def test_a_conversation_waits_for_its_answer(client: OpenAI, saying: Any, pen: Pen) -> None:
    conversation = client.conversations.create(metadata={"a": "b"}).id
    pen.free.clear()
    taken = ask(client, conversation=conversation)
    assert taken.conversation.id == conversation and client.responses.retrieve(taken.id).conversation == taken.conversation
    for options in ({"background": True}, {}):
        with pytest.raises(ConflictError, match="another call is being answered"):
            client.responses.create(input="And?", conversation=conversation, **options)  # type: ignore[call-overload]
    with pytest.raises(ConflictError, match="still being written"):
        client.responses.create(input="And?", previous_response_id=taken.id)
    with pytest.raises(ConflictError, match="stored with its answer"):
        client.responses.input_items.list(taken.id)
    saying.store.session(conversation).fork("what-if")
    assert owed.noted(saying.store.session("what-if"), taken.id) is None, "only one of them owes it"
    saying.store.rename(conversation, "alice")
    pen.free.set()
    assert ended(client, taken.id).conversation.id == "alice" and talks(saying) == [[], ["I am Ann.", "Hello."]]
    assert client.conversations.retrieve("alice").metadata == {"a": "b"}
    assert ended(client, ask(client, "And?", conversation="alice").id).status == "completed"


def test_what_is_cancelled_leaves_nothing_but_that(client: OpenAI, saying: Any, pen: Pen) -> None:
    pen.free.clear()
    taken = ask(client, conversation="alice", **SAID)
    assert pen.used.wait(10)
    cancelled = client.responses.cancel(taken.id)
    assert (cancelled.status, cancelled.output, cancelled.error) == ("cancelled", [], None)
    pen.free.set()
    for _ in range(500):  # until the token that was being computed is there
        try:
            again = client.responses.create(input="Who?", conversation="alice")
            break
        except ConflictError:
            time.sleep(0.01)
    assert again.output_text == "Hello." and talks(saying) == [["Who?", "Hello."]]
    assert client.responses.cancel(taken.id).status == whole(client, taken.id).status == "cancelled"
    assert SECRET.encode() not in bytes_of(saying) and client.responses.input_items.list(taken.id).data == []
    with pytest.raises(BadRequestError, match="it is cancelled"):
        client.responses.create(input="And?", previous_response_id=taken.id)
    client.responses.delete(taken.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(taken.id)
    with pytest.raises(BadRequestError, match="not made with background"):
        client.responses.cancel(again.id)


def test_as_many_wait_as_for_other_answers(saying: Any, pen: Pen) -> None:
    pen.free.clear()
    with served(saying, answers=1, waiting=1) as client:
        first = ask(client)
        assert pen.used.wait(10)
        second = ask(client, "I am Bob.")
        assert client.responses.retrieve(second.id).status == "queued"
        for _ in range(2):
            with pytest.raises(RateLimitError) as caught:
                ask(client, "I am Eve.")
            assert caught.value.response.headers["retry-after"] and len(saying.store.sessions()) == 2
        assert client.responses.cancel(second.id).status == "cancelled"
        third = ask(client, "I am Eve.")
        pen.free.set()
        assert [ended(client, one.id).status for one in (first, second, third)] == ["completed", "cancelled", "completed"]
        client.responses.delete(second.id)
    assert talks(saying) == [["I am Ann.", "Hello."], ["I am Eve.", "Hello."]]


def test_an_end_that_cannot_be_noted_at_once_is_noted_later(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOKS", 0.01)
    monkeypatch.setattr(Answer, "__next__", lambda _: 1 / 0)
    real, busy = owed.change, [True, True]

    def change(session: Any, name: str, **changes: Any) -> bool:
        if changes["status"] == "failed" and busy:
            busy.pop()
            raise SessionBusyError("another process writes")
        return real(session, name, **changes)

    monkeypatch.setattr(owed, "change", change)
    assert ended(client, ask(client).id).error.code == "ZeroDivisionError" and not busy


@pytest.mark.parametrize("conversation", [None, "alice"])
def test_what_fails_says_of_what_and_stores_nothing(
    client: OpenAI, saying: Any, monkeypatch: pytest.MonkeyPatch, conversation: str | None
) -> None:
    long = ask(
        client, [{"role": "system", "content": SECRET * 400}, {"role": "user", "content": "Hi."}], conversation=conversation
    )
    failed = ended(client, long.id)
    assert failed.status == "failed" and failed.error.code == "context_length_exceeded" and failed.output == []
    monkeypatch.setattr(Answer, "__next__", lambda _: 1 / 0)
    taken = ask(client, SECRET, conversation=conversation, **SAID)
    failed = ended(client, taken.id)
    assert failed.error.code == "ZeroDivisionError" and "server's own output" in failed.error.message
    assert whole(client, taken.id).completed_at is None and SECRET.encode() not in bytes_of(saying)
    assert not any(talks(saying)), "no message is stored"
    for name in (long.id, taken.id):
        client.responses.delete(name)
    assert saying.store.sessions() == ([] if conversation is None else ["alice"])


def test_what_is_wrong_with_a_call_shows_at_once_and_leaves_nothing(client: OpenAI, saying: Any) -> None:
    for options in (
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"tools": SAID["tools"], "tool_choice": {"type": "allowed_tools", "tools": []}},
        {"model": "gpt-5"},
    ):
        with pytest.raises(APIStatusError) as caught:
            client.responses.create(**{"input": "Hi.", "background": True, **options})  # type: ignore[call-overload]
        assert caught.value.status_code in (400, 404)
    for call in (client.responses.cancel, client.responses.retrieve):
        with pytest.raises(NotFoundError):
            call("resp_" + "0" * 32)
    assert saying.store.sessions() == []
    failed = ended(client, ask(client, []).id)
    assert failed.error.code == "invalid_request" and "nothing to answer" in failed.error.message


def test_an_answer_has_its_time_in_the_background_too(saying: Any) -> None:
    with served(saying, seconds=0.0) as client:
        failed = ended(client, ask(client).id)
    assert failed.status == "failed" and "took too long" in failed.error.message


def test_what_is_deleted_while_it_is_written_is_gone(client: OpenAI, saying: Any, pen: Pen) -> None:
    pen.free.clear()
    taken = [ask(client, SECRET), ask(client, SECRET, conversation="alice")]
    for one in taken:
        assert client.responses.with_raw_response.delete(one.id).http_response.json()["deleted"]
    pen.free.set()
    assert ended(client, ask(client).id).status == "completed"
    for one in taken:
        with pytest.raises(NotFoundError):
            client.responses.retrieve(one.id)
    assert talks(saying) == [[], ["I am Ann.", "Hello."]] and SECRET.encode() not in bytes_of(saying)


def test_what_is_stored_while_it_is_deleted_is_deleted(client: OpenAI, saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ask(client, SECRET)
    ended(client, taken.id)
    real, late = stored_responses.find, [True]

    def find(store: Any, caller: Any, name: str) -> Any:
        if not late:
            return real(store, caller, name)
        late.pop()
        return stored_responses.Owed(name, store.session(store.sessions()[0]), {"status": "in_progress"})

    monkeypatch.setattr(stored_responses, "find", find)
    client.responses.delete(taken.id)
    assert not late and saying.store.sessions() == [] and SECRET.encode() not in bytes_of(saying)


def test_what_a_server_does_not_finish_before_it_stops_has_failed(saying: Any, pen: Pen) -> None:
    pen.free.clear()
    with served(saying, answers=1) as client:
        taken = [ask(client, SECRET), ask(client)]
        assert pen.used.wait(10)
        pen.free.set()
    with served(saying, seconds=0.0) as client:
        for one in taken:
            failed = client.responses.retrieve(one.id)
            assert (failed.status, failed.created_at) == ("failed", one.created_at) and "was stopped" in failed.error.message
            client.responses.delete(one.id)
    assert saying.store.sessions() == [] and SECRET.encode() not in bytes_of(saying)


def test_another_server_shows_and_cancels_what_one_writes(
    http: TestClient, client: OpenAI, saying: Any, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_LOOKS", 0.0)
    saying.says = "Hello. " * 100
    with served(type(saying)(MODEL, reader="same", store=saying.folder)) as other:
        pen.free.clear()
        taken = ask(client)
        assert pen.used.wait(10)
        assert other.responses.retrieve(taken.id).status == "in_progress"
        assert other.responses.cancel(taken.id).status == "cancelled"
        pen.free.set()
        while http.app.state.door.background.about(taken.id) is not None:  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert client.responses.retrieve(taken.id).status == "cancelled"
    assert len(saying.latest.text) < len(saying.says) / 2 and talks(saying) == [[]]


def test_each_token_has_its_own(saying: Any, tmp_path: Path, pen: Pen) -> None:
    tokens = Tokens(tmp_path)
    keys = {name: tokens.make(name) for name in ("ann", "bob")} | {"guest": tokens.make("guest", of="ann", read_only=True)}
    with TestClient(create_app(saying, Settings(hosts=("testserver",)), tokens=tokens)) as http:
        ann, bob, guest = (client_of(http, keys[name]) for name in ("ann", "bob", "guest"))
        pen.free.clear()
        taken = ask(ann)
        for call in (bob.responses.retrieve, bob.responses.cancel, bob.responses.delete):
            with pytest.raises(NotFoundError):
                call(taken.id)
        assert guest.responses.retrieve(taken.id).status in owed.PENDING
        for call in (guest.responses.cancel, guest.responses.delete, lambda _: ask(guest)):
            with pytest.raises(PermissionDeniedError):
                call(taken.id)
        pen.free.set()
        assert ended(ann, taken.id).output_text == "Hello."


def test_a_call_that_comes_again_is_taken_once(http: TestClient, client: OpenAI, saying: Any) -> None:
    def post(said: str) -> Any:
        return http.post("/v1/responses", json={"input": said, "background": True}, headers={"Idempotency-Key": "k"})

    first = post("I am Ann.").json()
    ended(client, first["id"])
    assert post("I am Ann.").json() == first and post("I am Bob.").status_code == 400
    assert talks(saying) == [["I am Ann.", "Hello."]]


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_server_that_is_killed_leaves_a_response_that_failed(chatty: str, tmp_path: Path) -> None:
    schema = {"type": "string", "minLength": 8000}  # or it might end before it is killed
    form = {"format": {"type": "json_schema", "name": "long", "schema": schema}}
    body = {"input": "Hi.", "background": True, "max_output_tokens": 8192, "text": form}
    with serving(tmp_path, chatty) as (api, process):
        name = api.post("/v1/responses", json=body).json()["id"]
        while (status := api.get(f"/v1/responses/{name}").json()["status"]) == "queued":
            time.sleep(0.01)
        assert status == "in_progress"
        process.kill()
        process.join()
    with serving(tmp_path, chatty) as (api, _):
        found = api.get(f"/v1/responses/{name}").json()
        assert found["status"] == "failed" and "was stopped" in found["error"]["message"]
        assert api.delete(f"/v1/responses/{name}").json()["deleted"]
