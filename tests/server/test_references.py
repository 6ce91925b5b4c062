"""Items that are named by their ids instead of being sent again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, NotFoundError, OpenAI

from hmt_memory.server import references
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

CALL = '<tool_call>{"name":"look","arguments":{"at":"a"}}</tool_call>'
LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"at": {"enum": ["a"]}}}}


def reference(item: str) -> Any:
    return {"type": "item_reference", "id": item}


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def talk(client: OpenAI, response: Any) -> list[str]:
    """What a response was asked, in order."""
    return [item.content[0].text for item in client.responses.input_items.list(response.id, order="asc")]  # type: ignore[union-attr]


def test_an_item_that_is_named_is_read_where_it_is_named(client: OpenAI, saying: Any) -> None:
    saying.says = "Nice to meet you."
    first = client.responses.create(input="I am Ann.", store=True)
    asked = client.responses.input_items.list(first.id).data[0].id
    for id_alone in (False, True):
        named = [{"id": item} if id_alone else reference(item) for item in (asked, first.output[0].id)]
        again = client.responses.create(input=[*named, user("Am I?")])  # type: ignore[arg-type]
        shown = saying.shown
        assert 0 < shown.index("I am Ann.") < shown.index("Nice to meet you.") < shown.index("Am I?")
        assert talk(client, again) == ["I am Ann.", "Nice to meet you.", "Am I?"]
    client.responses.create(input=[reference(asked), user("Am I?")], store=False)
    assert "I am Ann." in saying.shown and "Nice" not in saying.shown
    client.responses.delete(first.id)
    assert talk(client, again)[0] == "I am Ann.", "it was said again there"


def test_calls_of_functions_are_named_and_their_results_sent(client: OpenAI, saying: Any) -> None:
    saying.says = CALL
    first = client.responses.create(input="Look.", tools=[LOOK])
    (call,) = first.output
    saying.says = "Seen."
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "It is red."}  # type: ignore[union-attr]
    second = client.responses.create(input=[user("Look."), reference(str(call.id)), output], tools=[LOOK])
    assert second.output_text == "Seen." and saying.shown.index('"look"') < saying.shown.index("It is red.")
    sent = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in sent] == ["message", "function_call", "function_call_output"]
    assert json.loads(sent[1].arguments) == {"at": "a"} and sent[1].call_id == call.call_id  # type: ignore[union-attr]


def test_conversations_take_items_by_name(client: OpenAI, saying: Any) -> None:
    first = client.responses.create(input="I am Ann.", conversation=client.conversations.create().id)
    item = first.output[0].id
    made = client.conversations.create(items=[user("Who?"), reference(item)])
    texts = [one.content[0].text for one in client.conversations.items.list(made.id, order="asc")]  # type: ignore[union-attr]
    assert texts == ["Who?", "Hello."]
    added = client.conversations.items.create(made.id, items=[reference(item)]).data
    assert added[0].content[0].text == "Hello." and added[0].id != item  # type: ignore[union-attr]
    with pytest.raises(BadRequestError, match="is there already"):
        client.conversations.items.create(made.id, items=[reference(str(added[0].id))])


def test_what_is_there_already_is_not_named_again(client: OpenAI, saying: Any) -> None:
    conversation = client.conversations.create().id
    first = client.responses.create(input="I am Ann.", conversation=conversation)
    item = first.output[0].id
    later = client.responses.create(input="Later.", conversation=conversation).output[0].id
    before = saying.store.sessions(), len(saying.store.session(conversation).messages())
    for options in ({"previous_response_id": first.id}, {"conversation": conversation}):
        for stream in (False, True):
            with pytest.raises(BadRequestError, match="is there already"):
                client.responses.create(input=[reference(item), user("Am I?")], stream=stream, **options)  # type: ignore[call-overload]
    with pytest.raises(BadRequestError, match="is there already"):
        client.responses.create(input=[reference(item), reference(item)])
    assert (saying.store.sessions(), len(saying.store.session(conversation).messages())) == before
    on = client.responses.create(input=[reference(later), user("Am I?")], previous_response_id=first.id)
    assert talk(client, on) == ["Hello.", "Am I?"], "what came after the answer that it goes on from is not there"


@pytest.mark.parametrize("name", ["msg_1", "rs_1", "msg_" + "0" * 36, "msg_" + "0" * 7 + "1" + "0" * 28])
def test_an_unknown_item_is_not_found(client: OpenAI, saying: Any, name: str) -> None:
    client.responses.create(input="I am Ann.")
    for call in (
        lambda: client.responses.create(input=[reference(name)]),
        lambda: client.responses.create(input=[reference(name)], stream=True),
        lambda: client.conversations.create(items=[reference(name)]),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.code == "item_not_found"
    assert len(saying.store.sessions()) == 1


def test_items_that_were_deleted_or_are_another_tokens_are_not_found(saying: Any, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    app = create_app(saying, Settings(hosts=("testserver",)), tokens=tokens)
    ann, bob = (
        OpenAI(base_url="http://testserver/v1", api_key=tokens.make(name), http_client=TestClient(app), max_retries=0)
        for name in ("ann", "bob")
    )
    first = ann.responses.create(input="I am Ann.")
    named = [reference(first.output[0].id)]
    assert ann.responses.create(input=[*named, user("And?")]).output_text == "Hello."
    with pytest.raises(NotFoundError):
        bob.responses.create(input=named)
    ann.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        ann.responses.create(input=named)


def test_few_words_do_not_become_too_many(client: OpenAI, saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [client.responses.create(input=f"{n}").output[0].id for n in range(2)]
    monkeypatch.setattr(references, "_LONGEST", 400)
    client.responses.create(input=[reference(ids[0])], store=False)
    with pytest.raises(BadRequestError, match="Refer to fewer"):
        client.responses.create(input=[*map(reference, ids)], store=False)
