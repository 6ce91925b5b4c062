"""Questions over several abstracts, PubMedQA-style (Jin et al. 2019; the multi-context form is the HMT paper's).

The contexts of n samples are read one after the other, then the question of one of them is asked. Two things are measured: the
perplexity of its long answer, and how often the likeliest of yes, no and maybe is right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..engine.modes import eval_mode
from ..errors import InputError
from .report import Figure, Report, Table
from .statistics import mean_interval, perplexity_interval

if TYPE_CHECKING:
    from ..model import HMTModel

COUNTS = (2, 4, 6, 8, 10)
DECISIONS = ("yes", "no", "maybe")


@dataclass(frozen=True)
class Sample:
    """One abstract with its question."""

    question: str
    contexts: tuple[str, ...]
    long_answer: str
    decision: str  # yes, no or maybe


def load_samples(path: str | Path) -> list[Sample]:
    """Load PubMedQA's own `.json` (id to QUESTION, CONTEXTS, LONG_ANSWER, final_decision), or rows of the dataset as `.jsonl`.

    Raises:
        InputError: the file is missing or has another form.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            return [_of_row(json.loads(line)) for line in text.splitlines() if line.strip()]
        return [_of_entry(entry) for entry in json.loads(text).values()]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not PubMedQA's .json nor its rows as .jsonl: {error!r}.") from error


def _of_entry(entry: Mapping[str, Any]) -> Sample:
    return _sample(entry["QUESTION"], entry["CONTEXTS"], entry["LONG_ANSWER"], entry["final_decision"])


def _of_row(row: Mapping[str, Any]) -> Sample:
    return _sample(row["question"], row["context"]["contexts"], row["long_answer"], row["final_decision"])


def _sample(question: str, contexts: Sequence[str], long_answer: str, decision: str) -> Sample:
    if decision not in DECISIONS:
        raise ValueError(f"final_decision is {decision!r}, not one of {DECISIONS}")
    return Sample(question, tuple(contexts), long_answer, decision)


@torch.no_grad()
def measure(
    contenders: Mapping[str, HMTModel],
    samples: Sequence[Sample],
    *,
    counts: Sequence[int] = COUNTS,
    limit: int = 50,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda questions: None,
) -> Report:
    """Ask `limit` questions over each number of contexts, the same of every contender.

    Args:
        contenders: models by name, such as one model in its modes.
        samples: abstracts with their questions.
        counts: numbers of contexts to read before a question.
        limit: the number of questions for each of them, at most.
        seed: decides which contexts stand beside a question, and their order.
        settings: what else the report records.
        progress: called with the number of questions answered since the last call.

    Raises:
        InputError: there are fewer samples than contexts.
    """
    if len(samples) < max(counts):
        raise InputError(f"{len(samples)} samples are too few for {max(counts)} contexts.")
    asked = {count: _asked(samples, count, limit, seed) for count in counts}
    rows, curves = [], {}
    for name, model in contenders.items():
        points = []
        with eval_mode(model):
            for count, sets in asked.items():
                answers = []
                for contexts, sample in sets:
                    answers.append(_answer(model, contexts, sample))
                    progress(1)
                losses = np.concatenate([nats for nats, _ in answers])
                perplexity = perplexity_interval(losses, block=max(1, len(losses) // max(1, len(answers))))
                right = mean_interval(np.array([correct for _, correct in answers], float))
                rows.append([name, count, *perplexity, *right])
                points.append((count, perplexity.value))
        curves[name] = points
    columns = ["memory", "contexts", "perplexity of the long answer", "low", "high", "short answers right", "low", "high"]
    return Report(
        "questions",
        "Questions over several contexts",
        {**(settings or {}), "questions": min(limit, len(samples)), "seed": seed, "intervals": "95 %, bootstrap, seed 0"},
        [Table("By the number of contexts", columns, rows)],
        [Figure("Perplexity of the long answer", "contexts", "perplexity", curves)],
    )


def _asked(samples: Sequence[Sample], count: int, limit: int, seed: int) -> list[tuple[list[Sample], Sample]]:
    """Draw the contexts to read, in a random order, each list with the sample that is asked about."""
    chance, drawn = random.Random(f"{seed}/{count}"), []
    for sample in samples[:limit]:
        others = chance.sample([other for other in samples if other is not sample], count - 1)
        contexts = [*others, sample]
        chance.shuffle(contexts)
        drawn.append((contexts, sample))
    return drawn


def _answer(model: HMTModel, contexts: Sequence[Sample], sample: Sample) -> tuple[np.ndarray, bool]:
    """Return the losses [a] of the long answer's tokens, and whether the likeliest short answer is right."""
    encode = model.backbone.encode
    text = "\n\n".join(" ".join(context.contexts) for context in contexts)
    state = model.read(encode(text))
    ask = encode(f"\n\nQuestion: {sample.question}\nAnswer:")
    long = _losses_after(model, state, ask, encode(f" {sample.long_answer}"))
    short = [_losses_after(model, state, ask, encode(f" {word}")).sum() for word in DECISIONS]
    return long, DECISIONS[int(np.argmin(short))] == sample.decision


def _losses_after(model: HMTModel, state: Any, ask: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    ids = torch.tensor([*ask, *answer])
    logits = model(ids[None], state=state).logits[0]
    wanted = ids[len(ask) :].to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits[len(ask) - 1 : -1].float(), wanted, reduction="none")
    return losses.cpu().numpy().astype(np.float64)
