"""Read documents into a corpus, ask about them, and show what was recalled for the answer: the first half of `make demo`.

A few sentences that no model can know stand among topics of Python's language reference, which comes with Python itself.
Everything is measured here and now; the store is a temporary folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pydoc_data.topics import topics
from typing import NamedTuple

from rich.console import Console

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.assistant import DEFAULT_MODEL
from hmt_memory.cli.terminal import Screen, show_recalled, stream
from hmt_memory.config import ViewConfig
from hmt_memory.sessions.corpus import Corpus

TOPICS = ("assert", "break", "continue", "pass", "return", "while")
HANDBOOK = {
    "contract": "The notice period is three months to the end of a quarter. Thirty days of leave a year are yours.",
    "canteen": "The canteen opens at half past eleven. The roof terrace is closed in winter.",
    "travel": "Hotels are paid up to 120 euros a night. Receipts go to Carla in accounting within two weeks.",
}
VIEW = ViewConfig(note_tokens=160)  # two or three passages: a small model answers better, and sooner, from few


class Question(NamedTuple):
    text: str
    answer: str  # what a right answer says


QUESTIONS = (
    Question("How long is the notice period?", "three months"),
    Question("When does the canteen open?", "half past eleven"),
)


def main() -> None:
    screen = Screen(Console(highlight=False), sys.stdout)
    model = HMTModel.from_pretrained(os.environ.get("HMT_MODEL", DEFAULT_MODEL))
    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder) as store:
        corpus = store.corpus("office", model)
        read(corpus)
        for question in QUESTIONS:
            ask(corpus, question, screen)


def read(corpus: Corpus) -> None:
    """Read the documents, and say how fast that was and what is kept."""
    started = time.perf_counter()
    corpus.add_documents([*((name, topics[name]) for name in TOPICS), *HANDBOOK.items()])
    seconds = time.perf_counter() - started
    stats = corpus.stats()
    print(
        f"Read {stats['documents']} documents: {stats['tokens']:,} tokens, {stats['segments']} segments, "
        f"{stats['tokens'] / seconds:,.0f} tokens a second."
    )


def ask(corpus: Corpus, question: Question, screen: Screen) -> None:
    """Ask, show what was recalled for the answer, and judge the answer by its own words."""
    started = time.perf_counter()
    print(f"\n> {question.text}")
    answer = corpus.ask(question.text, view=VIEW, max_new_tokens=24)
    stream(answer, screen)
    show_recalled(answer.recalled, screen)
    right = question.answer.lower() in answer.text.lower()
    verdict = "Right" if right else f"Wrong, for the word {question.answer!r} is missing"
    print(f"{verdict}. {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
