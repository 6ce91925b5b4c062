"""The recipes of docs/guides/clients.md and server.md in front of a server that listens, where their client is installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from places import ROOT
from served import listening

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

PAGE = (ROOT / "docs" / "guides" / "clients.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SERVER = (ROOT / "docs" / "guides" / "server.md").read_text(encoding="utf-8")
CLIENTS = ["openai", "langchain_openai", "llama_index.llms.openai_like", "litellm"]


def block_of(client: str) -> str:
    (found,) = (block for block in BLOCKS if re.search(rf"^(from|import) {re.escape(client)}\b", block, re.MULTILINE))
    return found


def test_every_recipe_in_python_is_run() -> None:
    assert len({block_of(client) for client in CLIENTS}) == len(BLOCKS) == len(CLIENTS)


@pytest.fixture
def url(assistant: Assistant) -> Iterator[str]:
    """The address of a server that listens at a free port."""
    with listening(create_app(assistant, Settings())) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore")  # those of other people's packages
@pytest.mark.parametrize("client", CLIENTS)
def test_a_recipe_is_answered_and_remembered(
    client: str, url: str, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        importlib.import_module(client)
    except ImportError:
        pytest.skip(f"{client} is not installed")
    code = block_of(client).replace("http://127.0.0.1:8399", url).replace("smollm2-135m-instruct", assistant.name)
    names: dict[str, Any] = {}
    exec(compile(code, str(client), "exec"), names)
    asked, answered = assistant.session("alice").messages()
    assert asked.content == "My sister Ida grows roses." and answered.role == "assistant"
    answer = names["answer"]
    message = answer.choices[0].message if hasattr(answer, "choices") else getattr(answer, "message", answer)
    assert message.content == answered.content


@pytest.mark.enable_socket
def test_what_the_servers_own_page_shows_is_answered(saying: Any, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", SERVER, re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks).replace("smollm2-135m-instruct", saying.name).replace("time.sleep(1)", "time.sleep(0.05)")
    with listening(create_app(saying, Settings())) as port:
        exec(code.replace("http://127.0.0.1:8399", f"http://127.0.0.1:{port}"), {})
    said = capsys.readouterr().out.splitlines()
    assert "completed Hello." in said and said[-1] == "response.completed"
    talks = sorted([message.content for message in saying.store.session(name).messages()] for name in saying.store.sessions())
    assert talks == [
        ["My sister Ida grows roses.", "Hello."],
        ["Tell me about roses.", "Hello."],
        ["Tell me about roses.", "Hello."],
        ["What does Ida grow?", "Hello."],
    ]
