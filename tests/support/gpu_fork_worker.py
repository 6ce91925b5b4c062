"""A process that forks while it uses GPUs, which are stand-ins. Writes what it found as a line of JSON."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import types
from typing import Any

import faiss
import numpy as np
from faiss_gpu import FakeFaiss

D = 16


def results(search: Any, rows: np.ndarray[Any, Any]) -> bool:
    """Whether a search finds the best of these rows."""
    query = np.random.default_rng(2).standard_normal(D).astype(np.float32)
    best = np.argsort(-(rows.astype(np.float64) @ query), kind="stable")[:9]
    return list(search(query, 9)[1]) == list(best)


def main() -> None:
    fake = FakeFaiss(faiss, devices=2)
    cuda = types.SimpleNamespace(is_available=lambda: True, mem_get_info=fake.mem_get_info)
    sys.modules["faiss"], sys.modules["torch"] = fake, types.SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    from hmt_memory.store.index import devices, gpu, search

    gpu._BLOCK = 2 * D * 100
    rows = np.random.default_rng(1).standard_normal((500, D)).astype(np.float16)
    there = search.new_search("SQfp16", D)
    there.add(rows[:300])
    dropped = search.new_search("SQfp16", D)
    dropped.add(rows)
    assert isinstance(there, gpu.GpuSearch) and results(there, rows[:300]) and there.unsettled == 0
    devices.drop(blocks := dropped._blocks[:1])  # type: ignore[attr-defined]
    found = {"dropped": not blocks}
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        devices.process.device(fake, 0).do(lambda: held.set() or go.wait(20))  # type: ignore[func-returns-value]

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    child = os.fork()
    if not child:  # its end frees everything, as that of any process does
        there.add(rows[300:])
        right = results(there, rows) and there.keep(np.arange(500) % 2 == 0) and results(there, rows[::2])
        fresh = search.new_search("SQfp16", D)
        fresh.add(rows)
        right = right and type(fresh) is search.FlatSearch and results(fresh, rows) and there.name == "faiss SQfp16"
        del dropped
        gc.collect()
        sys.exit(0 if right else 3)
    found["status"] = os.waitpid(child, 0)[1]
    go.set()
    thread.join()
    there.add(rows[300:])
    print(json.dumps({**found, "right": results(there, rows), "name": there.name, "broken": fake.broken}))


if __name__ == "__main__":
    main()
