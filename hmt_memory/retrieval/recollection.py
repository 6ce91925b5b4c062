"""What one answer remembers: P recalls from all shards; notes show what bears on the question and is not visible anyway.

Segments are preselected as ever; notes are the messages and sentences in the best of them, ranked by the question's words and
by their segments. Knows the ranking of segments and the model's view; no transcript and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.state import HMTState
from .echoes import without_echoes
from .notes import written
from .passages import Scored, ranked
from .ranking import Query, RecalledSegments, Sources, choose, key_of, nearest, nothing, preselect, query_of, segment
from .sources import Shard

if TYPE_CHECKING:
    from ..model import HMTModel

_LEAST_OF_BEST = 0.3  # passages below this share of the best one's score are not noted
_LEAST = 0.12  # and neither are those below this score: they do not bear on the question
_LEAST_LIKELY, _LEAST_LIKELY_OF_BEST = 0.02, 0.05  # the same where the score is a fitted probability
_MOST_MISFITS = 3  # passages over the rest of the budget, before no more are tried


class ViewRecollection:
    """The memory of one answer.

    Args:
        model: the model that answers.
        encode: token ids of notes as they stand in the view, such as `Transcript.plain`.
        sources: gives all shards, as of one view of the rows.
        own: whether the first shard is the answering stream's own. The part of it that the view shows is then not noted, and
            segments that the state has beyond it are recalled too.
        question: its words count.
        noting: whether to bring notes at all.
        note_tokens: the budget of the notes; None: that of the model's view.
    """

    def __init__(
        self,
        model: HMTModel,
        encode: Callable[[str], list[int]],
        sources: Sources[Any],
        *,
        own: bool,
        question: str,
        noting: bool = True,
        note_tokens: int | None = None,
    ) -> None:
        self._model, self._encode, self._sources = model, encode, sources
        self._own, self._noting, self._question = own, noting, question
        self._budget = (model.view.note_tokens if note_tokens is None else note_tokens) or 0
        self._chosen: Tensor | None = None
        self.recalled = RecalledSegments()  # the passages that are noted, once they are chosen
        self.ranked: Sequence[Scored] = ()  # all passages that were looked at, the best first

    def memory(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """Return the memory [k, m, d] that P recalls from.

        Args:
            summary: [d], of the last visible tokens.
            state: the stream so far.
            visible: the number of its latest tokens that the view shows.
        """
        asked = Query(summary, key_of(self._model, self._question) if self._chosen is None and self._noting else None)
        memory: Tensor = self._sources(lambda shards: self._recall(shards, asked, state, state.tokens - visible))
        return memory

    def recall(self, question: str, state: HMTState, visible_from: int) -> None:
        """Choose the notes for a view of another model, which has no P.

        Args:
            question: recalls; its end is summarised.
            state: the stream so far.
            visible_from: the first token of the stream that the view shows.
        """
        asked = query_of(self._model, question)
        self._sources(lambda shards: self._recall(shards, asked, state, visible_from))

    def notes(self) -> Tensor:
        """Return token ids [t] of the notes: the best passages that fit into `note_tokens`, in the order they were said."""
        return torch.zeros(0, dtype=torch.long) if self._chosen is None else self._chosen

    def _recall(self, shards: Sequence[Shard], asked: Query, state: HMTState, visible_from: int) -> Tensor:
        beyond = self._beyond(shards, state)
        window = self._model.config.recall_window
        summary, model = asked.summary, self._model
        candidates = nothing(model) if summary is None else preselect(model, shards, summary, window, beyond)
        if self._chosen is None:
            ids: list[int] = []
            if self._noting and self._budget:
                chosen = choose(model, shards, candidates, self._question, window, beyond)
                chosen = chosen._replace(nearest=nearest(model, shards, asked.key))
                self.recalled.coverage = chosen.coverage
                hidden = partial(self._hidden, visible_from=visible_from)
                self.ranked = ranked(shards, chosen, self._question, before=hidden, finely=True)
                ids = self._fitting(self._noted(self.ranked), chosen.coverage)
            self._chosen = torch.tensor(ids, dtype=torch.long)
        return candidates.memory

    def _noted(self, passages: Sequence[Scored]) -> list[Scored]:
        """Return the passages that bear on the question; of those that say the same, the latest, and no echoes."""
        fused = any(passage.likelihood is not None for passage in passages)
        floor, share = (_LEAST_LIKELY, _LEAST_LIKELY_OF_BEST) if fused else (_LEAST, _LEAST_OF_BEST)
        least = max([floor, *(share * passage.score for passage in passages[:1])])
        latest = {passage.cited.text: passage.place for passage in sorted(passages, key=lambda one: one.place)}
        return without_echoes(
            [
                passage
                for passage in passages
                if (fused or passage.shares_words) and passage.score >= least and passage.place == latest[passage.cited.text]
            ]
        )

    def _fitting(self, passages: Sequence[Scored], coverage: float) -> list[int]:
        """Take the best passages that fit; return the token ids of the notes."""
        kept: list[Scored] = []
        ids: list[int] = []
        misfits, total = 0, sum(passage.score for passage in passages)
        for passage in passages:
            text = passage.cited.text
            if any(text in other.cited.text or other.cited.text in text for other in kept):
                continue
            longer = sorted([*kept, passage], key=lambda one: one.place)
            block = self._encode(written([each.cited.note() for each in longer]))
            if len(block) > self._budget:
                misfits += 1
                if misfits == _MOST_MISFITS:
                    break
                continue
            kept, ids = [*kept, passage], block
            self.recalled.append(segment(passage.cited, passage.score / total, coverage))
        return ids

    def _hidden(self, shard: int, visible_from: int) -> int | None:
        """Return the first token of a shard that the view shows; None if it shows none."""
        return visible_from if self._own and shard == 0 else None

    def _beyond(self, shards: Sequence[Shard], state: HMTState) -> Tensor | None:
        """Return the memory [e, m, d] of segments that are in no row yet, if there are any."""
        beyond = state.segments - shards[0].total if self._own else 0
        if beyond <= 0:
            return None
        return self._model.recallable(self._model.by_segment(state)[state.held - beyond :])
