"""Take the pictures of the inspector that the guide to the server shows: `python benchmarks/inspector_pictures.py`.

A server with the default model holds a session of made-up talk and a corpus of the pages about concepts. Needs Chromium
(`apt-get install chromium`) and Playwright. Writes docs/images/inspector*.png.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from serving import Server

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.train.talk import small_talk

ROOT = Path(__file__).resolve().parent.parent
_FACTS = (
    "The code of the front door is 4071.",
    "My sister is called Ida, and she lives in Bergen.",
    "The meeting with the bank is on Thursday at ten.",
)
_QUESTION = "What is the code of the front door?"
_WIDTH, _HEIGHT = 1120, 720


def fill(store: Path) -> None:
    """Tell a session facts among other talk, and add the pages about concepts to a corpus."""
    model = HMTModel.from_pretrained(DEFAULT_MODEL)
    chance = random.Random(3)
    with MemoryStore(store) as kept:
        for fact in _FACTS:
            kept.session("alice", model).add(_messages([(fact, "Noted."), *small_talk(chance, 18)]))
        kept.session("travel plans", model).add(_messages(small_talk(chance, 4)))
        pages = sorted((ROOT / "docs" / "concepts").glob("*.md"))
        kept.corpus("handbook", model).add_documents(
            [{"text": page.read_text(encoding="utf-8"), "name": page.name} for page in pages]
        )


def _messages(talk: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for turn in talk for role, text in zip(("user", "assistant"), turn, strict=True)]


def ask(page: Page) -> None:
    """Ask in the session, and wait for the answer and why it was given."""
    page.get_by_label("Say something").fill(_QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.locator("#explained q", has_text=_QUESTION).first.wait_for(timeout=120_000)
    page.locator("#explained svg.heat").wait_for()
    page.get_by_role("button", name="Why message").last.wait_for()
    page.locator("#ask button:enabled").wait_for(timeout=120_000)


def take(browser: Browser, url: str, out: Path) -> None:
    """Take the pictures: the list, a session with why it answered (light and dark), and a corpus."""
    page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
    page.goto(f"{url}/look/sessions/alice")
    ask(page)
    page.screenshot(path=out / "inspector.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=out / "inspector-dark.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.goto(url)
    page.screenshot(path=out / "inspector-overview.png")
    page.goto(f"{url}/look/corpora/handbook")
    page.get_by_label("What is recalled for").fill("What happens when a message is forgotten?")
    page.get_by_role("button", name="Look").click()
    page.locator("#passages *").first.wait_for(timeout=120_000)
    page.screenshot(path=out / "inspector-corpus.png")
    page.close()


def main() -> None:
    """Fill a store, serve it, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        store = Path(folder) / "store"
        fill(store)
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with Server(store, DEFAULT_MODEL) as server:
            take(browser, server.url, options.out)
        browser.close()


if __name__ == "__main__":
    main()
