"""Answers that are written at the same time share their steps (extension): continuous batching, as Orca has it.

Writing is bound by the bytes of the weights, which one step reads once for all rows. Each answer keeps its own thread; whoever
comes first waits about as long as a step takes for the others, and steps for all. Rows are padded on the left, and none sees
another: what an answer says does not depend on the others but for rounding. Knows a backbone and its caches; no memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

import torch
from torch import Tensor

from ..errors import BackboneError
from .modes import eval_mode
from .rows import chosen, extended, joined, part
from .traced import turns_by_length

if TYPE_CHECKING:
    from .backbone import Backbone

_ALIKE, _ALIKE_SMALL = 1e-3, 0.05  # the largest relative differences that rounding explains, of fp32 and of what is smaller
_OFTEN = 2  # rows that were missed so often step by themselves
_PATIENCE = 1.0  # how long others are waited for, in steps


class Row:
    """One answer's place: a cache by itself, or a row of the group that steps together.

    Args:
        cache: of the answer's view.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache  # None while it is a row of the group
        self.missed = 0  # how often the group had to go on without it


class _Step:
    """What one answer asks for."""

    def __init__(self, row: Row, embedding: Tensor) -> None:
        self.row, self.embedding = row, embedding
        self.hidden: Tensor | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.hidden is not None or self.error is not None


class _Group:
    """Rows that step together. An answer that is finished or was given up leaves its place empty; the last takes all along."""

    def __init__(self, rows: Sequence[Row], cache: Any, pads: Sequence[int]) -> None:
        self._rows, self.cache, self.pads = [ref(row, self._left) for row in rows], cache, list(pads)

    def _left(self, _: Any) -> None:
        if not any(row() for row in self._rows):
            self.cache = None

    @property
    def rows(self) -> list[Row | None]:
        return [row() for row in self._rows]

    def only(self, numbers: Sequence[int], rows: Sequence[Row]) -> _Group:
        """Return the group of some rows, which `numbers` names; the others have to leave before."""
        return _Group(rows, chosen(self.cache, numbers), [self.pads[number] for number in numbers])

    def leave(self, numbers: Iterable[int]) -> None:
        """Give some rows their own caches again."""
        for number in numbers:
            row = self._rows[number]()
            if row is not None:
                row.cache = part(self.cache, number, self.pads[number])


class Batching:
    """The steps of several answers of one backbone, taken together. Safe to use from several threads.

    A copy of a backbone, and one that is unpickled, begins without; a forked process has its own.

    Args:
        backbone: writes the answers.
        most: answers of one step.

    Raises:
        BackboneError: its caches cannot be padded: those of state spaces and of windows that slide.
    """

    def __init__(self, backbone: Backbone, most: int = 8) -> None:
        self._backbone, self.most = backbone, most
        _check(backbone)
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._leading = False
        self._waiting: list[_Step] = []
        self._expected: WeakSet[Row] = WeakSet()  # those that stepped last, or are new
        self._group: _Group | None = None
        self._seconds = 0.0  # of the last step
        self.steps = self.tokens = 0  # taken so far, and tokens by them

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def advance(self, embedding: Tensor, cache: Any) -> tuple[Tensor, Row]:
        """Append one input embedding [1, 1, d] of an answer. Returns the last hidden state [1, d] and what to go on with.

        Args:
            embedding: of the answer's last token.
            cache: of its view, which is spent; or what was returned before.

        Raises:
            BackboneError: a step that was taken for several answers failed.
        """
        if self._process != os.getpid():
            self._begin()
        row = cache if isinstance(cache, Row) else Row(cache)
        step = _Step(row, embedding)
        with self._changed:
            self._expected.add(row)
            self._waiting.append(step)
            self._changed.notify_all()
            while not step.done:
                if self._leading:
                    self._changed.wait()
                else:
                    self._lead(step)
        if step.error is not None:
            raise step.error
        assert step.hidden is not None
        return step.hidden, row

    def _lead(self, own: _Step) -> None:
        """Take a step for all that wait, with the lock held, which is let go of meanwhile."""
        self._leading, steps = True, []
        try:
            self._wait()
            steps = self._next()
            self._changed.release()
            try:
                self._take(steps)
            finally:
                self._changed.acquire()
        except BaseException as error:  # an interrupt too: nobody may wait for what will not come
            self._group = None
            lost = BackboneError(f"a step that was taken for several answers failed: {error!r}. Ask again.")
            for step in steps:
                step.error = lost
            if own in steps or not isinstance(error, Exception):
                self._waiting = [step for step in self._waiting if step is not own]
                raise
        finally:
            self._leading = False
            self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for those that are expected, at most about as long as a step takes."""
        until = time.monotonic() + _PATIENCE * self._seconds
        while len(self._waiting) < min(self.most, len(self._expected)):
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                break

    def _next(self) -> list[_Step]:
        """Return the steps to take: those of the group first, so that nobody's keys and values are moved without need."""
        known = [] if self._group is None else self._group.rows
        inside = [step for step in self._waiting if step.row in known]
        steps = [*inside, *(step for step in self._waiting if step.row not in known)][: self.most]
        self._waiting = [step for step in self._waiting if step not in steps]
        self._expected = WeakSet(step.row for step in (*steps, *self._waiting))
        return steps

    @torch.no_grad()
    def _take(self, steps: Sequence[_Step]) -> None:
        begun = time.monotonic()
        together = [step for step in steps if step.row.missed < _OFTEN]
        for step in steps:
            if step not in together:
                step.hidden = self._alone(step)
        for step, hidden in zip(together, self._hidden(together), strict=True):
            step.hidden = hidden
        self._seconds = time.monotonic() - begun
        self.steps, self.tokens = self.steps + 1, self.tokens + len(steps)

    def _alone(self, step: _Step) -> Tensor:
        if step.row.cache is None:
            raise BackboneError("the answer's place among others was lost with them. Ask again.")
        hidden, step.row.cache = self._backbone.advance(step.embedding, step.row.cache)
        return hidden

    def _hidden(self, steps: Sequence[_Step]) -> list[Tensor]:
        """Compute the last hidden state [1, d] of each step."""
        if not steps:
            return []
        places = self._gather([step.row for step in steps])
        if self._group is None:
            return [self._alone(steps[0])]
        embeddings = torch.cat([steps[place].embedding for place in places])
        hidden, self._group.cache = extended(self._backbone, embeddings, self._group.cache, self._group.pads)
        made = dict(zip(places, hidden[:, -1:], strict=True))
        return [made[number] for number in range(len(steps))]

    def _gather(self, rows: Sequence[Row]) -> list[int]:
        """Make these rows the group, and no others; a row by itself is none. Returns, for each row of the group, its number."""
        group, self._group = self._group, None
        if group is not None:
            known = group.rows
            here = [number for number, row in enumerate(known) if row is not None and row in rows]
            others = [number for number in range(len(known)) if number not in here]
            for row in known:
                if row is not None and row not in rows:
                    row.missed += 1
            if len(here) == len(rows) > 1:
                group.leave(others)
                own = [row for row in known if row is not None and row in rows]
                self._group = group.only(here, own) if others else group
                return [rows.index(row) for row in own]
            group.leave(range(len(known)))
        if len(rows) > 1:
            caches = [row.cache for row in rows]
            if any(cache is None for cache in caches):
                raise BackboneError("the answer's place among others was lost with them. Ask again.")
            for row in rows:
                row.cache = None
            self._group = _Group(rows, *joined(caches))
        return list(range(len(rows)))


@torch.no_grad()
def _check(backbone: Backbone) -> None:
    """Compare two rows of different lengths, one step further, with each by itself."""
    top = backbone.vocab_size - 1
    texts = [torch.tensor([[1, 2, 3]]), torch.tensor([[5, 4, 3, 2, 1, 6]])]
    embedded = [backbone.embed(text.clamp(max=top).to(backbone.device)) for text in texts]
    refused = f"{backbone.name} ({backbone.config.model_type}) cannot answer several at once"
    if turns_by_length(backbone.config):
        raise BackboneError(f"{refused}: the positions of one depend on the longest. Answer one at a time.")
    with eval_mode(backbone):
        expected = torch.cat([backbone.body(text)[:, -1] for text in embedded])
        try:
            cache, pads = joined([backbone.extend(text[:, :-1])[1] for text in embedded])
            hidden, _ = extended(backbone, torch.cat([text[:, -1:] for text in embedded]), cache, pads)
        except Exception as error:  # whatever a model's code raises that takes no mask of this form
            raise BackboneError(f"{refused}: {error} Answer one at a time.") from error
    exact = backbone.dtype == torch.float32 and backbone.engine == "torch"
    difference = (hidden[:, -1] - expected).float().norm() / expected.float().norm()
    if not difference <= (_ALIKE if exact else _ALIKE_SMALL):
        raise BackboneError(f"{refused}: it heeds no padding. Answer one at a time.")
