"""Recall over stored memories: preselect through the index, attend exactly, cite the source, quote it for a view.

Knows collections as shards: numbered segments with an index and with words. One shard is a session's own past, others are
attached corpora; all of them compete in one softmax. P is recalled as the paper says. Which segments are listed and replayed
may also depend on the words they share with the query (`selection` in the configuration).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..engine.modes import eval_mode
from ..errors import InputError
from . import lexical
from .citations import Citation, Message, quote
from .passages import Choice, ranked
from .sources import Shard

if TYPE_CHECKING:
    from ..model import HMTModel

T = TypeVar("T")


@dataclass(frozen=True)
class RecalledSegment:
    """A passage that a query brings back, with its source: a message, a sentence of a long one, or of a document."""

    segment: int  # the one it was found in, counted from 0 in its session or document
    weight: float  # share of the scores of all passages that were looked at
    text: str  # verbatim
    messages: tuple[Message, ...]  # the message it is, or is a sentence of; none in a corpus
    token_span: tuple[int, int]  # [start, stop) in the tokens of its session or document, in which it stands
    created_at: datetime  # time of the first message, or of the document; UTC
    coverage: float  # at least this share of the softmax over all segments fell on the preselected ones
    source: str  # name of the session, or "corpus/document"
    document: int | None = None  # its id, in a corpus
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the document's

    @property
    def id(self) -> str:
        """The passage's name in its store, the same as long as its words are there: source, message or document, and words."""
        owner = self.messages[0].id if self.messages else self.segment if self.document is None else self.document
        return f"{self.source}:{owner}:{zlib.crc32(self.text.encode('utf-8', 'surrogatepass')):08x}"

    def quote(self) -> str:
        """Return the text as a model is shown it, with who said it, behind its time or source."""
        said = f"{self.messages[0].role}: {self.text}" if self.messages else self.text
        return quote(said, self.created_at if self.document is None else self.source)

    def to_dict(self) -> dict[str, Any]:
        """Return a short form, ready for JSON."""
        return {"segment": self.segment, "weight": self.weight, "text": self.text, "source": self.source}


def quoted(passages: Sequence[str]) -> str:
    """Join passages as a model is shown them."""
    return "\n\n".join(["Recalled from earlier:", *passages])


class RecalledSegments(list[RecalledSegment]):
    """Recalled segments by falling weight."""

    coverage: float = 1.0  # at least this share of the softmax over all segments fell on the preselected ones


class Candidates(NamedTuple):
    """The segments that preselection kept, over all shards."""

    query: Tensor  # [d] the folded query
    places: list[tuple[int, int]]  # (shard, position) of each
    memory: Tensor  # [k, m, d]; here and below, m counts only what may be recalled
    dropped: int
    ceiling: float  # no memory embedding left out scores higher


def segment(cited: Citation, weight: float, coverage: float) -> RecalledSegment:
    """Add weight and coverage to a citation.

    Args:
        cited: the citation.
        weight: its share of the softmax.
        coverage: the least share of the softmax on the preselected segments.
    """
    return RecalledSegment(
        segment=cited.segment,
        weight=weight,
        text=cited.text,
        messages=cited.messages,
        token_span=cited.token_span,
        created_at=cited.created_at,
        coverage=coverage,
        source=cited.source,
        document=cited.document,
        metadata=cited.metadata or {},
    )


def preselect(model: HMTModel, shards: Sequence[Shard], summary: Tensor, k: int, extra: Tensor | None = None) -> Candidates:
    """Select the k segments of each shard that a summary asks for most.

    Args:
        model: its recall projections fold the summary.
        shards: the collections to search.
        summary: [d].
        k: the number of segments of each shard.
        extra: [e, m, d] embeddings of segments that follow the first shard's.
    """
    with torch.no_grad():
        query = model.recall.fold(summary[None])[0].float()
    candidates = Candidates(
        query, [], torch.zeros(0, model.recalled_slots, model.backbone.hidden_size, device=query.device), 0, float("-inf")
    )
    for number, shard in enumerate(shards):
        hits = shard.search(query.cpu().numpy(), k)
        memory = torch.from_numpy(hits.memory).to(query.device)
        places = [(number, int(position)) for position in hits.positions]
        own = Candidates(query, places, memory, shard.total - len(places), hits.ceiling)
        if number == 0 and extra is not None:
            latest = [(number, shard.total + offset) for offset in range(len(extra))]
            own = _best(own._replace(places=places + latest, memory=torch.cat([memory, extra.to(memory)])), k)
        candidates = Candidates(
            query,
            candidates.places + own.places,
            torch.cat([candidates.memory.to(own.memory.dtype), own.memory]),
            candidates.dropped + own.dropped,
            max(candidates.ceiling, own.ceiling),
        )
    return candidates


def _best(candidates: Candidates, k: int) -> Candidates:
    """Keep the k best embeddings (times m, where a segment has m), as an index over all would."""
    scores = (candidates.memory.float() @ candidates.query).flatten()
    best = scores.topk(min(k * candidates.memory.shape[1], len(scores)))
    kept = list(dict.fromkeys((best.indices // max(1, candidates.memory.shape[1])).tolist()))
    left_out = len(candidates.places) - len(kept)
    ceiling = candidates.ceiling
    if left_out:
        lowest = float(best.values[-1])
        ceiling = max(ceiling, lowest + 1e-5 * abs(lowest))  # scores may differ by rounding
    places = [candidates.places[row] for row in kept]
    return Candidates(candidates.query, places, candidates.memory[kept], candidates.dropped + left_out, ceiling)


def weigh(model: HMTModel, candidates: Candidates) -> tuple[Tensor, float]:
    """Compute Eq. 2-3 over candidates: weights [k] that sum to 1, and the covered share of the softmax over everything."""
    if not len(candidates.memory):
        return torch.zeros(0), 1.0
    with torch.no_grad():
        ceiling = torch.tensor([candidates.ceiling], device=candidates.memory.device)
        recalled = model.recall(
            candidates.query[None], candidates.memory[None], dropped=candidates.dropped, ceiling=ceiling, folded=True
        )
    return recalled.weights[0].cpu(), float(recalled.coverage.min())


_NEAREST = 300  # keys by meaning that are looked at
# The weight of a segment's recall score beside that of its words, both in standard deviations.
_RECALL_SHARE = 1.0


def choose(
    model: HMTModel, shards: Sequence[Shard], candidates: Candidates, query: str, k: int, extra: Tensor | None = None
) -> Choice:
    """Choose the segments to list or replay for a query: by recall over the candidates, by its words, or by both.

    With both, the logits are the sum of the two scores, each in standard deviations: of the words over all segments, of
    recall over those preselected. Untrained recall means nothing and is left out; so are words that stand nowhere.

    Args:
        model: its view says by what to choose.
        shards: the collections to search.
        candidates: as `preselect` returns them.
        query: its words count.
        k: the number of segments.
        extra: as in `preselect`.
    """
    method = model.view.selection
    by_recall = method != "words" and model.config.mode == "hmt" and bool(candidates.places)
    wanted = lexical.distinct_terms(query)
    postings = [] if method == "recall" else [shard.find(wanted) for shard in shards]
    values = lexical.scores(postings) if postings else [np.zeros(0)]
    worth = lexical.rarities(wanted, postings) if postings else {}
    every = np.concatenate(values)
    if not every.any():
        return _by_recall(model, candidates)._replace(worth=worth) if by_recall else Choice([], [], 1.0, worth)
    every = (every - every.mean()) / (every.std() + 1e-9)
    first = np.cumsum([0, *map(len, values)])
    best = np.argsort(-every, kind="stable")[:k]
    places = [
        (int(shard), int(index - first[shard])) for index in best for shard in [np.searchsorted(first, index, side="right") - 1]
    ]
    logits, beyond = every[best], float("-inf")
    if by_recall and model.is_trained:
        memory, embedded = _with_embeddings(shards, candidates, places, extra)
        scores = (memory.float() @ candidates.query).mean(dim=1).cpu().numpy()
        spread, middle = scores.std() + 1e-9, scores.mean()
        recalled = dict(zip(embedded, (scores - middle) / spread, strict=True))
        places = [*embedded, *(place for place in places if place not in recalled)]  # no index has a draft's segments
        known = [every[first[shard] + position] if position < len(values[shard]) else 0.0 for shard, position in places]
        logits = np.array(known) + _RECALL_SHARE * np.array([recalled.get(place, 0.0) for place in places])
        beyond = _RECALL_SHARE * (candidates.ceiling - middle) / spread
    elif len(best) < len(every):
        beyond = 0.0
    dropped = len(every) - sum(position < len(values[shard]) for shard, position in places)
    # No segment that was left out has a higher score by words than the last of the best.
    return _weighed(places, logits, dropped, float(every[best[-1]]) + beyond)._replace(worth=worth)


def _by_recall(model: HMTModel, candidates: Candidates) -> Choice:
    weights, coverage = weigh(model, candidates)
    order = weights.argsort(descending=True, stable=True).tolist()
    return Choice([candidates.places[row] for row in order], [float(weights[row]) for row in order], coverage)


def _with_embeddings(
    shards: Sequence[Shard], candidates: Candidates, places: list[tuple[int, int]], extra: Tensor | None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return the memory [k, m, d] of the candidates and of further `places`, and all of their places."""
    known = set(candidates.places)
    memory, all_places = [candidates.memory.float()], list(candidates.places)
    for number, shard in enumerate(shards):
        missing = [
            position
            for owner, position in places
            if owner == number and position < shard.total and (owner, position) not in known
        ]
        if missing:
            memory.append(torch.from_numpy(shard.embeddings(missing)).to(candidates.memory.device).float())
            all_places += [(number, position) for position in missing]
    if extra is not None:
        first = shards[0].total
        missing = [
            position - first
            for owner, position in places
            if owner == 0 and first <= position < first + len(extra) and (owner, position) not in known
        ]
        memory.append(extra[missing].to(candidates.memory.device).float())
        all_places += [(0, first + offset) for offset in missing]
    return torch.cat(memory), all_places


def _weighed(places: list[tuple[int, int]], logits: np.ndarray, dropped: int, ceiling: float) -> Choice:
    order = np.argsort(-logits, kind="stable")
    mass = np.exp(logits - logits.max())
    covered = mass.sum() / (mass.sum() + dropped * np.exp(min(ceiling - logits.max(), 50.0))) if dropped else 1.0
    weights = mass / mass.sum()
    return Choice([places[row] for row in order], [float(weights[row]) for row in order], float(covered))


MOST_RECALLED = 1000  # passages of one call
Sources = Callable[[Callable[[Sequence[Shard]], T]], T]  # runs a function over shards of one view of the rows


def alone(shard: Shard) -> Sources[Any]:
    """Return the sources of a stream that nothing is stored of."""
    return lambda work: work([shard])


def recall(model: HMTModel, sources: Sources[RecalledSegments], query: str, top_k: int) -> RecalledSegments:
    """Return the passages of all shards that a text remembers most.

    Args:
        model: the model that recalls.
        sources: gives the shards, as of one view of the rows.
        query: the text.
        top_k: the number of passages, of which `MOST_RECALLED` at most are given.

    Raises:
        InputError: the query is empty or `top_k` below 1.
    """
    if not query.strip() or top_k < 1:
        raise InputError(
            "the query is empty: say what to recall for." if not query.strip() else f"top_k={top_k} must be at least 1."
        )
    asked = query_of(model, query)
    return sources(lambda shards: _listed(model, shards, asked, query, min(top_k, MOST_RECALLED)))


class Query(NamedTuple):
    """A question as recall compares it."""

    summary: Tensor | None  # [d], Eq. 1 for its end; None: the model recalls nothing
    key: Tensor | None  # [d_key]; None: the model makes no keys by meaning


def query_of(model: HMTModel, query: str) -> Query:
    """Compute what a question is compared by."""
    ids = torch.tensor(model.backbone.encode(query, literal=True), dtype=torch.long)
    if not len(ids):
        return Query(None, None)
    with eval_mode(model):
        if model.config.mode != "hmt":
            return Query(None, model.question_key(ids))
        return Query(*model.asked(ids))


def key_of(model: HMTModel, query: str) -> Tensor | None:
    """Compute the key of a question; None if the model makes no keys by meaning."""
    with eval_mode(model):
        return model.question_key(torch.tensor(model.backbone.encode(query, literal=True), dtype=torch.long))


def nearest(model: HMTModel, shards: Sequence[Shard], key: Tensor | None) -> dict[tuple[int, int], dict[int, float]]:
    """Compare a question's key with those of all segments: scores of the best by place and number, the best place first.

    Args:
        model: its view says whether meaning counts.
        shards: the collections to search.
        key: [d_key]; None: nothing is near.
    """
    if key is None or model.view.selection == "words" or not key.any():
        return {}
    wanted = key.float().numpy()
    hits = [
        (hit.score, (number, hit.position), hit.number)
        for number, shard in enumerate(shards)
        for hit in shard.nearest(wanted, _NEAREST)
    ]
    scores: dict[tuple[int, int], dict[int, float]] = {}
    for score, place, number in sorted(hits, reverse=True)[:_NEAREST]:
        scores.setdefault(place, {})[number] = score
    return scores


def _listed(model: HMTModel, shards: Sequence[Shard], asked: Query, query: str, top_k: int) -> RecalledSegments:
    result = RecalledSegments()
    if not any(shard.total for shard in shards):
        return result
    k = max(model.config.recall_window, top_k)
    candidates = nothing(model) if asked.summary is None else preselect(model, shards, asked.summary, k)
    chosen = choose(model, shards, candidates, query, k)._replace(nearest=nearest(model, shards, asked.key))
    result.coverage = chosen.coverage
    passages = ranked(shards, chosen, query, enough=2 * top_k)
    total = sum(passage.score for passage in passages)
    result.extend(segment(passage.cited, passage.score / total, result.coverage) for passage in passages[:top_k])
    return result


def nothing(model: HMTModel) -> Candidates:
    """Return no candidates, for a model that recalls nothing."""
    none = torch.zeros(0, model.recalled_slots, model.backbone.hidden_size)
    return Candidates(none.new_zeros(model.backbone.hidden_size), [], none, 0, float("-inf"))
