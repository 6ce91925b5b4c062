"""The view that an answer is conditioned on: `[carried | pinned | recent turns | recalled | notes | question]`.

What does not change from turn to turn stands in front of what does: the window of recent turns moves in steps, and what the
question brings back stands next to it. P has two halves: the memory carried to where the window begins, and what is recalled.
Knows token ids and the budgets for them; a `Recollection` decides what is worth noting.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import BudgetError
from .cell import MemoryCell
from .state import HMTState
from .turns import Turns


class Recollection(Protocol):
    """The memory of an answer beyond its stream's own recall window; sessions bring one."""

    def memory(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """Return the memory embeddings [k, m, d] that P recalls from.

        Args:
            summary: [d], of the last tokens that the view shows.
            state: the stream so far.
            visible: the number of tokens that the view shows.
        """
        ...

    def notes(self) -> Tensor:
        """Return token ids [t] of the notes, at most `note_tokens`. Called after `memory`, for the first view."""
        ...


class Assembled(NamedTuple):
    """The parts of a view, in their order: token ids [t], and positions of P, which has none."""

    carried: int
    pinned: Tensor
    recent: Tensor
    recalled: int
    notes: Tensor
    question: Tensor


class View:
    """The views of one call: each is a function of the state, and of the notes chosen for the first."""

    def __init__(
        self,
        model: MemoryCell,
        pinned: Tensor,
        notes: Tensor,
        start: int,
        recollection: Recollection | None,
        turns: Turns | None = None,
    ) -> None:
        """Check the budgets of what is pinned and noted.

        Args:
            model: its view has the budgets.
            pinned: [t] token ids at the head of the view.
            notes: [t] token ids of notes.
            start: how many start tokens `pinned` begins with; if its budget is full they take from the recent tokens.
            recollection: see `Recollection`.
            turns: where turns begin; None: nobody knows.

        Raises:
            BudgetError: one of them is too long.
        """
        self.model, self.pinned, self.notes = model, pinned, notes
        self._recollection, self._chosen = recollection, recollection is None
        self._turns = turns or Turns()
        for name, count in (("pinned_tokens", len(pinned) - start), ("note_tokens", len(notes))):
            check_budget(model, name, count)
        over = max(0, len(pinned) - (model.view.pinned_tokens or 0))
        self._recent = max(0, (model.view.recent_tokens or 0) - over)

    def begins(self, state: HMTState) -> int:
        """Return the first token of the stream that the view shows.

        The window of recent turns moves in steps of a third of its size, to where a turn of the user begins if one is near,
        but never past the question: it is at least half full, and between two steps the view grows at its end only. Without
        turns it moves token by token.
        """
        earliest = state.tokens - len(state.open_ids) - self._recent
        held = state.tokens - len(state.open_ids) - len(state.recent_ids)
        if earliest <= 0 or not self._recent or not self._turns.starts:
            return max(held, earliest, 0)
        step = max(1, self._recent // 3)
        target, question = -(-earliest // step) * step, self._turns.question
        last = target + step // 2 if question is None else min(target + step // 2, question)
        begin = next((place for place in self._turns.starts if target <= place <= last), target)
        if question is not None and earliest <= question < begin:
            begin = max((place for place in self._turns.starts if earliest <= place <= question), default=earliest)
        return max(held, begin)

    def visible(self, state: HMTState) -> Tensor:
        """Return [v] token ids of the stream that the view shows: recent turns and the open segment."""
        shown = state.tokens - self.begins(state)
        whole = torch.cat([state.recent_ids, state.open_ids])
        return whole[len(whole) - shown :]

    def ids(self, state: HMTState) -> Tensor:
        """Return [v] token ids of what the view shows, all but P; once `embed` has chosen the notes."""
        return torch.cat(self._halves(state))

    def _halves(self, state: HMTState) -> tuple[Tensor, Tensor]:
        """Return the token ids of `[pinned | recent turns]` and of `[notes | question]`."""
        recent, question = self._parted(state)
        return torch.cat([self.pinned, recent]), torch.cat([self.notes, question])

    def _parted(self, state: HMTState) -> tuple[Tensor, Tensor]:
        """Return the token ids of recent turns and of the question, of what the view shows of the stream."""
        visible, question = self.visible(state), self._turns.question
        place = 0 if question is None else min(max(0, question - self.begins(state)), len(visible))
        return visible[:place], visible[place:]

    def assembled(self, state: HMTState) -> Assembled:
        """Return the parts of the view, with the notes that are chosen for it."""
        carried, recalled = self.model.placed(self._prompt(state))
        return Assembled(len(carried), self.pinned, self._parted(state)[0], len(recalled), self.notes, self._parted(state)[1])

    def embed(self, state: HMTState) -> tuple[Tensor, Tensor]:
        """Return input embeddings of `[carried | pinned | recent turns]` [s, d] and of `[recalled | notes | question]` [t, d].

        Raises:
            BudgetError: nothing is visible.
        """
        backbone = self.model.backbone
        carried, recalled = self.model.placed(self._prompt(state))
        before, behind = (backbone.embed(ids.to(backbone.device)) for ids in self._halves(state))
        before, behind = torch.cat([carried, before]), torch.cat([recalled, behind])
        if not len(before) + len(behind):
            raise BudgetError("nothing is visible: no memory, no pinned text and recent_tokens=0. Raise recent_tokens.")
        return before, behind

    def _prompt(self, state: HMTState) -> Tensor:
        """Return P: Eq. 2-3 with the summary (Eq. 1) of the last j visible tokens, where the question stands.

        With `recalled_tokens`, M_{n-1} is the memory of the last segment that is not visible, whose text the view continues. If
        everything is visible the view begins with P_0, as a stream's first segment does, and nothing is recalled.
        """
        model = self.model
        if model.config.mode != "hmt":
            return model.prompt([None], [model.by_segment(state)])[0]
        memory, summary = model.recallable(model.by_segment(state)[-model.config.recall_window :]), None
        if len(memory) or self._recollection is not None:
            visible = self.visible(state)
            (summary,) = model.summarize([visible[-(model.config.summary_length or 1) :]])
            if self._recollection is not None:
                memory = self._recollection.memory(summary, state, len(visible))
                self._choose()
        hidden = (state.tokens - len(self.visible(state))) // model.config.segment_length
        if not model.is_trained or (model.config.recalled_tokens and not hidden):
            # P_0: an untrained P in front of an answer derails it (docs/log.md).
            return model.prompt([None], [model.by_segment(state)[:0]])[0][: model.slots]
        recalled = model.recalled([summary], [memory])
        if not len(memory) and model.config.recalled_tokens:
            recalled = recalled[:, :0]
        return model.joined([self._before(state, hidden)], recalled)[0]

    def _before(self, state: HMTState, hidden: int) -> Tensor:
        """Return the memory [m, d] of the last hidden segment; P_0 if there is none or the state no longer holds it."""
        memory = self.model.by_segment(state)
        held = hidden - (state.segments - len(memory))
        return memory[held - 1] if held > 0 else self.model.initial_memory

    def _choose(self) -> None:
        """Take the notes of the recollection, for the first view, where the question stands."""
        if self._recollection is not None and not self._chosen:
            self.notes, self._chosen = self._recollection.notes(), True
            check_budget(self.model, "note_tokens", len(self.notes))


def check_budget(model: MemoryCell, name: str, count: int) -> None:
    """Raise BudgetError if `count` tokens are over the view's budget `name`.

    Args:
        model: its view has the budget.
        name: a field of `ViewConfig`.
        count: the number of tokens.
    """
    budget = getattr(model.view, name)
    if count > budget:
        raise BudgetError(f"{count} tokens are over {name}={budget}. Shorten the text or raise {name}.")
