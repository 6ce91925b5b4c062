"""Fit how much words, meaning and segments say about whether a passage answers a question, on made-up facts of training.

    python benchmarks/fit_fusion.py DATA --adapter ADAPTER

Conversations tell made-up facts between other talk (DATA/persona), some of them twice; each fact is asked for in two ways, and
what was not told is asked for too. Prints the logistic regression that `hmt_memory.retrieval.passages.FUSED` holds (what stands
around a passage keeps its weight: here that is talk of other things), how often the passage that answers comes first, and what
thresholds would note. Nothing of an evaluation is looked at.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from train_keys import MODEL, personas

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.retrieval import passages, ranking
from hmt_memory.retrieval.sources import Shard
from hmt_memory.train import relations
from hmt_memory.train.talk import small_talk

_TWICE, _FACTS, _TURNS = 6, 20, 90  # facts told anew, facts, and other turns of a conversation
_IDLE = ("Thanks!", "Hello there.", "Tell me a joke.", "What is the capital of France?", "How do I boil rice?", "Good night.")


class Asked(NamedTuple):
    """A question, the texts that may answer it, and the one that does."""

    question: str
    answers: frozenset[str]
    right: str | None


class Ranked(NamedTuple):
    """What was found for a question."""

    asked: Asked
    texts: list[str]
    features: np.ndarray  # [n, 4] words, meaning, segment, asks
    given: np.ndarray  # [n] the logit of what is not fitted


class Noting(NamedTuple):
    """What a threshold notes."""

    told: float  # share of the questions about what was told whose right passage is noted
    passages: float  # noted for each of these, in the mean
    untold: float  # share of the questions about what was not told for which nothing is noted
    idle: float  # the same of talk that asks for nothing that could be told


def conversation(chats: Sequence[Sequence[str]], chance: random.Random) -> tuple[list[dict[str, str]], list[Asked]]:
    """Make the messages of a conversation, and what is asked about it."""
    turns = [(one, other) for chat in chance.sample(list(chats), 6) for one, other in zip(chat[::2], chat[1::2], strict=False)]
    turns += small_talk(chance, 20)
    chance.shuffle(turns)
    turns = turns[:_TURNS]
    facts: dict[str, relations.Told] = {}
    while len(facts) < _FACTS:
        fact = relations.tell(chance)
        facts.setdefault(fact.key, fact)
    later = {key: relations.tell(chance, key, other_than=facts[key].value) for key in list(facts)[:_TWICE]}
    told = [*chance.sample(list(facts.values()), len(facts)), *later.values()]
    for place, fact in zip(sorted(chance.sample(range(len(turns) + len(told)), len(told))), told, strict=True):
        turns.insert(place, (fact.text, chance.choice(("Noted.", "Okay, thanks.", "Good to know!"))))
    asked = []
    for key, fact in facts.items():
        right = later.get(key, fact).text
        for question in (fact.question, relations.ask(chance, key)):
            asked.append(Asked(question, frozenset({fact.text, right}), right))
    others = [relations.near(chance, key) for key in chance.sample(list(facts), 12)]
    others += [relations.tell(chance) for _ in range(8)]
    asked += [Asked(fact.question, frozenset(), None) for fact in others if fact.key not in facts]
    asked += [Asked(text, frozenset(), None) for text in _IDLE]
    messages = [
        {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return messages, asked


def ranked(model: HMTModel, shard: Shard, asked: Asked, *, most: int = 60) -> Ranked:
    """Rank the passages of a conversation for a question."""
    window, query = model.config.recall_window, ranking.query_of(model, asked.question)
    candidates = ranking.nothing(model) if query.summary is None else ranking.preselect(model, [shard], query.summary, window)
    chosen = ranking.choose(model, [shard], candidates, asked.question, window)
    chosen = chosen._replace(nearest=ranking.nearest(model, [shard], query.key))
    found = passages.ranked([shard], chosen, asked.question, finely=True)[:most]
    rows = [
        [one.evidence.words, max(0.0, one.evidence.meaning), one.evidence.segment, one.cited.text.rstrip().endswith("?")]
        for one in found
    ]
    given = passages.FUSED.around * np.array([one.evidence.around for one in found])
    return Ranked(asked, [one.cited.text for one in found], np.array(rows, np.float64).reshape(-1, 4), given)


def fit(rows: Sequence[Ranked]) -> np.ndarray:
    """Return weights of the four features, and the bias."""
    given = torch.tensor(np.concatenate([row.given for row in rows]), dtype=torch.float64)
    features = torch.tensor(np.concatenate([row.features for row in rows]), dtype=torch.float64)
    labels = torch.tensor([text in row.asked.answers for row in rows for text in row.texts], dtype=torch.float64)
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            binary_cross_entropy_with_logits(features @ weights[:4] + weights[4] + given, labels)
            + 1e-4 * weights[:4].square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().numpy()


def report(rows: Sequence[Ranked], weights: np.ndarray) -> None:
    """Print how well the weights rank, and what thresholds note."""
    told = [row for row in rows if row.asked.right]
    likely = {id(row): 1 / (1 + np.exp(-(row.features @ weights[:4] + weights[4] + row.given))) for row in rows}
    kinds: Mapping[str, Callable[[Ranked], np.ndarray]] = {
        "words alone": lambda row: row.features[:, 0],
        "meaning alone": lambda row: row.features[:, 1],
        "fused": lambda row: likely[id(row)],
    }
    for name, kind in kinds.items():
        places = []
        for row in told:
            order = [row.texts[number] for number in np.argsort(-kind(row), kind="stable")]
            places.append(order.index(row.asked.right) if row.asked.right in order else len(order) + 99)
        first, five = (np.mean(np.array(places) < few) for few in (1, 5))
        print(f"{name:14} right passage first {first:.3f}, in the first five {five:.3f}")
    for threshold in (0.01, 0.02, 0.04, 0.08, 0.15):
        found = noting(rows, [likely[id(row)] for row in rows], threshold)
        print(
            f"from {threshold:.2f} on: {found.told:.3f} of what was told is noted, among {found.passages:.1f} passages; "
            f"nothing for {found.untold:.3f} of what was not told, for {found.idle:.3f} of talk that asks for nothing"
        )


def noting(rows: Sequence[Ranked], likely: Sequence[np.ndarray], threshold: float) -> Noting:
    """Return what a threshold notes, apart for what was told, for what was not, and for talk that asks for nothing.

    Args:
        rows: what was found for each question.
        likely: [n] for each, how likely its passages answer.
        threshold: the least likelihood of a passage that is noted.
    """
    told, many = [], []
    nothing: dict[bool, list[bool]] = {False: [], True: []}
    for row, values in zip(rows, likely, strict=True):
        noted = values >= max(threshold, 0.05 * values.max(initial=0))
        if row.asked.right:
            told.append(row.asked.right in np.array(row.texts)[noted])
            many.append(noted.sum())
        else:
            nothing[row.asked.question in _IDLE].append(not noted.any())
    return Noting(*(float(np.mean(values or [0])) for values in (told, many, nothing[False], nothing[True])))


def main() -> None:
    """Tell conversations, ask, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--conversations", type=int, default=8)
    options = parser.parse_args()
    model = HMTModel.from_pretrained(MODEL, adapter=options.adapter, dtype="float32")
    chats, rows = personas(options.data), []
    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder) as store:
        for number in range(options.conversations):
            messages, asked = conversation(chats, random.Random(f"fusion {number}"))
            session = store.session(str(number), model)
            session.add(messages)
            shard = session._own_shard(session._snapshot())
            rows += [ranked(model, shard, each) for each in asked]
            print(f"conversation {number + 1}: {len(rows)} questions so far", flush=True)
    kept = len(rows) // 4
    weights = fit(rows[kept:])
    print("words {:.2f}, meaning {:.2f}, segment {:.2f}, asks {:.2f}, bias {:.2f}".format(*weights))
    print("on the conversations it was fitted to:")
    report(rows[kept:], weights)
    print("on the others:")
    report(rows[:kept], weights)


if __name__ == "__main__":
    main()
