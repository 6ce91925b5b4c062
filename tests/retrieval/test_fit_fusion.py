"""`benchmarks/fit_fusion.py`: what a threshold notes, of what was told, of what was not, and of talk that asks for nothing."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from places import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, where it finds the others."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("fit_fusion")


def test_a_threshold_is_counted_apart_for_told_untold_and_idle_talk(bench: Any) -> None:
    def row(question: str, right: str | None, texts: list[str]) -> Any:
        asked = bench.Asked(question, frozenset([right] if right else []), right)
        return bench.Ranked(asked, texts, np.zeros((len(texts), 4)), np.zeros(len(texts)))

    rows = [row("told", "a", ["a", "b", "c"]), row("told, missed", "a", ["a", "b"]), row("told, not found", "a", [])]
    rows += [row("untold", None, ["a"]), *(row(text, None, ["a"]) for text in bench._IDLE[:4])]
    likely = [*map(np.array, ([0.5, 0.1, 0.02], [0.01, 0.9], [], [0.2], [0.2], [0.01], [0.01], [0.01]))]
    assert bench.noting(rows, likely, 0.015) == (pytest.approx(1 / 3), pytest.approx(3 / 3), 0, 0.75)
    assert bench.noting(rows, likely, 0.3) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 1)
    assert bench.noting(rows[:3], likely[:3], 0.3).idle == 0


def test_the_report_prints_both_rates(bench: Any, capsys: Any) -> None:
    told = bench.Asked("told", frozenset("a"), "a")
    rows = [bench.Ranked(told, ["a", "b"], np.array([[1.0, 1, 1, 0], [0, 0, 0, 0]]), np.zeros(2))]
    rows += [
        bench.Ranked(bench.Asked(text, frozenset(), None), ["b"], np.array([[value, 0.0, 0, 0]]), np.zeros(1))
        for text, value in (("untold", 1.0), (bench._IDLE[0], 0.0))
    ]
    bench.report(rows, np.array([9.0, 0, 0, 0, -4.5]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 5 and "right passage first 1.000" in lines[0]
    assert lines[-1].endswith("nothing for 0.000 of what was not told, for 1.000 of talk that asks for nothing")
