"""`benchmarks/fit_abstaining.py`: how likely an answer abstains is noted where that is weighed."""

from __future__ import annotations

import importlib

import pytest
from places import ROOT

from hmt_memory import HMTModel
from hmt_memory.engine import abstaining, writing


def test_the_probability_of_abstaining_is_noted_with_each_answer(chatty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(writing, "abstention", None)  # put back afterwards
    monkeypatch.setattr(abstaining, "abstention", lambda *given: abstaining.Abstention([[5, 6]], [[0.5, 0.25]]))
    chances = importlib.import_module("fit_abstaining")._chances_met()
    model = HMTModel.from_pretrained(chatty)
    model.generate([{"role": "user", "content": "What is my name?"}], abstain_from=1.0, max_new_tokens=2).finish()
    assert chances == [pytest.approx(0.125)]
