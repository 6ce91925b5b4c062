"""What the commands say of many workers where there is no cluster: options that need one, and the extra that is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from terminal_input import run

from hmt_memory import MemoryStore

REPLICAS = "--replicas says how many answer on a Ray cluster: give it with --ray."
WORKERS = "--workers says how many read on a Ray cluster: give it with --ray."


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["serve", "--replicas", "2"], REPLICAS),
        (["serve", "--replicas", "1-4"], REPLICAS),
        (["serve", "--replicas", "2", "--token", "ann"], REPLICAS),
        (["read", "--corpus", "book", "FILE", "--workers", "2"], WORKERS),
    ],
)
def test_what_only_a_cluster_has_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], said: str
) -> None:
    (tmp_path / "FILE").write_text("a text")
    given = [str(tmp_path / "FILE") if word == "FILE" else word for word in command]
    assert run(*given, "--store", str(tmp_path / "store")) == 1
    told = capsys.readouterr()
    assert said in " ".join(told.err.split()) and "shown this once" not in told.out + told.err
    with MemoryStore(tmp_path / "store") as store:
        assert store.corpora() == store.sessions() == []


def test_replicas_without_the_extra_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chatty: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    store = ["--store", str(tmp_path / "store")]
    assert run("serve", "--model", chatty, "--reader", "same", "--device", "cpu", "--ray", "--replicas", "2", *store) == 1
    assert "pip install 'hmt-memory[ray]'" in " ".join(capsys.readouterr().err.split())
