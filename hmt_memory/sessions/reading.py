"""Reading a stored stream: its state from the rows, and its new segments into them. Knows the model and the records.

A stream's state holds the memory of its recall window only, in float16, as stored: a stream of any length takes the same
room, and a state that was reloaded equals one that never left the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..engine.backbone import eval_mode
from ..engine.state import HMTState
from ..engine.unroll import unroll
from ..errors import InputError, StoreDamagedError
from ..store import lineage
from ..store.rows import Lineage, SegmentRow, chain

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..store.transaction import Transaction

CHUNK_SEGMENTS = 16  # read between two writes: what a crash may cost in time
Progress = Callable[[int, int], None]  # tokens read, tokens to read


def load_state(db: Transaction, parts: Lineage, model: HMTModel) -> HMTState:
    """The state of a stored stream up to where it has been read; its open tokens too, if no full segment is unread."""
    length, window = model.config.segment_length, model.config.recall_window
    closed = lineage.segment_count(db, parts)
    rows = list(lineage.segments(db, parts, max(0, closed - window), closed))
    total = parts[-1].tokens[1]
    at = rows[-1].tokens[1] if rows else 0
    if at > total or (rows and at != closed * length and at != total):
        raise StoreDamagedError("segments do not fit their tokens. Rebuild the session or corpus.")
    keep = max(model.view.recent_tokens or 0, model.config.sensory_length)
    recent = torch.from_numpy(lineage.tokens(db, parts, max(0, at - keep), at))
    unread = torch.from_numpy(lineage.tokens(db, parts, at, total)) if total - at < length else torch.zeros(0, dtype=torch.long)
    shape = (len(rows) * model.slots, model.backbone.hidden_size)
    try:
        memory = np.frombuffer(b"".join(row.memory for row in rows), "<f2").reshape(shape) if model.slots and rows else None
    except ValueError as error:
        raise StoreDamagedError("segments are of another width than the model's. Rebuild the session or corpus.") from error
    kept = torch.zeros(shape, dtype=torch.float16) if memory is None else torch.from_numpy(memory.copy())
    return HMTState(kept.to(model.backbone.device), recent, unread, closed, at + len(unread), len(rows))


def read_on(model: HMTModel, ids: Tensor, state: HMTState, *, final: bool = False) -> Iterator[HMTState]:
    """Read `ids` [t] in chunks and yield the state after each; `final`: they end the stream, and so its last segment."""
    size = CHUNK_SEGMENTS * model.config.segment_length - len(state.open_ids)
    pieces = [ids[:size], *ids[size:].split(CHUNK_SEGMENTS * model.config.segment_length)]
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        if len(piece) or (final and last and len(state.open_ids)):
            with torch.no_grad(), eval_mode(model):
                (state,), _ = unroll(model, model.states(state, 1), [piece], keep_hidden=False, final=final and last)
            yield state


def segment_rows(model: HMTModel, before: HMTState, after: HMTState, digest: bytes) -> list[SegmentRow]:
    """Rows of the segments that `after` has and `before` has not; `digest` is that of the segments of `before`.

    Raises:
        InputError: a memory embedding is not finite, or too large for float16.
    """
    made = after.segments - before.segments
    memory = model.by_segment(after)[after.held - made :].to(torch.float16).cpu()
    if not torch.isfinite(memory).all():
        raise InputError(
            f"a memory embedding of segments {before.segments} to {after.segments - 1} is not finite, or beyond float16's "
            "65504: it is not stored. Check the model and its adapter, or forget the messages it is made of."
        )
    rows = []
    length, end = model.config.segment_length, after.tokens - len(after.open_ids)
    for at, vectors in enumerate(memory, before.segments):
        data = vectors.numpy().astype("<f2").tobytes()
        span = (at * length, min((at + 1) * length, end))
        digest = chain(digest, span, data, None)
        rows.append(SegmentRow(at, span, data, None, digest))
    return rows
