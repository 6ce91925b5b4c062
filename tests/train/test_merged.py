"""LoRA through merged weights computes what LoRA computes, and so do its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import SMALL, random_ids

from hmt_memory import HMTModel
from hmt_memory.train import Recipe, Stage, merged, prepare
from hmt_memory.train.merged import merged_lora

RECIPE = Recipe(stages=(Stage(steps=1, segments=2),), config=SMALL, lora_rank=2, lora_from_layer=1)


@pytest.fixture
def model(plain: str) -> Iterator[HMTModel]:
    model = prepare(plain, RECIPE, dtype="float32", device="cpu")
    for name, value in model.backbone.causal_lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    yield model


def learned(model: HMTModel) -> dict[str, Any]:
    ids = random_ids(20)
    given = model.backbone.embed(ids[None]).clone().requires_grad_()
    logits = model.backbone.head(model.backbone.body(given))[0]
    torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        unlearned = model.backbone.body(given)
    with torch.no_grad(), model.backbone.without_adapter():
        teacher = model.backbone.body(given)
    return {"logits": logits.detach(), "inputs": given.grad, "unlearned": unlearned, "teacher": teacher, **found}


def test_merged_weights_give_the_same_hidden_states_and_gradients(model: HMTModel) -> None:
    expected = learned(model)
    with merged_lora(model.backbone.causal_lm) as count:
        assert count == sum("lora_A" in name for name, _ in model.named_parameters())
        found = learned(model)
    assert any("lora_A" in name for name in expected) and expected.keys() == found.keys()
    assert not any("layers.0." in name for name in expected)  # they do not learn
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.allclose(expected["teacher"], expected["unlearned"], atol=1e-2)


def test_a_change_of_the_adapter_counts_at_once(model: HMTModel) -> None:
    with merged_lora(model.backbone.causal_lm):
        learned(model)
        for name, value in model.named_parameters():
            if "lora_A" in name:
                with torch.no_grad():
                    value.add_(0.1)
        found = learned(model)
    for name, value in learned(model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("why", ["dropout", "bf16", "too large"])
def test_what_is_not_plain_lora_in_fp32_computes_as_before(plain: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, lora_dropout=0.1 if why == "dropout" else 0.0)
    model = prepare(plain, recipe, dtype="bfloat16" if why == "bf16" else "float32", device="cpu")
    if why == "too large":
        monkeypatch.setattr(merged, "MOST_BYTES", 100)
    with merged_lora(model.backbone.causal_lm) as count:
        assert count == 0 and not any("forward" in vars(module) for module in model.backbone.causal_lm.modules())


def test_layers_compute_their_own_branches_again_when_the_context_is_left(model: HMTModel) -> None:
    with pytest.raises(KeyboardInterrupt), merged_lora(model.backbone.causal_lm):
        raise KeyboardInterrupt
    assert not any("forward" in vars(module) for module in model.backbone.causal_lm.modules())


def test_other_adapters_and_what_is_merged_already_compute_as_before(plain: str, model: HMTModel) -> None:
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain),
        IA3Config(task_type="CAUSAL_LM", target_modules="all-linear", feedforward_modules=[]),
    )
    with merged_lora(other) as count:
        assert count == 0
    model.backbone.causal_lm.merge_adapter()
    with merged_lora(model.backbone.causal_lm) as count:
        assert count == 0
