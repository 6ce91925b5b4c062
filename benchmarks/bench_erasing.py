"""The time that erasing takes in a large store, and the time that others wait for it. Run it on a quiet machine.

A store of many sessions is filled; then one process forgets, edits, answers and deletes while another keeps adding to a session
of its own. The waits of the other process are compared with its waits while nobody erases, and the calls of a conversation with
those beside no other process. Its model takes almost no time, so that the store is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench_store import folder_bytes
from measure import default_model, machine, seconds

from hmt_memory import HMTModel, MemoryStore, Session
from hmt_memory.evaluate.speed import history

MESSAGE = {"role": "user", "content": "a short message"}


def write(folder: str, name: str, stop: Any, waits: Any) -> None:
    """Add short messages until told to stop; put the time of each into `waits`."""
    model = tiny()
    store = MemoryStore(folder, timeout=60)
    session = store.session(name, model)
    while not stop.is_set():
        waits.put(seconds(lambda: session.add(MESSAGE)))
        time.sleep(0.002)


def tiny() -> HMTModel:
    """Make a model that takes no time, so that only the store is measured."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hmt_memory import HMTConfig

    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=49152, max_position_embeddings=4096, **sizes))
    return HMTModel.wrap(lm, default_model().backbone.tokenizer, HMTConfig(segment_length=256))


def beside_a_writer(folder: Path, what: str, work: Callable[[], Any]) -> None:
    """Time `work` while another process writes, and the waits of that process."""
    context = multiprocessing.get_context("spawn")
    stop, waits = context.Event(), context.Queue()
    writer = context.Process(target=write, args=(str(folder), f"busy {what}", stop, waits))
    writer.start()
    waits.get()
    spent = seconds(work)
    stop.set()
    taken = []
    while writer.is_alive() or not waits.empty():
        while not waits.empty():
            taken.append(waits.get())
        writer.join(0.05)
    print(
        f"  {what}: {spent:.2f} s; another process waited at most {max(taken) * 1e3:.0f} ms for an add, median "
        f"{statistics.median(taken) * 1e3:.0f} ms ({len(taken)} adds)"
    )


def converse(folder: Path, session: Session, rounds: int) -> None:
    """Time the calls of a conversation, each so many times: without another process, and while one writes to the store."""
    asked = session.add(MESSAGE)

    def add() -> None:
        asked[:] = session.add(MESSAGE)

    def edit() -> None:
        asked[:] = session.add(MESSAGE, replacing=asked[0])

    def reply() -> None:
        asked[:] = session.reply(MESSAGE, max_new_tokens=8).finish().message_ids

    def reply_anew() -> None:
        asked[:] = session.reply(MESSAGE, replacing=asked[0], max_new_tokens=8).finish().message_ids

    calls = {"adding": add, "replacing a message": edit, "answering": reply, "answering anew": reply_anew}
    for what, call in calls.items():
        alone: list[float] = []
        repeat(call, rounds, alone)
        beside: list[float] = []
        beside_a_writer(folder, f"{what} {rounds} times", partial(repeat, call, rounds, beside))
        print(f"    each call: {shown(beside)}; without the other process: {shown(alone)}")


def repeat(call: Callable[[], None], rounds: int, taken: list[float]) -> None:
    """Add the time of each of so many calls."""
    taken += [seconds(call) for _ in range(rounds)]


def shown(taken: list[float]) -> str:
    """Return the median and the longest of times."""
    return f"median {statistics.median(taken) * 1e3:.0f} ms, at most {max(taken) * 1e3:.0f} ms"


def main() -> None:
    """Fill a store and time each kind of erasing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the store")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each kind in a conversation")
    arguments = parser.parse_args()
    model = default_model()
    print(machine(model))
    with tempfile.TemporaryDirectory() as name, MemoryStore(Path(name) / "store", timeout=60) as store:
        folder = store.folder
        history(store, model, "first", 1_000_000)
        each = folder_bytes(folder) / 1e6
        for number in range(max(2, round(arguments.megabytes / each) - 1)):
            history(store, model, f"session {number}", 1_000_000)
        print(f"a store of {folder_bytes(folder) / 1e6:.0f} MB, sessions of {each:.0f} MB")
        session = store.session("first")
        ids = [message.id for message in session.messages()]
        beside_a_writer(folder, "nothing", lambda: time.sleep(3))
        converse(folder, store.session("conversation", tiny()), arguments.rounds)
        beside_a_writer(folder, "forgetting the last message", lambda: session.forget(ids[-1:]))
        beside_a_writer(
            folder, "forgetting one in the middle of a million tokens", lambda: session.forget([ids[len(ids) // 2]])
        )
        beside_a_writer(folder, "deleting a million tokens", lambda: store.delete("session 0"))
        beside_a_writer(folder, "compacting", store.compact)


if __name__ == "__main__":
    main()
