"""A conversation, the end of its process, and a new process that answers from it: the second half of `make demo`.

The view is kept small (128 recent tokens and one or two replayed passages), so that a short conversation outgrows it: what was
said first is then shown to the model only if memory brings it back. The store is a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from rich.console import Console

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.cli.terminal import Screen, beginning, show_recalled, stream
from hmt_memory.sessions.session import Reply, Session

SESSION = "demo"
RECENT_TOKENS, REPLAY_TOKENS = 128, 160
TALK = (
    "The door code of the office is 4071.",
    "What is the capital of France?",
    "How do I cook rice?",
    "What is a prime number?",
    "Who wrote Hamlet?",
    "How does a bicycle stay upright?",
    "What is the longest river in the world?",
    "How do I take a good photo of the moon?",
    "Name three cities in Italy.",
    "How many days are in a leap year?",
)
QUESTION, ANSWER = "What is the door code of the office?", "4071"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for part in ("talk", "ask"):
            subprocess.run([sys.executable, __file__, part, folder], check=True)


def open_session(folder: str) -> tuple[MemoryStore, Session, HMTModel]:
    """Open the session in `folder`, from what lies on disk."""
    started = time.perf_counter()
    model = HMTModel.from_pretrained("smollm2-135m-instruct")
    model = model.with_config(recent_tokens=RECENT_TOKENS, replay_tokens=REPLAY_TOKENS)
    loaded = time.perf_counter()
    store = MemoryStore(folder)
    session = store.session(SESSION, model)
    opened = time.perf_counter()
    print(f"model loaded in {loaded - started:.1f} s, session opened in {(opened - loaded) * 1000:.0f} ms")
    return store, session, model


def talk(folder: str) -> None:
    """Tell and ask; every turn is on disk when its answer is whole."""
    print(f"\n--- process {os.getpid()}: a conversation")
    _, session, _ = open_session(folder)
    for text in TALK:
        reply = session.reply({"role": "user", "content": text}, max_new_tokens=48).finish()
        print(f"> {text}\n{beginning(reply.text, 100)}")
    stats = session.stats()
    counts = f"{stats['messages']} messages, {stats['tokens']} tokens, {stats['segments']} segments"
    print(f"{counts}; the process ends, the store not closed")
    sys.stdout.flush()
    os._exit(0)


def ask(folder: str) -> None:
    """Answer from what the other process left."""
    print(f"\n--- process {os.getpid()}: a new one")
    store, session, model = open_session(folder)
    tokens = session.stats()["tokens"]
    print(f"> {QUESTION}")
    reply = session.reply({"role": "user", "content": QUESTION}, max_new_tokens=40)
    stream(reply, sys.stdout)
    show_recalled(reply.recalled, Screen(Console(highlight=False), sys.stdout))
    report(reply, tokens, model.config.segment_length)
    print(f"The record after an exit without closing: {'whole' if store.verify().ok else 'damaged'}.")
    store.close()


def report(reply: Reply, tokens: int, length: int) -> None:
    """Say what the view could show of the fact, and what recall brought back."""
    shown = RECENT_TOKENS
    hidden = (tokens - shown) // length
    holding = [passage.segment for passage in reply.recalled if ANSWER in passage.text]
    verdict = "Right" if ANSWER in reply.text else "Wrong"
    print(f"{verdict}: it was said {tokens} tokens ago and the view shows the last {shown} or so.")
    evidence = f"and segment {holding[0]} says it" if holding else "and none says it"
    print(f"Of about {hidden} hidden segments recall brought back {len(reply.recalled)}, {evidence}.")


if __name__ == "__main__":
    {"talk": talk, "ask": ask}[sys.argv[1]](sys.argv[2]) if len(sys.argv) == 3 else main()
