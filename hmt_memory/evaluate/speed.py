"""The speed of a model on this machine: loading, reading, the first word after long histories, writing, recall, memory.

Histories are talk as users talk, stored with random memories, because reading a hundred thousand tokens takes minutes. All
that follows is the product as users meet it.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..engine.stretches import stretches
from ..errors import InputError
from ..sessions.memory_store import MemoryStore
from ..sessions.reading import TOGETHER
from ..store import lineage
from ..store.rows import SegmentRow, chain
from ..train.talk import small_talk
from .llama_cpp import LlamaCpp, Spent
from .report import Report, Table

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import HMTModel
    from ..sessions.session import Session
    from .answers import Loading

_QUESTION = {"role": "user", "content": "What did I say about the neighbours?"}
_WRITTEN = 32  # tokens of an answer
_BEHIND = 2048  # tokens that are written behind
_READ = 1024  # tokens that are read, as one text or as documents
_TURNS = 8  # of talk that are said at once
_ROLES = ("user", "assistant")
Rival = Callable[[int], LlamaCpp]  # makes it for prompts with answers of so many positions


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Raises:
        InputError: a number is too small.
    """

    history: tuple[int, ...] = (1_000, 10_000, 100_000)  # tokens said before
    segments: tuple[int, ...] = (10_000,)  # that recall chooses from
    rounds: int = 3

    def __post_init__(self) -> None:
        if min((*self.history, *self.segments, self.rounds), default=1) < 1:
            raise InputError("histories, segments and rounds must be at least 1.")


def measure(
    loading: Loading,
    plan: Plan | None = None,
    *,
    against: Rival | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure a model on this machine.

    Args:
        loading: the model, which is loaded here.
        plan: what is measured.
        against: makes what else reads and writes the same, in turns with it, for so many positions.
        settings: what else the report records.
        progress: called with a line about what begins.
    """
    plan = plan or Plan()
    progress("loading")
    begun = time.perf_counter()
    model = loading.load()
    rows: list[list[Any]] = [["loading, imports included", time.perf_counter() - begun, "s"]]
    rows += _engine(model, plan, progress, against)
    with tempfile.TemporaryDirectory(prefix="hmt-bench-") as folder, MemoryStore(folder) as store:
        rows.append(_reading_together(store, model, plan.rounds, progress))
        for tokens in plan.history:
            rows += _answering(store, model, tokens, plan.rounds, progress)
        for segments in plan.segments:
            rows.append(_recalling(store, model, segments, plan.rounds, progress))
    if (peak := _peak_megabytes()) is not None:
        rows.append(["most memory in use", peak, "MB"])
    rows.append(["the whole measurement", time.perf_counter() - begun, "s"])
    described = {
        "model": model.backbone.name,
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "engine": model.backbone.engine,
        "view": asdict(model.view),
    }
    return Report(
        "bench",
        "The speed of one machine",
        {**described, **(settings or {}), **vars(plan)},
        [Table("Measured", ["what", "value", "unit"], rows)],
    )


def history(store: MemoryStore, model: HMTModel, name: str, tokens: int) -> Session:
    """Make a session in which about so many tokens were said and read; its memories and keys are random.

    Args:
        store: where to make it.
        model: the session's.
        name: of the session.
        tokens: how many were said, at least.
    """
    session = store.session(name, model)
    length, noise = model.config.segment_length, np.random.default_rng(0)
    chance = random.Random(name)
    with store.database.writing() as db:
        row = db.find_collection("session", name)
        assert row is not None
        while lineage.size(parts := lineage.of(db, row))[1] < tokens:
            talk = small_talk(chance, _TURNS, "evaluation")
            said = [{"role": role, "content": text} for turn in talk for role, text in zip(_ROLES, turn, strict=True)]
            batch = session._transcript.batch(said, first=not lineage.size(parts)[1])
            row, _ = session._append(db, row, parts, batch)
        whole = lineage.size(parts)[1] // length
        ids = lineage.tokens(db, parts, 0, whole * length).reshape(whole, length)
        digest = b""
        for number in range(whole):
            span = (number * length, (number + 1) * length)
            memory = _random(noise, (model.slots, model.backbone.hidden_size), scale=2.2)
            keys = None
            if model.config.key_dim:
                count = len(stretches(ids[number].tolist(), model.backbone.end_ids))
                keys = _random(noise, (count, model.config.key_dim), scale=model.config.key_dim**-0.5)
            digest = chain(digest, span, memory, keys)
            lineage.append_segments(db, parts, [SegmentRow(number, span, memory, keys, digest)])
    return session


def _random(noise: np.random.Generator, shape: tuple[int, int], *, scale: float) -> bytes:
    return (noise.standard_normal(shape, np.float32) * scale).astype("<f2").tobytes()


@torch.no_grad()
def _engine(model: HMTModel, plan: Plan, progress: Callable[[str], None], against: Rival | None) -> Iterator[list[Any]]:
    """Measure reading, and writing behind a long text, without a session."""
    backbone = model.backbone
    ids = torch.tensor(backbone.encode(_talk(0, 8 * _TURNS), literal=True))
    ids = ids.repeat(-(-_BEHIND // len(ids)))
    progress("reading")
    yield ["reading", _READ / _median(lambda: model.read(ids[:_READ]).memory.cpu(), plan.rounds), "tokens/s"]
    behind = min(_BEHIND, (backbone.positions or _BEHIND) - _WRITTEN - 1)
    prompt = ids[:behind]
    progress(f"writing behind {behind:,} tokens")
    other = None if against is None else against(behind + _WRITTEN + 1)
    ours, theirs = [], []
    for _ in range(plan.rounds + 1):  # the first warms up
        ours.append(_written(model, prompt))
        if other is not None:
            theirs.append(other.answer(prompt.tolist(), _WRITTEN))
    for whose, spent in (("", ours[1:]), (", llama.cpp", theirs[1:])):
        if spent:
            yield [f"prompt of {behind:,} tokens{whose}", behind / statistics.median(one.prompt for one in spent), "tokens/s"]
            writing = statistics.median(one.writing for one in spent)
            yield [f"writing behind {behind:,} tokens{whose}", _WRITTEN / writing, "tokens/s"]


def _talk(seed: int, turns: int) -> str:
    return "\n".join(text for turn in small_talk(random.Random(seed), turns, "evaluation") for text in turn)


def _reading_together(store: MemoryStore, model: HMTModel, rounds: int, progress: Callable[[str], None]) -> list[Any]:
    """Measure the reading of a corpus: several documents in lockstep, and their rows and keys into the store."""
    progress(f"reading {TOGETHER} documents of a corpus together")
    ids = [model.backbone.encode(_talk(number, 2 * _TURNS), literal=True) for number in range(TOGETHER)]
    texts = [model.backbone.decode(each[: _READ // TOGETHER]) for each in ids]
    names = iter(range(rounds + 1))
    spent = _median(lambda: store.corpus(f"round {next(names)}", model).add_documents(texts), rounds)
    tokens = sum(len(model.backbone.encode(text, literal=True)) for text in texts)
    return [f"reading {TOGETHER} documents of a corpus together", tokens / spent, "tokens/s"]


def _written(model: HMTModel, prompt: Tensor) -> Spent:
    """Read a prompt [t], and write greedily behind it."""
    backbone = model.backbone
    begun = time.perf_counter()
    hidden, cache = backbone.advance(backbone.embed(prompt.to(backbone.device))[None])
    chosen = backbone.head(hidden).argmax(dim=-1)
    chosen.tolist()  # waits for it
    first = time.perf_counter()
    for _ in range(_WRITTEN):
        hidden, cache = backbone.advance(backbone.embed(chosen)[None], cache)
        chosen = backbone.head(hidden).argmax(dim=-1)
        chosen.tolist()
    return Spent(first - begun, time.perf_counter() - first)


def _answering(
    store: MemoryStore, model: HMTModel, tokens: int, rounds: int, progress: Callable[[str], None]
) -> Iterator[list[Any]]:
    """Measure answers in a session: the first one, which opens it, and those that follow."""
    progress(f"answering after {tokens:,} tokens")
    session = history(store, model, f"{tokens} tokens", tokens)
    firsts, speeds = [], []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        reply = session.reply(_QUESTION, max_new_tokens=_WRITTEN, min_new_tokens=_WRITTEN)
        next(reply)
        firsts.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        reply.finish()
        speeds.append((_WRITTEN - 1) / (time.perf_counter() - begun))
    yield [f"first word after {tokens:,} tokens, as the session opens", firsts[0], "s"]
    yield [f"first word after {tokens:,} tokens", statistics.median(firsts[1:]), "s"]
    yield [f"writing after {tokens:,} tokens", statistics.median(speeds[1:]), "tokens/s"]


def _recalling(store: MemoryStore, model: HMTModel, segments: int, rounds: int, progress: Callable[[str], None]) -> list[Any]:
    """Measure recall in a session of so many segments, beside the pass of the question."""
    progress(f"recalling from {segments:,} segments")
    session = history(store, model, f"{segments} segments", segments * model.config.segment_length)
    session.recall(_QUESTION["content"])  # opens the index
    spent = _median(lambda: session.recall(_QUESTION["content"]), rounds)
    return [f"recall from {segments:,} segments", spent * 1000, "ms"]


def _median(call: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call in seconds; a first one warms up."""
    call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _peak_megabytes() -> float | None:
    """Return the peak resident memory of this process; None where nobody knows (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
