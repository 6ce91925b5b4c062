"""What a PostgreSQL server on the same disk takes beside a folder: adding, answering, and ten thousand sessions.

Run: .venv/bin/python benchmarks/bench_postgres.py [--rounds 60] [--sessions 10000]

A random model of two layers with the default model's widths and tokenizer reads and answers, which leaves the cost of the
store. Both stores hold the same, and ratios are taken in turns in one run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

from bench_tiers import new_place, tiny
from measure import default_model, english, interleaved, machine, ratio

from hmt_memory import HMTModel, MemoryStore, Session
from hmt_memory.evaluate.speed import history
from hmt_memory.store import lineage

_WANTED = {"add, short": 1.3, "add, a full segment": 1.3, "reply of 16 tokens": 1.3}  # times a folder's
_WANTED_SECONDS = {"list": 0.2, "open": 0.02, "open and recall": 0.06}
_SEGMENTS = 100  # of the session that is recalled from


def main(options: Any) -> None:
    """Measure and print."""
    default = default_model()
    model = tiny(default)
    print(machine(model))
    with (
        new_place("folder") as folder,
        new_place("postgres") as server,
        MemoryStore(folder) as here,
        MemoryStore(server) as there,
    ):
        both = {"folder": here, "server": there}
        calls(model, both, options.rounds)
        many(model, both, options.sessions, options.rounds)


def calls(model: HMTModel, both: dict[str, MemoryStore], rounds: int) -> None:
    """Print what calls on one session take."""
    sessions = {name: store.session("alice", model) for name, store in both.items()}
    full = model.backbone.decode(english(model, model.config.segment_length).tolist())
    work: dict[str, Callable[[Session], Any]] = {
        "add, short": lambda session: session.add(user("Thank you very much.")),
        "add, a full segment": lambda session: session.add(user(full)),
        "reply of 16 tokens": lambda session: session.reply(user("And?"), max_new_tokens=16, min_new_tokens=16).finish(),
    }
    for name, call in work.items():
        times = interleaved({where: lambda of=of, call=call: call(of) for where, of in sessions.items()}, rounds)
        print(f"{name}: {medians(times)}, {ratio(times, 'server', 'folder'):.2f} x (wanted {_WANTED[name]})", flush=True)


def user(text: str) -> dict[str, str]:
    """Return a message of a user."""
    return {"role": "user", "content": text}


def medians(times: dict[str, list[float]]) -> str:
    """Return the median of each call in words."""
    return ", ".join(f"{name} {1e3 * statistics.median(spent):.1f} ms" for name, spent in times.items())


def many(model: HMTModel, both: dict[str, MemoryStore], count: int, rounds: int) -> None:
    """Print what it takes to list many sessions, and to open one and recall from one among them."""
    for store in both.values():
        for number in range(5):
            history(store, model, f"told {number}", _SEGMENTS * model.config.segment_length)
        with store.database.writing() as db:
            for number in range(count):
                db.add_collection("session", f"session {number}", stream=lineage.add_stream(db), now=0.0)
    numbers = {name: (itertools.count(), itertools.count()) for name in both}

    def open_one(name: str) -> Session:
        return both[name].session(f"session {next(numbers[name][0]) * 97 % count}", model)

    def recall(name: str) -> None:
        session = both[name].session(f"told {next(numbers[name][1]) % 5}", model)
        assert session.recall("What did I tell you?")

    work: dict[str, Callable[[str], Any]] = {
        "list": lambda name: both[name].sessions(),
        "open": open_one,
        "open and recall": recall,
    }
    for what, call in work.items():
        times = interleaved({name: lambda name=name, call=call: call(name) for name in both}, max(11, rounds // 2))
        print(f"{count:,} sessions, {what}: {medians(times)} (wanted at most {1e3 * _WANTED_SECONDS[what]:.0f})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--sessions", type=int, default=10_000)
    main(parser.parse_args())
