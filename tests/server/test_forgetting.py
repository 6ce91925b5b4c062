"""What is forgotten is gone from answers, too: from those that went on from it, and from those that are given again."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmt_memory.errors import SessionBusyError
from hmt_memory.sessions.names import is_aside
from hmt_memory.sessions.stored_session import StoredSession

SECRET = "My code is 1234."


def answer(http: TestClient, said: str, *, key: str | None = None, **options: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return http.post("/v1/responses", json={"input": said, **options}, headers=headers)


def texts(saying: Any) -> list[str]:
    store = saying.store
    return [message.content for name in store.sessions() for message in store.session(name).messages()]


@pytest.mark.parametrize("path", ["sessions/alice", "sessions/alice/messages?id=1", "conversations/alice"])
def test_an_erasure_that_failed_is_finished_by_the_same_call(
    http: TestClient, saying: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    first = answer(http, SECRET, conversation="alice").json()
    answer(http, "And now?", previous_response_id=first["id"])
    real = StoredSession._forget

    def busy(self: StoredSession, ids: Any) -> Any:
        if is_aside(self.name):
            raise SessionBusyError("another process")
        return real(self, ids)

    with monkeypatch.context() as patched:
        patched.setattr(StoredSession, "_forget", busy)
        assert http.delete(f"/v1/{path}").status_code == 409
    assert http.delete(f"/v1/{path}").is_success
    assert SECRET not in texts(saying) and "And now?" in texts(saying)


def test_a_response_is_forgotten_without_what_was_said_before_it(http: TestClient, saying: Any) -> None:
    first = answer(http, SECRET, conversation="alice").json()
    second = answer(http, "Second.", previous_response_id=first["id"]).json()
    third = answer(http, "Third.", previous_response_id=second["id"]).json()
    answer(http, "Fork.", previous_response_id=second["id"])
    for gone in (third, second):
        assert http.delete(f"/v1/responses/{gone['id']}").is_success
    assert len(saying.store.sessions()) == 2, "a session with nothing of its own is gone"
    assert sorted(texts(saying)) == sorted([SECRET, "Hello.", SECRET, "Hello.", "Fork.", "Hello."])


@pytest.mark.parametrize("path", ["sessions/alice", "sessions/alice/messages?id=1"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_not_stored_is_not_given_again_once_its_session_has_forgotten(
    http: TestClient, saying: Any, path: str, stream: bool
) -> None:
    saying.says = "It is 1234."
    first = answer(http, SECRET, conversation="alice").json()
    asked: list[dict[str, Any]] = [
        {"key": "k", "conversation": "alice", "store": False, "stream": stream},
        {"key": "p", "previous_response_id": first["id"], "store": False, "stream": stream},
    ]
    for _ in range(2):
        assert [answer(http, "Code?", **call).status_code for call in asked] == [200, 200]
    assert texts(saying) == [SECRET, "It is 1234."]
    http.delete(f"/v1/{path}")
    assert [answer(http, "Code?", **call).status_code for call in asked] == [410, 410]
