"""Eight sessions asked at once against one asked alone: tokens a second, one after the other and with shared steps.

    python benchmarks/bench_together.py [--sessions 8] [--tokens 32] [--rounds 2]

Each session has a made-up talk behind it, is asked by a thread of its own, and answers with as many tokens as are asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from measure import interleaved, machine, ratio

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.evaluate.speed import history
from hmt_memory.sessions.session import Session

_QUESTION = {"role": "user", "content": "What did I say about the neighbours?"}


def main() -> None:
    """Ask in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--history", type=int, default=3000, help="tokens that were said in each session before")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model = HMTModel.from_pretrained(DEFAULT_MODEL)
    print(machine(model), model.backbone.engine)

    def answer(session: Session) -> None:
        reply = session.reply(_QUESTION, max_new_tokens=options.tokens, min_new_tokens=options.tokens)
        session.forget(reply.finish().message_ids)  # so that every round has the same before it

    def at_once(sessions: Sequence[Session], most: int) -> None:
        model.batch_answers(most)
        with ThreadPoolExecutor(len(sessions)) as threads:
            list(threads.map(answer, sessions))

    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder) as store:
        sessions = [history(store, model, str(number), options.history) for number in range(options.sessions)]
        ways = {
            "one alone": partial(at_once, sessions[:1], 0),
            "at once": partial(at_once, sessions, 0),
            "at once, steps shared": partial(at_once, sessions, options.sessions),
        }
        times = interleaved(ways, options.rounds)
    for name, spent in times.items():
        tokens = options.tokens * (1 if name == "one alone" else options.sessions)
        print(f"{name:22} {tokens / min(spent):6.1f} tokens/s  ({min(spent):.1f} s)")
    speedup = options.sessions / ratio(times, "at once, steps shared", "one alone")
    print(f"steps shared against one alone: {speedup:.2f} times the tokens a second")


if __name__ == "__main__":
    main()
