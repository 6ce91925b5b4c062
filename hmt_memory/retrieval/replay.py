"""The replay of passages in one answer: those of all shards that its view does not show anyway, within the view's budget.

Knows the ranking of passages and the model's view; no transcript and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.state import HMTState
from .ranking import Choice, RecalledSegment, RecalledSegments, Sources, choose, preselect, quoted, segment
from .sources import Citation, Shard

if TYPE_CHECKING:
    from ..model import HMTModel

_MOST_MISFITS = 3  # passages over the rest of the budget, before no more are tried


class ViewRecollection:
    """The memory of one answer: P recalls from all shards, and the best passages that are not visible are replayed.

    Args:
        model: the model that answers.
        aside: token ids of the block of quotes as it stands in the view, such as `Transcript.aside`.
        sources: gives all shards, as of one view of the rows.
        own: whether the first shard is the answering stream's own. The part of it that the view shows is then not replayed,
            and segments that the state has beyond it are recalled too.
        question: its words count.
        replay: whether to replay at all.
    """

    def __init__(
        self,
        model: HMTModel,
        aside: Callable[[str], list[int]],
        sources: Sources[Any],
        *,
        own: bool,
        question: str,
        replay: bool = True,
    ) -> None:
        self._model, self._aside, self._sources = model, aside, sources
        self._own, self._replay, self._question = own, replay, question
        self._chosen: Tensor | None = None
        self.recalled = RecalledSegments()  # the replayed passages, once they are chosen

    def memory(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """Return the memory [k, m, d] that P recalls from.

        Args:
            summary: [d], of the last visible tokens.
            state: the stream so far.
            visible: the number of its latest tokens that the view shows.
        """
        memory: Tensor = self._sources(lambda shards: self._recall(shards, summary, state, state.tokens - visible))
        return memory

    def passages(self) -> Tensor:
        """Return token ids [t] of the quoted passages: the heaviest that fit into `note_tokens`, in the order they were said.

        They are chosen for the first view, where the question stands.
        """
        return torch.zeros(0, dtype=torch.long) if self._chosen is None else self._chosen

    def _recall(self, shards: Sequence[Shard], summary: Tensor, state: HMTState, visible_from: int) -> Tensor:
        beyond = self._beyond(shards, state)
        candidates = preselect(self._model, shards, summary, self._model.config.recall_window, beyond)
        if self._chosen is None:
            chosen = choose(self._model, shards, candidates, self._question, self._model.config.recall_window, beyond)
            ids, recalled = self._quoted(shards, chosen, visible_from)
            self._chosen = torch.tensor(ids, dtype=torch.long)
            self.recalled.coverage = chosen.coverage
            self.recalled.extend(recalled)
        return candidates.memory

    def _quoted(self, shards: Sequence[Shard], chosen: Choice, visible_from: int) -> tuple[list[int], list[RecalledSegment]]:
        """Return token ids of the heaviest passages that fit, and these passages by falling weight."""
        quotes: dict[tuple[int, int], str] = {}
        recalled: list[RecalledSegment] = []
        ids: list[int] = []
        misfits = 0
        for place, weight in zip(chosen.places, chosen.weights, strict=True) if self._replay else ():
            cited = self._hidden(shards, place, visible_from)
            if cited is None:
                continue
            longer = quotes | {place: cited.quote()}
            block = self._aside(quoted([longer[place] for place in sorted(longer)]))
            if len(block) > (self._model.view.note_tokens or 0):
                misfits += 1
                if misfits == _MOST_MISFITS:
                    break
                continue
            quotes, ids = longer, block
            recalled.append(segment(cited, weight, chosen.coverage))
        return ids, recalled

    def _hidden(self, shards: Sequence[Shard], place: tuple[int, int], visible_from: int) -> Citation | None:
        """Return the part of a segment that the view does not show anyway, if there is any."""
        shard, position = place
        if not (self._own and shard == 0):
            return shards[shard].cite(position)
        if position * self._model.config.segment_length >= visible_from:
            return None
        cited = shards[shard].cite(position, before=visible_from)
        return cited if cited.text.strip() else None

    def _beyond(self, shards: Sequence[Shard], state: HMTState) -> Tensor | None:
        """Return the memory [e, m, d] of segments that are in no row yet, if there are any."""
        beyond = state.segments - shards[0].total if self._own else 0
        if beyond <= 0:
            return None
        return self._model.recallable(self._model.by_segment(state)[state.held - beyond :])
