"""What many workers give on a Ray cluster of this machine: answers a second of two replicas, and recall over four shards.

    python benchmarks/bench_ray.py [--answers 96] [--clients 16] [--tokens 32] [--rounds 3] [--segments 100000]

Replicas answer with a random model of twelve narrow layers, whose weights do not wait for the memory of the machine. Each has
a core of its own: Ray counts cores and holds nobody to them, and one replica, which reads what was said while it answers the
next, would use both. As many sessions belong to one as to another. What shards recall is compared with one index before it is
timed. Ratios are taken in turns in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import torch
import transformers
from measure import english, interleaved, machine, ratio
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from hmt_memory import Assistant, Corpus, HMTConfig, HMTModel, MemoryStore, Tiers
from hmt_memory.cluster.serving import APPLICATION, Scale, serve, stop
from hmt_memory.cluster.shards import ShardedCorpus, sharded
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.server.settings import Settings
from hmt_memory.store import lineage
from hmt_memory.store.rows import SegmentRow, chain

_PORT = 8398
_QUESTIONS = ["How are names bound in a block?", "What does an assignment to a slice do?", "When is a generator closed?"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--segments", type=int, default=100_000)
    options = parser.parse_args()
    logging.getLogger("hmt_memory").setLevel(logging.ERROR)
    default = HMTModel.from_pretrained(DEFAULT_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        name = written(Path(folder) / "model", default)
        model = HMTModel.from_pretrained(
            name, config=HMTConfig(segment_length=16, sensory_length=4), dtype="float32", device="cpu"
        )
        print(machine(model))
        if options.answers:
            replicas(Path(folder) / "answers", name, options.answers, options.clients, options.tokens, options.rounds)
        if options.segments:
            shards(Path(folder) / "recall", model, options.segments)


def written(folder: Path, default: HMTModel) -> str:
    """Write a random model with the default model's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=default.backbone.vocab_size,
        hidden_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    default.backbone.tokenizer.save_pretrained(folder)
    return str(folder)


def replicas(store: Path, name: str, answers: int, clients: int, tokens: int, rounds: int) -> None:
    """Print how many answers a second one replica gives, and two, in turns."""
    assistant = Assistant(name, reader="same", store=store, device="cpu", dtype="float32")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, known in rates.items():
            serve(assistant, Settings(), scale=Scale(count, count), port=_PORT)
            replica = ray_serve.get_deployment_handle("Replica", app_name=APPLICATION)
            bind(sorted(set(replica.broadcast("process").results())))
            rate(spread(replica, clients, count), clients, tokens)  # warms up
            known.append(rate(spread(replica, answers, count), clients, tokens))
            print(f"{count} replicas: {known[-1]:.2f} answers of {tokens} tokens a second", flush=True)
    stop()
    gain = statistics.median(two / one for one, two in zip(*rates.values(), strict=True))
    print(f"two replicas answer {gain:.2f} x as much as one (wanted 1.8)")


def bind(processes: list[int]) -> None:
    """Hold each process to a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    for number, process in enumerate(processes):
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[number % len(cores)]})


def spread(replica: DeploymentHandle[Any], answers: int, count: int) -> list[list[str]]:
    """Return names of new sessions of each replica, as many of one as of another."""
    held: dict[int, list[str]] = defaultdict(list)
    while len(held) < count or min(map(len, held.values())) < answers // count:
        name = f"session {time.time_ns()}"
        held[replica.options(session_id=f"/session:{name}").process.remote().result()].append(name)
    return [names[: answers // count] for names in held.values()]


def rate(sessions: list[list[str]], clients: int, tokens: int) -> float:
    """Return how many answers a second clients at once get, as many of them in sessions of one replica as of another."""
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{_PORT}", timeout=600, limits=httpx.Limits(max_connections=clients)) as http,
        contextlib.ExitStack() as stack,
    ):

        def ask(session: str) -> None:
            said = [{"role": "user", "content": "Good morning. What do you know of the sea?"}]
            asked = {"messages": said, "max_tokens": tokens, "metadata": {"session_id": session}}
            http.post("/v1/chat/completions", json=asked).raise_for_status()

        pools = [stack.enter_context(ThreadPoolExecutor(clients // len(sessions))) for _ in sessions]
        begun = time.perf_counter()
        for answered in [pool.map(ask, names) for pool, names in zip(pools, sessions, strict=True)]:
            list(answered)
        return sum(map(len, sessions)) / (time.perf_counter() - begun)


def shards(folder: Path, model: HMTModel, segments: int) -> None:
    """Print how long recall takes over four shards, beside one index; check that both recall the same."""
    with MemoryStore(folder, tiers=Tiers(hot_bytes=1 << 32)) as store:
        one = filled(store, model, segments)
        with sharded(store, "many", model, shards=4, cpus=0.25) as many:
            weights = max(agreement(one, many))
            times = interleaved(
                {
                    "one": lambda: [one.recall(question) for question in _QUESTIONS],
                    "four": lambda: [many.recall(question) for question in _QUESTIONS],
                },
                7,
            )
            each = {name: 1e3 * statistics.median(spent) / len(_QUESTIONS) for name, spent in times.items()}
            print(f"{segments:,} segments: weights and coverage differ by {weights:.1e} at most (wanted 1e-6)")
            print(f"recall: one index {each['one']:.1f} ms, four shards {each['four']:.1f} ms")
            print(f"four shards take {ratio(times, 'four', 'one'):.2f} x the time of one index (wanted at most 2)")


def agreement(one: Corpus, many: ShardedCorpus) -> Iterator[float]:
    """Yield by how much the weights and coverages of two corpora differ, which recall the same passages."""
    for question in _QUESTIONS:
        found, expected = many.recall(question), one.recall(question)
        assert [passage.id for passage in found] == [passage.id for passage in expected]
        yield abs(found.coverage - expected.coverage)
        yield from (abs(here.weight - there.weight) for here, there in zip(found, expected, strict=True))


def filled(store: MemoryStore, model: HMTModel, segments: int) -> Corpus:
    """Make a corpus of a hundred documents of English words, whose memories are random."""
    corpus, length, noise = store.corpus("many", model), model.config.segment_length, np.random.default_rng(0)
    ids = english(model, segments * length).reshape(100, -1)
    with mock.patch.object(Corpus, "_read_pending"):
        corpus.add_documents((f"book {number}", model.backbone.decode(row.tolist())) for number, row in enumerate(ids))
    with store.database.writing() as db:
        row = store.find(db, "corpus", "many")
        for volume in store.shelf(row).volumes:
            rows, digest = [], b""
            for number in range(-(-lineage.size(volume.parts)[1] // length)):
                span = (number * length, min((number + 1) * length, lineage.size(volume.parts)[1]))
                memory = noise.standard_normal((model.slots, model.backbone.hidden_size), np.float32).astype("<f2").tobytes()
                digest = chain(digest, span, memory, None)
                rows.append(SegmentRow(number, span, memory, None, digest))
            lineage.append_segments(db, volume.parts, rows)
        db.update_collection(row)
    return corpus


if __name__ == "__main__":
    main()
