"""Rewriting a stored conversation: fork, forget, move it to another model. Knows rows and stretches; runs no model.

Messages are never changed in place. What follows a forgotten message moves to a new stream that continues the old one at
the cut, and rows that nobody shows any more are deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .chat import SYSTEM_ROLES
from .errors import SessionNotFoundError
from .fingerprint import Fingerprint, text_parts
from .store import records
from .store.records import CollectionRow, Lineage, MessageRow
from .streams import as_array
from .transcript import Stretch, Transcript

if TYPE_CHECKING:
    import sqlite3

_COUNT_SLACK, _AGE_SLACK = 0.25, 0.1  # of a limit, how much room is made ahead
WIPE = "wipe"  # the fact that deleted bytes may still lie in free pages; another value for each deletion


def lineage(db: sqlite3.Connection, row: CollectionRow) -> Lineage:
    """The stored conversation of a session."""
    return records.lineage(db, row.stream or 0)


def positions(db: sqlite3.Connection, row: CollectionRow, parts: Lineage, ids: Iterable[int]) -> dict[int, int]:
    """Where messages stand. Raises SessionNotFoundError if one is not in the session."""
    wanted = set(ids)
    found = records.positions(db, parts, wanted)
    if missing := sorted(wanted - set(found)):
        raise SessionNotFoundError(
            f"session {row.name!r} has no message {', '.join(map(str, missing))}. List them: messages() or hmt sessions show."
        )
    return found


def fork(db: sqlite3.Connection, row: CollectionRow, name: str, upto: int | None, *, now: float) -> CollectionRow:
    """A new session whose stream continues that of `row` after message `upto` (None: after its last)."""
    parts = lineage(db, row)
    messages, tokens = records.size(parts)
    if upto is not None:
        at = positions(db, row, parts, [upto])[upto]
        (last,) = records.messages(db, parts, at, at + 1)
        messages, tokens = at + 1, last.tokens[1]
    stream = records.add_stream(db, parts, messages=messages, tokens=tokens, segments=_segments(db, row, tokens))
    new = records.add_collection(db, "session", name, stream=stream, now=now)
    return records.update_collection(db, replace(new, model=row.model, next_id=row.next_id, settings=row.settings))


def forget(db: sqlite3.Connection, row: CollectionRow, ids: Iterable[int]) -> tuple[CollectionRow, tuple[str, ...]]:
    """Erase messages and every segment that saw them; also the names of other sessions that share one and keep it."""
    parts = lineage(db, row)
    gone = positions(db, row, parts, ids)
    sharing = _sharing(db, row, parts, gone.values())
    first = min(gone.values())
    kept = [message for message in records.messages(db, parts, first) if message.id not in gone]
    (cut,) = records.messages(db, parts, first, first + 1)
    tokens = cut.tokens[0]
    stretches = stored_stretches(db, parts, kept)
    if not tokens and row.model is not None:
        stretches = _without_start(stretches, records.model(db, row.model).parts["start_ids"])
    stream = records.add_stream(db, parts, messages=first, tokens=tokens, segments=_segments(db, row, tokens))
    append(db, stream, first, tokens, kept, stretches)
    new = records.update_collection(db, replace(row, stream=stream, epoch=row.epoch + 1))
    records.prune(db, row.stream)
    wipe_later(db)
    return records.compact(db, new), sharing


def move(db: sqlite3.Connection, row: CollectionRow, transcript: Transcript, made_by: Fingerprint) -> CollectionRow:
    """Give a session to another model, nothing read yet: the same tokens, or the text anew where they mean other text."""
    parts = lineage(db, row)
    kept = records.messages(db, parts)
    stored = None if row.model is None else records.model(db, row.model).parts
    same_tokens = stored is not None and text_parts(stored) == text_parts(made_by.parts)
    stretches = stored_stretches(db, parts, kept) if same_tokens else rendered(transcript, [one.body for one in kept])
    stream = records.add_stream(db)
    append(db, stream, 0, 0, kept, stretches)
    number = records.add_model(db, made_by.digest, made_by.parts)
    new = records.update_collection(db, replace(row, stream=stream, model=number, epoch=row.epoch + 1))
    records.prune(db, row.stream)
    return new


def wipe_later(db: sqlite3.Connection) -> None:
    """Remember, with what is deleted, that its bytes are still to be overwritten."""
    records.set_fact(db, WIPE, uuid.uuid4().hex)


def rendered(transcript: Transcript, bodies: Sequence[Any], *, first: bool = True) -> list[Stretch]:
    """The stretches of messages; system messages, which are pinned instead, have none. `first`: nothing stands before."""
    found: list[Stretch] = []
    for body in bodies:
        pinned = body["role"] in SYSTEM_ROLES
        found.append(Stretch([], (0, 0)) if pinned else transcript.stretch(body, first=first))
        first &= not found[-1].ids
    return found


def new_rows(bodies: Sequence[Any], first_id: int, times: Sequence[float]) -> list[MessageRow]:
    """Rows of messages of one call; `append` gives them their places."""
    return [
        MessageRow(0, first_id + offset, first_id, body["role"] in SYSTEM_ROLES, body, time, (0, 0), (0, 0))
        for offset, (body, time) in enumerate(zip(bodies, times, strict=True))
    ]


def stored_stretches(db: sqlite3.Connection, parts: Lineage, messages: Sequence[MessageRow]) -> list[Stretch]:
    """The stretches of messages as they are stored."""
    found = []
    for message in messages:
        start, stop = message.tokens
        content = (message.content[0] - start, message.content[1] - start)
        found.append(Stretch(records.tokens(db, parts, start, stop).tolist(), content))
    return found


def append(
    db: sqlite3.Connection, stream: int, seq: int, at: int, messages: Sequence[MessageRow], stretches: Sequence[Stretch]
) -> list[MessageRow]:
    """Append messages, whose own places and spans do not count, to a stream that ends at `seq` and token `at`."""
    rows = placed(seq, at, messages, stretches)
    records.append_messages(db, stream, rows, as_array([token for stretch in stretches for token in stretch.ids]))
    return rows


def placed(seq: int, at: int, messages: Sequence[MessageRow], stretches: Sequence[Stretch]) -> list[MessageRow]:
    """Messages with the places and spans they have in a stream that ends at `seq` and token `at` before them."""
    rows = []
    for offset, (message, stretch) in enumerate(zip(messages, stretches, strict=True)):
        content = (at + stretch.content[0], at + stretch.content[1])
        rows.append(message._replace(seq=seq + offset, tokens=(at, at + len(stretch.ids)), content=content))
        at += len(stretch.ids)
    return rows


def system_in_force(db: sqlite3.Connection, parts: Lineage) -> list[str]:
    """The texts of the system messages that are pinned: those of the latest call that added any."""
    return [message.body["content"] for message in _in_force(db, parts)]


def _in_force(db: sqlite3.Connection, parts: Lineage) -> list[MessageRow]:
    latest: list[MessageRow] = []
    for message in records.pinned(db, parts):
        if latest and message.batch != latest[0].batch:
            break
        latest.insert(0, message)
    return latest


def beyond_limits(db: sqlite3.Connection, row: CollectionRow, now: float) -> set[int]:
    """Ids of the messages that a session's limits leave no room for; the system messages in force do not count.

    Forgetting re-reads what is kept, so a limit that is reached makes room at once for a share of it.
    """
    limits = row.settings.get("retention", {})
    most, seconds = limits.get("messages"), limits.get("seconds")
    parts = lineage(db, row)
    in_force = {message.id for message in _in_force(db, parts)}
    first = next((one for one in records.messages(db, parts, 0, 16) if one.id not in in_force), None)
    too_many = most is not None and records.size(parts)[0] - len(in_force) > most
    too_old = seconds is not None and (first is None or first.created_at < now - seconds)
    loose = [one for one in records.messages(db, parts) if one.id not in in_force] if too_many or too_old else []
    gone: set[int] = set()
    if most is not None and len(loose) > most:
        gone |= {message.id for message in loose[: len(loose) - most + int(most * _COUNT_SLACK)]}
    if seconds is not None and any(message.created_at < now - seconds for message in loose):
        gone |= {message.id for message in loose if message.created_at < now - seconds * (1 - _AGE_SLACK)}
    return gone


def _segments(db: sqlite3.Connection, row: CollectionRow, tokens: int) -> int:
    """How many segments are full after so many tokens."""
    if row.model is None:
        return 0
    return tokens // int(records.model(db, row.model).parts["config"]["segment_length"])


def _without_start(stretches: Sequence[Stretch], start: Sequence[int]) -> list[Stretch]:
    """Stretches that now begin a stream: the first goes without the start token that every view begins with."""
    found = list(stretches)
    at = next((at for at, one in enumerate(found) if one.ids), None)
    if at is not None and start and found[at].ids[: len(start)] == list(start):
        skip = len(start)
        low, high = found[at].content
        found[at] = Stretch(found[at].ids[skip:], (max(0, low - skip), max(0, high - skip)))
    return found


def _sharing(db: sqlite3.Connection, row: CollectionRow, parts: Lineage, seqs: Iterable[int]) -> tuple[str, ...]:
    owners = {(part.stream, seq) for seq in seqs for part in parts if part.messages[0] <= seq < part.messages[1]}
    names = []
    for other in records.collections(db, "session"):
        if other.id != row.id and other.stream is not None:
            theirs = records.lineage(db, other.stream)
            shows = ((part.stream, seq) for part in theirs for _, seq in owners if part.messages[0] <= seq < part.messages[1])
            names += [other.name] * any(place in owners for place in shows)
    return tuple(names)
