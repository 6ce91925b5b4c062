"""The pages: their Python runs, their commands exist, their paths and links lead somewhere.

A tiny model stands for the default one, so that every block runs in a second; the README runs on the real one as well.
`<!--- skip: next -->` leaves a block out that needs a download or a GPU.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from places import ROOT
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import hmt_memory
import langchain_hmt
from hmt_memory import MemoryStore
from hmt_memory.cli.command import app
from hmt_memory.engine import places, weights

BY_HAND = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WITH_PYTHON = [page for page in BY_HAND if "```python" in page.read_text(encoding="utf-8")]
WITH_COMMANDS = [page for page in BY_HAND if re.search("^hmt ", page.read_text(encoding="utf-8"), re.MULTILINE)]
TOP_LEVEL = ("hmt_memory", "kernels", "integrations", "tests", "examples", "benchmarks", "docs")
COMMAND = typer.main.get_command(app)
HISTORY = "log.md"  # tells of files as they were
BLOCKS = Sybil([PythonCodeBlockParser(), SkipParser()])

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")  # LangChain's; a guide shows it


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in order, and return the names they leave."""
    document = BLOCKS.parse(page)
    for example in document.examples():
        example.evaluate()
    return dict(document.namespace)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the documents that some pages read, and a store of its own."""
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "contract.md").write_text("The notice period is three months.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HMT_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def tiny_default(chatty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tiny random model in the place of the default one."""
    monkeypatch.setattr(weights, "convert_gguf", lambda _: Path(chatty))
    monkeypatch.setattr(places, "bundled_file", lambda *_: Path(chatty))
    monkeypatch.setattr(places, "bundled_adapter", lambda _: None)


@pytest.mark.usefixtures("workplace", "tiny_default")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path) -> None:
    run(page)


@pytest.mark.usefixtures("workplace", "tiny_default")
def test_the_guide_to_postgresql_runs_there(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HMT_STORE", postgres_url)
    run(ROOT / "docs" / "guides" / "postgres.md")
    printed = capsys.readouterr().out
    assert printed.startswith("postgresql://") and "My sister Ida grows roses." in printed and printed.endswith("True False\n")


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("workplace")
def test_the_readmes_python_runs_on_the_default_model() -> None:
    run(ROOT / "README.md")


@pytest.mark.usefixtures("tiny_default")
def test_the_guides_do_what_they_say(workplace: Path) -> None:
    """What the pages leave behind, in their own stores."""
    guides = ROOT / "docs" / "guides"
    run(guides / "sessions.md")
    assert (workplace / "alice.hmt").is_file()
    with MemoryStore("memories") as store:
        assert [message.role for message in store.session("alice").messages()] == ["system", "assistant"]
        assert store.sessions() == ["alice", "alice-what-if"] and store.verify() == ([], [])
    langchain = run(guides / "langchain.md")
    assert langchain["answer"].response_metadata["hmt"]["session_id"] == "alice"
    assert langchain["passage"].page_content == "The notice period is three months."
    llama_index = run(guides / "llamaindex.md")
    assert "The notice period is three months." in llama_index["response"].source_nodes[0].text
    assert "The door code of the office is 4071." in [message.content for message in llama_index["memory"].get_all()]
    plain = run(guides / "without-a-store.md")
    assert plain["state"].tokens > 1000 and plain["wrapped"].initial_memory.grad.abs().sum() > 0
    assert (workplace / "adapter" / "hmt_config.json").is_file()


# --- reference ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "package"), [("python", hmt_memory), ("langchain", langchain_hmt)])
def test_every_public_name_has_a_place_in_the_reference(page: str, package: ModuleType) -> None:
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    shown = re.findall(rf"^::: {package.__name__}\.(\w+)$", text, re.MULTILINE)
    assert {"HMTError" if name == "errors" else name for name in shown} == set(package.__all__)


# --- commands -----------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `hmt` command in the blocks of a page, without what follows `#` or `>`."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for command in re.findall(r"^(?:[^#\n]*\| )?hmt (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(command, comments=True)
            yield words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_are_understood(page: Path) -> None:
    """Every command exists and takes the arguments and options that it is shown with; none is run."""
    for words in commands(page):
        command: Any = COMMAND
        rest = list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"there is no command hmt {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        if not hasattr(command, "commands"):
            with command.make_context("hmt", rest, resilient_parsing=False):
                pass


def test_a_command_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ncat a | hmt ask - 'b'\nhmt chat --nonsense   # no such option\n```\n", encoding="utf-8")
    assert list(commands(page)) == [["ask", "-", "b"], ["chat", "--nonsense"]]
    with pytest.raises(Exception, match="nonsense"):
        test_the_commands_of_a_page_are_understood(page)


# --- paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in BY_HAND if page.name != HISTORY], ids=name_of)
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(TOP_LEVEL)})/[\w./-]+)`", text)
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    places_named = [ROOT / path for path in named] + [page.parent / path for path in linked]
    assert [str(place) for place in places_named if not place.exists()] == []
