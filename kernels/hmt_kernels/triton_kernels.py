"""Triton kernels of recall: one read of the memory forward, one backward. They know pointers; `triton_recall` starts them.

A group is one memory [n, d] with the queries [Q, d] that share it. A program takes `block_q` queries of a group, one split of
its rows and one slice of the width; those that read the same rows are neighbours, so that all but one find them in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


def _kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the device, or for the interpreter where TRITON_INTERPRET is set."""
    return triton.jit(function)


@_kernel
def _place(queries: tl.tensor, splits: tl.tensor, slices: tl.constexpr, block_q: tl.constexpr) -> tl.tuple:
    """Return the group, the split, the queries [block_q] and the slice of this program.

    Args:
        queries: the queries of a group.
        splits: the parts that the rows of a memory are divided into.
        slices: the parts that the width is divided into.
        block_q: the queries of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(queries, block_q)
    block = program // slices % blocks
    split = program // slices // blocks % splits
    group = program // slices // blocks // splits
    return group, split, block * block_q + tl.arange(0, block_q), program % slices


@_kernel
def _columns(part: tl.tensor, block_d: tl.constexpr) -> tl.tensor:
    """Return the columns [block_d] of slice `part`, in 64 bits: a column may be as far from the next as a memory is long."""
    return part * block_d + tl.arange(0, block_d).to(tl.int64)


@_kernel
def _load(
    start: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    exists: tl.tensor,
    width: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
) -> tl.tensor:
    """Load rows [I] and columns [J] of a matrix as fp32 [I, J], zero where there is nothing.

    Args:
        start: pointer to the matrix.
        rows: [I] int64.
        columns: [J] int64.
        exists: [I], rows not to be touched are False.
        width: columns of the matrix.
        row_stride: elements from a row to the next.
        column_stride: elements from a column to the next.
    """
    pointers = start + rows[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(pointers, mask=exists[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@_kernel
def _weighted(weights: tl.tensor, tile: tl.tensor, block_q: tl.constexpr, precision: tl.constexpr) -> tl.tensor:
    """Compute `w M` [block_q, J].

    Args:
        weights: [block_q, I] fp32.
        tile: [I, J] fp32.
        block_q: 1 for multiplying and adding, from 16 on for tensor cores.
        precision: that of `tl.dot`.
    """
    if block_q == 1:
        product = tl.sum(tl.trans(weights) * tile, axis=0)[None, :]
    else:
        product = tl.dot(weights, tile, input_precision=precision)
    return product


@_kernel
def _outer(left: tl.tensor, right: tl.tensor, block_q: tl.constexpr) -> tl.tensor:
    """Compute `a^T b` [I, J] of [block_q, I] and [block_q, J]: a sum over queries."""
    return tl.trans(left) * right if block_q == 1 else tl.dot(tl.trans(left), right, input_precision="ieee")


@_kernel
def _all_scores(
    query: tl.tensor, lines: tl.tensor, asked: tl.tensor,
    memory: tl.tensor, rows: tl.tensor, exists: tl.tensor, width: tl.tensor, row_stride: tl.tensor, column_stride: tl.tensor,
    block_q: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, precision: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Compute `q M^T` [block_q, block_n] on tensor cores, by pieces of the width: queries as a whole fill the registers.

    Args:
        query: pointer to queries [*, width], fp32.
        lines: [block_q] int64, which of them.
        asked: [block_q], True where there is such a query.
        memory: pointer to the memory of the group.
        rows: [block_n] int64, which of its rows.
        exists: [block_n], True where there is such a row.
        width: d.
        row_stride: elements from a row of the memory to the next.
        column_stride: elements from a column of the memory to the next.
        block_q: queries of a program.
        block_n: rows of a tile.
        block_k: columns of a piece.
        precision: that of `tl.dot`.
    """
    found = tl.zeros([block_q, block_n], tl.float32)
    for part in range(0, tl.cdiv(width, block_k)):
        columns = _columns(part, block_k)
        wanted = _load(query, lines, columns, asked, width, width, 1)
        piece = _load(memory, rows, columns, exists, width, row_stride, column_stride)
        found += tl.dot(wanted, tl.trans(piece), input_precision=precision)
    return found


@_kernel
def attend(
    query: tl.tensor, memory: tl.tensor, mask: tl.tensor, scores: tl.tensor, partial: tl.tensor, highest: tl.tensor,
    mass: tl.tensor,
    groups: tl.tensor, queries: tl.tensor, rows: tl.tensor, width: tl.tensor, splits: tl.tensor, rows_per_split: tl.tensor,
    group_stride: tl.tensor, row_stride: tl.tensor, column_stride: tl.tensor,
    has_mask: tl.constexpr, slices: tl.constexpr, precision: tl.constexpr,
    block_q: tl.constexpr, block_n: tl.constexpr, block_d: tl.constexpr, block_k: tl.constexpr,
) -> None:  # fmt: skip
    """Write the scores of all rows, and per split their highest, the sum of `p = exp(q M^T - highest)`, and `p M`.

    Args:
        query: [groups * queries, width] fp32.
        memory: [groups, rows, width] with the strides given.
        mask: [groups, rows] bool, or anything if not `has_mask`. Rows masked out are not read.
        scores: [groups * queries, rows] fp32, written; -inf where masked.
        partial: [splits, groups * queries, width] fp32, written.
        highest: [splits, groups * queries] fp32, written; -inf for a split without rows.
        mass: [splits, groups * queries] fp32, written.
        groups: memories.
        queries: queries of a group.
        rows: n.
        width: d.
        splits: parts that the rows are divided into.
        rows_per_split: rows of a part; the last has fewer.
        group_stride: elements from a memory to the next.
        row_stride: elements from a row to the next.
        column_stride: elements from a column to the next.
        has_mask: whether there is a mask.
        slices: parts that the width is divided into.
        precision: that of `tl.dot`.
        block_q: queries of a program: 1 for multiplying and adding, from 16 on for tensor cores.
        block_n: rows of a tile.
        block_d: columns of a slice.
        block_k: columns multiplied at once on tensor cores.
    """
    group, split, asked_for, part = _place(queries, splits, slices, block_q)
    asked = asked_for < queries
    writes = asked_for < tl.where(part == 0, queries, 0)  # one slice writes what all compute
    lines = group * queries + asked_for
    columns = _columns(part, block_d)
    start = memory + group * group_stride
    wanted = _load(query, lines, columns, asked, width, width, 1)
    best = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    summed = tl.zeros([block_q, block_d], tl.float32)
    end = tl.minimum(split * rows_per_split + rows_per_split, rows)
    for first in range(split * rows_per_split, end, block_n):
        row = (first + tl.arange(0, block_n)).to(tl.int64)
        within = row < end
        exists = within
        if has_mask:
            exists = within & (tl.load(mask + group * rows + row, mask=within, other=0) != 0)
        if block_q == 1:
            tile = _load(start, row, columns, exists, width, row_stride, column_stride)
            found = tl.sum(wanted * tile, axis=1)[None, :]
        else:
            found = _all_scores(
                query, lines, asked, start, row, exists, width, row_stride, column_stride, block_q, block_n, block_k, precision
            )
            tile = _load(start, row, columns, exists, width, row_stride, column_stride)  # again, and from the cache
        found = tl.where(exists[None, :], found, float("-inf"))
        tl.store(scores + lines[:, None] * rows + row[None, :], found, mask=writes[:, None] & within[None, :])
        higher = tl.maximum(best, tl.max(found, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # no row yet: -inf - -inf has no value
        decay = tl.exp(best - shift)
        weights = tl.exp(found - shift[:, None])
        total = total * decay + tl.sum(weights, axis=1)
        summed = summed * decay[:, None] + _weighted(weights, tile, block_q, precision)
        best = higher
    place = split * groups * queries + lines
    tl.store(highest + place, best, mask=writes)
    tl.store(mass + place, total, mask=writes)
    tl.store(partial + place[:, None] * width + columns[None, :], summed, mask=asked[:, None] & (columns < width)[None, :])


@_kernel
def merge(
    partial: tl.tensor, highest: tl.tensor, mass: tl.tensor, output: tl.tensor, lse: tl.tensor, lines: tl.tensor,
    width: tl.tensor, splits: tl.tensor,
    block_s: tl.constexpr, block_d: tl.constexpr,
) -> None:  # fmt: skip
    """Join what `attend` wrote for the splits: the output, normalised, and the log-sum-exp of the scores.

    Args:
        partial: [splits, lines, width] fp32.
        highest: [splits, lines] fp32.
        mass: [splits, lines] fp32.
        output: [lines, width] fp32, written.
        lse: [lines] fp32, written.
        lines: queries of all groups.
        width: d.
        splits: parts that the rows were divided into.
        block_s: splits taken at once.
        block_d: columns of a program.
    """
    line = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    best = tl.full([block_s], float("-inf"), tl.float32)
    for first in range(0, splits, block_s):
        split = first + tl.arange(0, block_s)
        best = tl.maximum(best, tl.load(highest + split * lines + line, mask=split < splits, other=float("-inf")))
    top = tl.max(best, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([block_s], tl.float32)
    summed = tl.zeros([block_d], tl.float32)
    for first in range(0, splits, block_s):
        split = first + tl.arange(0, block_s)
        exists = split < splits
        place = split * lines + line
        scale = tl.exp(tl.load(highest + place, mask=exists, other=float("-inf")) - shift)
        total += scale * tl.load(mass + place, mask=exists, other=0.0)
        pointers = partial + place[:, None] * width + columns[None, :]
        tile = tl.load(pointers, mask=exists[:, None] & (columns < width)[None, :], other=0.0)
        summed += tl.sum(scale[:, None] * tile, axis=0)
    everything = tl.sum(total, axis=0)
    tl.store(output + line * width + columns, summed / everything, mask=columns < width)
    tl.store(lse + line, shift + tl.log(everything), mask=tl.program_id(1) == 0)


@_kernel
def attend_backward(
    grad_output: tl.tensor, memory: tl.tensor, mask: tl.tensor, weights: tl.tensor, grad_weights: tl.tensor,
    shift: tl.tensor, grad_scores: tl.tensor, partial: tl.tensor,
    groups: tl.tensor, queries: tl.tensor, rows: tl.tensor, width: tl.tensor, splits: tl.tensor, rows_per_split: tl.tensor,
    group_stride: tl.tensor, row_stride: tl.tensor, column_stride: tl.tensor,
    has_mask: tl.constexpr, slices: tl.constexpr, precision: tl.constexpr,
    block_q: tl.constexpr, block_n: tl.constexpr, block_d: tl.constexpr, block_k: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradient of the scores, `ds = w (dw + do M^T + shift)`, and per split that of the queries, `ds M`.

    Args:
        grad_output: do, [groups * queries, width] fp32.
        memory: as in `attend`.
        mask: as in `attend`.
        weights: w, [groups * queries, rows] fp32.
        grad_weights: dw, [groups * queries, rows] fp32.
        shift: [groups * queries] fp32, the gradient of the log-sum-exp less the mean gradient `sum w (dw + do M^T)`.
        grad_scores: ds, [groups * queries, rows] fp32, written.
        partial: [splits, groups * queries, width] fp32, written.
        groups: as in `attend`, and so all that follow.
        queries: queries of a group.
        rows: n.
        width: d.
        splits: parts that the rows are divided into.
        rows_per_split: rows of a part.
        group_stride: elements from a memory to the next.
        row_stride: elements from a row to the next.
        column_stride: elements from a column to the next.
        has_mask: whether there is a mask.
        slices: parts that the width is divided into.
        precision: that of `tl.dot`.
        block_q: queries of a program: 1 for multiplying and adding, from 16 on for tensor cores.
        block_n: rows of a tile.
        block_d: columns of a slice.
        block_k: columns multiplied at once on tensor cores.
    """
    group, split, asked_for, part = _place(queries, splits, slices, block_q)
    asked = asked_for < queries
    writes = asked_for < tl.where(part == 0, queries, 0)  # one slice writes what all compute
    lines = group * queries + asked_for
    columns = _columns(part, block_d)
    start = memory + group * group_stride
    outer = _load(grad_output, lines, columns, asked, width, width, 1)
    moved = tl.load(shift + lines, mask=asked, other=0.0)
    summed = tl.zeros([block_q, block_d], tl.float32)
    end = tl.minimum(split * rows_per_split + rows_per_split, rows)
    for first in range(split * rows_per_split, end, block_n):
        row = (first + tl.arange(0, block_n)).to(tl.int64)
        within = row < end
        exists = within
        if has_mask:
            exists = within & (tl.load(mask + group * rows + row, mask=within, other=0) != 0)
        if block_q == 1:
            tile = _load(start, row, columns, exists, width, row_stride, column_stride)
            found = tl.sum(outer * tile, axis=1)[None, :]
        else:
            found = _all_scores(
                grad_output,
                lines,
                asked,
                start,
                row,
                exists,
                width,
                row_stride,
                column_stride,
                block_q,
                block_n,
                block_k,
                precision,
            )
            tile = _load(start, row, columns, exists, width, row_stride, column_stride)  # again, and from the cache
        place = lines[:, None] * rows + row[None, :]
        kept = asked[:, None] & within[None, :]
        grad = found + moved[:, None] + tl.load(grad_weights + place, mask=kept, other=0.0)
        grad = grad * tl.load(weights + place, mask=kept, other=0.0)
        tl.store(grad_scores + place, grad, mask=writes[:, None] & within[None, :])
        summed += _weighted(grad, tile, block_q, precision)
    place = split * groups * queries + lines
    tl.store(partial + place[:, None] * width + columns[None, :], summed, mask=asked[:, None] & (columns < width)[None, :])


@_kernel
def memory_backward(
    query: tl.tensor, grad_output: tl.tensor, weights: tl.tensor, grad_scores: tl.tensor, grad_memory: tl.tensor,
    queries: tl.tensor, rows: tl.tensor, width: tl.tensor,
    block_q: tl.constexpr, block_n: tl.constexpr, block_d: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradient of the memory, `dM = ds^T q + w^T do`, without a look at the memory.

    Args:
        query: q, [groups * queries, width] fp32.
        grad_output: do, [groups * queries, width] fp32.
        weights: w, [groups * queries, rows] fp32.
        grad_scores: ds, [groups * queries, rows] fp32.
        grad_memory: [groups, rows, width], written.
        queries: queries of a group.
        rows: n.
        width: d.
        block_q: queries taken at once.
        block_n: rows of a program.
        block_d: columns of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(width, block_d)
    blocks = tl.cdiv(rows, block_n)
    group = program // parts // blocks
    row = program // parts % blocks * block_n + tl.arange(0, block_n)
    columns = _columns(program % parts, block_d)
    grad = tl.zeros([block_n, block_d], tl.float32)
    for first in range(0, queries, block_q):
        asked = first + tl.arange(0, block_q) < queries
        lines = group * queries + first + tl.arange(0, block_q)
        wanted = _load(query, lines, columns, asked, width, width, 1)
        outer = _load(grad_output, lines, columns, asked, width, width, 1)
        grad += _outer(_load(grad_scores, lines, row, asked, rows, rows, 1), wanted, block_q)
        grad += _outer(_load(weights, lines, row, asked, rows, rows, 1), outer, block_q)
    pointers = grad_memory + (group * rows + row)[:, None] * width + columns[None, :]
    tl.store(pointers, grad.to(grad_memory.dtype.element_ty), mask=(row < rows)[:, None] & (columns < width)[None, :])
