"""`benchmarks/general_chat.py`: prompts that no training has seen, what is compared, and a run on a tiny model."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from tiny import SMALL, random_ids, tiny_model

from hmt_memory.train.talk import _TRAINING


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, where it finds the others."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("general_chat")


def test_the_prompts_are_none_that_are_trained_on(bench: Any) -> None:
    trained_on = importlib.import_module("general_answers")
    forms, topics = trained_on._FORMS, trained_on._TOPICS
    made = {form.format(topic) for form, topic in itertools.product(forms, topics)}
    made |= {*trained_on._SMALL, *(said for said, _ in _TRAINING)}
    assert len({*bench.PROMPTS}) == 40 and not made & {*bench.PROMPTS}
    assert not [prompt for prompt in bench.PROMPTS if any(f" {topic}?" in prompt for topic in topics)]


def test_answers_are_compared_prompt_by_prompt(bench: Any) -> None:
    before = [bench.Answer("A frog. It hops.", True), bench.Answer("Tea. Tea.", False), bench.Answer("Red", True)]
    after = [bench.Answer("a frog. It swims.", True), bench.Answer("Milk", True), bench.Answer("", False)]
    assert bench.compared(before, after) == {
        "same first sentence": [1, 0, 0],
        "words in common (F1)": [pytest.approx(2 / 3), 0, 0],
        "ended, backbone": [1, 0, 1],
        "ended, adapter": [1, 1, 0],
        "repeats a sentence, backbone": [0, 1, 0],
        "repeats a sentence, adapter": [0, 0, 0],
    }


def test_the_middle_of_a_text_is_all_of_a_short_one(bench: Any) -> None:
    ids = torch.arange(10)
    assert bench.middle(ids, 4).tolist() == [3, 4, 5, 6] and bench.middle(ids, 11).tolist() == ids.tolist()


def test_a_window_is_predicted_from_itself_alone(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WINDOW", 20)
    model, ids = tiny_model(config=SMALL), random_ids(50)
    for mode in ("plain", "hmt"):
        chosen = model.with_config(mode=mode)
        losses = bench.window_losses(chosen, ids)
        other = bench.window_losses(chosen, torch.cat([random_ids(20, seed=9), ids[20:]]))
        assert len(losses) == 49
        np.testing.assert_allclose(losses[20:], other[20:], rtol=1e-5)
        assert np.abs(losses[:19] - other[:19]).max() > 1e-3
    assert np.abs(bench.window_losses(model.with_config(mode="plain"), ids) - losses).max() > 1e-3, "P_0 makes a difference"


def test_a_run_compares_a_model_with_itself(
    bench: Any, chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "WINDOW", 32)
    monkeypatch.setattr(bench, "_LONGEST", 4)
    (tmp_path / "text.txt").write_text("Words of some book, one after the other. " * 9, encoding="utf-8")
    files = ["--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "answers.jsonl")]
    monkeypatch.setattr(sys, "argv", ["general_chat.py", "--model", chatty, "--prompts", "2", "--tokens", "100", *files])
    bench.main()
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [*bench.PROMPTS[:2]] and {*rows[0]} == {"prompt", "backbone", "adapter"}
    printed = capsys.readouterr().out
    assert "of 2 prompts" in printed and "perplexity of 100 tokens, adapter" in printed and "below backbone" in printed
