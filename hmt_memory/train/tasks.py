"""Objectives as rows of training: plain text, recitation, inverse cloze, questions. Knows documents; no model, no losses.

Plain text hardly asks a memory for anything that the visible tokens do not say. The others do: a passage returns after other
text (recitation), a sentence is taken out of its passage and asked for (inverse cloze, Lee et al. 2019), a question is put
about text that has scrolled away. Where the segment that holds the answer is known, it is noted as evidence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .examples import IGNORED, Example
from .sources import Document, Encode, Question


class Shape(NamedTuple):
    """The length of a row, in segments."""

    length: int  # tokens a segment
    segments: int  # unrolled with gradient
    before: int = 0  # read first, without gradient


Task = Callable[[Sequence[Document], random.Random, Shape, Encode], Example]
_CLOZE_TOKENS = (12, 48)  # shortest and longest stretch that is cut out
_CLOZE_KEPT = 0.1  # share of stretches that also stay in their passage


def draw(tasks: Mapping[str, float], documents: Sequence[Document], seed: str, shape: Shape, encode: Encode) -> Example:
    """Draw the row that a seed stands for: a task by its share, then a document by its length.

    Args:
        tasks: shares by the name of a task.
        documents: the documents to draw from.
        seed: decides everything that is drawn.
        shape: the length of the row.
        encode: text to token ids.

    Raises:
        InputError: no document is long enough.
    """
    chance = random.Random(seed)
    name = chance.choices(list(tasks), weights=list(tasks.values()))[0]
    return TASKS[name](documents, chance, shape, encode)


def text(documents: Sequence[Document], chance: random.Random, shape: Shape, encode: Encode) -> Example:
    """Draw consecutive segments; every token after the first segment with gradient is predicted.

    Args:
        documents: the documents to draw from.
        chance: the source of randomness.
        shape: the length of the row.
        encode: unused.
    """
    ids = _window(documents, chance, shape.length * (shape.before + shape.segments))
    before, ids = _cut(ids, shape)
    labels = ids.clone()
    if not len(before) and shape.segments > 1:
        labels[: shape.length] = IGNORED  # without memory there is nothing to learn about memory
    return Example(ids, labels, before)


def recitation(documents: Sequence[Document], chance: random.Random, shape: Shape, encode: Encode) -> Example:
    """Draw text in which a passage returns after other text; its return is predicted and its evidence is the passage.

    Args:
        documents: the documents to draw from.
        chance: the source of randomness.
        shape: the length of the row.
        encode: unused.
    """
    length = shape.length
    window = _window(documents, chance, length * (shape.before + shape.segments - 1))
    source = chance.randrange(shape.before + shape.segments - 1)
    passage = window[source * length : (source + 1) * length]
    before, ids = _cut(torch.cat([window, passage]), shape)
    labels = torch.full_like(ids, IGNORED)
    labels[-length:] = passage
    return Example(ids, labels, before, {shape.segments - 1: (source - shape.before,)})


def cloze(documents: Sequence[Document], chance: random.Random, shape: Shape, encode: Encode) -> Example:
    """Cut a stretch out of some passage and put it at the end, to be predicted; its evidence is the passage it came from.

    Args:
        documents: the documents to draw from.
        chance: the source of randomness.
        shape: the length of the row.
        encode: unused.
    """
    length, size = shape.length, chance.randint(*_CLOZE_TOKENS)
    size = max(1, min(size, length // 2))
    body = length * (shape.before + shape.segments - 1)
    window = _window(documents, chance, body + size)
    start = chance.randrange(body - size)
    query = window[start : start + size]
    rest = window[:body] if chance.random() < _CLOZE_KEPT else torch.cat([window[:start], window[start + size :]])
    before, ids = _cut(torch.cat([rest, query]), shape)
    labels = torch.full_like(ids, IGNORED)
    labels[-size:] = query
    return Example(ids, labels, before, {shape.segments - 1: (start // length - shape.before,)})


def questions(documents: Sequence[Document], chance: random.Random, shape: Shape, encode: Encode) -> Example:
    """Draw part of a document, a question about it and the answer, which is predicted; its evidence is where the answer lies.

    Args:
        documents: the documents to draw from, some of them with questions.
        chance: the source of randomness.
        shape: the length of the row.
        encode: text to token ids.

    Raises:
        InputError: no document that is long enough has questions with evidence.
    """
    length, body = shape.length, shape.length * (shape.before + shape.segments - 1)
    able = [
        document
        for document in documents
        if len(document.ids) >= body and any(_answered(question) for question in document.questions)
    ]
    if not able:
        raise InputError(f"no document of {body} tokens has questions with evidence. Leave the questions task out.")
    document = chance.choice(able)
    question = chance.choice([question for question in document.questions if _answered(question)])
    first, last = question.spans[0]
    middle = chance.randrange(first, last)
    start = min(max(0, middle - chance.randrange(body)), len(document.ids) - body)
    asked, answer = _asked(question, encode)
    tail = torch.tensor([*asked, *answer][:length])
    before, ids = _cut(torch.cat([document.ids[start : start + body], tail]), shape)
    labels = torch.full_like(ids, IGNORED)
    labels[len(ids) - len(tail) + len(asked) :] = tail[len(asked) :]
    held = {place // length for low, high in question.spans for place in range(max(low - start, 0), min(high - start, body))}
    return Example(ids, labels, before, {shape.segments - 1: tuple(sorted(place - shape.before for place in held))})


TASKS: dict[str, Task] = {"text": text, "recitation": recitation, "cloze": cloze, "questions": questions}


def _answered(question: Question) -> bool:
    return bool(question.spans) and question.spans[0][0] < question.spans[0][1]


def _asked(question: Question, encode: Encode) -> tuple[Sequence[int], Sequence[int]]:
    return encode(f"\nQuestion: {question.question}\nAnswer:"), encode(f" {question.answer}\n")


def _window(documents: Sequence[Document], chance: random.Random, tokens: int) -> Tensor:
    """Draw a stretch of one document, every stretch of all documents equally likely."""
    starts = [max(0, len(document.ids) - tokens + 1) for document in documents]
    if not sum(starts):
        longest = max(len(document.ids) for document in documents)
        raise InputError(f"a row takes {tokens} tokens and the longest document has {longest}. Unroll fewer segments.")
    document = chance.choices(documents, weights=starts)[0]
    start = chance.randrange(len(document.ids) - tokens + 1)
    return document.ids[start : start + tokens]


def _cut(ids: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    size = shape.before * shape.length
    return ids[:size], ids[size:]
