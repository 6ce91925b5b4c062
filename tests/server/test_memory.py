"""Sessions and corpora over HTTP: what a caller sees and changes, and that it is its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from hmt_memory import Assistant, Tiers
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

TALK = [
    {"role": "user", "content": "My dog is called Rex."},
    {"role": "assistant", "content": "A fine name."},
    {"role": "user", "content": "He was born in Bremen."},
    {"role": "assistant", "content": "By the sea."},
]


@pytest.fixture
def api(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant, Settings(hosts=("testserver",))))


def test_a_session_is_made_told_read_forked_and_erased(api: TestClient, assistant: Assistant) -> None:
    assert api.get("/v1/sessions").json() == {"object": "list", "data": [], "has_more": False}
    assert api.post("/v1/sessions", json={"name": "work/alice"}).json()["name"] == "work/alice"
    ids = api.post("/v1/sessions/work/alice/messages", json={"messages": TALK}).json()["message_ids"]
    listed = api.get("/v1/sessions/work/alice/messages").json()["data"]
    assert [message["id"] for message in listed] == ids and [message["content"] for message in listed] == [
        m["content"] for m in TALK
    ]
    assert [m["id"] for m in api.get("/v1/sessions/work/alice/messages", params={"start": 1, "stop": 3}).json()["data"]] == ids[
        1:3
    ]
    assert api.get("/v1/sessions/work/alice").json()["messages"] == 4
    recalled = api.get("/v1/sessions/work/alice/recall", params={"query": "What is my dog called?", "top_k": 2}).json()
    expected = assistant.recall("What is my dog called?", session="work/alice", top_k=2)
    assert [passage["text"] for passage in recalled["data"]] == [passage.text for passage in expected]
    assert recalled["data"][0]["source"] == "work/alice" and recalled["coverage"] == expected.coverage
    fork = api.post("/v1/sessions/work/alice/fork", json={"name": "copy", "upto": ids[1]})
    assert fork.status_code == 201 and fork.json()["messages"] == 2
    assert api.post("/v1/sessions/work/alice/fork", json={"name": "copy"}).status_code == 409
    gone = api.delete("/v1/sessions/work/alice/messages", params={"id": ids[:2]})
    assert gone.json() == {"forgotten": 2, "also_in": ["copy"]}
    assert [m["id"] for m in api.get("/v1/sessions/work/alice/messages").json()["data"]] == ids[2:]
    assert api.delete("/v1/sessions/work/alice/messages", params={"id": [999]}).status_code == 404
    assert api.delete("/v1/sessions/work/alice/messages").status_code == 400
    assert api.get("/v1/sessions/copy/verify").json() == {"ok": True, "problems": [], "notes": []}
    found = api.get("/v1/search", params={"query": "Bremen"}).json()["data"]
    assert [(one["source"], one["text"]) for one in found] == [("work/alice", TALK[2]["content"])]
    assert api.delete("/v1/sessions/work/alice").status_code == 204
    assert [each["name"] for each in api.get("/v1/sessions").json()["data"]] == ["copy"]
    assert api.get("/v1/sessions/work/alice").status_code == 404 and api.delete("/v1/sessions/work/alice").status_code == 404


def test_messages_come_back_as_they_were_added(api: TestClient, assistant: Assistant) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [
        {"role": "user", "content": "Look.", "name": "Ann", "mood": {"calm": None}},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "It is red.", "tool_call_id": "1"},
    ]
    ids = assistant.session("alice").add(said)
    listed = api.get("/v1/sessions/alice/messages").json()["data"]
    assert [one.pop("id") for one in listed] == ids and all(one.pop("created_at") for one in listed)
    assert listed == said


def test_names_that_look_the_same_are_the_same(api: TestClient) -> None:
    api.post("/v1/sessions", json={"name": "a"})
    one, other = "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert api.post("/v1/sessions/a/fork", json={"name": one}).status_code == 201
    assert api.get(f"/v1/sessions/{other}").status_code == 200 and api.get(f"/v1/sessions/{one}").status_code == 200
    api.post(f"/v1/corpora/{one}/documents", json={"documents": [{"text": "Rex barks."}]})
    assert api.put("/v1/sessions/a/corpora", json={"corpora": [one]}).json()["corpora"] == [other]
    assert api.delete(f"/v1/sessions/{one}").status_code == 204
    for name in ("", " a", "a/messages", "x" * 300):
        assert api.post("/v1/sessions", json={"name": name}).status_code == 400


def test_lists_come_in_pages(api: TestClient) -> None:
    for name in "bdac":
        api.post("/v1/sessions", json={"name": name})
    first = api.get("/v1/sessions", params={"limit": 2}).json()
    assert [each["name"] for each in first["data"]] == ["a", "b"] and first["has_more"]
    rest = api.get("/v1/sessions", params={"limit": 2, "after": "b"}).json()
    assert [each["name"] for each in rest["data"]] == ["c", "d"] and not rest["has_more"]


def test_a_limit_erases_what_is_beyond_it_now_and_later(api: TestClient) -> None:
    api.post("/v1/sessions", json={"name": "a"})
    api.post("/v1/sessions/a/messages", json={"messages": TALK})
    for wrong in ({"messages": 0}, {"seconds": -1}, {"seconds": 1e300}, {"messages": 1 << 70}):
        assert api.put("/v1/sessions/a/retention", json=wrong).status_code == 400, wrong
    kept = api.put("/v1/sessions/a/retention", json={"messages": 3, "seconds": 3600}).json()
    assert kept["retention"] == {"messages": 3, "seconds": 3600} and kept["messages"] <= 3 < len(TALK)
    api.post("/v1/sessions/a/messages", json={"messages": TALK})
    api.get("/v1/sessions/a/recall", params={"query": TALK[0]["content"]})
    assert len(api.get("/v1/sessions/a/messages").json()["data"]) <= 3
    assert api.put("/v1/sessions/a/retention", json={}).json()["retention"] == {}
    assert api.put("/v1/sessions/b/retention", json={}).status_code == 404
    assert api.get("/v1/sessions").json()["data"] == [{"name": "a"}]


def test_an_exported_session_is_imported_under_another_name(api: TestClient) -> None:
    api.post("/v1/sessions", json={"name": "a"})
    api.post("/v1/sessions/a/messages", json={"messages": TALK})
    file = api.get("/v1/sessions/a/export")
    assert file.status_code == 200 and file.headers["content-disposition"].endswith('"session.hmt"')
    assert api.post("/v1/sessions/b/import", content=file.content).json()["messages"] == 4
    assert api.post("/v1/sessions/b/import", content=file.content).status_code == 409
    damaged = api.post("/v1/sessions/c/import", content=file.content[:-20])
    assert damaged.status_code == 400 and "Export it again" in damaged.json()["error"]["message"]
    assert [each["name"] for each in api.get("/v1/sessions").json()["data"]] == ["a", "b"]


def test_documents_are_added_replaced_recalled_and_removed(api: TestClient) -> None:
    given = {
        "documents": [
            {"name": "notice", "text": "The notice is three months."},
            {"text": "Rex barks.", "metadata": {"page": 3}},
        ]
    }
    ids = api.post("/v1/corpora/handbook/documents", json=given).json()["document_ids"]
    again = api.post(
        "/v1/corpora/handbook/documents", json={"documents": [{"name": "notice", "text": "The notice is two months."}]}
    )
    (new,) = again.json()["document_ids"]
    listed = api.get("/v1/corpora/handbook/documents").json()["data"]
    assert [document["id"] for document in listed] == [ids[1], new] and listed[0]["metadata"] == {"page": 3}
    (passage,) = api.get("/v1/corpora/handbook/recall", params={"query": "How long is the notice?", "top_k": 1}).json()["data"]
    assert passage["text"] == "The notice is two months." and passage["document"] == new
    api.post("/v1/sessions", json={"name": "a"})
    assert api.put("/v1/sessions/a/corpora", json={"corpora": ["handbook"]}).json()["corpora"] == ["handbook"]
    assert api.put("/v1/sessions/a/corpora", json={"corpora": []}).json()["corpora"] == []
    assert api.put("/v1/sessions/a/corpora", json={"corpora": ["none"]}).status_code == 404
    assert api.delete("/v1/corpora/handbook/documents", params={"id": [ids[1]]}).status_code == 204
    assert api.get("/v1/corpora/handbook").json()["documents"] == 1
    assert api.delete("/v1/corpora/handbook").status_code == 204 and api.get("/v1/corpora").json()["data"] == []


def test_each_token_sees_its_own_and_who_may_look_only_changes_nothing(assistant: Assistant, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    secrets = {name: tokens.make(name) for name in ("ann", "bob")}
    secrets["guest"] = tokens.make("guest", of="ann", read_only=True)
    app = create_app(assistant, Settings(hosts=("testserver",)), tokens=tokens)
    ann, bob, guest = (TestClient(app, headers={"Authorization": f"Bearer {secret}"}) for secret in secrets.values())
    for each, dog in ((ann, "Rex"), (bob, "Fido")):
        each.post("/v1/sessions", json={"name": "pets"})
        each.post("/v1/sessions/pets/messages", json={"messages": [{"role": "user", "content": f"My dog is {dog}."}]})
        each.post("/v1/corpora/book/documents", json={"documents": [{"name": "n", "text": f"{dog} barks."}]})
        each.put("/v1/sessions/pets/corpora", json={"corpora": ["book"]})
    assert [each["name"] for each in ann.get("/v1/sessions").json()["data"]] == ["pets"]
    assert ann.get("/v1/sessions/pets").json()["corpora"] == ["book"]
    (found,) = ann.get("/v1/search", params={"query": "dog"}).json()["data"]
    assert found["source"] == "pets" and "Rex" in found["text"]
    for way in ("/v1/sessions/pets/recall", "/v1/corpora/book/recall"):
        texts = [passage["text"] for passage in ann.get(way, params={"query": "dog Fido Rex", "top_k": 50}).json()["data"]]
        assert texts and not any("Fido" in text for text in texts)
    for name in ("bob/pets", "%2e%2e%2fbob%2fpets", "x"):
        for path in (f"/v1/sessions/{name}", f"/v1/corpora/{name}", f"/v1/sessions/{name}/recall?query=dog"):
            lost = ann.get(path)
            assert lost.status_code == 404 and "session_not_found" in lost.text
            assert not any(secret in lost.text for secret in ("bob/", str(tmp_path), "Fido")), lost.text
    assert ann.post("/v1/sessions/pets/fork", json={"name": "bob/own"}).json()["name"] == "bob/own"
    assert "ann/bob/own" in assistant.store.sessions()
    ann.delete("/v1/sessions/bob/own")
    assert guest.get("/v1/sessions").json()["data"] == [{"name": "pets"}]
    assert len(guest.get("/v1/sessions/pets/messages").json()["data"]) == 1
    for method, path, body in (
        ("post", "/v1/sessions", {"name": "x"}),
        ("post", "/v1/sessions/x/messages", {"messages": TALK}),
        ("delete", "/v1/sessions/x", None),
        ("post", "/v1/sessions/x/fork", {"name": "y"}),
        ("delete", "/v1/sessions/x/messages?id=1", None),
        ("put", "/v1/sessions/x/corpora", {"corpora": []}),
        ("put", "/v1/sessions/x/retention", {}),
        ("post", "/v1/sessions/x/import", None),
        ("post", "/v1/corpora/x/documents", {"documents": [{"text": "x"}]}),
        ("delete", "/v1/corpora/x", None),
        ("delete", "/v1/corpora/x/documents?id=1", None),
    ):
        assert guest.request(method, path, json=body).status_code == 403, path
    nobody = TestClient(app)
    open_paths = {"/health", "/ready", "/openapi.json"}
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            if path not in open_paths:
                assert nobody.request(method, path.replace("{name}", "pets")).status_code == 401, (method, path)
    assert sorted(assistant.store.sessions()) == ["ann/pets", "bob/pets"]


def test_numbers_that_no_database_holds_are_refused(api: TestClient, assistant: Assistant) -> None:
    assistant.session("alice").add([{"role": "user", "content": "Ida grows roses."}])
    for call in (
        api.delete("/v1/sessions/alice/messages", params={"id": 1 << 70}),
        api.get("/v1/sessions/alice/messages", params={"start": 1 << 70}),
        api.post("/v1/sessions/alice/fork", json={"name": "b", "upto": 1 << 70}),
        api.delete("/v1/corpora/garden/documents", params={"id": 1 << 70}),
    ):
        assert call.status_code == 400, call.text


# --- ahead ----------------------------------------------------------------------------------------------------------------


def test_a_session_is_prepared_when_a_client_says_that_a_question_is_likely(api: TestClient, assistant: Assistant) -> None:
    api.post("/v1/sessions", json={"name": "work/alice"})
    api.post("/v1/sessions/work/alice/messages", json={"messages": TALK})
    assistant.store.hot.limit = 0
    assistant.store.settle()
    assistant.store.hot.limit = 1 << 28
    told = api.get("/v1/sessions/work/alice/messages").json()
    assert api.post("/v1/sessions/work/alice/prepare").status_code == 202
    assistant.store.behind._thread[1].submit(lambda: None).result()
    assert assistant.store.view_cache.bytes and assistant.store.open_indexes.uses.total()
    assert api.get("/v1/sessions/work/alice/messages").json() == told
    measured = api.get("/metrics").text
    assert 'hmt_hot_bytes{kind="views"}' in measured and 'hmt_index_uses{tier="cold"}' in measured
    assert api.post("/v1/sessions/nobody/prepare").status_code == 404


def test_looking_at_a_session_prepares_it_where_views_are_made_ahead(chatty: str, tmp_path: Path) -> None:
    for ahead in (False, True):
        place, tiers = tmp_path / str(ahead), Tiers(fetch_ahead=ahead)
        assistant = Assistant(chatty, reader="same", store=place, dtype="float32", device="cpu", tiers=tiers)
        api = TestClient(create_app(assistant, Settings(hosts=("testserver",))))
        assistant.add("alice", TALK)
        for address in ("/v1/sessions/alice/messages", "/v1/conversations/alice/items"):
            assistant.store.view_cache.clear()
            assert api.get(address).status_code == 200
            assistant.store.behind._thread[1].submit(lambda: None).result()
            assert (assistant.store.view_cache.bytes > 0) is ahead, address
        assert pickle.loads(pickle.dumps(assistant)).store.tiers == tiers
