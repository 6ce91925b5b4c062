"""A server that runs for long: calls that come twice, and what it counts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from hmt_memory import Assistant
from hmt_memory.server import replays
from hmt_memory.server.app import create_app
from hmt_memory.server.chat import Completion
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

HELLO = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5, "metadata": {"session_id": "secret-name"}}


@pytest.fixture
def api(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant, Settings(hosts=("testserver",))))


def ask(api: TestClient, key: str | None, **changed: Any) -> Any:
    return api.post("/v1/chat/completions", json=HELLO | changed, headers={} if key is None else {"Idempotency-Key": key})


def stored(assistant: Assistant) -> int:
    return int(assistant.store.session("secret-name").stats()["messages"])


def test_a_call_that_comes_again_is_answered_and_stored_once(api: TestClient, assistant: Assistant) -> None:
    first, again = ask(api, "a").json(), ask(api, "a").json()
    first["hmt"]["recalled"] = []  # that is not kept
    assert first == again and stored(assistant) == 2
    streamed = ask(api, "a", stream=True)
    assert streamed.status_code == 400, "a call with other fields is another call"
    other = ask(api, "b").json()
    assert other["id"] != first["id"] and stored(assistant) == 4, "with another key the same is said once more"


def test_a_stream_that_comes_again_has_the_same_text_and_end(api: TestClient, assistant: Assistant) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}

    def chunks() -> list[Any]:
        lines = ask(api, "a", **options).text.splitlines()
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    first, again = chunks(), chunks()
    assert stored(assistant) == 2

    def told(all_of_them: list[Any]) -> Any:
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in all_of_them if chunk["choices"])
        about = all_of_them[-2]["hmt"] | {"recalled": []}
        return text, all_of_them[-2]["choices"][0]["finish_reason"], about, all_of_them[-1]["usage"]

    assert told(first) == told(again) and {chunk["id"] for chunk in (*first, *again)} == {first[0]["id"]}


def test_keys_are_each_callers_own(assistant: Assistant, tmp_path: Path) -> None:
    kept = Tokens(tmp_path)
    ann, eve = ({"Authorization": f"Bearer {kept.make(name)}"} for name in ("ann", "eve"))
    api = TestClient(create_app(assistant, Settings(hosts=("*",)), tokens=kept))
    answers = [
        api.post("/v1/chat/completions", json=HELLO, headers=who | {"Idempotency-Key": "a"}).json()["id"]
        for who in (ann, eve, ann)
    ]
    assert answers[0] == answers[2] != answers[1]
    assert assistant.store.sessions() == ["ann/secret-name", "eve/secret-name"]


def test_what_failed_is_tried_again(api: TestClient, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = Assistant.reply
    monkeypatch.setattr(Assistant, "reply", lambda *given, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(api, "a")
    monkeypatch.setattr(Assistant, "reply", reply)
    assert ask(api, "a").status_code == 200 and stored(assistant) == 2


@pytest.mark.parametrize("key", ["", "x" * 300])
def test_a_key_has_some_characters_and_not_too_many(api: TestClient, key: str) -> None:
    assert ask(api, key).status_code == 400


async def test_the_latest_keys_are_kept_and_one_that_is_in_use_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_MOST", 2)
    made = replays.Replays()

    def answered(tenant: str, key: str) -> Any:
        found = made.find(tenant, key, "body")
        return None if found is None else found.answered

    with made.keeping("other", "long", "body"), made.keeping("", "first", "body"):
        for key in "abc":
            with made.keeping("", key, "body") as kept:
                with pytest.raises(HTTPException, match="is being answered"):
                    made.find("", key, "body")
                kept.keep({"id": key})
        assert [answered("", key) for key in "abc"] == [None, {"id": "b"}, {"id": "c"}], "the latest two of this name space"
        for tenant, key in (("other", "long"), ("", "first")):
            with pytest.raises(HTTPException, match="is being answered"):
                made.find(tenant, key, "body")
    assert answered("other", "long") is None, "what was not answered is free again"
    monkeypatch.setattr(replays.time, "monotonic", lambda: float("inf"))
    made.let_go()
    assert not made._kept, "and for so long"


def test_what_was_forgotten_is_not_given_again(api: TestClient, assistant: Assistant) -> None:
    first = ask(api, "a").json()
    assistant.session("secret-name").forget(first["hmt"]["message_ids"])
    for _ in range(2):
        again = ask(api, "a")
        assert again.status_code == 410 and first["choices"][0]["message"]["content"] not in again.text
    assert stored(assistant) == 0
    ask(api, "b")
    assistant.store.delete("secret-name")
    assert ask(api, "b").status_code == 410 and assistant.store.sessions() == []
    assistant.session("secret-name").add({"role": "user", "content": "Another session of that name."})
    assert ask(api, "b").status_code == 410


def test_what_was_stored_counts_as_answered_however_late_it_is(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is stored before its last piece is given out: what goes wrong after that must not make it twice."""
    api = TestClient(create_app(assistant, Settings(hosts=("testserver",))), raise_server_exceptions=False)
    whole, broken = Completion.whole, [True]

    def once(completion: Completion) -> Any:
        if sys._getframe(1).f_code.co_name == "answer" and broken.pop():
            raise OSError("the client is gone")
        return whole(completion)

    monkeypatch.setattr(Completion, "whole", once)
    assert ask(api, "a").status_code == 500
    monkeypatch.setattr(Completion, "whole", whole)
    assert ask(api, "a").status_code == 200 and stored(assistant) == 2


def test_text_that_is_none_is_refused_with_and_without_a_key(api: TestClient) -> None:
    body = b'{"messages": [{"role": "user", "content": "h\\ud800"}]}'
    for key in ({}, {"Idempotency-Key": "a"}):
        answer = api.post("/v1/chat/completions", content=body, headers=key | {"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text


def test_calls_answers_and_times_are_counted_and_nothing_that_was_said(api: TestClient, assistant: Assistant) -> None:
    answer = ask(api, None).json()
    api.get("/v1/sessions/secret-name/recall", params={"query": "hello"})
    api.get("/v1/sessions/nobody")
    api.get("/v1/models", headers={"Host": "evil.example"})
    shown = api.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = dict(re.findall(r"^(\w+(?:\{[^}]*\})?) ([\d.e+-]+)$", shown.text, re.MULTILINE))
    assert float(counted['hmt_calls_total{route="/v1/chat/completions",status="200"}']) == 1
    assert 'route="/v1/sessions/{name:path}/recall",status="200"} 1.0' in shown.text
    assert float(counted["hmt_answer_tokens_total"]) == answer["usage"]["completion_tokens"]
    assert float(counted["hmt_first_token_seconds_count"]) == float(counted["hmt_answer_seconds_count"]) == 1
    assert float(counted["hmt_answering"]) == 0
    assert 'status="404"' in shown.text and 'status="400"' in shown.text
    assert not any(word in shown.text for word in ("secret", "hello", "nobody", "evil"))


def test_what_fails_unforeseen_is_counted(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    api = TestClient(create_app(assistant, Settings(hosts=("testserver",))), raise_server_exceptions=False)
    monkeypatch.setattr(Assistant, "reply", lambda *given, **options: 1 / 0)
    assert ask(api, None).status_code == 500
    shown = api.get("/metrics").text
    assert 'route="/v1/chat/completions",status="500"} 1.0' in shown and "hmt_answering 0.0" in shown


def test_metrics_are_for_those_who_have_a_token(assistant: Assistant, tmp_path: Path) -> None:
    kept = Tokens(tmp_path)
    api = TestClient(create_app(assistant, Settings(hosts=("*",)), tokens=kept))
    assert api.get("/metrics").status_code == 401
    assert api.get("/metrics", headers={"Authorization": f"Bearer {kept.make('ann')}"}).status_code == 200
