"""The pages of the inspector: what they show, to whom, and that nothing that was said becomes a part of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.pages.drawing import bar, heat
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens
from hmt_memory.sessions.explaining import Explanation, Part

SCRIPT = "<script>alert('a')</script>\"'><img src=x onerror=alert(1)>"
TALK = [{"role": "user", "content": SCRIPT}, {"role": "assistant", "content": "By the sea."}] * 2
PERSON = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def browser(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant, Settings(hosts=("testserver",))), headers=PERSON)


def same(client: TestClient, path: str, **form: str) -> Any:
    """Send a form as a browser does from one of these pages."""
    return client.post(path, data=form, headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=False)


def test_the_overview_lists_sessions_and_corpora(browser: TestClient, assistant: Assistant) -> None:
    assert "There is none yet" in browser.get("/").text
    assistant.session("work/a b").add(TALK)
    assistant.corpus("handbook").add_documents([{"text": "Rex barks.", "name": "dogs"}])
    shown = browser.get("/").text
    assert 'href="/look/sessions/work/a%20b">work/a b<' in shown and 'href="/look/corpora/handbook"' in shown
    assert browser.get("/look/sessions/work/a%20b").status_code == 200


def test_a_session_shows_its_messages_in_order_and_earlier_ones_on_demand(browser: TestClient, assistant: Assistant) -> None:
    ids = assistant.session("a").add([{"role": "user", "content": f"Line {number}."} for number in range(60)])
    shown = re.findall(r'id="message-(\d+)"', browser.get("/look/sessions/a").text)
    assert [int(number) for number in shown] == ids[-50:]
    earlier = browser.get("/look/messages/a", params={"before": 10}).text
    assert [int(number) for number in re.findall(r'id="message-(\d+)"', earlier)] == ids[:10] and "Earlier" not in earlier


@pytest.mark.parametrize(
    "path", ["/look/sessions/a", "/look/messages/a", "/look/why/a?question=sea", "/look/search?query=alert"]
)
def test_what_was_said_is_text_and_pages_run_nothing_else(browser: TestClient, assistant: Assistant, path: str) -> None:
    assistant.session("a").add(TALK)
    answer = browser.get(path)
    assert answer.status_code == 200 and "<script>alert" not in answer.text and "<img" not in answer.text
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"


def test_names_are_text_too(browser: TestClient, assistant: Assistant) -> None:
    name = 'a"><script>alert(1)'
    assistant.session(name).add(TALK)
    for path in ("/", f"/look/sessions/{name}", "/look/search?query=sea"):
        assert "<script>alert" not in browser.get(path).text


def test_why_shows_the_view_of_a_question_and_of_a_stored_answer(browser: TestClient, assistant: Assistant) -> None:
    session = assistant.session("a")
    session.add([{"role": "user", "content": f"The code of door {number} is {number}{number}."} for number in range(9)])
    reply = session.reply({"role": "user", "content": "What is the code of door 3?"}, max_new_tokens=3).finish()
    expected = session.explain({"role": "user", "content": "What is the code of door 3?"}, replacing=reply.message_ids[0])
    shown = browser.get("/look/why/a", params={"answer": reply.message_ids[1]}).text
    assert f"The view: {expected.tokens:,} positions" in shown and "What is the code of door 3?" in shown
    for part in expected.parts:
        counted = f"{part.tokens:,} tokens" if part.text else f"{part.tokens} positions without words"
        assert re.search(rf"{part.name}\b[^<]*<span class=.count.>{re.escape(counted)}</span>", shown), part
    assert shown.count('class="noted"') == sum(each.noted for each in expected.passages)
    assert f"Weights of {len(expected.weights)} segments" in shown
    assert assistant.store.session("a").stats()["messages"] == 11
    assert browser.get("/look/why/a").status_code == 400 and browser.get("/look/why/a?answer=99").status_code == 404
    assert browser.get("/look/why/b?question=a").status_code == 404 and not assistant.store.has("session", "b")


def test_a_corpus_shows_its_documents_and_what_it_recalls(browser: TestClient, assistant: Assistant) -> None:
    assistant.corpus("handbook").add_documents([{"text": "Rex barks at the postman. " * 9, "name": SCRIPT}])
    shown = browser.get("/look/corpora/handbook").text
    assert "&lt;script&gt;" in shown and "<script>alert" not in shown
    assert "barks at the postman" in browser.get("/look/passages/handbook?question=postman").text


def test_forms_fork_and_erase_but_only_those_of_these_pages(browser: TestClient, assistant: Assistant) -> None:
    assistant.session("a").add(TALK)
    for headers in ({}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://testserver:81"}, {"Sec-Fetch-Site": "none"}):
        for path in ("/look/fork/a", "/look/delete/a"):
            assert browser.post(path, data={"to": "b"}, headers=headers).status_code == 403, headers
    made = same(browser, "/look/fork/a", to="work/b")
    assert (made.status_code, made.headers["location"]) == (303, "/look/sessions/work/b")
    assert (
        "already" in same(browser, "/look/fork/a", to="work/b").text and same(browser, "/look/fork/a", to="").status_code == 400
    )
    assert same(browser, "/look/delete/a").headers["location"] == "/"
    assert assistant.store.sessions() == ["work/b"]


def test_errors_are_pages_for_people_and_json_for_programs(browser: TestClient) -> None:
    missing = browser.get("/look/sessions/none")
    assert missing.status_code == 404 and "<h1>That did not work</h1>" in missing.text
    assert browser.get("/look/sessions/none", headers={"accept": "*/*"}).json()["error"]["code"] == "session_not_found"
    assert browser.get("/v1/sessions/none").json()["error"]["code"] == "session_not_found"
    assert browser.get("/nowhere").status_code == 404


def test_whoever_signs_in_sees_the_sessions_of_the_token(assistant: Assistant, tmp_path: Path) -> None:
    kept = Tokens(tmp_path)
    ann, eve = kept.make("ann"), kept.make("eve")
    looks = kept.make("phone", of="ann", read_only=True)
    app = create_app(assistant, Settings(hosts=("*",)), tokens=kept)

    def signed_in(secret: str) -> TestClient:
        client = TestClient(app, headers=PERSON)
        assert client.get("/", follow_redirects=False).headers["location"] == "/sign-in"
        wrong = same(client, "/sign-in", token="hmt-wrong")
        assert wrong.status_code == 401 and "not known here" in wrong.text and not client.cookies
        done = same(client, "/sign-in", token=secret)
        assert (
            done.status_code == 303
            and "HttpOnly" in done.headers["set-cookie"]
            and "SameSite=strict" in done.headers["set-cookie"]
        )
        return client

    assistant.session("ann/diary").add(TALK)
    mine, other, phone = (signed_in(secret) for secret in (ann, eve, looks))
    assert "diary" in mine.get("/").text and "diary" not in other.get("/").text
    assert mine.get("/look/sessions/diary").status_code == 200 and other.get("/look/sessions/diary").status_code == 404
    assert other.get("/look/sessions/ann/diary").status_code == 404
    assert "Forget" in mine.get("/look/sessions/diary").text
    shown = phone.get("/look/sessions/diary").text
    assert all(word not in shown for word in ("Forget", "Delete", "Fork as", "Say something"))
    assert same(phone, "/look/delete/diary").status_code == 403
    # The cookie counts for calls of these pages and for addresses that are typed, not for what other pages here send.
    here, beside = {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "same-site"}
    assert mine.get("/v1/sessions", headers=here).json()["data"] == [{"name": "diary"}]
    assert mine.get("/v1/sessions", headers=beside).status_code == 401
    ids = [message.id for message in assistant.store.session("ann/diary").messages()]
    assert mine.delete("/v1/sessions/diary/messages", params={"id": ids[0]}, headers=beside).status_code == 401
    assert (
        mine.delete("/v1/sessions/diary/messages", params={"id": ids[0]}, headers={"Sec-Fetch-Site": "none"}).status_code == 401
    )
    assert mine.delete("/v1/sessions/diary/messages", params={"id": ids[0]}, headers=here).status_code == 200
    part = TestClient(app).get("/look/messages/diary", headers={"HX-Request": "true"})
    assert part.status_code == 401 and part.headers["hx-redirect"] == "/sign-in"
    same(mine, "/sign-out")
    assert mine.get("/", follow_redirects=False).headers["location"] == "/sign-in"


def test_a_bar_and_a_map_are_as_wide_and_as_dark_as_what_they_show() -> None:
    parts = [Part("carried", 8), Part("recent", 72, "a"), Part("question", 20, "b")]
    placed = bar(parts)
    assert [(one["x"], one["width"]) for one in placed] == [(0, 80), (80, 720), (800, 200)]
    few = heat(Explanation("", parts, weights=[0.1, 0.4, 0.5], first_segment=7))
    assert [one["title"] for one in few["cells"]] == ["segment 7: 10.00%", "segment 8: 40.00%", "segment 9: 50.00%"]
    assert few["cells"][2]["shade"] == 1 and few["heaviest"] == 9 and (few["columns"], few["rows"]) == (3, 1)
    many = heat(Explanation("", parts, weights=[1 / 1000] * 1000))
    assert len(many["cells"]) == 334 and many["cells"][0]["title"] == "segments 0 to 2: 0.30%" and many["rows"] == 9
    assert heat(Explanation("", parts)) == {"cells": []}
