"""Conversations, by OpenAI's own client: sessions by another name, whose messages are items."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI, PermissionDeniedError

from hmt_memory import Session
from hmt_memory.server.app import create_app
from hmt_memory.server.items import Stem, items
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens


def message(role: str, text: str) -> Any:
    return {"type": "message", "role": role, "content": text}


def texts(client: OpenAI, conversation: str, **options: Any) -> list[str]:
    return [item.content[0].text for item in client.conversations.items.list(conversation, **options)]  # type: ignore[union-attr]


def test_a_conversation_is_made_described_changed_and_erased(client: OpenAI, saying: Any) -> None:
    made = client.conversations.create(metadata={"topic": "roses"}, items=[message("user", "I grow roses.")])
    assert made.id.startswith("conv_") and made.object == "conversation" and saying.store.sessions() == [made.id]
    assert client.conversations.retrieve(made.id) == made and made.metadata == {"topic": "roses"}
    assert client.conversations.update(made.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(made.id).metadata == {"a": "b"}
    assert client.conversations.delete(made.id).deleted and saying.store.sessions() == []
    calls = [
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.delete(made.id),
        lambda: client.responses.create(input="Hi.", conversation=made.id),
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.code == "conversation_not_found"
    assert saying.store.sessions() == []


def test_responses_are_added_to_their_conversation(client: OpenAI, saying: Any, http: TestClient) -> None:
    conversation = client.conversations.create()
    for said in ("I am Ann.", "Am I?"):
        answer = client.responses.create(input=said, conversation={"id": conversation.id})
        assert answer.conversation is not None and answer.conversation.id == conversation.id
    assert "I am Ann." in saying.shown
    assert texts(client, conversation.id, order="asc") == ["I am Ann.", "Hello.", "Am I?", "Hello."]
    found = client.responses.retrieve(answer.id)
    assert found.conversation == answer.conversation and found.output == answer.output
    assert [item.id for item in client.responses.input_items.list(answer.id)] == [
        item.id for item in client.conversations.items.list(conversation.id)
    ][1:2]
    on = client.responses.create(input="Sure?", previous_response_id=answer.id)
    assert on.conversation is None and "Am I?" in saying.shown
    assert len(texts(client, conversation.id)) == 4, "what goes on from an answer is no part of the conversation"
    client.responses.delete(answer.id)
    assert texts(client, conversation.id, order="asc") == ["I am Ann.", "Hello."]
    client.conversations.delete(conversation.id)
    (name,) = saying.store.sessions()
    assert [m.content for m in saying.store.session(name).messages()] == ["Sure?", "Hello."]


def test_a_named_session_is_a_conversation(client: OpenAI, saying: Any, http: TestClient) -> None:
    saying.add("work/alice", [{"role": "user", "content": "I am Ann."}, {"role": "assistant", "content": "Hi."}])
    client.responses.create(input="Am I?", conversation="work/alice")
    assert "I am Ann." in saying.shown and len(saying.store.session("work/alice").messages()) == 4
    items = http.get("/v1/conversations/work/alice/items?order=asc").json()["data"]
    assert [item["role"] for item in items] == ["user", "assistant"] * 2
    for item in items:
        assert http.get(f"/v1/conversations/work/alice/items/{item['id']}").json() == item
    assert http.get("/v1/conversations/work/alice").json()["metadata"] == {}
    saying.store.rename("work/alice", "alice")
    assert http.get(f"/v1/conversations/alice/items/{items[3]['id']}").json() == items[3]
    ids = [m["id"] for m in http.get("/v1/sessions/alice/messages").json()["data"]]
    assert ids == [1, 2, 3, 4]


def test_items_come_in_pages_and_are_forgotten_one_by_one(client: OpenAI, saying: Any) -> None:
    conversation = client.conversations.create().id
    for start in (0, 20):
        batch = [message("user" if n % 2 else "assistant", f"n {n}") for n in range(start, start + 20)]
        added = client.conversations.items.create(conversation, items=batch)
        assert [item.content[0].text for item in added.data] == [f"n {n}" for n in range(start, start + 20)]  # type: ignore[union-attr]
    assert texts(client, conversation, limit=7) == [f"n {n}" for n in range(39, -1, -1)]
    assert texts(client, conversation, limit=7, order="asc") == [f"n {n}" for n in range(40)]
    first = client.conversations.items.list(conversation, order="asc").data[0]
    client.conversations.items.delete(first.id, conversation_id=conversation)  # type: ignore[arg-type]
    assert texts(client, conversation, order="asc", limit=2)[0] == "n 1"
    with pytest.raises(NotFoundError) as caught:
        client.conversations.items.retrieve(first.id, conversation_id=conversation)  # type: ignore[arg-type]
    assert caught.value.code == "item_not_found"
    with pytest.raises(BadRequestError, match="names no item"):
        client.conversations.items.list(conversation, after=first.id)  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match="items"):
        client.conversations.items.create(conversation, items=[message("user", "x")] * 21)


def test_calls_of_functions_are_items(client: OpenAI, saying: Any) -> None:
    sent: list[Any] = [
        message("user", "Look."),
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":1}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": '{"at":2}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Red."},
    ]
    conversation = client.conversations.create(items=sent).id
    listed = list(client.conversations.items.list(conversation, order="asc"))
    assert [item.type for item in listed] == [item["type"] for item in sent]
    assert [(item.call_id, item.arguments) for item in listed[1:3]] == [("c1", '{"at": 1}'), ("c2", '{"at": 2}')]  # type: ignore[union-attr]
    assert client.conversations.items.retrieve(listed[2].id, conversation_id=conversation) == listed[2]  # type: ignore[arg-type]
    after = client.conversations.items.list(conversation, order="asc", after=listed[1].id, limit=1).data  # type: ignore[arg-type]
    assert after == [listed[2]]


def test_every_call_of_many_has_an_id_that_is_understood() -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "look", "arguments": "{}"}} for n in range(257)]
    stem = Stem.new()
    made = items("assistant", "", stem.message(0).removeprefix("msg_"), {"tool_calls": calls})
    assert len({item["id"] for item in made}) == 257 and {Stem.of(item["id"]) for item in made} == {stem}


def test_items_that_are_added_are_told_and_nobody_elses(client: OpenAI, saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation, real = client.conversations.create().id, Session.add

    def add(self: Session, messages: Any, **options: Any) -> Any:
        real(self, [{"role": "user", "content": "Another's."}])
        return real(self, messages, **options)

    monkeypatch.setattr(Session, "add", add)
    added = client.conversations.items.create(conversation, items=[message("user", "Mine."), message("user", "Mine, too.")])
    assert [item.content[0].text for item in added.data] == ["Mine.", "Mine, too."]  # type: ignore[union-attr]


def test_a_conversation_that_cannot_be_made_leaves_nothing(client: OpenAI, saying: Any) -> None:
    with pytest.raises(BadRequestError):
        client.conversations.create(metadata={"a": "b"}, items=[message("system", "Be brief. " * 4000)])
    assert saying.store.sessions() == []


@pytest.mark.parametrize("name", ["work/items", "work/items/alice", "items", "items/alice"])
def test_no_session_has_the_address_of_items(client: OpenAI, http: TestClient, saying: Any, name: str) -> None:
    with pytest.raises(BadRequestError, match="Choose another name"):
        client.responses.create(input="Hi.", conversation=name)
    assert http.get(f"/v1/sessions/{name}").status_code == 400 and saying.store.sessions() == []


def test_each_token_has_conversations_of_its_own(saying: Any, tmp_path: Any) -> None:
    tokens, http = Tokens(tmp_path), {}
    keys = {name: tokens.make(name) for name in ("ann", "bob")} | {"guest": tokens.make("guest", of="ann", read_only=True)}
    app = create_app(saying, Settings(hosts=("testserver",)), tokens=tokens)
    for name, key in keys.items():
        http[name] = OpenAI(base_url="http://testserver/v1", api_key=key, http_client=TestClient(app), max_retries=0)
    made = http["ann"].conversations.create(items=[message("user", "I am Ann.")]).id
    assert saying.store.sessions() == [f"ann/{made}"]
    with pytest.raises(NotFoundError):
        http["bob"].conversations.items.list(made)
    with pytest.raises(NotFoundError):
        http["bob"].responses.create(input="Hi.", conversation=made)
    assert texts(http["guest"], made) == ["I am Ann."]
    for call in (http["guest"].conversations.delete, http["guest"].conversations.create):
        with pytest.raises(PermissionDeniedError):
            call(**({"conversation_id": made} if call.__name__ == "delete" else {}))
    with pytest.raises(PermissionDeniedError):
        http["guest"].responses.create(input="Hi.", conversation=made)


def test_one_answer_at_a_time_is_written_in_a_conversation(client: OpenAI, http: TestClient) -> None:
    http.app.state.door._answering.add("alice")  # type: ignore[attr-defined]
    with pytest.raises(ConflictError, match="another call is being answered"):
        client.responses.create(input="Hi.", conversation="alice")
