"""The comparison of an imported session's tokens with its messages, which takes the model that will use them.

An import is marked until then. If they disagree, the tokens are written again from the messages, and their memory is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ...chat.tools import called, parse_calls
from ...chat.transcript import Stretch, Transcript
from ...engine.fingerprint import fingerprint, text_parts
from ...errors import InputError, SessionNotFoundError
from ...store import lineage, rewriting, sweeping
from ...store.backend import Backend
from ...store.rows import CollectionRow, Lineage, MessageRow

if TYPE_CHECKING:
    from ...engine.backbone import Backbone
    from ...model import HMTModel
    from ...store.transaction import Transaction

log = logging.getLogger("hmt_memory")
UNVERIFIED = "unverified"  # the setting of a session whose tokens no model has compared with its messages
_TOGETHER = 32  # messages that are read or written at once
_ANSWERED = {"role", "content", "tool_calls", "id"}  # the fields of an answer
_INCOMPLETE, _CUT_OFF = "\ufffd", 3  # a byte of a character that is not whole; how many an answer may end with


def settle(database: Backend, row: CollectionRow, model: HMTModel) -> CollectionRow:
    """Make sure, once after an import, that the tokens of a session say what its messages say. Returns the session's row.

    To be called before `model` uses a session's tokens or memory, inside the session's own lock. A store that is read-only
    stays as it is, if they agree.

    Args:
        database: holds the session.
        row: the session.
        model: the model that is going to use it.

    Raises:
        InputError: the model's template has no place for a message.
        StoreError: they disagree, and the store is read-only.
    """
    while row.settings.get(UNVERIFIED):
        if not _agrees(database, row, model):
            return _written_anew(database, row, model)
        if database.read_only:
            return row
        with database.writing() as db:
            now = _as_it_is(db, row)
            if now == row:
                return db.update_collection(_verified(now))
        row = now
    return row


def _as_it_is(db: Transaction, row: CollectionRow) -> CollectionRow:
    now = db.collection(row.id)
    if now is None:
        raise SessionNotFoundError(f"session {row.name!r} was deleted.")
    return now


def _verified(row: CollectionRow) -> CollectionRow:
    return replace(row, settings={key: value for key, value in row.settings.items() if key != UNVERIFIED})


def _written_anew(database: Backend, row: CollectionRow, model: HMTModel) -> CollectionRow:
    """Write the same messages in the model's own tokens; nothing is read yet."""
    log.warning("the tokens of session %r do not say what its messages say: they are written anew from the messages.", row.name)
    made_by = fingerprint(model)
    moved = rewriting.move(database, row.id, Transcript(model.backbone), made_by, anew=True, settle=_verified)
    sweeping.finish(database, moved.erasure)
    return moved.row


def _agrees(database: Backend, row: CollectionRow, model: HMTModel) -> bool:
    with database.reading() as db:
        row = _as_it_is(db, row)
        stored = None if row.model is None else db.model(row.model).parts
        if stored is None or text_parts(stored) != text_parts(fingerprint(model).parts):
            return False
        says, parts = _Sayings(model.backbone), lineage.of(db, row)
        for block in _blocks(db, parts):
            stretches = rewriting.stored_stretches(db, parts, block)
            if not all(says(*pair) for pair in zip(stretches, block, strict=True)):
                return False
    return True


def _blocks(db: Transaction, parts: Lineage) -> Iterator[list[MessageRow]]:
    count = lineage.size(parts)[0]
    for start in range(0, count, _TOGETHER):
        yield lineage.messages(db, parts, start, min(start + _TOGETHER, count))


class _Sayings:
    """A comparison of stretches with messages: each must be the transcript's own writing, or a generated answer's tokens."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._transcript = backbone, Transcript(backbone)
        self._letter = backbone.encode("a")
        self._hidden: Callable[[int], bool] = cache(self._is_hidden)

    def __call__(self, stretch: Stretch, message: MessageRow) -> bool:
        if message.pinned:
            return not stretch.ids
        first = message.tokens[0] == 0
        return stretch == self._written(message.body, first) or self._answers(stretch, message.body, first)

    def _written(self, body: Mapping[str, Any], first: bool) -> Stretch | None:
        try:
            return self._transcript.stretch(body, first=first)
        except InputError:
            return None

    def _answers(self, stretch: Stretch, body: Mapping[str, Any], first: bool) -> bool:
        """Return whether a stretch is an answer: framed as one, with this text, and without tokens that no text shows."""
        if body["role"] != "assistant" or not set(body) <= _ANSWERED:
            return False
        ids = stretch.ids[slice(*stretch.content)]
        framed = self._transcript.answer(ids)
        framed = self._transcript.without_start(framed) if first else framed
        return stretch == framed and not any(map(self._hidden, set(ids))) and self._says(ids, body)

    def _says(self, ids: Sequence[int], body: Mapping[str, Any]) -> bool:
        text, calls, content = self._backbone.decode(ids), [], body["content"] or ""
        if body.get("tool_calls"):
            text, parsed = parse_calls(text)
            calls = [(call.name, call.arguments) for call in parsed]
        if not self._transcript.has_template:
            text = text.strip()
        left = text[len(content) :]
        whole = text.startswith(content) and len(left) <= _CUT_OFF and not left.strip(_INCOMPLETE)
        return whole and calls == [called(call) for call in body.get("tool_calls") or ()]

    def _is_hidden(self, token: int) -> bool:
        """Return whether a token, such as one that ends a turn, leaves no trace in a text."""
        bare, around = [*self._letter, *self._letter], [*self._letter, token, *self._letter]
        return token in self._backbone.end_ids or self._backbone.decode(around) == self._backbone.decode(bare)
