"""A server that is stopped or killed while it answers in a session: the whole turn is there afterwards, or nothing of it."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_apart import Served, serving

from hmt_memory import Assistant, MemoryStore

ANN, BEES = ({"role": "user", "content": text} for text in ("I am Ann.", "Tell me of bees."))
LONG = {"type": "string", "minLength": 800, "maxLength": 900}  # or it might end before anybody stops it
pytestmark = [pytest.mark.slow, pytest.mark.disk, pytest.mark.enable_socket]


def body(message: dict[str, str], **options: Any) -> dict[str, Any]:
    return {"messages": [message], "metadata": {"session_id": "alice"}, "max_tokens": 8, **options}


def long(**options: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG}}
    return body(BEES, **options) | {"response_format": form, "max_tokens": 4000}


def end(server: Served, kind: signal.Signals) -> None:
    os.kill(server.process.pid, kind)


def ended(server: Served, kind: signal.Signals) -> None:
    server.process.join(60)
    assert server.process.exitcode == -kind, "a signal that it handled ends it all the same"


def turns(folder: Path) -> list[tuple[str, str]]:
    """What the session holds, of a store in which every row is right."""
    with MemoryStore(folder / "store") as store:
        checked = store.verify()
        assert checked.ok, checked.problems
        return [(message.role, message.content) for message in store.session("alice").messages()]


def goes_on(folder: Path, model: str, held: list[tuple[str, str]]) -> None:
    """The session answers as one that was told the same and met no signal."""
    after = []
    for place in (folder / "store", folder / "other"):
        assistant = Assistant(model, reader="same", store=place)
        if place.name == "other":
            assistant.session("alice").add([{"role": role, "content": content} for role, content in held])
        after.append(assistant.reply({"role": "user", "content": "And now?"}, session="alice", max_new_tokens=20).finish().text)
        assistant.store.close()
    assert after[0] == after[1]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_whole_answer(chatty: str, tmp_path: Path, kind: signal.Signals) -> None:
    with serving(tmp_path, chatty) as server, ThreadPoolExecutor(1) as pool:
        first = server.api.post("/v1/chat/completions", json=body(ANN)).json()["choices"][0]["message"]["content"]
        asked = pool.submit(server.api.post, "/v1/chat/completions", json=long())
        while "hmt_answering 1.0" not in server.api.get("/metrics").text:
            assert not asked.done()
            time.sleep(0.005)
        end(server, kind)
        try:
            answer = asked.result(60).raise_for_status().json()["choices"][0]["message"]["content"]
        except httpx.TransportError:
            answer = None
        ended(server, kind)
    before = [("user", "I am Ann."), ("assistant", first)]
    held = turns(tmp_path)
    assert held == [*before, *([] if answer is None else [("user", BEES["content"]), ("assistant", answer)])]
    assert (answer is None) is (kind is signal.SIGKILL), "whoever is told to stop ends what it answers as a whole"
    goes_on(tmp_path, chatty, held)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("pieces", [1, 100, None], ids=["begun", "under way", "told to its end"])
def test_a_streamed_answer(chatty: str, tmp_path: Path, kind: signal.Signals, pieces: int | None) -> None:
    told, about = "", None
    with serving(tmp_path, chatty) as server:
        first = server.api.post("/v1/chat/completions", json=body(ANN)).json()["choices"][0]["message"]["content"]
        try:
            with server.api.stream("POST", "/v1/chat/completions", json=long(stream=True)) as answer:
                for number, chunk in enumerate(json.loads(line[6:]) for line in answer.iter_lines() if line[:7] == "data: {"):
                    if "choices" in chunk:
                        told += chunk["choices"][0]["delta"].get("content") or ""
                    about = chunk.get("hmt", about)
                    if number == pieces or (pieces is None and about):
                        end(server, kind)
        except httpx.TransportError:
            assert about is None or kind is signal.SIGKILL
        ended(server, kind)
    before = [("user", "I am Ann."), ("assistant", first)]
    held, turn = turns(tmp_path), [("user", BEES["content"]), ("assistant", told)]
    if about is None:
        assert held[:2] == before and [role for role, _ in held[2:]] in ([], ["user", "assistant"])
        assert all(text.startswith(said) for (_, text), (_, said) in zip(held[2:], turn, strict=False))
    else:
        assert held == [*before, *turn], "what the client was told to have been stored"
    goes_on(tmp_path, chatty, held)
