"""Reading a stored stream: its state from the rows, and its new segments into them. Knows the model and the records.

A stream's state holds the memory of its recall window only, in float16, as stored: a stream of any length takes the same
room, and a state that was reloaded equals one that never left the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..engine.modes import eval_mode
from ..engine.state import HMTState
from ..engine.unroll import unroll
from ..errors import InputError, StoreDamagedError
from ..store import lineage
from ..store.rows import Lineage, SegmentRow, chain

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..store.transaction import Transaction

CHUNK_SEGMENTS = 16  # segments of a stream read between two writes: as much work a crash may cost
TOGETHER = 8  # streams that are read in one batch, a quarter of a chunk of each at a time
Progress = Callable[[int, int], None]  # tokens read, tokens to read


def load_state(db: Transaction, parts: Lineage, model: HMTModel, memory_bits: int) -> HMTState:
    """Load the state of a stored stream up to where it has been read; its open tokens too, if no full segment is unread.

    Args:
        db: the transaction to read rows in.
        parts: the stream with its ancestors.
        model: its sizes say what the state holds.
        memory_bits: of a number in the memories that are read on, 8 or 16.

    Raises:
        StoreDamagedError: segments do not fit their tokens or the model.
    """
    length, window = model.config.segment_length, model.config.recall_window
    closed = lineage.segment_count(db, parts)
    rows = list(lineage.segments(db, parts, max(0, closed - window), closed))
    total = parts[-1].tokens[1]
    read_to = rows[-1].tokens[1] if rows else 0
    if read_to > total or (rows and read_to != closed * length and read_to != total):
        raise StoreDamagedError("segments do not fit their tokens. Rebuild the session or corpus.")
    keep = max(model.view.recent_tokens or 0, model.config.sensory_length)
    first, last = max(0, read_to - keep), total if total - read_to < length else read_to
    recent, unread = torch.from_numpy(lineage.tokens(db, parts, first, last)).tensor_split([read_to - first])
    shape = (len(rows) * model.slots, model.backbone.hidden_size)
    try:
        memory = np.frombuffer(b"".join(row.memory for row in rows), "<f2").reshape(shape) if model.slots and rows else None
    except ValueError as error:
        raise StoreDamagedError("segments are of another width than the model's. Rebuild the session or corpus.") from error
    kept = torch.zeros(shape, dtype=torch.float16) if memory is None else torch.from_numpy(memory.copy())
    kept, tokens = kept.to(model.backbone.device), read_to + len(unread)
    return HMTState(kept, recent, unread, closed, tokens, len(rows), memory_bits=memory_bits)


def read_on(model: HMTModel, ids: Tensor, state: HMTState) -> Iterator[HMTState]:
    """Read tokens in chunks and yield the state after each.

    Args:
        model: the model that reads.
        ids: [t] token ids.
        state: the stream so far.
    """
    size = CHUNK_SEGMENTS * model.config.segment_length - len(state.open_ids)
    pieces = [ids[:size], *ids[size:].split(CHUNK_SEGMENTS * model.config.segment_length)]
    for piece in filter(len, pieces):
        with torch.no_grad(), eval_mode(model):
            (state,), _ = unroll(model, model.states(state, 1), [piece], keep_hidden=False)
        yield state


def read_together(
    model: HMTModel, streams: Sequence[Tensor], states: Sequence[HMTState], *, final: Sequence[bool]
) -> list[HMTState]:
    """Read the next tokens of several streams in lockstep, and return the states after them.

    A batch takes less time than its rows one by one, and gives what they give but for rounding.

    Args:
        model: the model that reads.
        streams: B x [t] token ids.
        states: the streams so far.
        final: which of them end with these tokens.
    """
    with torch.no_grad(), eval_mode(model):
        after, _ = unroll(model, model.states(states, len(states)), streams, keep_hidden=False, final=final)
    return after


def segment_rows(model: HMTModel, before: HMTState, after: HMTState, digest: bytes) -> list[SegmentRow]:
    """Make rows of the segments by which one state is ahead of another.

    Args:
        model: the model that read them.
        before: the earlier state.
        after: the later state.
        digest: of the segments of `before`.

    Raises:
        InputError: a memory embedding is not finite, or too large for float16.
    """
    made = after.segments - before.segments
    memory = model.by_segment(after)[after.held - made :].to(torch.float16).cpu()
    keys = after.keys[max(0, len(after.keys) - made) :]
    if not all(torch.isfinite(vectors).all() for vectors in (memory, *keys)):
        raise InputError(
            f"a memory embedding of segments {before.segments} to {after.segments - 1} is not finite, or beyond float16's "
            "65504: it is not stored. Check the model and its adapter, or forget the messages it is made of."
        )
    rows = []
    length, end = model.config.segment_length, after.tokens - len(after.open_ids)
    found_by_each: list[bytes | None] = [key.numpy().astype("<f2").tobytes() for key in keys]
    found_by_each = found_by_each or [None] * made
    for number, (vectors, found_by) in enumerate(zip(memory, found_by_each, strict=True), before.segments):
        data = vectors.numpy().astype("<f2").tobytes()
        span = (number * length, min((number + 1) * length, end))
        digest = chain(digest, span, data, found_by)
        rows.append(SegmentRow(number, span, data, found_by, digest, after.memory_bits))
    return rows
