"""Why an answer says what it says: the view as it is assembled, what was looked at for it, and how memory weighs.

Nothing is answered, and no message is stored. Knows a session's model and rows; no page and no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..engine.generate import assembled
from ..engine.recall import segment_weights
from ..retrieval.ranking import query_of
from ..retrieval.recollection import ViewRecollection

if TYPE_CHECKING:
    from torch import Tensor

    from ..chat.transcript import Transcript
    from ..engine.view import Assembled
    from ..model import HMTModel
    from ..retrieval.passages import Scored
    from ..retrieval.ranking import RecalledSegments, Sources
    from ..retrieval.sources import Shard
    from .session_memory import Asked

_MOST_SEGMENTS = 20_000  # whose weights are computed, the latest ones: 180 MB of them at a width of 576
_MOST_PASSAGES = 50


@dataclass(frozen=True)
class Part:
    """A part of a view."""

    name: str  # carried, system, recent, recalled, notes or question, in this order
    tokens: int  # positions that it takes
    text: str = ""  # as the model reads it; empty for what memory puts there, which has no words


@dataclass(frozen=True)
class Weighed:
    """A passage that was looked at, and what speaks for it."""

    text: str
    source: str  # name of the session, or "corpus/document"
    segment: int  # the one it was found in
    messages: Sequence[int]  # ids of those it is cut from
    noted: bool  # whether the view quotes it
    score: float  # what passages are ranked by
    likelihood: float | None  # that it answers, as fitted; None where there are no keys by meaning
    words: float  # share of the question's words, by what they are worth
    meaning: float  # inner product of its key by meaning and the question's
    recall: float  # square root of its segment's share of recall and words, as a share of the heaviest one's
    around: float  # share of the question's words, in the message and those beside it


@dataclass(frozen=True)
class Explanation:
    """What an answer would be conditioned on."""

    question: str
    parts: Sequence[Part]
    passages: Sequence[Weighed] = ()  # the best 50, by falling score
    coverage: float = 1.0  # at least this share of the recall softmax fell on what was preselected
    weights: Sequence[float] = field(default_factory=list)  # of the recall softmax over the session's own segments, in order
    first_segment: int = 0  # the one that the first of `weights` belongs to

    @property
    def tokens(self) -> int:
        """The positions of the whole view."""
        return sum(part.tokens for part in self.parts)


def explain(model: HMTModel, transcript: Transcript, asked: Asked, sources: Sources[Any]) -> Explanation:
    """Assemble the view that an answer would be conditioned on.

    Args:
        model: the session's.
        transcript: writes its messages.
        asked: what is to be answered.
        sources: gives the session's own past and the attached corpora.
    """
    memory = ViewRecollection(model, transcript.plain, sources, own=True, question=asked.question)
    view = assembled(
        model,
        torch.tensor([*asked.batch.ids, *transcript.answer_opening()], dtype=torch.long),
        state=asked.snapshot.state,
        pinned=torch.tensor(transcript.pinned(asked.system), dtype=torch.long),
        recollection=memory,
        turns=asked.turns,
    )
    first, weights = sources(lambda shards: _weights(model, shards[0], asked.question))
    return Explanation(
        asked.question,
        _parts(model, view),
        [_weighed(one, memory.recalled) for one in memory.ranked[:_MOST_PASSAGES]],
        memory.recalled.coverage,
        weights,
        first,
    )


def _parts(model: HMTModel, view: Assembled) -> list[Part]:
    """Return the parts of a view that take positions, in their order."""

    def spoken(name: str, ids: Tensor) -> Part:
        return Part(name, len(ids), model.backbone.decode(ids.tolist()))

    every = [
        Part("carried", view.carried),
        spoken("system", view.pinned),
        spoken("recent", view.recent),
        Part("recalled", view.recalled),
        spoken("notes", view.notes),
        spoken("question", view.question),
    ]
    return [part for part in every if part.tokens]


def _weighed(one: Scored, noted: RecalledSegments) -> Weighed:
    cited = one.cited
    return Weighed(
        text=cited.text,
        source=cited.source,
        segment=cited.segment,
        messages=[message.id for message in cited.messages],
        noted=any((cited.text, cited.source, cited.segment) == (each.text, each.source, each.segment) for each in noted),
        score=one.score,
        likelihood=one.likelihood,
        words=one.evidence.words,
        meaning=one.evidence.meaning,
        recall=one.evidence.segment,
        around=one.evidence.around,
    )


def _weights(model: HMTModel, shard: Shard, question: str) -> tuple[int, list[float]]:
    """Return the first of the latest segments of a shard, and the weights of Eq. 2 over them."""
    summary = query_of(model, question).summary if question.strip() else None
    if summary is None or not shard.total:
        return 0, []
    first = max(0, shard.total - _MOST_SEGMENTS)
    memory = torch.from_numpy(shard.embeddings(range(first, shard.total))).to(summary.device)
    return first, segment_weights(model.recall, summary, memory).tolist()
