"""Ask the conversations of `hmt eval answers` with what recall finds, and with the right notes alone: where a model ends.

    python benchmarks/oracle_answers.py [--adapter FOLDER] [--conversations 3] [--seed 0]

Everything but the notes is the same: the session, its view, the question. What stands in recent turns stays there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from measure import machine

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.evaluate.answers import Answered, Conversation, Plan, Question, answer
from hmt_memory.retrieval.notes import Note, written
from hmt_memory.retrieval.recollection import ViewRecollection
from hmt_memory.train.facts import KINDS

_FOUND = ViewRecollection._fitting


def main() -> None:
    """Tell, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--conversations", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = HMTModel.from_pretrained(DEFAULT_MODEL, adapter=options.adapter)
    print(machine(model))
    outcomes: dict[str, list[Answered]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder) as store:
        for number, conversation in enumerate(Plan(conversations=options.conversations, seed=options.seed).make()):
            session = store.session(str(number), model)
            for said, answered in conversation.turns:
                session.add([{"role": "user", "content": said}, {"role": "assistant", "content": answered}])
            for question in conversation.questions:
                for name, notes in _notes_for(conversation, question).items():
                    ViewRecollection._fitting = _FOUND if notes is None else _instead(notes)
                    outcomes[name].append(answer(session, model, question))
            print(f"conversation {number + 1}: {len(outcomes['found'])} questions", flush=True)
    for name, answers in outcomes.items():
        print(f"{name}: {_shares(answers)}")
        if name != "found":
            for one in answers:
                if one.question.value is not None and not one.says_it:
                    print(f"   {one.question.text}  [{one.question.value}]  {one.answer}")


def _notes_for(conversation: Conversation, question: Question) -> dict[str, Sequence[str] | None]:
    """Return the notes to ask a question with, by name; None: those that are found."""
    kind = next(kind for kind in KINDS.values() if question.text in kind.asked["evaluation"])
    values = [value for value in (question.value, question.before) if value is not None]
    sentences = {way.format(value) for way in (*kind.told["evaluation"], *kind.changed) for value in values}
    told = [said for said, _ in conversation.turns if said in sentences]
    return {"found": None, "what was told of it": told, "the latest of it": told[-1:]}


def _instead(notes: Sequence[str]) -> Callable[..., list[int]]:
    """Return what stands in for `ViewRecollection._fitting`, and takes these notes whatever is found."""

    def fitting(self: ViewRecollection, *_: Any) -> list[int]:
        return self._encode(written([Note(text, datetime.now(timezone.utc), "user") for text in notes]))

    return fitting


def _shares(answers: Sequence[Answered]) -> str:
    told = [one for one in answers if one.question.value is not None]
    twice, untold = [one for one in told if one.question.before], [one for one in answers if one.question.value is None]
    right, unknown = sum(one.says_it for one in told), sum(one.abstains for one in told)
    return (
        f"right {right} of {len(told)}, told twice {sum(one.says_it for one in twice)} of {len(twice)}, wrongly unknown "
        f"{unknown}; not told, and says so {sum(one.abstains for one in untold)} of {len(untold)}"
    )


if __name__ == "__main__":
    main()
