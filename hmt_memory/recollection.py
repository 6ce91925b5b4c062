"""Recall over stored memories: preselect through the index, attend exactly, cite the source, quote it for a view.

Knows collections as shards: numbered segments with an index and with words. One shard is a session's own past, others are
attached corpora; all of them compete in one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .backbone import eval_mode
from .errors import InputError
from .shards import Citation, Message, Shard
from .state import HMTState

if TYPE_CHECKING:
    from .model import HMTModel
    from .transcript import Transcript


@dataclass(frozen=True)
class RecalledSegment:
    """A segment that a query remembers, with its source."""

    segment: int  # counted from 0 in its session or document
    weight: float  # share of the recall softmax over what was preselected
    text: str  # verbatim
    messages: tuple[Message, ...]  # those it is cut from; none in a corpus
    token_span: tuple[int, int]  # [start, stop) in the tokens of its session or document
    created_at: datetime  # of the first message, or of the document; UTC
    coverage: float  # at least this share of the softmax over all segments fell on the preselected ones
    source: str  # name of the session, or "corpus/document"


_MOST_MISFITS = 3  # passages too long for what is left of the budget, before no more are tried


class RecalledSegments(list[RecalledSegment]):
    """Recalled segments by falling weight."""

    coverage: float = 1.0  # at least this share of the softmax over all segments fell on the preselected ones


class Candidates(NamedTuple):
    """What preselection left of all shards."""

    query: Tensor  # [d] the folded query
    places: list[tuple[int, int]]  # (shard, position) of each
    memory: Tensor  # [k, m, d]
    dropped: int
    ceiling: float  # no memory embedding left out scores higher


def _segment(cited: Citation, weight: float, coverage: float) -> RecalledSegment:
    return RecalledSegment(
        cited.segment, weight, cited.text, cited.messages, cited.token_span, cited.created_at, coverage, cited.source
    )


def preselect(model: HMTModel, shards: Sequence[Shard], summary: Tensor, k: int, extra: Tensor | None = None) -> Candidates:
    """The k segments of each shard that a summary [d] asks for most; `extra` [e, m, d] are segments that follow the first's."""
    with torch.no_grad():
        query = model.recall.fold(summary[None])[0].float()
    found = Candidates(
        query, [], torch.zeros(0, model.slots, model.backbone.hidden_size, device=query.device), 0, float("-inf")
    )
    for at, shard in enumerate(shards):
        hits = shard.search(query.cpu().numpy(), k)
        memory = torch.from_numpy(hits.memory).to(query.device)
        places = [(at, int(position)) for position in hits.positions]
        one = Candidates(query, places, memory, shard.total - len(places), hits.ceiling)
        if at == 0 and extra is not None:
            latest = [(at, shard.total + offset) for offset in range(len(extra))]
            one = _best(one._replace(places=places + latest, memory=torch.cat([memory, extra.to(memory)])), k)
        found = Candidates(
            query,
            found.places + one.places,
            torch.cat([found.memory.to(one.memory.dtype), one.memory]),
            found.dropped + one.dropped,
            max(found.ceiling, one.ceiling),
        )
    return found


def _best(found: Candidates, k: int) -> Candidates:
    """The candidates with the k best embeddings (times m, where a segment has m), as an index over all would choose them."""
    scores = (found.memory.float() @ found.query).flatten()
    best = scores.topk(min(k * found.memory.shape[1], len(scores)))
    kept = list(dict.fromkeys((best.indices // max(1, found.memory.shape[1])).tolist()))
    left_out = len(found.places) - len(kept)
    ceiling = found.ceiling
    if left_out:
        lowest = float(best.values[-1])
        ceiling = max(ceiling, lowest + 1e-5 * abs(lowest))  # scores may differ by rounding
    places = [found.places[at] for at in kept]
    return Candidates(found.query, places, found.memory[kept], found.dropped + left_out, ceiling)


def weigh(model: HMTModel, found: Candidates) -> tuple[Tensor, float]:
    """Eq. 2-3 over candidates: weights [k] that sum to 1, and the covered share of the softmax over everything."""
    if not len(found.memory):
        return torch.zeros(0), 1.0
    with torch.no_grad():
        ceiling = torch.tensor([found.ceiling], device=found.memory.device)
        recalled = model.recall(found.query[None], found.memory[None], dropped=found.dropped, ceiling=ceiling, folded=True)
    return recalled.weights[0].cpu(), float(recalled.coverage.min())


def recall(model: HMTModel, shards: Sequence[Shard], query: str, top_k: int) -> RecalledSegments:
    """The segments of all shards that a text remembers most.

    Raises:
        InputError: the query is empty or `top_k` below 1.
    """
    ids = torch.tensor(model.backbone.encode(query, literal=True), dtype=torch.long)
    if not len(ids) or top_k < 1:
        raise InputError(
            "the query is empty: say what to recall for." if not len(ids) else f"top_k={top_k} must be at least 1."
        )
    result = RecalledSegments()
    if model.config.mode != "hmt" or not any(shard.total for shard in shards):
        return result
    with torch.no_grad(), eval_mode(model):
        (summary,) = model.summarize([ids[-(model.config.summary_length or 1) :]])
    found = preselect(model, shards, summary, max(model.config.recall_window, top_k))
    weights, result.coverage = weigh(model, found)
    for at in weights.argsort(descending=True, stable=True)[:top_k].tolist():
        shard, position = found.places[at]
        cited = shards[shard].cite(position)
        result.append(_segment(cited, float(weights[at]), result.coverage))
    return result


class ViewRecollection:
    """What one answer remembers: P recalls from all shards, and the best passages that are not visible are replayed.

    Args:
        own: whether the first shard is the answering stream's own. What the view shows of it is then not replayed, and
            segments that the state has beyond it are recalled too.
        replay: whether to replay at all.
    """

    def __init__(
        self, model: HMTModel, transcript: Transcript, shards: Sequence[Shard], *, own: bool, replay: bool = True
    ) -> None:
        self._model, self._transcript, self._shards = model, transcript, shards
        self._own, self._replay = own, replay
        self._found: tuple[Tensor, Candidates] | None = None
        self.recalled = RecalledSegments()  # what is replayed, once that is chosen

    def memory(self, summary: Tensor, state: HMTState) -> Tensor:
        """[k, m, d] what P recalls from."""
        return self._candidates(summary, state).memory

    def passages(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """[t] token ids of the quoted passages: the heaviest that fit into `replay_tokens`, in the order they were said."""
        found = self._candidates(summary, state)
        weights, self.recalled.coverage = weigh(self._model, found)
        quotes: dict[tuple[int, int], str] = {}
        ids: list[int] = []
        misfits = 0
        for at in weights.argsort(descending=True, stable=True).tolist() if self._replay else []:
            cited = self._hidden(found.places[at], state.tokens - visible)
            if cited is None:
                continue
            longer = quotes | {found.places[at]: cited.quote()}
            text = "\n\n".join(["Recalled from earlier:", *(longer[place] for place in sorted(longer))])
            block = self._transcript.aside(text)
            if len(block) > (self._model.config.replay_tokens or 0):
                misfits += 1
                if misfits == _MOST_MISFITS:
                    break
                continue
            quotes, ids = longer, block
            self.recalled.append(_segment(cited, float(weights[at]), self.recalled.coverage))
        return torch.tensor(ids, dtype=torch.long)

    def _hidden(self, place: tuple[int, int], visible_from: int) -> Citation | None:
        """The part of a segment that the view does not show anyway, if there is any."""
        shard, position = place
        if not (self._own and shard == 0):
            return self._shards[shard].cite(position)
        if position * self._model.config.segment_length >= visible_from:
            return None
        cited = self._shards[shard].cite(position, before=visible_from)
        return cited if cited.text.strip() else None

    def _candidates(self, summary: Tensor, state: HMTState) -> Candidates:
        if self._found is None or self._found[0] is not summary:
            beyond = state.segments - self._shards[0].total if self._own else 0
            extra = self._model.by_segment(state)[state.held - beyond :] if beyond > 0 else None
            found = preselect(self._model, self._shards, summary, self._model.config.recall_window, extra)
            self._found = (summary, found)
        return self._found[1]
