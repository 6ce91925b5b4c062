"""Recall in Triton equals the naive one: outputs and every gradient, in odd sizes, with NaN wherever nothing may be read.

Without a GPU the kernels run in Triton's interpreter, which knows no races and no limits of registers or shared memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from hmt_kernels import naive

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETER = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (64, 576, 896, 960, 2304, 4096)
ALONE = [  # precision, width, memories
    *((torch.float32, width, count) for width, count in ((64, 1), (576, 70), (896, 3), (960, 33), (2304, 3))),
    *((torch.float16, width, count) for width, count in ((20, 70), (576, 33), (960, 1), (4096, 1))),
    *((torch.bfloat16, width, count) for width, count in ((64, 70), (896, 3), (2304, 3))),
]
EVERY = [(dtype, width, 33) for dtype in DTYPES for width in WIDTHS if (dtype, width, 33) not in ALONE]
SHARED = [  # precision, queries, width, memories
    (torch.float32, 1, 20, 70),
    (torch.float32, 3, 576, 5),
    (torch.float32, 16, 64, 1),
    (torch.float32, 33, 20, 70),
    (torch.float32, 17, 576, 5),
    (torch.float16, 3, 64, 33),
    (torch.float16, 16, 576, 5),
    (torch.bfloat16, 33, 64, 33),
]
WIDE = [(dtype, queries, width, 5) for dtype in DTYPES for queries in (3, 17) for width in (896, 2304)]


def and_long(shown: list[Any], others: list[Any]) -> list[Any]:
    """The parameters of a test; the others are for long runs."""
    return [*shown, *(pytest.param(*values, marks=pytest.mark.long) for values in others)]


def _load() -> ModuleType:
    """Import the kernels; for the interpreter along with Triton itself, which may have been imported without it."""
    with mock.patch.dict(os.environ, INTERPRETER):
        if INTERPRETER:
            for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
                del sys.modules[name]
            for name in ("triton_recall", "triton_kernels"):
                sys.modules.pop(f"hmt_kernels.{name}", None)
        return importlib.import_module("hmt_kernels.triton_recall")


fast = _load()


@pytest.fixture(autouse=True)
def _poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what the kernels have to write with NaN, and keep the interpreter on."""

    def poisoned(*size: Any, **options: Any) -> Tensor:
        return torch.full(size, float("nan"), **options)

    monkeypatch.setattr(fast, "_empty", poisoned)
    for name, value in INTERPRETER.items():
        monkeypatch.setenv(name, value)


def amid_nan(tensor: Tensor) -> Tensor:
    """Copy a tensor into the middle of a larger one full of NaN, so that no stride is the obvious one."""
    around = torch.full([size + 4 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    inside = around[tuple(slice(2, -2) for _ in tensor.shape)]
    inside.copy_(tensor)
    return inside.to(DEVICE) if DEVICE == "cpu" else around.to(DEVICE)[tuple(slice(2, -2) for _ in tensor.shape)]


def data(queries: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make queries [queries, d] fp32 with scores of a few units, and a memory of this shape."""
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(queries, shape[-1], generator=generator) / shape[-1] ** 0.5
    return amid_nan(query), amid_nan(torch.randn(*shape, generator=generator).to(dtype))


def some_exist(*shape: int) -> Tensor:
    """Make a mask of this shape in which about two in three exist, the last always."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) > 1 / 3
    mask[..., -1] = True
    return mask.to(DEVICE)


def spread(memory: Tensor, queries: int) -> Tensor:
    """Give each query a view of a memory [n, d] or a mask [n], as the naive recall takes them."""
    return memory.expand(queries, *memory.shape)


def exact(query: Tensor, memory: Tensor, mask: Tensor) -> naive.Recall:
    """Recall naively in fp32, so that gradients are rounded once: of 16 bits, naive rounds each term before it adds them."""
    wide = memory.float()
    if memory.dim() == 2:
        wide, mask = spread(wide, len(query)), spread(mask, len(query))
    found = naive.recall(query, wide, mask, dropped=3)
    return found._replace(output=found.output.to(memory.dtype))


def results(recall: naive.Recall, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return outputs, weights, lse and coverage, and the gradients of the inputs through the first three."""
    total = sum(part.float().sin().sum() for part in recall[:3])
    assert isinstance(total, Tensor)
    return (*recall, *torch.autograd.grad(total, inputs))


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Compare fp32 to 1e-5 and 16 bits to 2e-3, gradients (from the fifth on) in units of the largest."""
    for place, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        unit = max(1.0, float(wanted.abs().max())) if place >= 4 else 1.0
        step = 1e-5 if dtype == torch.float32 else 2e-3
        rounding = torch.finfo(wanted.dtype).eps  # of a value between two, which may go up here and down there
        torch.testing.assert_close(got, wanted, atol=step * unit, rtol=max(step, rounding))


@pytest.mark.parametrize(("dtype", "width", "count"), and_long(ALONE, EVERY))
def test_recall_and_its_gradients_equal_the_naive_ones(dtype: torch.dtype, width: int, count: int) -> None:
    query, memory = data(2, 2, count, width, dtype=dtype)
    query.requires_grad_(), memory.requires_grad_()
    mask = some_exist(2, count)
    ours = results(fast.recall(query, memory, mask, dropped=3), query, memory)
    assert_close(ours, results(exact(query, memory, mask), query, memory), dtype)


@pytest.mark.parametrize(("dtype", "queries", "width", "count"), and_long(SHARED, WIDE))
def test_queries_that_share_a_memory_equal_the_naive_ones(dtype: torch.dtype, queries: int, width: int, count: int) -> None:
    query, memory = data(queries, count, width, dtype=dtype)
    query.requires_grad_(), memory.requires_grad_()
    mask = some_exist(count)
    ours = results(fast.recall_shared(query, memory, mask, dropped=3), query, memory)
    assert_close(ours, results(exact(query, memory, mask), query, memory), dtype)


def test_no_mask_is_a_mask_of_all() -> None:
    query, memory = data(2, 2, 40, 20)
    assert_close(fast.recall(query, memory), naive.recall(query, memory), memory.dtype)
    shared = fast.recall_shared(query, memory[0])
    assert_close(shared, naive.recall(query, spread(memory[0], 2)), memory.dtype)


def test_masked_embeddings_are_not_read() -> None:
    """NaN times zero would be NaN. The first split holds nothing, the second a part."""
    query, memory = data(2, 2, 150, 20)
    query.requires_grad_()
    mask = torch.zeros(2, 150, dtype=torch.bool, device=DEVICE)
    mask[0, 70:140] = mask[1, 149] = True
    theirs = results(naive.recall(query, memory, mask), query)
    memory[~mask] = float("nan")
    memory.requires_grad_()
    *ours, grad_memory = results(fast.recall(query, memory, mask), query, memory)
    assert_close(tuple(ours), theirs, memory.dtype)
    assert torch.equal(grad_memory[~mask], torch.zeros_like(grad_memory[~mask])) and grad_memory[mask].any()


@pytest.mark.parametrize("scale", [300.0, -300.0])
def test_scores_of_any_size_do_not_overflow(scale: float) -> None:
    query, memory = data(2, 2, 70, 20)
    rising = scale * torch.linspace(0.9, 1, 70, device=DEVICE)[:, None]  # or falling: the highest is known last, or first
    memory = memory + rising * query[:, None] / query.square().sum(-1)[:, None, None]
    ours, theirs = fast.recall(query, memory), naive.recall(query, memory)
    assert theirs.lse.abs().min() > 200
    torch.testing.assert_close(ours.lse, theirs.lse, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(ours.weights, theirs.weights, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.output, theirs.output, atol=1e-2, rtol=1e-3)


def test_any_number_of_splits_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "FEWEST_ROWS", 2)
    query, memory = data(1, 1, 35, 20)
    assert_close(fast.recall(query, memory), naive.recall(query, memory), memory.dtype)


def test_inputs_may_have_any_strides() -> None:
    query, memory = data(20, 20, 33, 2)
    query, memory = query.T[:, ::2].repeat(1, 2), memory.permute(2, 1, 0)  # [2, 20] and [2, 33, 20], columns far apart
    mask = some_exist(33, 2).T
    query.requires_grad_(), memory.requires_grad_()
    ours = results(fast.recall(query, memory, mask), query, memory)
    assert_close(ours, results(naive.recall(query, memory, mask), query, memory), memory.dtype)
    one = memory.detach()[:1].expand(2, -1, -1)
    assert_close(fast.recall(query, one), naive.recall(query, one), memory.dtype)


@pytest.mark.parametrize("strides", [(2**30, 1), (1, 2**30)])
def test_memories_beyond_32_bits_are_addressed(strides: tuple[int, int]) -> None:
    """Rows or columns 2^30 elements apart: the last lies beyond 2^31. Only the pages of three are touched."""
    query, near = data(1, 1, 3, 3, dtype=torch.bfloat16)
    far = torch.empty(2**31 + 3, dtype=torch.bfloat16, device=DEVICE).as_strided((1, 3, 3), (2**31, *strides))
    far.copy_(near)
    assert_close(fast.recall(query, far), naive.recall(query, near), near.dtype)
    many = query.expand(16, -1)
    assert_close(fast.recall_shared(many, far[0]), naive.recall(many, spread(near[0], 16)), near.dtype)


@pytest.mark.parametrize("shared", [False, True])
def test_coverage_is_bounded_by_the_ceiling_or_the_lowest_score(shared: bool) -> None:
    query, memory = data(2, *(() if shared else (2,)), 33, 20)
    ours = fast.recall_shared if shared else fast.recall
    each = spread(memory, 2) if shared else memory
    ceiling = torch.tensor([0.5, -1.0], device=DEVICE)
    for bound in (None, ceiling):
        coverage = ours(query, memory, dropped=9, ceiling=bound).coverage
        torch.testing.assert_close(coverage, naive.recall(query, each, dropped=9, ceiling=bound).coverage)
        assert (coverage < 1).all()
    assert torch.equal(ours(query, memory).coverage, torch.ones(2, device=DEVICE))


def test_the_best_and_the_recall_of_all_come_from_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    query, memory = data(2, 2, 70, 20)
    memory.requires_grad_()
    started: list[str] = []
    start = fast._start

    def counted(kernel: Any, *rest: Any, **meta: Any) -> None:
        started.append(kernel.fn.__name__)
        start(kernel, *rest, **meta)

    monkeypatch.setattr(fast, "_start", counted)
    found, kept = fast.recall_top(query, memory, 5)
    assert started == ["attend", "merge"]
    assert_close(found, naive.recall(query, memory), memory.dtype)
    wanted = naive.select(query, memory, 5)
    assert torch.equal(kept.indices, wanted.indices) and torch.equal(kept.memory, wanted.memory)
    assert kept.dropped == wanted.dropped == 65
    gradient, naives = (torch.autograd.grad(s.memory.sin().sum(), memory)[0] for s in (kept, wanted))
    assert torch.equal(gradient, naives)
    everything = fast.select(query, memory, 99)
    assert everything.dropped == 0 and torch.equal(everything.indices, naive.select(query, memory, 99).indices)


def test_only_what_is_asked_for_is_differentiated() -> None:
    query, memory = data(2, 2, 7, 20)
    query.requires_grad_()
    (ours,) = torch.autograd.grad(fast.recall(query, memory).lse.sum(), query)
    (theirs,) = torch.autograd.grad(naive.recall(query, memory).lse.sum(), query)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    query, memory = query.detach(), memory.requires_grad_()
    (ours,) = torch.autograd.grad(fast.recall(query, memory).weights[:, 3].sum(), memory)
    (theirs,) = torch.autograd.grad(naive.recall(query, memory).weights[:, 3].sum(), memory)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_is_refused() -> None:
    query, memory = data(1, 1, 3, 20)
    query.requires_grad_()
    (gradient,) = torch.autograd.grad(fast.recall(query, memory).output.sin().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fits_is_taken(dtype: torch.dtype) -> None:
    query, memory = data(2, 2, 3, 4096, dtype=dtype)
    assert fast.verify(query, memory) is fast.verify(query.to(dtype), memory[0], some_exist(3)) is None


def test_what_does_not_fit_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    query, memory = data(2, 2, 3, 20)
    mask = some_exist(2, 3)
    for reason, inputs in {
        "float64": (query, memory.double()),
        "int64": (query.long(), memory),
        r"shape \(2, 20\) does not go with .* \(1, 3, 20\)": (query, memory[:1]),
        r"\(2, 19\) does not go": (query[:, 1:], memory),
        r"\(20,\) does not go": (query[0], memory[0]),
        "mask of torch.uint8": (query, memory, mask.byte()),
        r"mask of torch.bool and shape \(2, 2\)": (query, memory, mask[:, 1:]),
        "nothing to recall": (query, memory[:, :0]),
        "a width of 4097": data(1, 1, 1, 4097),
        "on meta|where the memory is": (query.to("meta"), memory),
    }.items():
        with pytest.raises(ValueError, match=reason):
            fast.recall(*inputs)
    with pytest.raises(ValueError, match="2 dimensions; 3"):
        fast.recall(query, memory[0])
    with pytest.raises(ValueError, match="3 dimensions; 2"):
        fast.recall_shared(query, memory)
    monkeypatch.setattr(fast, "INTERPRETED", False)
    assert "needs CUDA" in str(fast.verify(query.cpu(), memory.cpu()))


def test_without_triton_the_import_fails_cleanly() -> None:
    names = ("hmt_kernels.triton_recall", "hmt_kernels.triton_kernels")
    with mock.patch.dict(sys.modules, {"triton": None}):
        for name in names:
            sys.modules.pop(name, None)
        with pytest.raises(ImportError, match="triton"):
            importlib.import_module(names[0])
