"""`hmt bench`: what it measures is there, and its made-up histories are whole ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from tiny import SMALL, byte_tokenizer, tiny_model
from typer.testing import CliRunner

from hmt_memory import MemoryStore
from hmt_memory.cli.command import app
from hmt_memory.errors import InputError, MissingDependencyError
from hmt_memory.evaluate import speed
from hmt_memory.evaluate.answers import Loading
from hmt_memory.evaluate.llama_cpp import LlamaCpp, file_of


@pytest.mark.parametrize("key_dim", [None, 8])
def test_a_made_up_history_is_whole_and_goes_on(key_dim: int | None, tmp_path: Path) -> None:
    model = tiny_model(config=replace(SMALL, key_dim=key_dim), tokenizer=byte_tokenizer())
    with MemoryStore(tmp_path) as store:
        session = speed.history(store, model, "much", 3000)
        assert 3000 <= session.stats()["tokens"] < 6000 and not store.verify().problems
        assert session.recall("Was it about the neighbours?")
        session.add({"role": "user", "content": "And one thing more."})
        assert session.messages()[-1].content == "And one thing more." and not store.verify().problems
    with MemoryStore(tmp_path) as store:
        assert "".join(store.session("much", model).reply({"role": "user", "content": "What?"}, max_new_tokens=3)) is not None


def test_the_command_measures_everything_and_writes_a_report(chatty: str, tmp_path: Path) -> None:
    wanted = ["bench", "-m", chatty, "--history", "200", "--segments", "9", "--rounds", "1", "--json", "--out", str(tmp_path)]
    ran = CliRunner().invoke(app, wanted)
    assert ran.exit_code == 0, ran.output
    measured = {row["what"]: row["value"] for row in json.loads(ran.stdout)["measured"]}
    for what in (
        "loading, imports included",
        "reading",
        "reading 8 documents of a corpus together",
        "prompt of 2,048 tokens",
        "writing behind 2,048 tokens",
        "first word after 200 tokens, as the session opens",
        "first word after 200 tokens",
        "writing after 200 tokens",
        "recall from 9 segments",
        "most memory in use",
        "the whole measurement",
    ):
        assert measured.pop(what) > 0, what
    assert not measured and (tmp_path / "bench.md").is_file()


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        speed.Plan(rounds=0)


class _Llama:
    """What of `llama_cpp.Llama` is used, and what it was asked for."""

    made: ClassVar[list[_Llama]] = []

    def __init__(self, *, model_path: str, n_ctx: int, n_threads: int, n_threads_batch: int, verbose: bool) -> None:
        assert Path(model_path).suffix == ".gguf" and n_threads == n_threads_batch and not verbose
        self.room, self.resets, self.prompts = n_ctx, 0, list[list[int]]()
        self.made.append(self)

    def reset(self) -> None:
        self.resets += 1

    def generate(self, tokens: list[int], *, temp: float) -> Iterator[int]:
        self.prompts.append(tokens)
        assert temp == 0.0
        yield from range(self.room - len(tokens))


def test_llama_cpp_computes_the_same_in_turns(chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=_Llama))
    file = tmp_path / "model.gguf"
    file.touch()
    plan = speed.Plan(history=(), segments=(), rounds=2)
    report = speed.measure(Loading(chatty), plan, against=partial(LlamaCpp, file_of(str(file))))
    (table,) = report.tables
    measured = {row[0] for row in table.rows}
    assert {"prompt of 2,048 tokens, llama.cpp", "writing behind 2,048 tokens, llama.cpp"} < measured
    (other,) = _Llama.made
    assert other.resets == 3 and [len(prompt) for prompt in other.prompts] == [2048] * 3, "each reads its prompt anew"


def test_what_llama_cpp_did_is_told_in_every_form(chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=_Llama))
    file = tmp_path / "model.gguf"
    file.touch()
    monkeypatch.setattr("hmt_memory.evaluate.llama_cpp.file_of", lambda name: file)
    wanted = ["bench", "-m", chatty, "--history", "50", "--segments", "3", "--rounds", "1", "--against", "llama.cpp"]
    ran = CliRunner().invoke(app, [*wanted, "--json", "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    rows = {row["what"]: row["value"] for row in shown["measured"]}
    written = (tmp_path / "bench.md").read_text()
    assert shown["settings"]["against"] == "llama.cpp" and "- against: llama.cpp" in written
    for what in ("prompt of 2,048 tokens, llama.cpp", "writing behind 2,048 tokens, llama.cpp"):
        assert rows[what] > 0 and f"| {what} |" in written


def test_llama_cpp_needs_its_package_and_a_file(chatty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"reads GGUF files.*-m"):
        file_of(chatty)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    ran = CliRunner().invoke(app, ["bench", "-m", chatty, "--against", "llama.cpp"])
    assert isinstance(ran.exception, MissingDependencyError) and "pip install llama-cpp-python" in str(ran.exception)
