"""A model that answers from notes what another one has read: the view in its own template and tokens, without P.

Knows the answerer's transcript and its view's budgets; no store. P enters only where reader and answerer are the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.message import SYSTEM_ROLES
from ..chat.transcript import Batch, Transcript
from ..engine.view import check_budget
from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import ViewConfig
    from ..engine.decoding import Decoding
    from ..engine.generate import Generation
    from ..model import HMTModel
    from ..store.rows import MessageRow


def messages_of(rows: Sequence[MessageRow]) -> list[Mapping[str, Any]]:
    """Return stored messages as a template takes them."""
    return [row.body for row in rows]


class Shown(NamedTuple):
    """The latest messages, as far as they fit."""

    batch: Batch
    messages: int  # how many there are


class Answerer:
    """A model as answerer.

    Args:
        model: any model; what its memory has learned is not used.
        view: its budgets; None: the model's own.
    """

    def __init__(self, model: HMTModel, view: ViewConfig | None = None) -> None:
        self.model = model.with_config(mode="plain").with_view(view or model.view)
        self.transcript = Transcript(model.backbone)

    def shown(self, messages: Sequence[Mapping[str, Any]]) -> Shown:
        """Return the latest messages that the view has room for, from a turn of the user on; at least those from the last one.

        Args:
            messages: the latest of a conversation, in order; system messages are left out.

        Raises:
            InputError: the user has said nothing, or the template has no place for a message.
        """
        said = [message for message in messages if message["role"] not in SYSTEM_ROLES]
        begins = [number for number, message in enumerate(said) if message["role"] == "user"]
        if not begins:
            raise InputError("there is nothing to answer: add a user message.")
        stretches = self.transcript.stretches(said, first=False)
        room = self.model.view.recent_tokens or 0
        fitting = [number for number in begins if sum(len(stretch.ids) for stretch in stretches[number:]) <= room]
        first = min(fitting, default=begins[-1])
        return Shown(Batch(said[first:], self.transcript.stretches(said[first:], first=True)), len(said) - first)

    def generate(self, shown: Shown, *, pinned: Sequence[int], notes: Tensor, decoding: Decoding) -> Generation:
        """Answer.

        Args:
            shown: the messages that it sees.
            pinned: token ids of the system part.
            notes: [t] token ids of notes.
            decoding: how tokens are chosen, and what ends the answer.

        Raises:
            BudgetError: the pinned text or the notes are too long.
        """
        check_budget(self.model, "pinned_tokens", len(pinned))
        longest = len(shown.batch.ids) + self.model.config.segment_length + decoding.max_new_tokens
        roomy = self.model.with_config(recent_tokens=longest, pinned_tokens=len(pinned), replay_tokens=len(notes))
        return roomy.generate(
            [*shown.batch.ids, *self.transcript.answer_opening()],
            pinned=pinned,
            notes=notes,
            turns=shown.batch.turns,
            decoding=decoding.also_stopping_at(self.transcript.stop),
        )
