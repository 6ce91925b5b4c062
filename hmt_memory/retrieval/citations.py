"""Citations: messages, sentences of long ones and passages of documents as recall names them. Knows rows; no index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

from ..store.rows import MessageRow
from .excerpts import Decode, sentences_in, trimmed
from .notes import Note
from .sentences import LONGEST

Ids = Callable[[MessageRow, int, int], Sequence[int]]  # the tokens [start, stop) of a message
_LONGEST_TEXT = 600  # characters of a message that is cited whole


@dataclass(frozen=True)
class Message:
    """One stored message."""

    id: int  # `forget` and `fork` take it; never given twice in a session
    role: str
    content: str
    created_at: datetime  # UTC
    fields: dict[str, Any] = field(default_factory=dict)  # other fields of the message, such as tool_calls

    def to_dict(self) -> dict[str, Any]:
        """Return the message as it was added."""
        return {"role": self.role, "content": self.content, **self.fields}


class Citation(NamedTuple):
    """A shard's description of one of its segments."""

    segment: int  # counted from 0 in its session or document
    text: str  # verbatim
    messages: tuple[Message, ...]  # the messages it is cut from; none in a corpus
    token_span: tuple[int, int]  # [start, stop) in the tokens of its session or document
    created_at: datetime
    source: str  # name of the session, or "corpus/document"
    timed: bool = True  # whether it has a time or source to show
    document: int | None = None  # its id, in a corpus
    metadata: dict[str, Any] | None = None  # the document's

    def quote(self) -> str:
        """Return the citation behind its time or source."""
        return quote(self.text, self.created_at if self.messages else self.source) if self.timed else self.text

    def note(self) -> Note:
        """Return the citation as a note."""
        origin = (self.created_at if self.messages else self.source) if self.timed else None
        return Note(self.text, origin, self.messages[0].role if self.messages else "")


def quote(text: str, origin: datetime | str) -> str:
    """Put a text behind its time or its source."""
    return f"[{origin:%Y-%m-%d %H:%M}]\n{text}" if isinstance(origin, datetime) else f"[{origin}]\n{text}"


def of_messages(
    rows: Sequence[MessageRow],
    segment: int,
    span: tuple[int, int],
    before: int | None,
    ids: Ids,
    decode: Decode,
    source: str,
) -> list[Citation]:
    """Cite messages whole if they are short, else the sentences in and around a segment's span.

    Args:
        rows: the messages, in order.
        segment: number of the segment that is cited.
        span: tokens [start, stop) of it.
        before: where the view begins to show messages: from this token on nothing is cited; None: it shows none.
        ids: gives the tokens of a message that stand in [start, stop).
        decode: token ids to text.
        source: the name of the session.
    """
    cited = []
    for row in rows:
        end = row.content[1] if before is None else min(row.content[1], before)
        text = str(row.body.get("content") or "")
        if row.tokens[0] >= (end if before is None else before) or not text.strip():
            continue
        texts, tokens = [text.strip()], row.tokens
        if end < row.content[1] or len(text.split()) > LONGEST or len(text) > _LONGEST_TEXT:
            texts, tokens = sentences_in(partial(ids, row), span, (row.content[0], end), decode)
        cited += [Citation(segment, each, (as_message(row),), tokens, utc(row.created_at), source) for each in texts]
    return cited


def lines(
    rows: Sequence[MessageRow],
    span: tuple[int, int],
    ids: Ids,
    decode: Decode,
) -> Iterator[str]:
    """Yield each message's words within a span.

    Args:
        rows: the messages, in order.
        span: tokens [start, stop).
        ids: gives the tokens of a message that stand in [start, stop).
        decode: token ids to text.
    """
    for row in rows:
        start, stop = _overlap(span, row.content)
        said = trimmed(decode(ids(row, start, stop)), (start, stop), row.content)
        if said.strip():
            yield f"{row.body['role']}: {said}"


def _overlap(span: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    start = max(span[0], whole[0])
    return start, max(start, min(span[1], whole[1]))


def as_message(row: MessageRow) -> Message:
    """Convert a row to a message as users see it."""
    fields = {name: value for name, value in row.body.items() if name not in ("role", "content")}
    return Message(row.id, row.body["role"], row.body["content"] or "", utc(row.created_at), fields)


def utc(seconds: float) -> datetime:
    """Convert a stored time to UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)
