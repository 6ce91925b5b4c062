"""The inspector in a real browser: what a person does with it, with a mouse or a keyboard, and that it calls nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from served import listening

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TALK = [
    {"role": "user", "content": "My dog is called Rex. <script>document.title = 'taken'</script>"},
    {"role": "assistant", "content": "A fine name."},
    *({"role": "user", "content": f"The code of door {number} is {number}{number}{number}."} for number in range(12)),
]


@dataclass
class Opened:
    """A page at a running server, and what it has called and complained about."""

    page: Any
    url: str
    assistant: Assistant
    called: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def said(self) -> list[str]:
        """What stands in the timeline."""
        return [text.strip() for text in self.page.locator("#timeline .said p").all_inner_texts()]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def assistant(assistant: Assistant) -> Assistant:
    assistant.session("work/alice").add(TALK)
    assistant.corpus("handbook").add_documents([{"text": "Rex barks at the postman. " * 9, "name": "dogs"}])
    return assistant


@pytest.fixture
def tokens() -> Tokens | None:
    return None


@pytest.fixture(params=["light"])
def opened(request: pytest.FixtureRequest, chromium: Any, assistant: Assistant, tokens: Tokens | None) -> Iterator[Opened]:
    hosts = Settings().hosts if tokens is None else ("*",)
    with listening(create_app(assistant, Settings(hosts=hosts), tokens=tokens)) as port:
        url = f"http://127.0.0.1:{port}"
        page = chromium.new_page(color_scheme=request.param, viewport={"width": 1280, "height": 900})
        made = Opened(page, url, assistant)
        page.on("request", lambda call: made.called.append(call.url))
        page.on("console", lambda said: made.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: made.complaints.append(str(error)))
        try:
            yield made
        finally:
            page.close()
    assert all(call.startswith(url) for call in made.called), "nobody else is called"


def test_a_person_asks_and_sees_why(opened: Opened) -> None:
    opened.go("/")
    opened.page.get_by_role("link", name="work/alice").click()
    assert opened.page.title() == "work/alice · hmt-memory" and len(opened.said()) == len(TALK)
    opened.page.get_by_label("Say something").fill("What is the code of door 3?")
    opened.page.get_by_role("button", name="Ask").click()
    opened.page.get_by_role("button", name="Why message 16").wait_for()
    asked = opened.assistant.store.session("work/alice").messages()[-2].content
    assert asked == "What is the code of door 3?" and len(opened.said()) == len(TALK) + 2 and opened.said()[-2] == asked
    explained = opened.page.locator("#explained")
    assert asked in explained.inner_text() and "positions" in explained.inner_text()
    opened.page.get_by_label("What would be recalled for").fill("door 7")
    opened.page.get_by_role("button", name="Look").click()
    opened.page.get_by_text("For: “door 7”").or_(opened.page.locator("#explained q", has_text="door 7")).first.wait_for()
    assert explained.locator("svg.heat rect").count() == opened.assistant.store.session("work/alice").stats()["segments"]
    opened.page.get_by_role("button", name="Why message 16").click()
    explained.locator("q", has_text=asked).first.wait_for()
    assert not opened.complaints


def test_a_message_is_forgotten_and_gone(opened: Opened) -> None:
    opened.go("/look/sessions/work/alice")
    opened.page.on("dialog", lambda dialog: dialog.accept())
    opened.page.get_by_role("button", name="Forget message 1", exact=True).click()
    opened.page.locator("#message-1").wait_for(state="detached")
    left = [message.content for message in opened.assistant.store.session("work/alice").messages()]
    assert left == [message["content"] for message in TALK[1:]]
    opened.page.reload()
    assert opened.said() == left and opened.page.title() == "work/alice · hmt-memory" and not opened.complaints


def test_whoever_thinks_again_erases_nothing(opened: Opened) -> None:
    opened.go("/look/sessions/work/alice")
    opened.page.on("dialog", lambda dialog: dialog.dismiss())
    opened.page.get_by_role("button", name="Delete").click()
    opened.page.get_by_role("button", name="Forget message 1", exact=True).click()
    opened.page.wait_for_timeout(200)
    assert len(opened.said()) == len(TALK) == opened.assistant.store.session("work/alice").stats()["messages"]


def test_a_session_is_forked_exported_and_deleted(opened: Opened) -> None:
    opened.go("/look/sessions/work/alice")
    opened.page.get_by_label("Fork as").fill("copy of it")
    opened.page.get_by_role("button", name="Fork").click()
    opened.page.get_by_role("heading", name="copy of it").wait_for()
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="Export").click()
    assert download.value.suggested_filename == "session.hmt"
    opened.page.on("dialog", lambda dialog: dialog.accept())
    opened.page.get_by_role("button", name="Delete").click()
    opened.page.wait_for_url(opened.url + "/")
    assert opened.assistant.store.sessions() == ["work/alice"] and not opened.complaints


def test_the_keyboard_is_enough(opened: Opened) -> None:
    opened.go("/look/sessions/work/alice")
    opened.page.keyboard.press("Tab")
    assert opened.page.locator(":focus").inner_text() == "Skip to content"
    opened.page.get_by_label("Say something").focus()
    opened.page.keyboard.type("Hello there.")
    opened.page.keyboard.press("Enter")
    opened.page.get_by_role("button", name="Why message 16").wait_for()
    opened.page.get_by_role("button", name="Why message 16").focus()
    opened.page.keyboard.press("Enter")
    opened.page.locator("#explained q", has_text="Hello there.").first.wait_for()


def test_what_goes_wrong_is_said(opened: Opened) -> None:
    opened.go("/look/sessions/work/alice")
    opened.assistant.store.delete("work/alice")
    opened.page.get_by_label("What would be recalled for").fill("anything")
    opened.page.get_by_role("button", name="Look").click()
    opened.page.get_by_role("status").get_by_text("there is no session").wait_for()


def _violations(page: Any) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.mark.parametrize("opened", ["light", "dark"], indirect=True)
def test_pages_are_accessible(opened: Opened) -> None:
    for path in ("/", "/look/corpora/handbook", "/sign-in", "/look/sessions/nowhere"):
        opened.go(path)
        assert not _violations(opened.page), path
    opened.go("/look/sessions/work/alice")
    opened.page.get_by_label("What would be recalled for").fill("door 7")
    opened.page.get_by_role("button", name="Look").click()
    opened.page.locator("#explained svg").first.wait_for()
    assert not _violations(opened.page)


class TestWithTokens:
    """A server that wants a token."""

    @pytest.fixture
    def tokens(self, tmp_path: Path) -> Tokens:
        return Tokens(tmp_path)

    def test_a_person_signs_in_and_sees_no_others_sessions(self, opened: Opened, tokens: Tokens) -> None:
        secret = tokens.make("work")
        opened.go("/")
        opened.page.get_by_label("Token").fill("hmt-wrong")
        opened.page.get_by_role("button", name="Sign in").click()
        opened.page.get_by_role("alert").get_by_text("not known here").wait_for()
        opened.page.get_by_label("Token").fill(secret)
        opened.page.get_by_role("button", name="Sign in").click()
        opened.page.get_by_role("link", name="alice", exact=True).click()
        opened.page.get_by_label("Say something").fill("Hello.")
        opened.page.get_by_role("button", name="Ask").click()
        opened.page.get_by_role("button", name="Why message 16").wait_for()
        assert opened.page.evaluate("document.cookie") == "", "no script reads the token"
        opened.page.get_by_role("button", name="Sign out").click()
        opened.page.wait_for_url("**/sign-in")
