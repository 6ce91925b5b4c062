"""Branches behind one beginning: what each is alone, in every family, with the same gradient."""

from __future__ import annotations

import pytest
import torch
from tiny import random_ids, tiny_model
from torch import Tensor

from hmt_memory.engine import branches
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.branches import Branching, branched

IN_ONE = ["llama", "qwen2", "gpt2", "gpt-neox", "phi3", "cohere", "granite", "opt-projected"]
BY_CACHE = ["mistral", "gemma2", "gemma3"]  # windows that slide, which are 12 positions wide here


def apart(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def behind_one(backbone: Backbone, beginning: Tensor, rows: list[Tensor]) -> list[Tensor]:
    return branched(backbone, [Branching(beginning, rows)])[0]


def alone(backbone: Backbone, beginning: Tensor, rows: list[Tensor]) -> list[Tensor]:
    return [backbone.body(torch.cat([beginning, row])[None])[0, len(beginning) :] for row in rows]


@pytest.mark.parametrize("family", [*IN_ONE, *BY_CACHE])
def test_branches_are_what_they_are_alone(family: str) -> None:
    backbone = tiny_model(family).backbone
    given = backbone.embed(random_ids(60)).detach()
    beginning = given[:20].clone().requires_grad_()
    rows = [given[20:27], given[27:30], given[30:60]]
    actual, expected = behind_one(backbone, beginning, rows), alone(backbone, beginning, rows)
    for found, wanted in zip(actual, expected, strict=True):
        assert found.shape == wanted.shape and apart(found.detach(), wanted.detach()) < 1e-4
    weights = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((torch.cat(parts) @ weights).sum(), beginning)[0] for parts in (actual, expected)]
    assert apart(*gradients) < 1e-3


@pytest.mark.parametrize("family", [*IN_ONE, *BY_CACHE])
def test_rows_of_several_lengths_are_what_they_are_alone(family: str) -> None:
    backbone = tiny_model(family).backbone
    given = backbone.embed(random_ids(60)).detach().requires_grad_()
    rows = [Branching(given[:20], [given[20:27], given[27:30]]), Branching(given[30:35], [given[35:60]])]
    together, lone = branched(backbone, rows), [branched(backbone, [row])[0] for row in rows]
    together, lone = (torch.cat([torch.cat(parts) for parts in found]) for found in (together, lone))
    assert apart(together.detach(), lone.detach()) < 1e-4
    weights = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((parts @ weights).sum(), given)[0] for parts in (together, lone)]
    assert apart(*gradients) < 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_do_not_see_each_other_whatever_computes_attention(attention: str) -> None:
    backbone = tiny_model().backbone
    given = backbone.embed(random_ids(12))
    behind_one(backbone, given[:4], [given[4:6]])  # its masks are known from now on
    backbone.config._attn_implementation = attention
    together, lone = (behind_one(backbone, given[:4], rows)[-1].detach() for rows in ([given[4:8], given[8:]], [given[8:]]))
    assert apart(together, lone) < 1e-4


def test_one_pass_is_enough_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_model().backbone.to(torch.bfloat16)
    monkeypatch.setattr(branches, "behind", None)
    given = backbone.embed(random_ids(12))
    behind_one(backbone, given[:4], [given[4:6], given[6:]])


@pytest.mark.parametrize("family", IN_ONE)
def test_one_pass_is_enough_where_attention_reaches_everything(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_model(family).backbone
    monkeypatch.setattr(branches, "behind", None)
    given = backbone.embed(random_ids(12))
    behind_one(backbone, given[:4], [given[4:6], given[6:]])
