"""Keys by meaning, fitted: to what a sentence encoder says of texts, and to questions whose answers are known.

The backbone stays as it is. Texts are read once and what keys are made of is kept; then only the small matrices of
`StretchKeys` learn, which takes minutes on a CPU. The encoder is a teacher: it is needed for training alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, gelu, kl_div, log_softmax, normalize, softmax
from torch.nn.utils.rnn import pad_sequence

from ..engine.keys import LONGEST_QUESTION, StretchKeys
from ..engine.modes import eval_mode
from ..engine.stretches import stretches
from ..engine.unroll import unroll

if TYPE_CHECKING:
    from ..engine.cell import MemoryCell

Encoder = Callable[[Sequence[str]], np.ndarray]  # unit vectors [n, e] of texts
_SHARP = 20.0  # factor of an inner product of keys, before a softmax
_ROWS = 8  # texts that are read at once
_LEAST_SHARED = 2  # tokens that a stretch has of the passage it belongs to
_REHEARSED = 192  # lone texts beside each step over texts that were read
_ASKED = 0.5  # weight of how often a question is nearer to other texts than to what answers it


@dataclass(frozen=True)
class Told:
    """A text with its passages, and questions that some of them answer."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]  # [start, stop) in `ids` of each passage: a message, or a sentence
    passages: Sequence[str]
    asked: Sequence[tuple[str, Sequence[int]]]  # questions, and the numbers of the passages that may answer


@dataclass(frozen=True)
class Pair:
    """A question and a text that answers it, both on their own: token ids."""

    question: Tensor  # [q]
    answer: Tensor  # [t]
    other: Tensor | None = None  # [t] a text that is easily taken for the answer, and is none
    matter: str = ""  # what is asked for: other texts about the same matter may answer as well; empty: of its own
    other_matter: str = ""  # what `other` is about


@dataclass
class Read:
    """What keys are made of, of a text that was read."""

    ids: Tensor  # [t] token ids, whose input embeddings count
    hidden: Tensor  # [t, d] float16
    stretches: Tensor  # [n, 2] where each stretch begins and ends
    owners: Tensor  # [n] the passage that each belongs to; -1: to none
    wanted: Tensor  # [passages, key_dim] what the encoder says of the passages
    questions: list[tuple[Tensor, Tensor]]  # token ids [q] and hidden states [q, d] of each
    asked: Tensor  # [questions, key_dim] what the encoder says of the questions
    answers: Tensor  # [questions, passages] whether a passage may answer


@dataclass(frozen=True)
class Fit:
    """Sizes of a fit."""

    words: int = 1500  # steps over lone texts, by their input embeddings alone
    texts: int = 600  # steps over texts that were read
    batch: int = 768  # lone texts a step
    pairs: int = 192  # lone questions with their answers a step
    read: int = 3  # texts that were read, a step
    questions: int = 24  # of each
    rate: float = 3e-3
    seed: int = 0


class Fitted(NamedTuple):
    """The outcome of a fit: shares of questions for which one of the first passages may answer."""

    first: float
    first_five: float
    encoder_first: float  # the same for the encoder
    encoder_first_five: float


class Teacher:
    """A sentence encoder in the width of a key: its vectors along their first principal directions.

    Args:
        encoder: texts to vectors.
        sample: vectors [n, e] that decide the directions.
        dim: width of a key.
    """

    def __init__(self, encoder: Encoder, sample: np.ndarray, dim: int) -> None:
        self.encode = encoder
        _, _, directions = torch.linalg.svd(torch.from_numpy(sample).float(), full_matrices=False)
        self._directions = directions[:dim].T.contiguous()

    def project(self, vectors: np.ndarray) -> Tensor:
        """Turn vectors [n, e] of the encoder into unit vectors [n, dim]."""
        return normalize(torch.from_numpy(vectors).float() @ self._directions, dim=1)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [n, dim] of texts."""
        return self.project(self.encode(texts))


@torch.no_grad()
def read_texts(model: MemoryCell, texts: Sequence[Told], teacher: Teacher) -> Iterator[Read]:
    """Read texts as a session does, and keep what keys are made of.

    Args:
        model: the model that reads.
        texts: the texts.
        teacher: says what their passages and questions mean.
    """
    with eval_mode(model):
        for start in range(0, len(texts), _ROWS):
            rows = texts[start : start + _ROWS]
            streams = [torch.tensor(list(text.ids)) for text in rows]
            _, hidden = unroll(model, model.states(None, len(rows)), streams, keep_hidden=True)
            for text, ids, states in zip(rows, streams, hidden, strict=True):
                yield _read(model, text, ids, states, teacher)


def _read(model: MemoryCell, text: Told, ids: Tensor, hidden: Tensor, teacher: Teacher) -> Read:
    length = model.config.segment_length
    cuts = [
        (start + low, start + high)
        for start in range(0, len(ids), length)
        for low, high in stretches(ids[start : start + length].tolist(), model.backbone.end_ids)
    ]
    answers = torch.zeros(len(text.asked), len(text.passages), dtype=torch.bool)
    for number, (_, passages) in enumerate(text.asked):
        answers[number, list(passages)] = True
    return Read(
        ids,
        hidden.to(torch.float16).cpu(),
        torch.tensor(cuts),
        torch.tensor([_owner(cut, text.spans) for cut in cuts]),
        teacher(text.passages),
        list(_questions(model, [question for question, _ in text.asked])),
        teacher([question for question, _ in text.asked]) if text.asked else teacher(text.passages)[:0],
        answers,
    )


def _owner(cut: tuple[int, int], spans: Sequence[tuple[int, int]]) -> int:
    """Return the passage that a stretch has most of; -1 if it has none."""
    shared = [min(cut[1], stop) - max(cut[0], start) for start, stop in spans]
    best = max(range(len(shared)), key=shared.__getitem__, default=-1)
    return best if best >= 0 and shared[best] >= _LEAST_SHARED else -1


def _questions(model: MemoryCell, questions: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    prompt = model.summary_prompt.to(model.backbone.dtype)
    for start in range(0, len(questions), 32):
        ids = [
            torch.tensor(model.backbone.encode(text, literal=True)[-LONGEST_QUESTION:])
            for text in questions[start : start + 32]
        ]
        rows = [torch.cat([prompt, model.backbone.embed(row.to(prompt.device))]) for row in ids]
        hidden = model.backbone.body(pad_sequence(rows, batch_first=True))
        for row, states in zip(ids, hidden, strict=True):
            yield row, states[1 : 1 + len(row)].to(torch.float16).cpu()


class KeyTraining:
    """The fit of a model's keys by meaning.

    Args:
        model: a model with `key_dim`; its keys are made anew.
        lone: token ids of lone texts.
        wanted: [n, key_dim] what the teacher says of them.
        fit: the sizes.
        pairs: lone questions with what answers them.
    """

    def __init__(self, model: MemoryCell, lone: Sequence[Tensor], wanted: Tensor, fit: Fit, pairs: Sequence[Pair] = ()) -> None:
        assert model.keys is not None
        self.keys: StretchKeys = model.keys.cpu()
        self._embeddings = model.backbone.embed(torch.arange(model.backbone.vocab_size, device=model.backbone.device))
        self._embeddings = self._embeddings.detach().float().cpu()
        self._lone, self._wanted, self._pairs = lone, wanted, list(pairs)
        self.fit, self._chance = fit, random.Random(fit.seed)
        generator = torch.Generator().manual_seed(fit.seed)
        for layer in (self.keys.embedding, self.keys.key):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.data.uniform_(-bound, bound, generator=generator)
        for layer in (self.keys.hidden, self.keys.asked, self.keys.question, self.keys.attention):
            nn.init.zeros_(layer.weight)
        self.keys.unit.data.fill_(float(self._embeddings.std()))

    def run(self, read: Sequence[Read], *, progress: Callable[[str], None] = lambda text: None) -> list[float]:
        """Fit the keys: to lone texts first, then to texts that were read. Returns the losses.

        Args:
            read: texts that were read.
            progress: called with a line now and then.
        """
        losses = []
        own = ("hidden", "asked", "question")
        parts = [(name.split(".")[0] in own, value) for name, value in self.keys.named_parameters() if name != "unit"]
        plans: list[tuple[int, float, Callable[[], Tensor]]] = [
            (self.fit.words, 1.0, self.words_loss),
            (self.fit.texts if read else 0, 0.25, partial(self.read_loss, read)),
        ]
        for steps, share, loss_of in plans:
            groups = [
                {"params": [value for late, value in parts if late], "lr": 0.5 * self.fit.rate},
                {"params": [value for late, value in parts if not late], "lr": share * self.fit.rate},
            ]
            optimizer = torch.optim.AdamW(groups, weight_decay=0.03)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, steps=steps))
            for step in range(steps):
                loss = loss_of()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                if step % 100 == 99:
                    progress(f"step {step + 1} of {steps}: loss {sum(losses[-100:]) / 100:.3f}")
        return losses

    def words_loss(self) -> Tensor:
        """Compute what the words alone of some lone texts and questions say."""
        return self.lone_loss(self.fit.batch) + _ASKED * self.pair_loss(self.fit.pairs)

    def lone_loss(self, most: int) -> Tensor:
        """Compute how far keys of some lone texts, made of their words alone, are from what the teacher says."""
        rows = self._chance.sample(range(len(self._lone)), min(most, len(self._lone)))
        keys = self._lone_keys([self._lone[row] for row in rows])
        wanted = self._wanted[rows]
        near, far = _SHARP * keys @ wanted.T, _SHARP * wanted @ wanted.T
        alike = kl_div(log_softmax(near, dim=1), softmax(far, dim=1), reduction="batchmean")
        return 2 * (1 - (keys * wanted).sum(dim=1)).mean() + alike

    def pair_loss(self, most: int) -> Tensor:
        """Compute the cross-entropy of what answers some lone questions, among other texts, by words alone.

        Args:
            most: the number of questions.
        """
        if not self._pairs or not most:
            return torch.zeros(())
        pairs = self._chance.sample(self._pairs, min(most, len(self._pairs)))
        others = [(pair.other, pair.other_matter) for pair in pairs if pair.other is not None]
        texts = [pair.answer for pair in pairs] + [text for text, _ in others]
        near = _SHARP * self._lone_keys([pair.question for pair in pairs], asked=True) @ self._lone_keys(texts).T
        about = [pair.matter for pair in pairs] + [matter for _, matter in others]
        alike = torch.tensor([[pair.matter == matter != "" for matter in about] for pair in pairs])
        near = near.masked_fill(alike.fill_diagonal_(False), float("-inf"))  # they answer as well
        return cross_entropy(near, torch.arange(len(pairs)))

    def _lone_keys(self, texts: Sequence[Tensor], *, asked: bool = False) -> Tensor:
        """Return the keys [n, key_dim] of texts, or of questions, by their input embeddings alone."""
        owners = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text) for text in texts]))
        words, places = torch.unique(torch.cat(list(texts)), return_inverse=True)
        inner = gelu(self.keys.embedding(self._embeddings[words] / self.keys.unit))
        vectors = self.keys.key(inner) + self.keys.question(inner) if asked else self.keys.key(inner)
        return _pooled((vectors * self.keys.weights(inner))[places], owners, len(texts))

    def read_loss(self, read: Sequence[Read]) -> Tensor:
        """Compute the same for texts that were read, and how often a question is nearer to other stretches than to answers."""
        texts = self._chance.sample(list(read), min(self.fit.read, len(read)))
        made = [self.stretch_keys(text) for text in texts]
        every = torch.cat(made)
        loss, first = torch.zeros(()), 0
        for text, keys in zip(texts, made, strict=True):
            owned = text.owners >= 0
            loss = loss + (1 - (keys[owned] * text.wanted[text.owners[owned]]).sum(dim=1)).mean()
            rows = self._chance.sample(range(len(text.questions)), min(self.fit.questions, len(text.questions)))
            if rows:
                loss = loss + self._asked_loss(text, rows, every, first, len(keys))
            first += len(keys)
        return loss / len(texts) + 0.5 * self.lone_loss(_REHEARSED) + _ASKED * self.pair_loss(self.fit.pairs)

    def _asked_loss(self, text: Read, rows: list[int], every: Tensor, first: int, count: int) -> Tensor:
        questions = self.question_keys(text, rows)
        alike = 0.5 * (1 - (questions * text.asked[rows]).sum(dim=1)).mean()
        owners = text.owners.clamp(min=0)
        answers = text.answers[rows][:, owners] & (text.owners >= 0)
        told = answers.any(dim=1)
        if not told.any():
            return alike
        # Which of the stretches that may answer does is left to the teacher.
        wanted = torch.full((len(rows), len(every)), float("-inf"))
        likely = _SHARP * (text.asked[rows] @ text.wanted.T)[:, owners]
        wanted[:, first : first + count] = likely.masked_fill(~answers, float("-inf"))
        logits = _SHARP * questions[told] @ every.T
        return alike + _ASKED * cross_entropy(logits, softmax(wanted[told], dim=1))

    def stretch_keys(self, text: Read) -> Tensor:
        """Return the keys [n, key_dim] of a text's stretches."""
        inner = gelu(self.keys.embedding(self._embedded(text.ids)) + self.keys.hidden(text.hidden.float()))
        vectors = self.keys.key(inner) * self.keys.weights(inner)
        sums = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors.cumsum(dim=0)])
        return normalize(sums[text.stretches[:, 1]] - sums[text.stretches[:, 0]], dim=1)

    def question_keys(self, text: Read, rows: Sequence[int]) -> Tensor:
        """Return the keys [r, key_dim] of some of a text's questions."""
        ids, hidden = zip(*(text.questions[row] for row in rows), strict=True)
        owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in ids]))
        inner = gelu(self.keys.embedding(self._embedded(torch.cat(ids))) + self.keys.asked(torch.cat(hidden).float()))
        vectors = (self.keys.key(inner) + self.keys.question(inner)) * self.keys.weights(inner)
        return _pooled(vectors, owners, len(rows))

    def _embedded(self, ids: Tensor) -> Tensor:
        return embedding(ids, self._embeddings) / self.keys.unit

    @torch.no_grad()
    def measure(self, read: Sequence[Read]) -> Fitted:
        """Compare questions with the passages of their texts, by these keys and by the encoder."""
        hits: Mapping[str, list[bool]] = {name: [] for name in ("first", "first_five", "encoder_first", "encoder_first_five")}
        for text in read:
            if not text.questions:
                continue
            owned = text.owners >= 0
            near = self.question_keys(text, range(len(text.questions))) @ self.stretch_keys(text).T
            ours = torch.full((len(text.questions), len(text.wanted)), -1.0).scatter_reduce(
                1, text.owners[owned].expand(len(near), -1), near[:, owned], "amax"
            )
            for name, scores in (("", ours), ("encoder_", text.asked @ text.wanted.T)):
                order = scores.argsort(dim=1, descending=True)
                right = text.answers.gather(1, order)
                hits[f"{name}first"] += right[:, :1].any(dim=1).tolist()
                hits[f"{name}first_five"] += right[:, :5].any(dim=1).tolist()
        shares = {name: sum(values) / max(1, len(values)) for name, values in hits.items()}
        return Fitted(shares["first"], shares["first_five"], shares["encoder_first"], shares["encoder_first_five"])


def _factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 20) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / max(1, steps))))


def _pooled(vectors: Tensor, owners: Tensor, count: int) -> Tensor:
    return normalize(vectors.new_zeros(count, vectors.shape[1]).index_add(0, owners, vectors), dim=1)
