"""Law of exactness: recall equals attention with explicit keys; preselection renormalises and bounds what it covers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmt_kernels
from hmt_memory.engine.recall import Recall


def data(rows: int, count: int, width: int, *, anisotropic: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(rows, count, width, generator=generator)
    if anisotropic:  # as hidden states are: a common mean and a few dominant axes
        axes = torch.arange(1, width + 1) ** -0.5
        memory = memory * axes * 3 + 4 * axes * torch.randn(width, generator=generator)
    return torch.randn(rows, width, generator=generator), memory


@pytest.mark.parametrize("count", [1, 63, 100, 1000])
@pytest.mark.parametrize("width", [1, 20, 576])
def test_recall_is_softmax_attention(count: int, width: int) -> None:
    query, memory = data(3, count, width)
    found = hmt_kernels.recall(query, memory)
    scores = torch.einsum("bd,bnd->bn", query.double(), memory.double())
    weights = scores.softmax(-1)
    assert torch.allclose(found.weights.double(), weights, atol=1e-5)
    assert torch.allclose(found.output.double(), torch.einsum("bn,bnd->bd", weights, memory.double()), atol=1e-4)
    assert torch.allclose(found.lse.double(), scores.logsumexp(-1), rtol=1e-5)
    assert torch.equal(found.coverage, torch.ones(3))


def test_masked_embeddings_do_not_exist_even_if_poisoned() -> None:
    query, memory = data(2, 9, 8)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 4:] = False
    padded = memory.clone()
    padded[0, 4:] = 1e30
    found = hmt_kernels.recall(query, padded, mask)
    alone = hmt_kernels.recall(query[:1], memory[:1, :4])
    assert torch.equal(found.weights[0, 4:], torch.zeros(5))
    assert torch.allclose(found.output[0], alone.output[0], atol=1e-6)
    assert torch.allclose(found.lse[0], alone.lse[0])


def test_gradients_equal_plain_attentions() -> None:
    query, memory = data(2, 17, 12)
    query.requires_grad_(), memory.requires_grad_()
    found = hmt_kernels.recall(query, memory).output.sin().sum()
    scores = (memory @ query[:, :, None]).squeeze(-1)
    plain = (scores.softmax(-1)[:, None] @ memory).squeeze(1).sin().sum()
    for ours, theirs in zip(
        torch.autograd.grad(found, (query, memory)), torch.autograd.grad(plain, (query, memory)), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 450), st.floats(0.1, 30), st.integers(0, 99))
def test_preselection_is_exact_or_bounded(count: int, k: int, sharpness: float, seed: int) -> None:
    query, memory = data(2, count, 24, anisotropic=True, seed=seed)
    query = query * sharpness / 24**0.5
    full = hmt_kernels.recall(query, memory)
    kept = hmt_kernels.select(query, memory, k)
    found = hmt_kernels.recall(query, kept.memory, dropped=kept.dropped)
    true_mass = full.weights.gather(1, kept.indices).sum(-1)
    assert torch.allclose(found.weights.sum(-1), torch.ones(2), atol=1e-5)
    assert (found.coverage <= true_mass + 1e-5).all()
    assert torch.allclose(full.weights.gather(1, kept.indices) / true_mass[:, None], found.weights, atol=1e-4)
    if k >= count:
        assert torch.equal(found.coverage, torch.ones(2))
        assert torch.allclose(found.output, full.output, atol=1e-4)


def test_the_bound_is_of_use() -> None:
    """A bound of zero would be true as well."""
    query, memory = data(1, 1000, 24, anisotropic=True)
    kept = hmt_kernels.select(query / 2, memory, 300)
    found = hmt_kernels.recall(query / 2, kept.memory, dropped=kept.dropped)
    assert 0.8 < float(found.coverage) < 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_shards_merge_exactly(sizes: list[int]) -> None:
    query, memory = data(2, sum(sizes), 16)
    shards = [hmt_kernels.recall(query, part) for part in memory.split(sizes, dim=1)]
    output, lse = hmt_kernels.merge(torch.stack([s.output for s in shards]), torch.stack([s.lse for s in shards]))
    whole = hmt_kernels.recall(query, memory)
    assert torch.allclose(output, whole.output, atol=1e-5) and torch.allclose(lse, whole.lse, atol=1e-5)


def test_an_empty_shard_merges_to_nothing() -> None:
    query, memory = data(2, 5, 4)
    whole = hmt_kernels.recall(query, memory)
    empty = torch.zeros_like(whole.output), torch.full_like(whole.lse, float("-inf"))
    output, lse = hmt_kernels.merge(torch.stack([whole.output, empty[0]]), torch.stack([whole.lse, empty[1]]))
    assert torch.allclose(output, whole.output) and torch.allclose(lse, whole.lse)


def test_half_precision_memory_is_scored_in_fp32() -> None:
    query, memory = data(2, 200, 64)
    half = memory.to(torch.bfloat16)
    assert torch.equal(hmt_kernels.recall(query, half).weights, hmt_kernels.recall(query, half.float()).weights)
    assert hmt_kernels.recall(query, half).output.dtype == torch.bfloat16


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'naive'"):
        hmt_kernels.recall(*data(1, 2, 3), backend="abacus")


def test_the_folded_query_scores_like_projected_keys() -> None:
    recall = Recall(12, 5)
    torch.nn.init.normal_(recall.query.weight)
    torch.nn.init.normal_(recall.key.weight)
    summary, memory = data(3, 7, 12)
    expected = (recall.query(summary)[:, None] @ recall.key(memory).mT).squeeze(1) / math.sqrt(5)
    assert torch.allclose((recall.fold(summary)[:, None] @ memory.mT).squeeze(1), expected, atol=1e-4)


def test_recall_weights_are_per_segment_whatever_the_slots() -> None:
    recall = Recall(8, 8)
    summary, flat = data(2, 15, 8)
    found = recall(summary, flat.view(2, 5, 3, 8))
    assert found.prompt.shape == (2, 3, 8) and found.weights.shape == (2, 5) and found.lse.shape == (2, 3)
    assert torch.allclose(found.weights.sum(-1), torch.ones(2), atol=1e-5)
