"""Which kernel computes recall: plain torch wherever Triton does not take it, and the reason is said once."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hmt_kernels
from hmt_kernels import naive

QUERY, MEMORY = torch.randn(2, 8), torch.randn(2, 5, 8)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


@pytest.fixture(autouse=True)
def _unsaid() -> None:
    hmt_kernels._say_once.cache_clear()


def kernel(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> list[str]:
    """Put a kernel in Triton's place that has this reason against all inputs. Returns the calls of it."""
    called: list[str] = []

    def recall(*given: Any, **options: Any) -> naive.Recall:
        called.append("recall")
        return naive.recall(*given, **options)

    fake = SimpleNamespace(verify=lambda *given: called.append("verify") or reason, recall=recall)
    monkeypatch.setitem(sys.modules, "hmt_kernels.triton_recall", fake)
    monkeypatch.setattr(hmt_kernels, "triton_recall", fake, raising=False)
    return called


def test_what_is_not_on_a_gpu_is_computed_by_torch_without_looking_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    called = kernel(monkeypatch, None)
    found, expected = hmt_kernels.recall(QUERY, MEMORY), naive.recall(QUERY, MEMORY)
    assert torch.equal(found.output, expected.output) and not called


def test_what_is_on_a_gpu_is_computed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    called = kernel(monkeypatch, None)
    found = hmt_kernels.recall(QUERY, MEMORY.as_subclass(OnGpu), dropped=3)
    assert called == ["verify", "recall"] and torch.equal(found.coverage, naive.recall(QUERY, MEMORY, dropped=3).coverage)


def test_a_reason_against_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    called = kernel(monkeypatch, "the GPU is too old")
    with caplog.at_level(logging.WARNING, "hmt_kernels"):
        for _ in range(3):
            found = hmt_kernels.recall(QUERY, MEMORY.as_subclass(OnGpu))
    assert called == ["verify"] * 3 and torch.equal(found.lse, naive.recall(QUERY, MEMORY).lse)
    assert [record.getMessage() for record in caplog.records] == ["recall is computed by plain torch: the GPU is too old."]


def test_without_triton_whoever_asks_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "hmt_kernels.triton_recall"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(hmt_kernels, "triton_recall", raising=False)
    with pytest.raises(ValueError, match=r"'triton' is not available.*Install triton"):
        hmt_kernels.recall(QUERY, MEMORY, backend="triton")
    assert "cannot be imported" in (hmt_kernels.reason_against(QUERY, MEMORY) or "")
    hmt_kernels.recall(QUERY, MEMORY.as_subclass(OnGpu))
