"""What was recalled is cited by its answer, and by that alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

TALK = [("user", "Rex barks at noon."), ("assistant", "I see.")]
TALK += [(role, f"{n} is fine." * 4) for n in range(60) for role in ("user", "assistant")]
ASKED = {"input": "What does Rex do?", "conversation": "alice", "max_output_tokens": 6}


def cited(body: Any) -> list[dict[str, Any]]:
    """The annotations of a response."""
    annotations: list[dict[str, Any]] = body["output"][0]["content"][0]["annotations"]
    return annotations


@pytest.fixture
def http(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant, Settings(hosts=("testserver",))))


def test_what_was_recalled_is_cited(http: TestClient, assistant: Assistant) -> None:
    assistant.add("alice", [{"role": role, "content": text} for role, text in TALK])
    answer = http.post("/v1/responses", json=ASKED).json()
    recalled, citations = answer["hmt"]["recalled"], cited(answer)
    assert recalled and [passage["source"] for passage in recalled] == ["alice"] * len(citations)
    text = answer["output"][0]["content"][0]["text"]
    assert citations[0]["url"].startswith("hmt:alice#") and citations[0]["end_index"] == len(text)
    found = http.get(f"/v1/responses/{answer['id']}").json()
    assert found["hmt"]["recalled"] == [] == cited(found), "or it would outlive being forgotten"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_given_again_cites_nothing(http: TestClient, assistant: Assistant, stream: bool) -> None:
    (document,) = assistant.corpus("garden").add_documents([{"text": "Rex barks at noon. " * 9}])
    assistant.session("alice").attach("garden")
    asked = {"json": ASKED | {"stream": stream}, "headers": {"Idempotency-Key": "k"}}
    first = http.post("/v1/responses", **asked).text  # type: ignore[arg-type]
    assert "garden" in first and "Rex barks" in first
    http.delete("/v1/corpora/garden/documents", params={"id": document})
    again = http.post("/v1/responses", **asked)  # type: ignore[arg-type]
    assert again.status_code == 200 and "garden" not in again.text and "Rex barks" not in again.text
    if not stream:
        assert cited(again.json()) == [] and again.json() == {
            **http.get(f"/v1/responses/{again.json()['id']}").json(),
            "hmt": again.json()["hmt"],
        }


@pytest.mark.parametrize(("corpus", "title"), [("bob/secret-plans", "document"), ("ann/garden", "garden/dogs")])
def test_a_citation_names_nothing_that_is_anothers(assistant: Assistant, tmp_path: Path, corpus: str, title: str) -> None:
    tokens = Tokens(tmp_path)
    headers = {"Authorization": f"Bearer {tokens.make('ann')}"}
    http = TestClient(create_app(assistant, Settings(hosts=("testserver",)), tokens=tokens), headers=headers)
    assistant.corpus(corpus).add_documents([{"text": "Rex barks at noon. " * 9, "name": "dogs"}])
    assistant.session("ann/alice").attach(corpus)
    answer = http.post("/v1/responses", json=ASKED)
    assert {citation["title"].split(",")[0] for citation in cited(answer.json())} == {title}
    assert corpus not in answer.text
