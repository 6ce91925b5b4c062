"""Passkeys: facts at many depths of a text of any length, asked for one by one after it was read.

All depths of one length stand in one text, each with a name and a number of its own, so that a text is read once. Two things
are counted: whether the passage that holds the number is replayed, and whether the model's answer says it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..sessions.memory_store import MemoryStore
from .report import Figure, Report, Table
from .statistics import mean_interval

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..sessions.corpus import Corpus

LENGTHS = tuple(1 << power for power in range(10, 21, 2))  # 1,024 to 1,048,576 tokens
_THINGS = (
    *("anchor", "basket", "candle", "dragon", "engine", "falcon", "garden", "hammer"),
    *("island", "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil"),
)
_FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
    "The road is long and the evening is quiet.",
    "Somebody walks by and says nothing.",
)
_CHUNK_CHARACTERS = 4096


class Needle(NamedTuple):
    """A fact to find again."""

    thing: str
    number: str
    depth: float  # its place, as a share of the text

    @property
    def fact(self) -> str:
        """The sentences to hide in a text."""
        said = f"The pass key of the {self.thing} is {self.number}."
        return f" {said} Remember it: {self.number} is the pass key of the {self.thing}. "

    @property
    def question(self) -> str:
        """The question whose answer is the number."""
        return f"What is the pass key of the {self.thing}?"


class Found(NamedTuple):
    """The outcome for one needle."""

    length: int  # tokens
    depth: float
    replayed: bool
    answered: bool
    answer: str


def needles(count: int, *, seed: int = 0) -> list[Needle]:
    """Make `count` facts at even depths from 0 to 1.

    Raises:
        InputError: there are not enough names for that many, or `count` is below one.
    """
    if not 1 <= count <= len(_THINGS):
        raise InputError(f"depths={count} must be between 1 and {len(_THINGS)}.")
    chance = random.Random(seed)
    things = chance.sample(_THINGS, count)
    return [
        Needle(thing, str(chance.randrange(10_000, 100_000)), number / max(1, count - 1)) for number, thing in enumerate(things)
    ]


def haystack(
    tokens: int, hidden: Sequence[Needle], count: Callable[[str], int], filler: str | None = None, *, seed: int = 0
) -> str:
    """Build a text of about `tokens` tokens with every needle at its depth.

    Args:
        tokens: the length of the text.
        hidden: the facts to put into it.
        count: returns how many tokens a text has.
        filler: text to hide them in, repeated where it is too short; None: sentences that say nothing.
        seed: decides the order of the sentences that say nothing.

    Raises:
        InputError: the facts alone are longer than the text.
    """
    room = tokens - sum(count(needle.fact) for needle in hidden)
    if room <= 0:
        raise InputError(f"{tokens} tokens are too few for {len(hidden)} facts.")
    hay = _hay(room, count, filler, random.Random(seed))
    parts, start = [], 0
    for needle in sorted(hidden, key=lambda needle: needle.depth):
        cut = hay.find(" ", int(needle.depth * len(hay)))
        cut = len(hay) if cut < 0 or needle.depth == 1 else cut
        parts += [hay[start:cut], needle.fact]
        start = cut
    return "".join([*parts, hay[start:]])


def _hay(tokens: int, count: Callable[[str], int], filler: str | None, chance: random.Random) -> str:
    parts: list[str] = []
    position = have = 0
    while have < tokens:
        if filler is None:
            piece = " ".join(chance.choice(_FILLER) for _ in range(100)) + " "
        else:
            piece = filler[position : position + _CHUNK_CHARACTERS]
            position = (position + _CHUNK_CHARACTERS) % max(1, len(filler))
        parts.append(piece)
        have += max(1, count(piece))
    hay = "".join(parts)
    return hay[: int(len(hay) * tokens / have)]


def measure(
    model: HMTModel,
    lengths: Sequence[int] = LENGTHS,
    *,
    depths: int = 9,
    filler: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 24,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    done: Callable[[Report], object] = lambda report: None,
) -> Report:
    """Hide `depths` passkeys in a text of each length, read it into a corpus, and ask for each.

    Args:
        model: the model to measure.
        lengths: of the texts, in tokens.
        depths: the number of passkeys in each text.
        filler: text to hide them in; None: sentences that say nothing.
        seed: decides names, numbers and filler.
        max_new_tokens: the longest answer.
        settings: what else the report records.
        progress: called with a line about what begins.
        done: called after each length with the report so far: the longest text may take hours.

    Raises:
        InputError: a text is too short for its facts, or `depths` is out of range.
    """
    hidden, results = needles(depths, seed=seed), []
    settings = {**(settings or {}), "depths": depths, "seed": seed, "hidden in": "filler" if filler is None else "text"}
    for length in lengths:
        text = haystack(length, hidden, lambda piece: len(model.backbone.encode(piece)), filler, seed=seed)
        with tempfile.TemporaryDirectory(prefix="hmt-eval-") as folder, MemoryStore(Path(folder)) as store:
            corpus = store.corpus("haystack", model)
            progress(f"reading {length:,} tokens")
            corpus.add_documents([{"name": "haystack", "text": text}])
            progress(f"asking about {length:,} tokens")
            results += [ask(corpus, needle, length, max_new_tokens=max_new_tokens) for needle in hidden]
        done(_report(results, settings))
    return _report(results, settings)


def ask(corpus: Corpus, needle: Needle, length: int, *, max_new_tokens: int = 24) -> Found:
    """Ask for one passkey.

    Args:
        corpus: has read the text that holds it.
        needle: the fact to ask for.
        length: tokens of the text, recorded with the outcome.
        max_new_tokens: the longest answer.
    """
    reply = corpus.ask(needle.question, max_new_tokens=max_new_tokens)
    answer = "".join(reply)
    shown = " ".join(passage.text for passage in reply.recalled)
    return Found(length, needle.depth, needle.number in shown, needle.number in answer, answer)


def _report(results: Sequence[Found], settings: Mapping[str, Any]) -> Report:
    lengths = sorted({result.length for result in results})
    depths = sorted({result.depth for result in results})
    rows = []
    for length in lengths:
        held = [result for result in results if result.length == length]
        replayed, answered = (np.array([getattr(result, name) for result in held], float) for name in ("replayed", "answered"))
        spread = mean_interval(answered)
        rows.append([length, float(replayed.mean()), float(answered.mean()), spread.low, spread.high])
    marks = {(result.length, result.depth): "A" if result.answered else "R" if result.replayed else "-" for result in results}
    grid = [[f"{depth:.0%}", *(marks[length, depth] for length in lengths)] for depth in depths]
    curves = {name: [(row[0], row[column]) for row in rows] for column, name in ((1, "replayed"), (2, "answered"))}
    return Report(
        "passkey",
        "Passkeys at every depth",
        {**settings, "intervals": "95 %, bootstrap over depths, seed 0"},
        [
            Table("Share found", ["tokens", "replayed", "answered", "low", "high"], rows),
            Table("By depth (A answered, R replayed only, - neither)", ["depth", *(f"{length:,}" for length in lengths)], grid),
        ],
        [Figure("Passkeys found", "tokens", "share", curves, logarithmic=True)],
    )
