"""`hmt bench`: what it measures is there, and its made-up histories are whole ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import SMALL, byte_tokenizer, tiny_model
from typer.testing import CliRunner

from hmt_memory import MemoryStore
from hmt_memory.cli.command import app
from hmt_memory.errors import InputError
from hmt_memory.evaluate import speed


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
        "prompt of 2,048 tokens",
        "writing behind 2,048 tokens",
        "first word after 200 tokens, as the session opens",
        "first word after 200 tokens",
        "writing after 200 tokens",
        "recall from 9 segments",
        "most memory in use",
    ):
        assert measured.pop(what) > 0, what
    assert not measured and (tmp_path / "bench.md").is_file()


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        speed.Plan(rounds=0)
