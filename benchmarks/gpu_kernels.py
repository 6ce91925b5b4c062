"""Recall in Triton and search by FAISS on a GPU: what they compute is checked, then timed. Pieces of gpu.py."""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from measure import seconds
from torch import Tensor

from hmt_kernels import naive

if TYPE_CHECKING:
    from gpu_pieces import Job, Record

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTH, K = 576, 300  # of the default model; how many are selected
TINY = 32  # the width in a dry run
GOAL = 0.48  # ms for one query in 1,000,000 x 576 of bf16
ROOF = 3e12  # bytes a second that an H100's memory gives to a good kernel
SEGMENT = 4  # memories of a segment that may be recalled, in the default model
ROUNDS, QUERIES, SEGMENTS = 20, 16, 16
COMPILING = 6  # processes
_COPIED = 1 << 30  # bytes; emptying the caches writes as many
Matrix = np.ndarray[Any, Any]


class Timing(NamedTuple):
    """Medians of one call, in milliseconds."""

    device: float  # between two events on the device, whatever Python takes
    whole: float  # as the caller waits


class Clock:
    """Times calls whose data is not in a cache.

    Args:
        device: where they compute.
        size: bytes that are written before each call, which empties the caches and hides the time of launching.
    """

    def __init__(self, device: str, size: int = _COPIED) -> None:
        self._cuda = device == "cuda"
        self._filler = torch.empty(size, dtype=torch.uint8, device=device)

    def wait(self) -> None:
        """Wait for the device."""
        if self._cuda:
            torch.cuda.synchronize()

    def __call__(self, call: Callable[[], Any], rounds: int = ROUNDS) -> Timing:
        """Time a call; on a GPU three come first, which compile and choose tiles."""
        for _ in range(3 if self._cuda else 0):
            call()
        whole = [self._whole(call) for _ in range(rounds)]
        device = [self._between(call) for _ in range(rounds)] if self._cuda else whole
        return Timing(statistics.median(device), statistics.median(whole))

    def _whole(self, call: Callable[[], Any]) -> float:
        self._filler.zero_()
        self.wait()
        begun = time.perf_counter()
        call()
        self.wait()
        return (time.perf_counter() - begun) * 1000

    def _between(self, call: Callable[[], Any]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(4):  # long enough for Python to launch the rest meanwhile
            self._filler.zero_()
        first.record()
        call()
        last.record()
        self.wait()
        return float(first.elapsed_time(last))

    def bandwidth(self) -> float:
        """Return the bytes a second that a copy within the device reads and writes."""
        target = torch.empty_like(self._filler)
        return 2 * target.nbytes / (self(lambda: target.copy_(self._filler)).device / 1000)


def implementation(device: str) -> tuple[str, Any]:
    """Return the kernels and how they run: compiled, interpreted, or plain torch where a dry run has no Triton."""
    if device == "cuda" or importlib.util.find_spec("triton") is not None:
        from hmt_kernels import triton_recall

        return "Triton, compiled" if not triton_recall.INTERPRETED else "Triton, interpreted", triton_recall
    plain = SimpleNamespace(recall=naive.recall, recall_shared=shared_naively)
    plain.recall_top = lambda query, memory, k: (naive.recall(query, memory), naive.select(query, memory, k))
    return "plain torch", plain


def shared_naively(query: Tensor, memory: Tensor, mask: Tensor | None = None) -> naive.Recall:
    """Recall for queries [Q, d] in one memory [n, d] with a mask [n], by plain torch.

    Args:
        query: folded and scaled.
        memory: of all queries.
        mask: True where an embedding exists; None: all exist.
    """
    masks = None if mask is None else mask.expand(len(query), *mask.shape)
    return naive.recall(query, memory.expand(len(query), *memory.shape), masks)


def _width(job: Job) -> int:
    return TINY if job.small else WIDTH


def kernels(job: Job, record: Record) -> None:
    """Compare recall in Triton with plain torch, then with the bandwidth of the memory."""
    record.settings["kernels"], fast = implementation(job.device)
    columns = ["dtype", "width", "queries", "output", "weights", "lse", "gradient of the query", "of the memory", "allowed"]
    rows, wrong = [], []
    for row in errors(fast, job):
        rows.append(row)
        record.table("largest errors against plain torch in fp32, in millionths of the largest value", columns, rows)
        if not max(row[3:-1]) <= row[-1]:  # NaN is wrong, too
            wrong.append(f"{row[0]} of width {row[1]}, {row[2]} queries")
    if wrong:
        raise AssertionError(f"the kernels are wrong: {'; '.join(wrong)}")
    width, clock = _width(job), Clock(job.device, 1 << 20 if job.small else _COPIED)
    roof = clock.bandwidth()
    record.notes.append(f"a copy within the device reads and writes {roof / 1e12:.3f} TB/s")
    columns = [
        "memories",
        "queries",
        "what",
        "ms on the device",
        "ms as called",
        "TB/s",
        "of a copy's",
        "of 3 TB/s",
        "torch, ms",
    ]
    rows = []
    for count in (70, 100) if job.small else (10_000, 100_000, 1_000_000):
        for row in speeds(fast, job, clock, count):
            taken = count * width * 2 / (row[3] / 1000)
            rows.append([*row[:5], taken / 1e12, taken / roof, taken / ROOF, row[5]])
            record.table(f"memories of {width} numbers in bf16, caches emptied", columns, rows)
    if not job.small:
        reached = next(row[3] for row in rows if row[:3] == [1_000_000, 1, "recall"])
        verdict = "reached" if reached <= GOAL else "missed"
        record.notes.append(f"the goal of {GOAL} ms for one query in 1,000,000 memories is {verdict}: {reached:.3f} ms")
    record.notes.append("torch: two multiplications and a softmax between them, each memory read twice")
    record.end("done")


def errors(fast: Any, job: Job) -> Iterator[list[Any]]:
    """Yield dtype, width, queries, the errors of output, weights, lse and gradients, and what is allowed, in millionths.

    On a GPU each case is compiled in a process of its own, some at a time.

    Args:
        fast: the kernels.
        job: says where, and how large.
    """
    cases = list(product(DTYPES, (20,) if job.small else (64, 576, 4096), (2, 17)))
    if job.device == "cpu":
        yield from (errors_of(fast, job, *case) for case in cases)
        return
    with ProcessPoolExecutor(COMPILING, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_compiled_errors, [job] * len(cases), *zip(*cases, strict=True))


def _compiled_errors(job: Job, dtype: torch.dtype, width: int, queries: int) -> list[Any]:
    return errors_of(implementation(job.device)[1], job, dtype, width, queries)


def errors_of(fast: Any, job: Job, dtype: torch.dtype, width: int, queries: int) -> list[Any]:
    """Return a row of `errors`.

    Args:
        fast: the kernels.
        job: says where, and how large.
        dtype: of the memory.
        width: of a memory.
        queries: above 2 they share one memory; else each has its own.
    """
    made = torch.Generator().manual_seed(0)
    step = 1e-5 if dtype == torch.float32 else 2e-3
    allowed = step + max(step, torch.finfo(dtype).eps)
    together, count = queries > 2, 37 if job.small else 1000
    shape = (count, width) if together else (queries, count, width)
    memory = torch.randn(*shape, generator=made).to(job.device, dtype)
    query = (2 * torch.randn(queries, width, generator=made) / width**0.5).to(job.device)
    mask = torch.rand(shape[:-1], generator=made) > 1 / 3
    mask[..., -1] = True
    mask = mask.to(job.device)
    ours = gradients(fast.recall_shared if together else fast.recall, query, memory, mask)
    theirs = gradients(shared_naively if together else naive.recall, query, memory.float(), mask)
    far = [float((a - b).abs().max() / max(1.0, b.abs().max())) for a, b in zip(ours, theirs, strict=True)]
    return [str(dtype)[6:], width, queries, *(1e6 * share for share in (*far, allowed))]


def gradients(call: Callable[..., Any], query: Tensor, memory: Tensor, mask: Tensor) -> list[Tensor]:
    """Return output, weights, lse and the gradients of query and memory, in fp32.

    Args:
        call: recalls.
        query: [.., d].
        memory: [.., n, d].
        mask: [.., n].
    """
    inputs = [query.clone().requires_grad_(), memory.clone().requires_grad_()]
    found = call(*inputs, mask)[:3]
    total = torch.stack([part.float().sin().sum() for part in found]).sum()
    return [part.detach().float() for part in (*found, *torch.autograd.grad(total, inputs))]


def speeds(fast: Any, job: Job, clock: Clock, count: int) -> Iterator[list[Any]]:
    """Yield memories, queries, what, ms on the device, ms as called, and ms of plain torch on the device.

    Args:
        fast: the kernels.
        job: says where.
        clock: times the calls.
        count: the number of memories.
    """
    rounds, width = 1 if job.small else ROUNDS, _width(job)
    made = torch.Generator(job.device).manual_seed(1)
    memory = torch.randn(count, width, generator=made, device=job.device, dtype=torch.bfloat16)
    asked = 2 * torch.randn(64, width, generator=made, device=job.device) / width**0.5
    k = min(K, count // 2)

    def plainly(query: Tensor, k: int = 0) -> Tensor:
        scores = (query.to(memory.dtype) @ memory.T).float()
        if k:
            scores.topk(k)
        return scores.softmax(-1).to(memory.dtype) @ memory

    for queries in (1, 16) if job.small else (1, 16, 64):
        query = asked[:queries]
        found, wanted = fast.recall_shared(query, memory).output[:2], shared_naively(query[:2], memory).output
        torch.testing.assert_close(found.float(), wanted.float(), atol=1e-3, rtol=1e-2)
        spent = clock(lambda query=query: fast.recall_shared(query, memory), rounds)
        yield [count, queries, "recall", *spent, clock(lambda query=query: plainly(query), rounds).device]
    chosen = fast.recall_top(asked[:1], memory[None], k)[1]
    best = naive.select(asked[:1], memory[None], k)
    scores = [(memory[one.indices[0]].float() @ asked[0]).sort().values for one in (chosen, best)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-5)
    spent = clock(lambda: fast.recall_top(asked[:1], memory[None], k), rounds)
    yield [count, 1, f"recall and the best {k}", *spent, clock(lambda: plainly(asked[:1], k), rounds).device]


def index(job: Job, record: Record) -> None:
    """Search and grow an index of the project's on the GPU, on the CPU, and by the kernel alone."""
    columns = ["memories", "by", "filling, s", "search, ms", "one segment more, ms", "bytes uploaded", "MB there", "on"]
    rows: list[list[Any]] = []
    for count in (100, 200) if job.small else (100_000, 1_000_000):
        memories = drifting(count, _width(job), job.device)
        for row in searches(job, record, memories, min(K, count // 4)):
            rows.append([count, *row])
            record.table(f"the best {K} of memories of {_width(job)} numbers in fp16, one query at a time", columns, rows)
    record.settings["memories"] = "made up: sessions of 2,000 that drift around a common mean"
    record.end("done")


def searches(job: Job, record: Record, memories: Tensor, k: int) -> Iterator[list[Any]]:
    """Yield who searches, seconds of filling, ms of a search, ms and bytes of a segment more, MB taken and where.

    Args:
        job: says where.
        record: takes notes.
        memories: [n, d] in half precision, on the device.
        k: how many are wanted.
    """
    from hmt_memory.store.index import devices
    from hmt_memory.store.index.search import new_search

    rows: Matrix = memories.cpu().numpy()
    chance = np.random.default_rng(0)
    width, queries = rows.shape[1], 2 if job.small else QUERIES
    turn = chance.standard_normal((width, width)) / width**0.5
    asked = [(row.astype(np.float64) @ turn).astype(np.float32) for row in rows[chance.integers(0, len(rows), queries)]]
    uploaded: list[int] = []
    usual = devices.Block.add

    def counted(block: Any, piece: Matrix) -> None:
        uploaded.append(piece.size * 4)  # FAISS takes single precision
        usual(block, piece)

    devices.Block.add = counted  # type: ignore[method-assign]
    try:
        before = _used(job.device)
        found = new_search("SQfp16", width)
        filling, taken = seconds(lambda: found.add(rows)), _used(job.device) - before
        host, truth = getattr(found, "_host", found), _best(memories, asked, k)
        searched = []
        for search in (found, host):
            _check(search, rows, asked, truth)
            searched.append(_search(search, asked, k))
        if host is not found:
            if found.name == host.name:
                raise AssertionError("searching on the GPU failed; the log says why")
            growing, size = _grow(found, rows, uploaded)
            yield [found.name, filling, searched[0], growing, size, taken / 2**20, "the device"]
            if found.unsettled:
                record.notes.append(f"{found.unsettled} searches of {len(rows):,} memories were answered by the CPU")
        elif job.device == "cuda":
            record.notes.append("FAISS here has no GPU build, so that the CPU searches")
    finally:
        devices.Block.add = usual  # type: ignore[method-assign]
    growing, _ = _grow(host, rows, [])
    own = filling if host is found else None
    yield [f"CPU, {host.name}", own, searched[1], growing, None, rows.nbytes / 2**20, "the host"]
    name, fast = implementation(job.device)

    def kernel(query: Matrix, k: int) -> tuple[Matrix, Matrix]:
        there = torch.from_numpy(query)[None].to(job.device)
        chosen = fast.recall_top(there, memories[None], k)[1].indices[0].cpu().numpy()
        return chosen, chosen

    _check(kernel, rows, asked, truth)
    yield [f"the kernel, {name}", None, _search(kernel, asked, k), None, None, memories.nbytes / 2**20, "the device"]


def drifting(count: int, width: int, device: str) -> Tensor:
    """Make memories [n, d] in half precision: sessions of 2,000, each memory near the last, all around a common mean.

    Args:
        count: n.
        width: d.
        device: where they are made.
    """
    made = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, device=device)

    length = min(2000, count)
    sessions = -(-count // length)
    scale = torch.arange(1, width + 1, device=device) ** -0.5
    mean, place = 1.5 * scale * noise(width), noise(sessions, width)
    rows = torch.empty(sessions, length, width, dtype=torch.float16, device=device)
    for step in range(length):
        place = 0.97 * place + 0.03**0.5 * noise(sessions, width)
        rows[:, step] = ((place * scale + mean) * torch.exp(0.15 * noise(sessions, 1))).half()
    return rows.flatten(0, 1)[:count]


def _best(memories: Tensor, asked: list[Matrix], k: int) -> Matrix:
    """Return the k best scores of each query [q, k], falling, by plain torch."""
    queries = torch.from_numpy(np.stack(asked)).to(memories.device)
    scores = torch.cat([queries @ some.float().T for some in memories.split(100_000)], dim=1)
    best: Matrix = scores.topk(k).values.cpu().numpy()
    return best


def _check(search: Callable[..., Any], rows: Matrix, asked: list[Matrix], truth: Matrix) -> None:
    """Compare the exact scores of what is found with the best ones."""
    for query, wanted in zip(asked, truth, strict=True):
        chosen = search(query, len(wanted))[1]
        assert len(np.unique(chosen)) == len(wanted), "a row is missing or found twice"
        found = rows[chosen].astype(np.float64)
        off = 1e-5 * float(np.linalg.norm(query)) * float(np.linalg.norm(found, axis=1).max())
        assert np.allclose(np.sort(found @ query)[::-1], wanted, rtol=0, atol=off), "others are better"


def _search(search: Callable[..., Any], asked: list[Matrix], k: int) -> float:
    return statistics.median(seconds(lambda query=query: search(query, k)) for query in asked * 3) * 1000


def _grow(search: Any, rows: Matrix, uploaded: list[int]) -> tuple[float, int]:
    """Add some segments. Returns the median milliseconds and the bytes uploaded of one."""
    search.add(rows[:SEGMENT])  # may have to move what is there, once
    uploaded.clear()
    spent = [seconds(lambda: search.add(rows[:SEGMENT])) for _ in range(SEGMENTS)]
    return statistics.median(spent) * 1000, sum(uploaded) // SEGMENTS


def _used(device: str) -> int:
    """Return the bytes of the device in use, but for what torch holds."""
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()
