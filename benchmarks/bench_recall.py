"""Exact recall by a bounded 8-bit scan against FAISS's exact 16-bit scan, on one core: ratios of times in one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_recall.py [--rows 10000 100000 1000000] [--rounds 9] [--width 576]

Each way is asked the same queries in turn, k = 300, and must give the same rows. `checked` is the share of rows whose 16 bits
were read. Times are processor time of the asking thread, because a shared machine's wall time says little; the ratio is
that of the sums over the queries, of each the fastest round. Real memories are read from a text with the default model, and
enlarged by differences of other memories; their queries lie within its key projection.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from measure import cpu_name, default_model, english

from hmt_kernels.cpu_recall import BoundedScan

K = 300
Matrix = np.ndarray[Any, Any]


class Case(NamedTuple):
    """Memories, and queries of them."""

    rows: Matrix  # [n, d] float16
    queries: Matrix  # [q, d] float32
    directions: Matrix | None = None  # [r, d] in whose span the queries lie


def sessions(count: int, width: int, chance: np.random.Generator) -> Matrix:
    """Make memories of sessions of 2,000: standard deviations i^-0.5, a mean with 68 % of the energy, each near the last.

    Args:
        count: n.
        width: d.
        chance: the source of randomness.
    """
    scale = np.arange(1, width + 1) ** -0.5
    turned = (np.linalg.qr(chance.standard_normal((width, width)))[0] * scale).T.astype(np.float32)
    mean = chance.standard_normal(width).astype(np.float32)
    mean *= np.float32(np.sqrt((scale**2).sum() * 0.68 / 0.32) / np.linalg.norm(mean))
    rows = np.empty((count, width), np.float16)
    together = 10  # sessions
    for start in range(0, count, 2000 * together):
        place = chance.standard_normal((together, width), dtype=np.float32)
        for step in range(2000):
            place = 0.97 * place + np.float32(0.03**0.5) * chance.standard_normal((together, width), dtype=np.float32)
            made = (place @ turned + mean) * np.exp(0.15 * chance.standard_normal((together, 1), dtype=np.float32))
            places = start + np.arange(together) * 2000 + step
            rows[places[places < count]] = made[places < count]
    return rows


def clustered(count: int, width: int, chance: np.random.Generator) -> Matrix:
    """Make memories around 1,000 centres.

    Args:
        count: n.
        width: d.
        chance: the source of randomness.
    """
    centres = chance.standard_normal((1000, width), dtype=np.float32)
    rows = np.empty((count, width), np.float16)
    for start in range(0, count, 10_000):
        noise = 0.3 * chance.standard_normal((min(10_000, count - start), width), dtype=np.float32)
        rows[start : start + 10_000] = centres[chance.integers(0, 1000, len(noise))] + noise
    return rows


def mapped(rows: Matrix, count: int, chance: np.random.Generator, rank: int | None = None) -> tuple[Matrix, Matrix]:
    """Make queries [count, d]: a random linear map of a memory and noise. Returns the directions of its image too.

    Args:
        rows: the memories.
        count: the number of queries.
        chance: the source of randomness.
        rank: of the map; None: full.
    """
    width = rows.shape[1]
    inner = rank or width
    image = chance.standard_normal((inner, width)) / width**0.5
    asked = rows[chance.integers(0, len(rows), count)].astype(np.float64)
    asked += 0.1 * np.linalg.norm(asked, axis=1, keepdims=True) / width**0.5 * chance.standard_normal(asked.shape)
    queries = asked @ chance.standard_normal((width, inner)) / inner**0.5 @ image
    return queries.astype(np.float32), image


def real(count: int, queries: int, chance: np.random.Generator, kept: Path | None) -> Case:
    """Read a text with the default model: the memories that may be recalled, and the folded summaries of questions.

    Args:
        count: the number of memories, to which those read are enlarged.
        queries: the number of questions.
        chance: the source of randomness.
        kept: a file that holds what was read, or shall hold it.
    """
    if kept is not None and kept.exists():
        stored = np.load(kept)
        memory, asked, directions = stored["memory"], stored["asked"], stored["directions"]
    else:
        model = default_model()
        ids = english(model, 150 * model.config.segment_length)
        state = model.read(ids)
        per_segment = model.config.memory_tokens
        recalled = state.memory.float().reshape(-1, per_segment, state.memory.shape[-1])[:, -model.recalled_slots :]
        memory = recalled.reshape(-1, recalled.shape[-1]).numpy()
        with torch.no_grad():
            summaries = [model.asked(ids[start : start + 24])[0] for start in range(0, 40 * 97, 97)]
            asked = np.stack([model.recall.fold(summary[None])[0].float().numpy() for summary in summaries])
        directions = model.recall.key.weight.detach().float().numpy()
        if kept is not None:
            np.savez(kept, memory=memory, asked=asked, directions=directions)
    rows = np.empty((count, memory.shape[1]), np.float16)
    for start in range(0, count, 10_000):
        first, second, third = (memory[chance.integers(0, len(memory), min(10_000, count - start))] for _ in range(3))
        rows[start : start + 10_000] = first + 0.3 * (second - third)
    return Case(rows, asked[:queries], directions)


def cases(count: int, width: int, queries: int, kept: Path | None) -> dict[str, Callable[[], Case]]:
    """Return the makers of memories and queries by name.

    Args:
        count: the number of memories.
        width: d, of those that are made up.
        queries: the number of queries, 40 at most.
        kept: a file to keep the real memories in.
    """
    chance = np.random.default_rng(0)
    drawn = functools.cache(lambda: sessions(count, width, np.random.default_rng(1)))

    def nearly_equal() -> Case:
        rows = (chance.standard_normal(width) + 1e-3 * drawn()).astype(np.float16)
        return Case(rows, mapped(rows[:1000], queries, chance)[0])

    def clusters() -> Case:
        rows = clustered(count, width, chance)
        return Case(rows, mapped(rows, queries, chance)[0])

    return {
        "sessions, mapped": lambda: Case(drawn(), mapped(drawn(), queries, chance)[0]),
        "sessions, mapped to 128": lambda: Case(drawn(), *mapped(drawn(), queries, chance, min(128, width))),
        "sessions, of themselves": lambda: Case(drawn(), drawn()[:: max(1, count // queries)][:queries].astype(np.float32)),
        "real, its queries": lambda: real(count, queries, chance, kept),
        "real, no directions": lambda: real(count, queries, chance, kept)._replace(directions=None),
        "clustered, mapped": clusters,
        "nearly equal, mapped": nearly_equal,
    }


def spent(call: Callable[[], Any]) -> float:
    """Return the processor time of one call in this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def compare(name: str, case: Case, rounds: int) -> str:
    """Check that both find the same rows, then time them in turn. Returns a line of the table.

    Args:
        name: of the case.
        case: memories and queries.
        rounds: how often each query is asked.
    """
    scan = BoundedScan(case.rows.shape[1], case.directions)
    adding = 0.0
    for start in range(0, len(case.rows), 4096):
        adding += spent(lambda start=start: scan.add(case.rows[start : start + 4096]))
    index = scan._halves
    checked = []
    for query in case.queries:
        found = scan.search(query, K)
        scores, rows = index.search(query[None], K)
        differing = np.setxor1d(found.rows, rows[0])
        exact = case.rows[differing].astype(np.float64) @ query
        rounding = 1e-4 * float(np.linalg.norm(query)) * scan._largest
        assert np.allclose(scores[0], found.scores, atol=rounding), name
        assert np.all(np.abs(exact - found.scores[-1]) <= rounding), "they may differ where scores are alike"
    times = np.full((2, len(case.queries)), np.inf)
    for _ in range(rounds):
        for number, query in enumerate(case.queries):
            times[0, number] = min(times[0, number], spent(lambda query=query: index.search(query[None], K)))
            times[1, number] = min(times[1, number], spent(lambda query=query: checked.append(scan.search(query, K).checked)))
    flat, bounded = times.mean(axis=1) * 1e3
    return (
        f"{len(case.rows):>9,}  {name:24} {flat:8.2f} {bounded:8.2f}  {bounded / flat:5.2f}  "
        f"{np.mean(checked) / len(case.rows):8.3%}  {scan.nbytes / len(case.rows):6.0f}  {adding / len(case.rows) * 1e6:6.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--memories", type=Path, help="a .npz file to keep the real memories in")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    print(f"{cpu_name()}, 1 thread; FAISS {faiss.__version__}, numpy {np.__version__}, Python {platform.python_version()}")
    print("     rows  memories and queries     16 bits  bounded  ratio   checked  B/row  us/add   (ms a query)")
    for count in options.rows:
        for name, make in cases(count, options.width, options.queries, options.memories).items():
            if options.only in name:
                print(compare(name, make(), options.rounds), flush=True)


if __name__ == "__main__":
    main()
