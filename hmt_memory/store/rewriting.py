"""Rewriting of a stored conversation: fork, forget, move it to another model. Knows rows and stretches; runs no model.

Messages are never changed in place. Messages behind a forgotten one move to a new stream that continues the old one at the
cut, and rows that nobody shows any more are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.message import SYSTEM_ROLES
from ..chat.transcript import Stretch, Transcript
from ..engine.fingerprint import Fingerprint, text_parts
from ..errors import SessionNotFoundError
from . import lineage
from .backend import Backend
from .rows import OWED, CollectionRow, Kept, Lineage, MessageRow, as_array

if TYPE_CHECKING:
    from .transaction import Transaction


def positions(db: Transaction, row: CollectionRow, parts: Lineage, ids: Iterable[int]) -> dict[int, int]:
    """Return the places of messages in a session.

    Args:
        db: the transaction to look in.
        row: the session, for the message of an error.
        parts: its lineage.
        ids: of the messages.

    Raises:
        SessionNotFoundError: a message is not in the session.
    """
    wanted = set(ids)
    places = lineage.positions(db, parts, wanted)
    if missing := sorted(wanted - set(places)):
        raise SessionNotFoundError(
            f"session {row.name!r} has no message {', '.join(map(str, missing))}. List them: messages() or hmt sessions show."
        )
    return places


def fork(db: Transaction, row: CollectionRow, name: str, upto: int | None, *, now: float) -> CollectionRow:
    """Make a new session whose stream continues another's.

    Args:
        db: the transaction to write in.
        row: the session that is continued.
        name: of the new session.
        upto: id of the last message to share; None: all.
        now: seconds since 1970, UTC.
    """
    parts = lineage.of(db, row)
    messages, tokens = lineage.size(parts)
    if upto is not None:
        place = positions(db, row, parts, [upto])[upto]
        (last,) = lineage.messages(db, parts, place, place + 1)
        messages, tokens = place + 1, last.tokens[1]
    stream = lineage.add_stream(db, parts, messages=messages, tokens=tokens, segments=_segments(db, row, tokens))
    new = db.add_collection("session", name, stream=stream, now=now)
    settings = {name: value for name, value in row.settings.items() if name not in ("metadata", OWED)}
    settings["forked"] = [*settings.get("forked", []), [row.id, row.next_id]]
    return db.update_collection(replace(new, model=row.model, next_id=row.next_id, settings=settings))


class Forgotten(NamedTuple):
    """A session after some of its messages were forgotten."""

    row: CollectionRow
    erasure: int  # to be finished
    sharing: tuple[str, ...]  # names of other sessions that share a forgotten message and keep it


class _Plan(NamedTuple):
    """A plan of how to rewrite a session."""

    messages: int  # the number of messages that stay in place
    tokens: int
    transfer: Callable[[Transaction, Lineage, int, int, int], None]  # appends messages [start, stop) to a stream
    settle: Callable[[Transaction, CollectionRow], CollectionRow]  # makes the other changes of the session's row
    sharing: tuple[str, ...] = ()


def forget(
    database: Backend, session: int, ids: Iterable[int], *, settle: Callable[[CollectionRow], CollectionRow] = lambda row: row
) -> Forgotten:
    """Erase messages of a session and every segment that saw them, inside the session's own lock.

    Args:
        database: holds the session.
        session: its id.
        ids: of the messages.
        settle: makes the other changes of the session's row.

    Raises:
        SessionNotFoundError: the session or one of the messages is not there.
    """
    return _rewrite(database, session, lambda db, row: _forgetting(db, row, set(ids), settle))


def move(
    database: Backend,
    session: int,
    transcript: Transcript,
    made_by: Fingerprint,
    *,
    anew: bool = False,
    settle: Callable[[CollectionRow], CollectionRow] = lambda row: row,
) -> Forgotten:
    """Give a session to a model, nothing read yet: the same tokens, or its text written again if they mean other text.

    Args:
        database: holds the session.
        session: its id; its lock is held.
        transcript: how the model writes messages.
        made_by: the model's fingerprint.
        anew: whether to write the text again in any case.
        settle: makes the other changes of the session's row.
    """
    return _rewrite(database, session, lambda db, row: _moving(db, row, transcript, made_by, anew, settle))


def cut(db: Transaction, row: CollectionRow, messages: int, tokens: int) -> Forgotten:
    """Erase everything after so many messages and tokens of a session.

    Args:
        db: the transaction to write in.
        row: the session.
        messages: that stay.
        tokens: that stay.
    """
    parts = lineage.of(db, row)
    sharing = _sharing(db, row, parts, range(messages, lineage.size(parts)[0]))
    stream = lineage.add_stream(db, parts, messages=messages, tokens=tokens, segments=_segments(db, row, tokens))
    return _switched(db, row, stream, sharing)


def compact(db: Transaction, row: CollectionRow) -> CollectionRow:
    """Join streams that rewriting has split. The epoch changes, so that readers of the old places notice."""
    joined = lineage.compact(db, row)
    return row if joined == row else db.update_collection(replace(joined, epoch=joined.epoch + 1))


_TOGETHER = 256  # messages that one transaction moves, so that others wait briefly


def _rewrite(database: Backend, session: int, plan_of: Callable[[Transaction, CollectionRow], _Plan]) -> Forgotten:
    """Write a session's new stream in short transactions, then put it in place of the old one in one."""
    while True:
        with database.reading() as db:
            row = _existing(db, session)
            plan, parts = plan_of(db, row), lineage.of(db, row)
        draft, done = None, plan.messages
        while lineage.size(parts)[0] - done > _TOGETHER:
            draft = database.erasing(partial(_advance, row=row, parts=parts, plan=plan, draft=draft, done=done))
            if draft is None:
                break
            done += _TOGETHER
            database.let_others_write()
        result = database.erasing(partial(_complete, row=row, plan=plan, draft=draft, done=done))
        if result is not None:
            return result


def _existing(db: Transaction, session: int) -> CollectionRow:
    row = db.collection(session)
    if row is None:
        raise SessionNotFoundError("the session was deleted.")
    return row


def _advance(db: Transaction, *, row: CollectionRow, parts: Lineage, plan: _Plan, draft: int | None, done: int) -> int | None:
    """Write the next messages of a draft. Returns its stream; None if the session was rewritten meanwhile."""
    if _existing(db, row.id).epoch != row.epoch:
        return None
    if draft is None:
        draft = _begin(db, row, parts, plan)
        db.add_draft(draft, row.id)
    plan.transfer(db, parts, draft, done, done + _TOGETHER)
    return draft


def _begin(db: Transaction, row: CollectionRow, parts: Lineage, plan: _Plan) -> int:
    segments = _segments(db, row, plan.tokens)
    return lineage.add_stream(db, parts, messages=plan.messages, tokens=plan.tokens, segments=segments)


def _complete(db: Transaction, *, row: CollectionRow, plan: _Plan, draft: int | None, done: int) -> Forgotten | None:
    """Write the rest, as the session is now, and switch to it. Returns None if it was rewritten meanwhile."""
    now = _existing(db, row.id)
    if now.epoch != row.epoch:
        return None
    parts = lineage.of(db, now)
    stream = _begin(db, now, parts, plan) if draft is None else draft
    plan.transfer(db, parts, stream, done, lineage.size(parts)[0])
    db.remove_draft(stream)
    return _switched(db, plan.settle(db, now), stream, plan.sharing)


def _switched(db: Transaction, row: CollectionRow, stream: int, sharing: tuple[str, ...]) -> Forgotten:
    new = db.update_collection(replace(row, stream=stream, epoch=row.epoch + 1))
    erasure = db.begin_erasure()
    db.sweep_later(erasure, "stream", row.stream or 0)
    abandon_drafts(db, row.id, erasure)
    return Forgotten(new, erasure, sharing)


def abandon_drafts(db: Transaction, session: int, erasure: int) -> None:
    """Give up the drafts of a session; an erasure sweeps them away.

    A draft holds the session's content, too: none of that is erased as long as the draft exists.

    Args:
        db: the transaction to write in.
        session: its id.
        erasure: sweeps the drafts.
    """
    for stream in db.drafts(session):
        db.remove_draft(stream)
        db.sweep_later(erasure, "stream", stream)


def _forgetting(db: Transaction, row: CollectionRow, ids: set[int], settle: Callable[[CollectionRow], CollectionRow]) -> _Plan:
    parts = lineage.of(db, row)
    gone = positions(db, row, parts, ids)
    first = min(gone.values())
    (cut,) = lineage.kept(db, parts, first, first + 1)
    tokens, start = cut.row.tokens[0], []
    if not tokens and row.model is not None:
        start = list(db.model(row.model).parts["start_ids"])

    def transfer(db: Transaction, parts: Lineage, stream: int, low: int, high: int) -> None:
        kept = [message for message in lineage.kept(db, parts, low, high) if message.row.id not in gone]
        if start and not db.stream(stream).tokens:
            kept = _without_start(db, parts, kept, start)
        lineage.append_kept(db, stream, kept)

    return _Plan(first, tokens, transfer, lambda db, row: settle(row), _sharing(db, row, parts, gone.values()))


def _moving(
    db: Transaction,
    row: CollectionRow,
    transcript: Transcript,
    made_by: Fingerprint,
    anew: bool,
    settle: Callable[[CollectionRow], CollectionRow],
) -> _Plan:
    stored = None if row.model is None else db.model(row.model).parts
    same_tokens = not anew and stored is not None and text_parts(stored) == text_parts(made_by.parts)

    def transfer(db: Transaction, parts: Lineage, stream: int, low: int, high: int) -> None:
        if same_tokens:
            lineage.append_kept(db, stream, lineage.kept(db, parts, low, high))
            return
        messages, end = lineage.messages(db, parts, low, high), db.stream(stream)
        stretches = transcript.stretches([message.body for message in messages], first=not end.tokens)
        append(db, stream, placed(messages, stretches, (end.messages, end.tokens)), stretches)

    def given(db: Transaction, row: CollectionRow) -> CollectionRow:
        return settle(replace(row, model=db.add_model(made_by.digest, made_by.parts)))

    return _Plan(0, 0, transfer, given)


def rows_of(
    messages: Sequence[Any], stretches: Sequence[Stretch], end: tuple[int, int], first_id: int, times: Sequence[float]
) -> list[MessageRow]:
    """Make the rows of the messages of one call.

    Args:
        messages: bodies of messages.
        stretches: one for each.
        end: how many messages, and how many tokens, stand in the stream before them.
        first_id: of the first; the others count on from there.
        times: when each was said, in seconds since 1970.
    """
    rows = [
        MessageRow(0, first_id + offset, first_id, body["role"] in SYSTEM_ROLES, body, time, (0, 0), (0, 0))
        for offset, (body, time) in enumerate(zip(messages, times, strict=True))
    ]
    return placed(rows, stretches, end)


def stored_stretches(db: Transaction, parts: Lineage, messages: Sequence[MessageRow]) -> list[Stretch]:
    """Return the stretches of messages as they are stored.

    Args:
        db: the transaction to read in.
        parts: the lineage.
        messages: some of its messages.
    """
    stretches = []
    for message in messages:
        start, stop = message.tokens
        content = (message.content[0] - start, message.content[1] - start)
        stretches.append(Stretch(lineage.tokens(db, parts, start, stop).tolist(), content))
    return stretches


def placed(messages: Sequence[MessageRow], stretches: Sequence[Stretch], end: tuple[int, int]) -> list[MessageRow]:
    """Give messages the places and spans that they have in a stream.

    Args:
        messages: rows without places.
        stretches: one for each.
        end: how many messages, and how many tokens, stand in the stream before them.
    """
    (seq, start), rows = end, []
    for offset, (message, stretch) in enumerate(zip(messages, stretches, strict=True)):
        content = (start + stretch.content[0], start + stretch.content[1])
        rows.append(message._replace(seq=seq + offset, tokens=(start, start + len(stretch.ids)), content=content))
        start += len(stretch.ids)
    return rows


def append(db: Transaction, stream: int, rows: Sequence[MessageRow], stretches: Sequence[Stretch]) -> None:
    """Append messages to the end of a stream.

    Args:
        db: the transaction to write in.
        stream: the stream.
        rows: with the places and spans that they get there.
        stretches: one for each.
    """
    lineage.append_messages(db, stream, rows, as_array([token for stretch in stretches for token in stretch.ids]))


def system_in_force(db: Transaction, parts: Lineage) -> list[str]:
    """Return the texts of the system messages that are pinned: those of the latest call that added any."""
    return [message.body["content"] for message in in_force(db, parts)]


def in_force(db: Transaction, parts: Lineage) -> list[MessageRow]:
    """Return the system messages that are pinned: those of the latest call that added any."""
    latest: list[MessageRow] = []
    for message in lineage.pinned(db, parts):
        if latest and message.batch != latest[0].batch:
            break
        latest.insert(0, message)
    return latest


def _segments(db: Transaction, row: CollectionRow, tokens: int) -> int:
    """Return how many segments are full after so many tokens."""
    if row.model is None:
        return 0
    return tokens // int(db.model(row.model).parts["config"]["segment_length"])


def _without_start(db: Transaction, parts: Lineage, messages: Sequence[Kept], start: Sequence[int]) -> list[Kept]:
    """Return messages that now begin a stream, the first of them without the start token that every view begins with."""
    shortened = list(messages)
    number = next((number for number, message in enumerate(shortened) if message.tokens), None)
    if number is not None:
        ids = lineage.tokens(db, parts, *shortened[number].row.tokens)
        if ids[: len(start)].tolist() == list(start):
            shortened[number] = lineage.shortened(db, shortened[number], ids, len(start))
    return shortened


def _sharing(db: Transaction, row: CollectionRow, parts: Lineage, seqs: Iterable[int]) -> tuple[str, ...]:
    """Return the names of other sessions that show one of the messages at `seqs`."""
    first: dict[int, int] = {}  # the first of them in each stream
    for seq in sorted(seqs, reverse=True):
        first |= {part.stream: seq for part in parts if part.messages[0] <= seq < part.messages[1]}
    names = {name for stream, seq in first.items() for name in db.showing(stream, seq, besides=row.id)}
    return tuple(sorted(names))
