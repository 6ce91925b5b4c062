"""What a memory depends on changes its model's fingerprint; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import REMEMBERING, byte_tokenizer, tiny_causal_lm, tiny_model

from hmt_memory import HMTConfig, HMTModel
from hmt_memory.engine.fingerprint import digest_of, fingerprint, text_parts

TOKENIZER = byte_tokenizer()


def model() -> HMTModel:
    return tiny_model(config=REMEMBERING, tokenizer=TOKENIZER)


def test_it_is_the_same_for_the_same_model() -> None:
    one, two = model(), model()
    assert fingerprint(one).digest == fingerprint(two).digest == digest_of(fingerprint(one).parts)
    two.backbone.name = "elsewhere"
    assert fingerprint(one).digest == fingerprint(two).digest and str(fingerprint(two)).startswith("elsewhere (")
    budgets = {"recent_tokens": 5, "replay_tokens": 7, "pinned_tokens": 9}
    assert fingerprint(one.with_config(**budgets)).digest == fingerprint(one).digest


@pytest.mark.parametrize("change", [{"segment_length": 17}, {"summary_length": 7}, {"recall_window": 4}, {"mode": "rmt"}])
def test_sizes_that_reading_depends_on_change_it(change: dict[str, object]) -> None:
    one = model()
    assert fingerprint(one.with_config(**change)).digest != fingerprint(one).digest


@pytest.mark.parametrize(
    "write",
    [
        lambda model: model.recall.query.weight.mul_(1.001),
        lambda model: model.initial_memory.add_(1e-6),
        lambda model: model.backbone.embedding.weight.mul_(1.1),
    ],
)
def test_training_changes_it_at_once(write: Callable[[HMTModel], object]) -> None:
    """Although it is kept: writing to a parameter is noticed."""
    one = model()
    before = fingerprint(one)
    assert fingerprint(one) is before
    with torch.no_grad():
        write(one)
    assert fingerprint(one).digest != before.digest


def test_an_untrained_model_is_the_same_in_bf16() -> None:
    """The backbone's weights are those of the bf16 model, as when one file is loaded in both precisions."""
    lm = tiny_causal_lm("llama")
    with torch.no_grad():
        for value in lm.parameters():
            value.copy_(value.bfloat16().float())
    wide = HMTModel.wrap(lm, TOKENIZER, HMTConfig(segment_length=16, sensory_length=4))
    narrow = HMTModel.wrap(tiny_causal_lm("llama").bfloat16(), TOKENIZER, HMTConfig(segment_length=16, sensory_length=4))
    assert fingerprint(wide).digest == fingerprint(narrow).digest


def test_tokens_of_another_tokenizer_mean_something_else() -> None:
    other = tiny_model(config=replace(REMEMBERING, segment_length=20), tokenizer=byte_tokenizer(None))
    assert text_parts(fingerprint(model()).parts) != text_parts(fingerprint(other).parts)
    same = tiny_model(config=replace(REMEMBERING, segment_length=20), tokenizer=TOKENIZER, seed=5)
    assert text_parts(fingerprint(model()).parts) == text_parts(fingerprint(same).parts)
