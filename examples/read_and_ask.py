"""Read CPython's language reference into memory, ask about it, and say what it cost: `make demo`.

The text comes with Python itself. Everything is measured here and now; nothing is stored.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from hmt_memory import HMTModel, HMTState
from hmt_memory.cli.asking import Reading, ask_about, encode_documents, read, recalled_passages, show_passages
from hmt_memory.cli.models import load_model, note_if_untrained, visible_tokens
from hmt_memory.cli.terminal import Document, Screen, stream

AT_LEAST = 12_000  # tokens
LAST_TOPIC = "class"  # one question is about the end of the text, so every Python version has to end alike


class Question(NamedTuple):
    topic: str  # where in the text the answer stands
    text: str
    answer: str  # what a right answer says


QUESTIONS = (
    Question("class", "Which PEP added class decorators?", "3129"),
    Question("break", "What does the break statement do?", "loop"),
)


def main() -> None:
    screen = Screen(Console(highlight=False), sys.stdout)
    model = load_model("smollm2-135m-instruct", screen)
    ids, starts = language_reference(model)
    screen.note(
        f"{len(starts)} topics of the language reference, {len(ids):,} tokens; segments of {model.config.segment_length}"
    )
    reading = read(model, ids, screen, line_every=4000)
    note_if_untrained(model, screen, reading.state)
    for question in QUESTIONS:
        answer(model, question, ids, starts, reading, screen)
    report(model, reading, ids)


def language_reference(model: HMTModel) -> tuple[Tensor, dict[str, int]]:
    """Return token ids of whole topics in alphabetical order, and where each topic starts."""
    parts: list[Tensor] = []
    starts: dict[str, int] = {}
    for topic in sorted(topics):
        starts[topic] = sum(map(len, parts))
        parts.append(encode_documents(model, [Document(topic, topics[topic] + "\n\n")]))
        if topic >= LAST_TOPIC and starts[topic] + len(parts[-1]) >= AT_LEAST:
            break
    return torch.cat(parts), starts


def answer(model: HMTModel, question: Question, ids: Tensor, starts: dict[str, int], reading: Reading, screen: Screen) -> None:
    print(f"\nQuestion: {question.text}\nAnswer: ", end="", flush=True)
    generation = ask_about(model, question.text, reading.state, max_new_tokens=60)
    stream(generation, screen.out)
    screen.note(
        f"{'Right' if question.answer in generation.text else 'Wrong'}: {what_the_view_held(model, question, starts, reading)}"
    )
    show_passages(recalled_passages(model, question.text, reading.state, ids, top_k=3), screen)


def what_the_view_held(model: HMTModel, question: Question, starts: dict[str, int], reading: Reading) -> str:
    visible = visible_tokens(model, reading.state)
    back = reading.tokens - starts[question.topic]
    where = f"the topic {question.topic!r} starts {back:,} tokens before the end and the view holds the last {visible:,}"
    if back <= visible:
        return f"{where}, so the answer was there to read."
    return f"{where}, so this is the backbone's own knowledge, not something remembered from the text."


def share_of_cost_limit(model: HMTModel, ids: Tensor, state: HMTState, *, segments: int = 8, rounds: int = 3) -> float:
    """Return the least time the method can take divided by the time it takes, on the first `segments`: median of rounds.

    The least time is that of the backbone's body alone, times the positions that the method runs for each token.
    """
    sample, shares = ids[: segments * model.config.segment_length], []
    for _ in range(rounds):
        alone, whole = seconds(lambda: body_alone(model, sample)), seconds(lambda: model.read(sample, state))
        shares.append(alone * model.config.positions_per_token() / whole)
    return statistics.median(shares)


@torch.no_grad()
def body_alone(model: HMTModel, ids: Tensor) -> None:
    """Run the backbone's blocks on pieces of one segment, without any memory."""
    for piece in ids.split(model.config.segment_length):
        model.backbone.body(model.backbone.embed(piece.to(model.backbone.device))[None])


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def report(model: HMTModel, reading: Reading, ids: Tensor) -> None:
    memory = reading.state.memory.numel() * reading.state.memory.element_size()
    speed = reading.tokens / reading.seconds
    print(f"\nreading:      {speed:,.0f} tokens/s ({reading.tokens:,} tokens in {reading.seconds:.1f} s)")
    print(f"memory:       {memory:,} bytes for {reading.state.segments} segments; process peak {peak_bytes() / 1e6:,.0f} MB")
    share, work = share_of_cost_limit(model, ids, reading.state), model.config.positions_per_token()
    print(f"cost limit:   {share:.0%} reached (the limit: the backbone's own time on the text, times {work:.2f})")


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
