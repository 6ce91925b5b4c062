"""Streams that continue one another as one history: its messages, tokens and segments, and what follows from their order.

A stream's own rows begin where it leaves its parent. Rows of a lineage are checked to be contiguous when they are read: a
damaged record is an error, never a wrong answer. Written once, over the verbs of any database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import StoreDamagedError
from .rows import CollectionRow, Kept, Lineage, LineagePart, MessageRow, SegmentRow, StreamRow, TokenRow
from .transaction import Transaction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENS_PER_ROW = 4096
_FEW = 1000  # rows that one transaction may move
_END = 1 << 62


def of(db: Transaction, row: CollectionRow) -> Lineage:
    """Return the history of a session."""
    return of_stream(db, row.stream or 0)


def of_stream(db: Transaction, tip: int) -> Lineage:
    """Return the stretches of a stream and its ancestors that make up its whole history, from the root."""
    parts: list[LineagePart] = []
    messages, tokens, segments = None, None, None
    stream: int | None = tip
    while stream is not None:
        row = db.stream(stream)
        own = (row.parent_messages, row.parent_tokens, row.parent_segments)
        ends = (messages if messages is not None else row.messages, tokens if tokens is not None else row.tokens)
        if any(stop < start for start, stop in zip(own, ends, strict=False)) or ends[0] > row.messages or ends[1] > row.tokens:
            raise StoreDamagedError(f"the record of stream {stream} is damaged: it ends before it begins. Restore a backup.")
        parts.insert(0, LineagePart(stream, (own[0], ends[0]), (own[1], ends[1]), (own[2], segments)))
        messages, tokens, segments = own
        stream = row.parent
    if (messages, tokens, segments) != (0, 0, 0):
        raise StoreDamagedError(f"stream {tip} continues one that is gone. Restore a backup or an export.")
    return tuple(parts)


def size(parts: Lineage) -> tuple[int, int]:
    """Return how many messages and tokens a lineage has."""
    return parts[-1].messages[1], parts[-1].tokens[1]


def until(parts: Lineage, messages: int, tokens: int, segments: int) -> Lineage:
    """Cut a lineage after so many messages, tokens and closed segments.

    Args:
        parts: the lineage.
        messages: that stay.
        tokens: that stay.
        segments: closed ones that stay.
    """
    kept: list[LineagePart] = []
    for part in parts:
        if kept and (part.messages[0] > messages or part.tokens[0] > tokens or part.segments[0] > segments):
            break
        closed = segments if part.segments[1] is None else min(segments, part.segments[1])
        kept.append(
            part._replace(
                messages=(part.messages[0], min(messages, part.messages[1])),
                tokens=(part.tokens[0], min(tokens, part.tokens[1])),
                segments=(part.segments[0], closed),
            )
        )
    return tuple(kept)


def add_stream(db: Transaction, parent: Lineage = (), *, messages: int = 0, tokens: int = 0, segments: int = 0) -> int:
    """Add a stream that continues `parent` after so many messages, tokens and closed segments. Returns its id.

    It hangs from the ancestor that owns the last row it continues.

    Args:
        db: the transaction to write in.
        parent: the lineage that is continued; empty: none.
        messages: of the parent that it continues.
        tokens: of the parent that it continues.
        segments: closed segments of the parent that it continues.
    """
    owner = next((part.stream for part in reversed(parent) if messages > part.messages[0]), None)
    return db.add_stream(StreamRow(0, owner, messages, tokens, segments, messages, tokens))


def compact(db: Transaction, row: CollectionRow) -> CollectionRow:
    """Join short streams of a session with ancestors that only they continue, so that rewriting does not grow a chain.

    Only for a session that is being rewritten: rows that another session has just read must stay in place. So the rows that a
    fork continues do not move as long as the fork exists.
    """
    stream = row.stream
    while stream is not None and _only_of(db, row, stream) and (parent := db.stream(stream).parent) is not None:
        child = db.stream(stream)
        alone = not db.is_shown(parent) and len(db.children(parent)) == 1 and not db.is_swept((parent, stream))
        if alone and child.messages - child.parent_messages <= _FEW:
            _join(db, db.stream(parent), child)
            if row.stream == stream:
                row = db.update_collection(replace(row, stream=parent))
            db.delete_stream(stream)
        stream = parent
    return row


def _only_of(db: Transaction, row: CollectionRow, stream: int) -> bool:
    """Return whether a stream belongs to this session alone."""
    return not db.children(stream) if stream == row.stream else len(db.children(stream)) == 1 and not db.is_shown(stream)


def _join(db: Transaction, parent: StreamRow, child: StreamRow) -> None:
    """Give the rows of an only child to its parent."""
    db.give_rows(child.id, to=parent.id)
    db.update_stream(parent._replace(messages=child.messages, tokens=child.tokens))
    for grandchild in db.children(child.id):
        db.update_stream(grandchild._replace(parent=parent.id))


def append_messages(db: Transaction, tip: int, messages: Sequence[MessageRow], ids: NDArray[np.uint32]) -> None:
    """Continue a stream with messages and their tokens.

    Token rows end where messages end, so that a cut before any message splits no row.

    Args:
        db: the transaction to write in.
        tip: the stream.
        messages: follow its last; none for the tokens of a document.
        ids: [t] tokens of all of them.
    """
    row = db.stream(tip)
    for message in messages:
        db.add_message(tip, message)
        start, stop = message.tokens
        for place, data in _pieces(start, ids[start - row.tokens : stop - row.tokens]):
            db.add_tokens(tip, place, data)
    if not messages:  # the tokens of a document
        for place, data in _pieces(row.tokens, ids):
            db.add_tokens(tip, place, data)
    db.update_stream(row._replace(messages=row.messages + len(messages), tokens=row.tokens + len(ids)))


def _pieces(start: int, ids: NDArray[np.uint32] | NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """Cut token ids into rows; yield where each starts, and its bytes."""
    for offset in range(0, len(ids), TOKENS_PER_ROW):
        yield start + offset, ids[offset : offset + TOKENS_PER_ROW].astype("<u4").tobytes()


def messages(db: Transaction, parts: Lineage, start: int = 0, stop: int | None = None) -> list[MessageRow]:
    """Return messages [start, stop) of a lineage, in order.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first of them.
        stop: one past the last; None: to the end. Both count from the end if they are negative.
    """
    wanted = range(size(parts)[0])[slice(start, stop)]
    rows: list[MessageRow] = []
    for part in parts:
        low, high = max(part.messages[0], wanted.start), min(part.messages[1], wanted.stop)
        rows += db.messages(part.stream, low, high) if low < high else []
    _check_messages([message.seq for message in rows] == list(wanted))
    return rows


def messages_in(db: Transaction, parts: Lineage, start: int, stop: int) -> list[MessageRow]:
    """Return the messages that tokens [start, stop) of a lineage belong to.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first token.
        stop: one past the last token.
    """
    rows: list[MessageRow] = []
    for part in parts:
        low, high = max(part.tokens[0], start), min(part.tokens[1], stop)
        rows += db.messages_between(part.stream, (low, high), part.messages[1]) if low < high else []
    covered = sum(min(message.tokens[1], stop) - max(message.tokens[0], start) for message in rows)
    _check_messages(covered == max(0, stop - start))
    return rows


def pinned(db: Transaction, parts: Lineage) -> Iterator[MessageRow]:
    """Yield the pinned messages of a lineage, the latest first."""
    for part in reversed(parts):
        yield from db.pinned(part.stream, *part.messages)


def positions(db: Transaction, parts: Lineage, ids: Iterable[int]) -> dict[int, int]:
    """Return the place in the conversation of each message id that it contains.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        ids: of messages.
    """
    places: dict[int, int] = {}
    for message in ids:
        for part in parts:
            place = db.position(part.stream, message, part.messages[1])
            if place is not None:
                places[message] = place
    return places


def earliest(db: Transaction, parts: Lineage, start: int) -> float:
    """Return when the oldest turn from message `start` on was said; infinity if there is none.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first message that counts.
    """
    times = (db.earliest(part.stream, max(start, part.messages[0]), part.messages[1]) for part in parts)
    return min((time for time in times if time is not None), default=float("inf"))


def tokens(db: Transaction, parts: Lineage, start: int, stop: int) -> NDArray[np.int64]:
    """Return token ids [start, stop) of a lineage; fewer where it ends before.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first of them.
        stop: one past the last of them.
    """
    import numpy as np

    stop = min(stop, parts[-1].tokens[1])
    pieces: list[NDArray[np.int64]] = []
    place = start
    for part in parts:
        low, high = max(part.tokens[0], start), min(part.tokens[1], stop)
        for first, data in db.tokens(part.stream, low, high) if low < high else ():
            piece = np.frombuffer(data, "<u4").astype(np.int64)[max(0, low - first) : max(0, high - first)]
            if len(piece):
                _check_tokens(max(first, low) == place)
                pieces.append(piece)
                place += len(piece)
    _check_tokens(place == max(start, stop))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _check_messages(whole: bool) -> None:
    if not whole:
        raise StoreDamagedError("messages are missing from the store. Restore a backup or an export.")


def _check_tokens(whole: bool) -> None:
    if not whole:
        raise StoreDamagedError("tokens are missing from the store. Restore a backup or an export.")


def kept(db: Transaction, parts: Lineage, start: int, stop: int) -> list[Kept]:
    """Return messages [start, stop) of a lineage without their content.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first of them.
        stop: one past the last of them.
    """
    rows: list[Kept] = []
    for part in parts:
        low, high = max(part.messages[0], start), min(part.messages[1], stop)
        rows += db.kept(part.stream, low, high) if low < high else []
    _check_messages([message.row.seq for message in rows] == list(range(start, stop)))
    return rows


def shortened(db: Transaction, message: Kept, ids: NDArray[np.int64], skip: int) -> Kept:
    """Return a message without the first `skip` of its tokens; the others are written anew.

    Args:
        db: the transaction to write in.
        message: the message to shorten.
        ids: [t] its tokens.
        skip: the number of tokens to drop.
    """
    start, stop = message.row.tokens[0] + skip, message.row.tokens[1]
    rows = tuple(db.new_tokens(place, data) for place, data in _pieces(start, ids[skip:]))
    content = (max(start, message.row.content[0]), max(start, message.row.content[1]))
    row = message.row._replace(tokens=(start, stop), content=content)
    return Kept(row, message.body, rows, frozenset(tokens.ids.id for tokens in rows))


def append_kept(db: Transaction, tip: int, messages: Sequence[Kept]) -> None:
    """Continue a stream with messages of another stream; both refer to the same content.

    Args:
        db: the transaction to write in.
        tip: the stream.
        messages: in order.
    """
    end = db.stream(tip)
    seq, place = end.messages, end.tokens
    for message in messages:
        db.add_kept(tip, _shifted(message, seq, place - message.row.tokens[0]))
        seq, place = seq + 1, place + message.row.tokens[1] - message.row.tokens[0]
    db.update_stream(end._replace(messages=seq, tokens=place))


def _shifted(message: Kept, seq: int, shift: int) -> Kept:
    row = message.row
    tokens, content = ((span[0] + shift, span[1] + shift) for span in (row.tokens, row.content))
    rows = tuple(TokenRow(tokens_row.start + shift, tokens_row.ids) for tokens_row in message.tokens)
    return message._replace(row=row._replace(seq=seq, tokens=tokens, content=content), tokens=rows)


def segment_count(db: Transaction, parts: Lineage) -> int:
    """Return how many segments of a lineage are closed: so far it has been read."""
    for part in reversed(parts):
        last = db.last_segment(part.stream, part.segments[0], _stop(part))
        if last is not None:
            return last + 1
    return 0


def _stop(part: LineagePart) -> int:
    return _END if part.segments[1] is None else part.segments[1]


def append_segments(db: Transaction, parts: Lineage, rows: Sequence[SegmentRow]) -> None:
    """Store closed segments, each with the stretch of the lineage that holds its last token.

    Args:
        db: the transaction to write in.
        parts: the lineage.
        rows: in order.
    """
    for row in rows:
        owner = next(part for part in reversed(parts) if row.seq >= part.segments[0])
        db.add_segment(owner.stream, row)


def segments(db: Transaction, parts: Lineage, start: int, stop: int) -> Iterator[SegmentRow]:
    """Yield closed segments [start, stop) of a lineage, in order; fetch them all before the transaction ends.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        start: the first of them.
        stop: one past the last of them.
    """
    wanted = start
    for part in parts:
        low, high = max(start, part.segments[0]), min(stop, _stop(part))
        for row in db.segments(part.stream, low, high) if low < high else ():
            _check_segments(row.seq == wanted)
            wanted += 1
            yield row
    _check_segments(wanted == max(start, stop))


def _check_segments(whole: bool) -> None:
    if not whole:
        raise StoreDamagedError("segments are missing from the store. Rebuild the session or corpus.")


def digest_at(db: Transaction, parts: Lineage, count: int) -> bytes:
    """Return the digest of the first `count` segments.

    Args:
        db: the transaction to read rows in.
        parts: the lineage.
        count: the number of segments.
    """
    return b"" if count == 0 else next(segments(db, parts, count - 1, count)).digest
