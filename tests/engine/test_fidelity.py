"""Law: logits and memory embeddings equal a naive loop over Eq. 1-5, for every backbone family (fp32, 1e-5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from naive_hmt import naive_hmt
from tiny import FAMILIES, SMALL, random_ids, tiny_model

from hmt_memory import HMTConfig, HMTModel


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm()) if expected.numel() else 0.0


def assert_faithful(model: HMTModel, ids: torch.Tensor) -> None:
    with torch.no_grad():
        expected = naive_hmt(model.backbone.causal_lm, dict(model.memory_parameters()), ids, model.config)
        out = model(ids[None])
        state = model.read(ids)
    assert relative_error(out.logits[0], expected.logits) <= 1e-5
    assert relative_error(out.state[0].memory, expected.memory) <= 1e-5
    assert relative_error(state.memory, expected.memory) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_naive_loop(family: str) -> None:
    assert_faithful(tiny_model(family), random_ids(16 * 7 + 5))


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "rmt"},
        {"mode": "plain"},
        {"memory_tokens": 3},
        {"memory_tokens": 2, "mode": "rmt"},
        {"memory_tokens": 3, "recalled_tokens": 1},
        {"memory_tokens": 3, "recalled_tokens": 2, "memory_input": "centred"},
        {"memory_tokens": 2, "recalled_tokens": 2},
        {"memory_tokens": 2, "recalled_tokens": 1, "memory_input": "centred", "mode": "rmt"},
        {"memory_input": "scaled"},
        {"memory_input": "mapped", "memory_tokens": 2},
        {"memory_input": "centred", "memory_tokens": 2},
        {"recall_dim": 7},
        {"recall_window": 1},
        {"sensory_length": 0},
        {"summary_length": 16},
        {"summary_length": 1},
        {"segment_length": 5, "summary_length": None, "sensory_length": 4},
    ],
    ids=str,
)
def test_every_option_equals_the_naive_loop(changes: dict[str, object]) -> None:
    assert_faithful(tiny_model(config=replace(SMALL, **changes)), random_ids(16 * 7 + 5))


def test_memory_really_matters_in_these_models() -> None:
    """Guards the tests above: if recall changed nothing, they could not see an error in it."""
    model = tiny_model()
    ids = random_ids(16 * 6)
    with torch.no_grad():
        whole = model(ids[None]).logits[0, -16:]
        alone = model.with_config(mode="plain")(ids[None]).logits[0, -16:]
        recent = model.with_config(recall_window=1)(ids[None]).logits[0, -16:]
    assert relative_error(alone, whole) > 1e-2
    assert relative_error(recent, whole) > 1e-3


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_equals_the_naive_loop() -> None:
    config = HMTConfig(segment_length=64, sensory_length=8)
    model = HMTModel.from_pretrained("smollm2-135m-instruct", config=config, dtype="float32")
    ids = torch.tensor(model.backbone.encode("The quick brown fox jumps over the lazy dog. " * 40)[:270])
    assert_faithful(model, ids)
