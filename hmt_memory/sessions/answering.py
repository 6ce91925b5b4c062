"""Models that answer from notes of what another one has read: an `HMTModel` in its own template, or any chat model in messages.

Knows the answerer's view and its budgets; no store. P enters only where reader and answerer are the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.message import SYSTEM_ROLES, UNREAD
from ..chat.transcript import Batch, Transcript
from ..config import ViewConfig
from ..engine.view import check_budget
from ..engine.view_cache import read_whole
from ..errors import BudgetError, InputError
from .answer import Request
from .chat_model import Writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..engine.generate import Generation
    from ..engine.view_cache import Prefill
    from ..model import HMTModel
    from ..store.rows import MessageRow
    from .answer import Wanted
    from .chat_model import ChatModel

_WIDE = 1 << 16  # width of a chat model, which nobody knows: wide enough for the budgets of large ones


def messages_of(rows: Sequence[MessageRow]) -> list[Mapping[str, Any]]:
    """Return stored messages as a template takes them."""
    return [row.body for row in rows]


class Shown(NamedTuple):
    """The latest messages, as far as they fit."""

    batch: Batch
    messages: int  # how many there are


def answering(
    answerer: HMTModel | ChatModel, wanted: Wanted, *, reader: HMTModel, view: ViewConfig | None = None
) -> Answerer | ChatAnswerer:
    """Return a model as answerer.

    Args:
        answerer: an `HMTModel`, or anything with the method of `ChatModel`.
        wanted: the answer that is asked for.
        reader: the model that has read.
        view: the answerer's budgets; None: its own.

    Raises:
        InputError: it is neither.
    """
    if callable(getattr(answerer, "answer", None)):
        return ChatAnswerer(answerer, wanted, reader, view)  # type: ignore[arg-type]
    if not hasattr(answerer, "backbone"):
        raise InputError(
            f"{type(answerer).__name__} cannot answer in a session: pass an HMTModel, or an object whose "
            "answer(messages, **options) yields pieces of text."
        )
    return Answerer(answerer, wanted, view)  # type: ignore[arg-type]


class Answerer:
    """An `HMTModel` as answerer.

    Args:
        model: any model; what its memory has learned is not used.
        wanted: the answer that is asked for.
        view: its budgets; None: the model's own.
    """

    def __init__(self, model: HMTModel, wanted: Wanted, view: ViewConfig | None = None) -> None:
        self._model = model.with_config(mode="plain").with_view(view or model.view)
        self._transcript, self._tools = Transcript(model.backbone), wanted.tools
        self._request = Request(self._model, wanted)
        self.may_call = self._request.may_call
        self.encode: Callable[[str], list[int]] = self._transcript.plain  # token ids of notes
        self.note_tokens = self._model.view.note_tokens

    def shown(self, messages: Sequence[Mapping[str, Any]], places: Sequence[int] = ()) -> Shown:
        """Return the latest messages that the view has room for, as `_shown` does with these arguments."""
        return _shown(self._transcript, messages, self._model.view.recent_tokens or 0, places)

    def generate(
        self, shown: Shown, *, system: str | None, notes: Tensor, added: int, prefill: Prefill = read_whole
    ) -> Generation:
        """Answer.

        Args:
            shown: the messages that it sees.
            system: the system prompt.
            notes: [t] token ids of notes.
            added: tokens that the call adds to the session; the engine counts its own.
            prefill: reads views.

        Raises:
            BudgetError: the system prompt or the notes are too long.
        """
        pinned = self._transcript.pinned(system, self._tools)
        check_budget(self._model, "pinned_tokens", len(pinned))
        decoding = self._request.decoding.also_stopping_at(self._transcript.stop)
        longest = len(shown.batch.ids) + self._model.config.segment_length + decoding.max_new_tokens
        roomy = self._model.with_config(recent_tokens=longest, pinned_tokens=len(pinned), replay_tokens=len(notes))
        return roomy.generate(
            [*shown.batch.ids, *self._transcript.answer_opening()],
            pinned=pinned,
            notes=notes,
            turns=shown.batch.turns,
            decoding=decoding,
            prefill=prefill,
        )


class ChatAnswerer:
    """A chat model as answerer. Its tokens are not known, so that its budgets count those of the reader.

    Args:
        model: it.
        wanted: the answer that is asked for.
        reader: the model that has read.
        view: its budgets; None: those of a large model, and a system prompt of any length.
    """

    def __init__(self, model: ChatModel, wanted: Wanted, reader: HMTModel, view: ViewConfig | None = None) -> None:
        self._model, self._wanted, self._transcript = model, wanted, Transcript(reader.backbone)
        self._most_pinned = None if view is None else view.pinned_tokens
        self._view = (view or ViewConfig()).resolve(reader.config, hidden_size=_WIDE, positions=None)
        self._notes: dict[tuple[int, ...], str] = {}  # texts of notes by their token ids
        self.may_call = False  # its calls are not in its text
        self.note_tokens = self._view.note_tokens

    def encode(self, text: str) -> list[int]:
        """Return the token ids of notes; their text is kept, because the model is shown that."""
        ids = self._transcript.plain(text)
        self._notes[tuple(ids)] = text
        return ids

    def shown(self, messages: Sequence[Mapping[str, Any]], places: Sequence[int] = ()) -> Shown:
        """Return the latest messages that the view has room for, as `_shown` does with these arguments."""
        return _shown(self._transcript, messages, self._view.recent_tokens or 0, places)

    def generate(
        self, shown: Shown, *, system: str | None, notes: Tensor, added: int, prefill: Prefill = read_whole
    ) -> Writing:
        """Answer.

        Args:
            shown: the messages that it sees.
            system: the system prompt.
            notes: [t] token ids of notes, which `encode` has made.
            added: tokens that the call adds to the session.
            prefill: not used; the model reads by itself.

        Raises:
            BudgetError: the system prompt is over a budget that was asked for.
        """
        pinned = len(self._transcript.plain(system or ""))
        if self._most_pinned is not None and pinned > self._most_pinned:
            raise BudgetError(
                f"the system prompt has {pinned} tokens, over pinned_tokens={self._most_pinned}. Raise pinned_tokens, or "
                "shorten it."
            )
        messages = as_given(shown.batch.messages, system=system, notes=self._notes.get(tuple(notes.tolist()), ""))
        return Writing(
            self._model.answer(messages, **self._wanted.given()),
            prompt_tokens=added,
            view_tokens=pinned + len(notes) + len(shown.batch.ids),
            count=lambda text: len(self._transcript.plain(text)),
        )


def as_given(messages: Sequence[Mapping[str, Any]], *, system: str | None = None, notes: str = "") -> list[Mapping[str, Any]]:
    """Return messages as a chat model is given them.

    Args:
        messages: the turns that it sees, with one of the user among them.
        system: the system prompt, which comes first.
        notes: written notes, which stand inside the user's last turn, before its words.
    """
    given = [{name: value for name, value in message.items() if name not in UNREAD} for message in messages]
    asked = max(number for number, message in enumerate(given) if message["role"] == "user")
    given[asked]["content"] = notes + str(given[asked]["content"] or "")
    return [{"role": "system", "content": system}, *given] if system else [*given]


def _shown(transcript: Transcript, messages: Sequence[Mapping[str, Any]], room: int, places: Sequence[int] = ()) -> Shown:
    """Return the latest messages that there is room for, from a turn of the user on; at least those from the last one.

    What they begin with moves in steps, so that what was kept of the view before can be used.

    Args:
        transcript: counts their tokens.
        messages: the latest of a conversation, in order; system messages are left out.
        room: tokens.
        places: where each of them, but for system messages, begins in the conversation, in any tokens; none: no steps.

    Raises:
        InputError: the user has said nothing, or the template has no place for a message.
    """
    said = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    begins = [number for number, message in enumerate(said) if message["role"] == "user"]
    if not begins:
        raise InputError("there is nothing to answer: add a user message.")
    stretches = transcript.stretches(said, first=False)
    sizes = {number: sum(len(stretch.ids) for stretch in stretches[number:]) for number in begins}
    fitting = [number for number in begins if sizes[number] <= room]
    first = min(fitting, default=begins[-1])
    if places and (first or places[0]):
        step = max(1, room // 3)
        steps = [after for before, after in pairwise(begins) if places[after] // step > places[before] // step]
        first = next((number for number in steps if number in fitting and 3 * sizes[number] >= room), first)
    return Shown(Batch(said[first:], transcript.stretches(said[first:], first=True)), len(said) - first)
