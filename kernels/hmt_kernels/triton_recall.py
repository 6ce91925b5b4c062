"""Recall on a GPU, in Triton: the contract of `naive.recall` in one read of the memory, forward and backward.

The rows are split over the processors, each split keeps an online softmax, and the splits are merged by log-sum-exp. Importing
this raises ImportError where Triton is not installed; `verify` says whether it can take given tensors. Knows tensors only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import naive
from . import triton_kernels as kernels
from .naive import Recall, Selection

INTERPRETED = not isinstance(kernels.attend, triton.runtime.JITFunction)  # TRITON_INTERPRET was set at the first import
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 4096  # tested up to here
DOT_QUERIES = 16  # tensor cores multiply blocks of 16 and more
DOT_WIDTH = 512  # columns of 16 queries that leave registers for the rest
PROGRAMS = 8  # a processor, so that some load while others compute
FEWEST_ROWS = 64  # in a split: less costs more in merging than it gains
_empty = torch.empty  # a name of its own, for tests to poison


class _Plan(NamedTuple):
    """The sizes that a launch needs."""

    groups: int
    queries: int  # of a group
    rows: int
    width: int
    splits: int
    rows_per_split: int

    @property
    def lines(self) -> int:
        """The queries of all groups."""
        return self.groups * self.queries


def verify(query: Tensor, memory: Tensor, mask: Tensor | None = None) -> str | None:
    """Return a reason why these tensors are not taken, None if they are. Reads shapes only: nothing waits for the device.

    Args:
        query: [B, d].
        memory: [B, n, d], or [n, d] for all queries.
        mask: the shape of `memory` without d, bool; that each row has an embedding is not checked.
    """
    if reason := _unfit_device(memory):
        return reason
    if any(other.device != memory.device for other in (query, mask) if other is not None):
        return f"query and mask have to be where the memory is, on {memory.device}"
    if memory.dtype not in DTYPES or query.dtype not in DTYPES:
        return f"a query of {query.dtype} and a memory of {memory.dtype}; fp32, fp16 and bf16 are taken"
    if not _fit(query, memory):
        return f"a query of shape {tuple(query.shape)} does not go with a memory of shape {tuple(memory.shape)}"
    if mask is not None and (mask.shape != memory.shape[:-1] or mask.dtype != torch.bool):
        return f"a mask of {mask.dtype} and shape {tuple(mask.shape)}; bool and {tuple(memory.shape[:-1])} are taken"
    if 0 in query.shape or 0 in memory.shape:
        return f"nothing to recall for a query of shape {tuple(query.shape)} in a memory of shape {tuple(memory.shape)}"
    if memory.shape[-1] > WIDEST:
        return f"a width of {memory.shape[-1]}; up to {WIDEST} are taken"
    return None


def _fit(query: Tensor, memory: Tensor) -> bool:
    queries = memory.shape[:1] if memory.dim() == 3 else query.shape[:1]
    return memory.dim() in (2, 3) and query.shape == (*queries, memory.shape[-1])


def _unfit_device(memory: Tensor) -> str | None:
    if INTERPRETED:
        return None
    if not memory.is_cuda or torch.version.cuda is None:
        return f"the memory is on {memory.device}; Triton needs CUDA, or TRITON_INTERPRET=1 from the start"
    if torch.cuda.get_device_capability(memory.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def recall(
    query: Tensor, memory: Tensor, mask: Tensor | None = None, *, dropped: int = 0, ceiling: Tensor | None = None
) -> Recall:
    """Compute `softmax(q M^T) M` as `naive.recall` does, each row of B memories read once; differentiable once.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d] with n >= 1, any strides. What is masked out is not read.
        mask: [B, n] bool, True where an embedding exists; each row needs at least one. None: all exist.
        dropped: as in `naive.recall`.
        ceiling: as in `naive.recall`.

    Raises:
        ValueError: `verify` has a reason.
    """
    return _finish(_each(query, memory, mask), dropped, ceiling)


def recall_shared(
    query: Tensor, memory: Tensor, mask: Tensor | None = None, *, dropped: int = 0, ceiling: Tensor | None = None
) -> Recall:
    """Compute `recall` of many queries in one memory, on tensor cores from 16 queries on.

    Args:
        query: [Q, d], folded and scaled.
        memory: [n, d] with n >= 1, any strides.
        mask: [n] bool, True where an embedding exists; at least one. None: all exist.
        dropped: as in `naive.recall`.
        ceiling: [Q] fp32, as in `naive.recall`.

    Raises:
        ValueError: `verify` has a reason.
    """
    _check(query, memory, mask, dims=2)
    found = _attend(query[None], memory[None], None if mask is None else mask[None])
    return _finish(_Found(*(part[0] for part in found)), dropped, ceiling)


def recall_top(query: Tensor, memory: Tensor, k: int) -> tuple[Recall, Selection]:
    """Compute `recall` over all embeddings and select those with the k largest scores, in one read of the memory.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d].
        k: how many are selected; all of them when k >= n.

    Raises:
        ValueError: `verify` has a reason.
    """
    found = _each(query, memory, None)
    indices = found.scores.topk(min(k, memory.shape[1]), dim=-1).indices
    kept = memory.gather(1, indices[:, :, None].expand(-1, -1, memory.shape[2]))
    return _finish(found, 0, None), Selection(kept, indices, memory.shape[1] - indices.shape[1])


def select(query: Tensor, memory: Tensor, k: int) -> Selection:
    """Select the k memory embeddings with the largest scores as `naive.select` does.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d].
        k: how many are selected.
    """
    return recall_top(query, memory, k)[1]


class _Found(NamedTuple):
    """The results of `_Attend`, with or without a first dimension of groups."""

    output: Tensor  # [.., Q, d] in the dtype of the memory
    weights: Tensor  # [.., Q, n] fp32
    lse: Tensor  # [.., Q] fp32
    scores: Tensor  # [.., Q, n] fp32, without a gradient


def _check(query: Tensor, memory: Tensor, mask: Tensor | None, *, dims: int) -> None:
    reason = verify(query, memory, mask)
    if reason is None and memory.dim() != dims:
        reason = f"a memory of {memory.dim()} dimensions; {dims} are taken"
    if reason:
        raise ValueError(f"Triton recall does not take these tensors: {reason}. Use the 'naive' backend.")


def _each(query: Tensor, memory: Tensor, mask: Tensor | None) -> _Found:
    """Attend from each query to a memory of its own: B groups of one query."""
    _check(query, memory, mask, dims=3)
    return _Found(*(part[:, 0] for part in _attend(query[:, None], memory, mask)))


def _finish(found: _Found, dropped: int, ceiling: Tensor | None) -> Recall:
    coverage = naive.coverage_of(found.scores, found.lse.detach(), dropped, ceiling)
    return Recall(found.output, found.weights, found.lse, coverage)


def _attend(query: Tensor, memory: Tensor, mask: Tensor | None) -> _Found:
    """Attend from queries [G, Q, d] to memories [G, n, d] with masks [G, n]."""
    return _Found(*_Attend.apply(query, memory, mask))  # type: ignore[no-untyped-call]


class _Attend(torch.autograd.Function):
    """Attention with a backward that reads the memory once and keeps nothing of its size."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # as in _Found
        query32 = query.float().contiguous()
        mask = None if mask is None else mask.contiguous()
        plan = _plan(query, memory)
        parts = functools.partial(_buffer, memory, plan.splits, plan.groups, plan.queries)
        partial, highest, mass = parts(plan.width), parts(), parts()
        scores = _buffer(memory, plan.groups, plan.queries, plan.rows)
        output, lse = _buffer(memory, *query.shape), _buffer(memory, plan.groups, plan.queries)
        _sweep(kernels.attend, plan, (query32, memory, mask, scores, partial, highest, mass))
        block_d = min(64, triton.next_power_of_2(plan.width))
        grid = (plan.lines, triton.cdiv(plan.width, block_d))
        sizes = (plan.lines, plan.width, plan.splits)
        _start(kernels.merge, grid, partial, highest, mass, output, lse, *sizes, block_s=64, block_d=block_d)
        weights = torch.exp(scores - lse[..., None])
        ctx.save_for_backward(query, memory, mask, output, weights)
        ctx.mark_non_differentiable(scores)
        return output.to(memory.dtype), weights, lse, scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor, grad_weights: Tensor, grad_lse: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        query, memory, mask, output, weights = ctx.saved_tensors
        plan = _plan(query, memory)
        grad_output, grad_weights = grad_output.float().contiguous(), grad_weights.contiguous()
        mean = (weights * grad_weights).sum(-1) + (output * grad_output).sum(-1)
        shift = (grad_lse - mean).contiguous()
        partial = _buffer(memory, plan.splits, plan.groups, plan.queries, plan.width)
        grad_scores = _buffer(memory, *weights.shape)
        _sweep(kernels.attend_backward, plan, (grad_output, memory, mask, weights, grad_weights, shift, grad_scores, partial))
        grad_query = partial.sum(0).to(query.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_query, None, None
        return grad_query, _memory_gradient(plan, query, grad_output, weights, grad_scores, memory.dtype), None


def _memory_gradient(
    plan: _Plan, query: Tensor, grad_output: Tensor, weights: Tensor, grad_scores: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute the gradient of the memories [G, n, d].

    Args:
        plan: the sizes.
        query: [G, Q, d].
        grad_output: [G, Q, d] fp32.
        weights: [G, Q, n] fp32.
        grad_scores: [G, Q, n] fp32.
        dtype: that of the memories.
    """
    gradient = _empty(plan.groups, plan.rows, plan.width, dtype=dtype, device=query.device)
    block_n, block_d = (64, 1024) if INTERPRETED else (32, 128)
    grid = (plan.groups * triton.cdiv(plan.rows, block_n) * triton.cdiv(plan.width, block_d),)
    block_q = DOT_QUERIES if plan.queries >= DOT_QUERIES else 1
    tensors = (query.float().contiguous(), grad_output, weights, grad_scores, gradient)
    sizes = (plan.queries, plan.rows, plan.width)
    _start(kernels.memory_backward, grid, *tensors, *sizes, block_q=block_q, block_n=block_n, block_d=block_d)
    return gradient


def _buffer(like: Tensor, *shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.float32, device=like.device)


def _plan(query: Tensor, memory: Tensor) -> _Plan:
    """Divide the rows so that there are some programs for each processor, and no more splits to merge than that takes."""
    groups, queries, width = query.shape
    rows = memory.shape[1]
    rows_per_split = FEWEST_ROWS
    if not INTERPRETED:
        programs = PROGRAMS * torch.cuda.get_device_properties(memory.device).multi_processor_count
        block_q, _, slices = _blocks(queries, width)
        splits = max(1, programs // (groups * triton.cdiv(queries, block_q) * slices))
        rows_per_split = max(FEWEST_ROWS, triton.cdiv(rows, splits))
    return _Plan(groups, queries, rows, width, triton.cdiv(rows, rows_per_split), rows_per_split)


def _blocks(queries: int, width: int) -> tuple[int, int, int]:
    """Return the queries of a program, the columns of a slice (a power of two) and the number of slices."""
    if queries < DOT_QUERIES:
        return 1, triton.next_power_of_2(width), 1
    block_d = min(DOT_WIDTH, max(16, triton.next_power_of_2(width)))
    return DOT_QUERIES, block_d, triton.cdiv(width, block_d)


def _sweep(kernel: Any, plan: _Plan, tensors: tuple[Tensor | None, ...]) -> None:
    """Start a kernel that goes through the memory once.

    Args:
        kernel: `attend` or `attend_backward`.
        plan: the sizes.
        tensors: its pointers in order: the second is the memory [G, n, d], the third the mask [G, n] or None.
    """
    memory, mask = tensors[1], tensors[2]
    assert memory is not None
    block_q, block_d, slices = _blocks(plan.queries, plan.width)
    grid = (plan.groups * plan.splits * triton.cdiv(plan.queries, block_q) * slices,)
    meta: dict[str, Any] = {"has_mask": mask is not None, "slices": slices, "block_q": block_q, "block_d": block_d}
    meta["precision"] = "ieee" if memory.dtype == torch.float32 else "tf32x3"  # 16 bits are exact in tf32
    if INTERPRETED:
        meta |= {"block_n": FEWEST_ROWS // 2, "block_k": 512}  # few large steps: each operation is a call
    else:
        meta["block_k"] = 64
        kernel = _tuned(kernel.fn.__name__, block_q, block_d, plan.rows_per_split.bit_length() // 3)
    pointers = (memory if tensor is None else tensor for tensor in tensors)
    _start(kernel, grid, *pointers, *plan, *memory.stride(), **meta)


def _start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    memory = arguments[1]
    with torch.cuda.device(memory.device) if memory.is_cuda else nullcontext():
        kernel[grid](*arguments, **meta)


@functools.cache
def _tuned(name: str, block_q: int, block_d: int, size: int) -> Any:
    """Wrap a kernel into the search for its best tile, once for each kind of problem.

    Args:
        name: that of the kernel.
        block_q: queries of a program.
        block_d: columns of a slice.
        size: the magnitude of a split, so that a short memory does not choose for a long one.
    """
    if block_q == 1:
        sizes = ((2048, 1), (4096, 2), (4096, 4), (8192, 2), (8192, 4), (16384, 8))
        tiles = [(max(1, elements // block_d), warps) for elements, warps in sizes]
    else:
        tiles = [(16, 4), (16, 8), (32, 8)]
    configs = [triton.Config({"block_n": rows}, num_warps=warps, num_stages=2) for rows, warps in tiles]
    search: Callable[[Any], Any] = triton.autotune(configs, key=["width"])
    return search(getattr(kernels, name))
