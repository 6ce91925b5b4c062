"""The costs of a long history: first token, turn, memory, opening, recall, adding, bytes on disk.

Histories are inserted as rows (English tokens, random memory embeddings of a memory's size), because reading a million tokens
takes half an hour; everything after that is the product as users meet it. Ratios are taken in turns in one run.

Run: .venv/bin/python benchmarks/bench_store.py [--rounds 7] [--sizes shipped] [--million]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import default_model, english, in_fresh_process, interleaved, machine, ratio, seconds

from hmt_memory import HMTModel, MemoryStore, Session
from hmt_memory.evaluate.speed import history
from hmt_memory.retrieval.ranking import preselect, weigh

QUESTION = {"role": "user", "content": "What did I tell you about this?"}
SHORT, LONG = 4_000, 1_000_000  # tokens of history


def resident_megabytes() -> float:
    """Return the resident memory of this process now (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def chosen_model(kind: str) -> HMTModel:
    """Load the default model: `paper` with the paper's sizes and one memory embedding a segment, or `shipped` as it is."""
    return default_model() if kind == "shipped" else default_model(segment_length=256)


def answer_alone(folder: str, name: str, kind: str) -> None:
    """Open a session in this process, answer once, and print times and memory."""
    model = chosen_model(kind)
    model.generate("warm up", max_new_tokens=2).finish()
    started = time.perf_counter()
    store = MemoryStore(folder)
    session = store.session(name, model)
    opened = time.perf_counter() - started
    reply = session.reply(QUESTION, max_new_tokens=4)
    next(reply)
    print(json.dumps({"opened_s": opened, "resident_mb": resident_megabytes(), "recalled": len(reply.recalled)}))


def turns(model: HMTModel, folder: Path, rounds: int, kind: str) -> None:
    """Time the first token and a whole turn after a short and a long history."""
    with MemoryStore(folder) as store:
        sessions = {name: history(store, model, name, size) for name, size in (("short", SHORT), ("long", LONG))}

        def turn(session: Session, count: int) -> None:
            reply = session.reply(QUESTION, max_new_tokens=count, min_new_tokens=count)
            next(reply)
            if count > 1:
                reply.finish()  # the turn is kept: both histories grow alike

        first = interleaved({name: lambda session=session: turn(session, 1) for name, session in sessions.items()}, rounds)
        print(f"first token after {LONG:,} tokens of history: {ratio(first, 'long', 'short'):.3f} x of {SHORT:,} (wanted 1.1)")
        whole = interleaved({name: lambda session=session: turn(session, 16) for name, session in sessions.items()}, rounds)
        print(f"a turn of 16 tokens after {LONG:,}: {ratio(whole, 'long', 'short'):.3f} x of {SHORT:,} (wanted 1.1)")
        print(f"  medians: first token {statistics.median(first['long']):.2f} s, turn {statistics.median(whole['long']):.2f} s")
    figures = {name: in_fresh_process(__file__, "--answer-alone", str(folder), name, kind) for name in sessions}
    more = figures["long"]["resident_mb"] - figures["short"]["resident_mb"]
    print(f"resident memory after an answer: {more:+.0f} MB with {LONG:,} tokens (wanted at most +150)")


def adding(model: HMTModel, folder: Path, rounds: int) -> None:
    """Time `add` beyond the reading itself, for a message that fills a segment and one that fills none."""
    with MemoryStore(folder) as store:
        session = history(store, model, "adding", 100_000)
        text = model.backbone.decode(english(model, model.config.segment_length).tolist())
        for name, said in (("a message that fills a segment", text), ("a short message", "Thank you very much.")):
            more = []
            for _ in range(rounds):
                state = session._read_pending().state
                ids = session._transcript.stretch({"role": "user", "content": said}, first=False).ids
                alone = seconds(lambda state=state, ids=ids: model.read(ids, state))
                more.append(seconds(lambda said=said: session.add({"role": "user", "content": said})) - alone)
            print(f"add of {name}: {statistics.median(more) * 1e3:.1f} ms over reading (wanted at most 10)")


def recalling(model: HMTModel, folder: Path, segments: int, rounds: int, wanted: float) -> None:
    """Time opening and recall over so many segments, on one core, beyond the pass of the query."""
    length = model.config.segment_length
    with MemoryStore(folder) as store:
        spent = seconds(lambda: history(store, model, "many", segments * length))
    print(f"{segments:,} segments: inserted in {spent:.0f} s, {folder_bytes(folder) / segments:,.0f} bytes a segment on disk")
    with MemoryStore(folder) as store:
        spent = seconds(lambda: store.session("many", model))
        session = store.session("many", model)
        print(f"  a session of {segments:,} segments opens in {spent:.3f} s (wanted at most 1)")
        summary = torch.randn(model.backbone.hidden_size).to(model.backbone.dtype)
        shards = [session._own_shard(session._snapshot())]
        print(f"  its index is made of the rows in {seconds(lambda: preselect(model, shards, summary, 300)):.2f} s, once")
        with one_thread():
            search = next(iter(store.open_indexes._open.values())).memory._search
            keys = search.vectors(np.arange(segments * model.recalled_slots)).view(np.int64).ravel()
            once = min(seconds(lambda: np.bitwise_xor.reduce(keys)) for _ in range(rounds))
            times = [seconds(lambda: weigh(model, preselect(model, shards, summary, 300))) for _ in range(rounds * 3)]
        print(f"  recall: {min(times) * 1e3:.1f} ms, median {statistics.median(times) * 1e3:.1f} ms (wanted at most {wanted})")
        print(f"  that is {min(times) / once:.2f} x one pass over the keys' bytes on one core, which takes {once * 1e3:.1f} ms")
    with MemoryStore(folder) as store:
        session = store.session("many", model)
        shards = [session._own_shard(session._snapshot())]
        with_index = folder_bytes(folder) / segments
        spent = seconds(lambda: preselect(model, shards, summary, 300))
        print(f"  {with_index:,.0f} bytes a segment with the saved index, which loads in {spent:.2f} s")


def shrinking(model: HMTModel, folder: Path) -> None:
    """Measure the bytes on disk before and after forgetting and deleting, and the time that erasing takes."""
    with MemoryStore(folder) as store:
        keep, gone = history(store, model, "keep", 100_000), history(store, model, "gone", 1_000_000)
        store.database.empty_log()
        before = folder_bytes(folder)
        middle = gone.messages()[len(gone.messages()) // 2].id
        history_alone = MemoryStore(folder).session("gone")
        spent = seconds(lambda: history_alone.forget([middle]))
        print(
            f"forgetting a message in the middle of 1,000,000 tokens: {spent:.2f} s until its bytes are gone, without reading"
        )
        deleting = seconds(lambda: store.delete("gone"))
        compacting = seconds(store.compact)
        after = folder_bytes(folder)
        print(
            f"deleting 1,000,000 of 1,100,000 tokens: {deleting:.2f} s; giving the room back: {before / 1e6:.1f} to "
            f"{after / 1e6:.1f} MB in {compacting:.2f} s"
        )
        assert keep.messages()


def folder_bytes(folder: Path) -> int:
    """Return the size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one core inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(options: Any) -> None:
    """Run the benchmarks that the options name."""
    logging.getLogger("hmt_memory").setLevel(logging.ERROR)
    model = chosen_model(options.sizes)
    print(machine(model))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        turns(model, root / "turns", options.rounds, options.sizes)
        adding(model, root / "adding", options.rounds)
        recalling(model, root / "recall", 100_000, options.rounds, 5)
        shrinking(model, root / "shrinking")
        if options.million:
            recalling(model, root / "million", 1_000_000, options.rounds, 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--million", action="store_true", help="also recall over 1,000,000 segments (3 GB, several minutes)")
    parser.add_argument(
        "--sizes", choices=["paper", "shipped"], default="paper", help="of the model: L = 256 and m = 1, or its own"
    )
    parser.add_argument("--answer-alone", nargs=3)
    given = parser.parse_args()
    if given.answer_alone:
        answer_alone(*given.answer_alone)
    else:
        main(given)
