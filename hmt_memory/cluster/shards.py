"""A corpus whose indexes lie in several processes of a Ray cluster: each holds those of some documents.

Words, keys and memory embeddings are searched where they lie, and what is found is merged into what one index would have
found. The rows in the store stay the truth: a process that dies is started again and reads its part from them.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hmt_kernels

from ..engine.text import TextCodec
from ..errors import InputError
from ..retrieval.ranking import query_of
from ..retrieval.sources import CorpusShard, Indexes
from ..sessions.corpus import Corpus
from ..sessions.indexing import Shape, new_indexes
from ..sessions.memory_store import MemoryStore
from ..store.index.base import Halves
from ..store.index.derived import RewrittenError
from ..store.index.vectors import Bound, Hits, KeyHit
from ..store.index.words import Postings
from ..store.shelf import Shelf
from .connection import check_place, connect

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..model import HMTModel
    from ..store.rows import CollectionRow
    from ..store.transaction import Transaction

_AT_ONCE = 8192  # segments that are attended to at once
_NOWHERE = Path("nowhere")  # parts are never saved


class Found(NamedTuple):
    """What a part has found."""

    hits: Hits
    bound: Bound


class _Codec(TextCodec):
    def __init__(self, tokenizer: Any) -> None:
        self.name, self.tokenizer = "shard", tokenizer


class Part:
    """The indexes of some documents.

    Args:
        place: folder or address of the store.
        shape: of the model that made the memory.
        tokenizer: of that model.
    """

    def __init__(self, place: str, shape: Shape, tokenizer: Any) -> None:
        self._database = MemoryStore(place, read_only=True).database
        self._indexes = new_indexes((_NOWHERE,) * 3, shape, _Codec(tokenizer).decode)
        self._shape, self._shelf = shape, Shelf(())

    def process(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    def take(self, shelf: Shelf) -> None:
        """Take over which documents these are, and as of when."""
        self._shelf = shelf

    def answer(self, version: tuple[int, int, int], method: str, *arguments: Any) -> Any:
        """Answer a query; None: this part has not taken over that version yet.

        Args:
            version: of the whole shelf.
            method: the query.
            *arguments: its own.

        Raises:
            RewrittenError: documents were erased since.
        """
        if self._shelf.version != version:
            return None
        with self._database.reading() as db:
            row = db.collection(version[0])
            if row is None or row.epoch != version[1]:
                raise RewrittenError("the corpus was rewritten meanwhile. Try again.")
            return getattr(self, method)(db, *arguments)

    def search(self, db: Transaction, query: NDArray[np.float32], k: int) -> Found:
        """Find the segments with the best embeddings.

        Args:
            db: the transaction to read rows in.
            query: [d] folded query.
            k: how many, at most.
        """
        return Found(self._indexes.memory.search(db, self._shelf, query, k), self._indexes.memory.bound)

    def find(self, db: Transaction, words: Sequence[str]) -> Postings:
        """Find words."""
        return self._indexes.words.find(db, self._shelf, words)

    def nearest(self, db: Transaction, key: NDArray[np.float32], k: int) -> list[KeyHit]:
        """Find the nearest keys by meaning.

        Args:
            db: the transaction to read rows in.
            key: [key_dim] of a question.
            k: how many, at most.
        """
        assert self._indexes.keys is not None
        return self._indexes.keys.search(db, self._shelf, key, k)

    def embeddings(self, db: Transaction, positions: NDArray[np.int64]) -> Halves:
        """Return memory embeddings."""
        return self._indexes.memory.embeddings(db, self._shelf, positions)

    def attend(self, db: Transaction, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute Eq. 2-3 over all segments: the outputs [m, d] and the log-sum-exp [m] of their scores."""
        slots = self._shape.slots
        asked = torch.from_numpy(query).expand(slots, -1)
        outputs, sums = [torch.zeros(slots, self._shape.width)], [torch.full((slots,), float("-inf"))]
        for start in range(0, self._shelf.total, _AT_ONCE):
            positions = np.arange(start, min(start + _AT_ONCE, self._shelf.total))
            memory = torch.from_numpy(self.embeddings(db, positions).astype(np.float32))  # [n, m, d]
            recalled = hmt_kernels.recall(asked, memory.transpose(0, 1))
            outputs.append(recalled.output)
            sums.append(recalled.lse)
        output, total = hmt_kernels.merge(torch.stack(outputs), torch.stack(sums)) if len(sums) > 1 else (outputs[0], sums[0])
        return output.numpy(), total.numpy()


class _Parts:
    """The parts of one corpus, and which documents each has: those whose ids lie between two cuts."""

    def __init__(self, ray: Any, actors: Sequence[Any], cuts: Sequence[int]) -> None:
        self._ray, self._actors, self._cuts, self._asking = ray, actors, cuts, threading.Lock()
        self._known: tuple[Any, list[Shelf], NDArray[np.int64]] | None = None

    def ask(self, shelf: Shelf, method: str, *arguments: Sequence[Any]) -> list[Any]:
        """Ask all parts at once. Returns their answers in order.

        Args:
            shelf: the whole.
            method: of `Part`.
            *arguments: one for each part, of each argument.
        """
        each = list(zip(*arguments, strict=True))
        with self._asking:  # a part knows one version at a time
            shelves, _ = self.split(shelf)
            answers = self._fetched([self._call(number, shelf, method, each[number]) for number in range(len(each))])
            while unknown := [number for number, answer in enumerate(answers) if answer is None]:
                for number in unknown:
                    self._actors[number].take.remote(shelves[number])
                again = self._fetched([self._call(number, shelf, method, each[number]) for number in unknown])
                for number, answer in zip(unknown, again, strict=True):
                    answers[number] = answer
        return answers

    def split(self, shelf: Shelf) -> tuple[list[Shelf], NDArray[np.int64]]:
        """Return the shelves of all parts, and the position of the first segment of each."""
        if self._known is None or self._known[0] != shelf.version:
            edges = [bisect_left(shelf.documents, cut) for cut in self._cuts]
            edges = [0, *edges, len(shelf.documents)]
            shelves = [
                Shelf(shelf.volumes[start:stop], shelf.version, shelf.documents[start:stop]) for start, stop in pairwise(edges)
            ]
            self._known = (shelf.version, shelves, np.array([shelf.starts[edge] for edge in edges[:-1]], np.int64))
        return self._known[1], self._known[2]

    def _call(self, number: int, shelf: Shelf, method: str, arguments: Sequence[Any]) -> Any:
        return self._actors[number].answer.remote(shelf.version, method, *arguments)

    def _fetched(self, calls: Sequence[Any]) -> list[Any]:
        try:
            answers: list[Any] = self._ray.get(list(calls))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        return answers

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors:
            self._ray.kill(actor)


class _Memory:
    """The memory indexes of all parts as one."""

    def __init__(self, parts: _Parts, shards: int) -> None:
        self._parts, self._shards = parts, shards

    def search(self, db: Transaction, shelf: Shelf, query: NDArray[np.float32], k: int) -> Hits:
        """Return the segments with the k best embeddings (times m, where a segment has m), as one index would."""
        found: list[Found] = self._parts.ask(shelf, "search", [query] * self._shards, [k] * self._shards)
        starts = self._parts.split(shelf)[1]
        positions = np.concatenate([start + each.hits.positions for start, each in zip(starts, found, strict=True)])
        memory = np.concatenate([each.hits.memory for each in found])
        slots = memory.shape[1]
        if not len(positions):
            return Hits(positions, memory, float("-inf"))
        scores = (memory.astype(np.float32) @ query).ravel()
        best = np.argsort(-scores, kind="stable")[: k * max(1, slots)]
        rows = np.array(list(dict.fromkeys((best // slots).tolist())), np.int64)
        bounds = [each.bound for each in found]
        bound = Bound(
            max(each.longest for each in bounds), max(each.rounding for each in bounds), all(each.exact for each in bounds)
        )
        ceiling = bound.ceiling(query, float(scores[best[-1]])) if len(rows) < shelf.total else float("-inf")
        return Hits(positions[rows], memory[rows], ceiling)

    def embeddings(self, db: Transaction, shelf: Shelf, positions: NDArray[np.int64]) -> Halves:
        """Return the memory embeddings [k, m, d] of segments."""
        starts = self._parts.split(shelf)[1]
        owners = np.searchsorted(starts, positions, side="right") - 1
        wanted = [positions[owners == number] - start for number, start in enumerate(starts)]
        order = np.argsort(np.concatenate([np.flatnonzero(owners == number) for number in range(self._shards)]))
        found: Halves = np.concatenate(self._parts.ask(shelf, "embeddings", wanted))
        return found[order]

    def attend(self, shelf: Shelf, query: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Compute Eq. 2-3 over all segments of all parts."""
        answers = self._parts.ask(shelf, "attend", [query] * self._shards)
        outputs, sums = (torch.from_numpy(np.stack(column)) for column in zip(*answers, strict=True))
        return hmt_kernels.merge(outputs, sums)


class _Words:
    """The word indexes of all parts as one."""

    def __init__(self, parts: _Parts, shards: int) -> None:
        self._parts, self._shards = parts, shards

    def find(self, db: Transaction, shelf: Shelf, query: Sequence[str], until: int | None = None) -> Postings:
        """Return the postings of distinct words."""
        found: list[Postings] = self._parts.ask(shelf, "find", [list(query)] * self._shards)
        starts = self._parts.split(shelf)[1]
        words = [
            (
                np.concatenate([start + each.found[word][0] for start, each in zip(starts, found, strict=True)]),
                np.concatenate([each.found[word][1] for each in found]),
            )
            for word in range(len(query))
        ]
        firsts = np.concatenate([start + each.starts for start, each in zip(starts, found, strict=True)])
        return Postings(np.concatenate([each.lengths for each in found]), words, firsts)


class _Keys:
    """The indexes of keys by meaning of all parts as one."""

    def __init__(self, parts: _Parts, shards: int) -> None:
        self._parts, self._shards = parts, shards

    def search(self, db: Transaction, shelf: Shelf, key: NDArray[np.float32], k: int) -> list[KeyHit]:
        """Return the k best keys, by falling score."""
        found: list[list[KeyHit]] = self._parts.ask(shelf, "nearest", [key] * self._shards, [k] * self._shards)
        starts = self._parts.split(shelf)[1].tolist()
        hits = [hit._replace(position=start + hit.position) for start, each in zip(starts, found, strict=True) for hit in each]
        return sorted(hits, key=lambda hit: -hit.score)[:k]


class ShardedCorpus(Corpus):
    """A corpus that is searched by several processes; `sharded` makes it. Close it, or use it as a context."""

    def __init__(self, store: MemoryStore, row: CollectionRow, model: HMTModel, *, shards: int, cpus: float) -> None:
        super().__init__(store, row, model)
        ray = connect()
        check_place(ray, str(store.folder))
        with self._database.reading() as db:
            shelf = store.shelf(self._own_row(db))
        shape = store.shape(model, self._made_by.digest)
        part = ray.remote(Part).options(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)
        actors = [part.remote(str(store.folder), shape, model.backbone.tokenizer) for _ in range(shards)]
        self._parts = _Parts(ray, actors, cuts_of(shelf, shards))
        self._memory = _Memory(self._parts, shards)
        keys = _Keys(self._parts, shards) if shape.key_width else None
        self._indexes = Indexes(*cast(Any, (self._memory, _Words(self._parts, shards), keys)))  # they search, no more is asked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The corpus stays in the store."""
        self._parts.close()

    def prompt(self, text: str) -> tuple[Tensor, Tensor]:
        """Recall the memorisation prompt of a text from all segments, none of them left out.

        Returns:
            P [m, d] of Eq. 3, and the log-sum-exp [m] of its scores, both in float32: merged from those of the shards.

        Raises:
            InputError: the text is empty, the corpus is, or the model recalls nothing.
        """
        model = self._needs_model()
        summary = query_of(model, text).summary if text.strip() else None
        if summary is None or not self.stats()["segments"]:
            raise InputError("there is no text, no document, or no recall in this model: nothing can be recalled.")
        with torch.no_grad():
            query = model.recall.fold(summary[None])[0].float().cpu().numpy()
        merged: tuple[Tensor, Tensor] = self._sources(())(lambda shards: self._memory.attend(shards[0].shelf, query))
        return merged

    def _shard(self) -> CorpusShard:
        with self._database.reading() as db:
            row, backbone = self._own_row(db), self._needs_model().backbone
            shard = CorpusShard(self._database, self._indexes, self._store.shelf(row), row.name, backbone.decode)
        shard.end_ids = backbone.end_ids
        return shard


def sharded(store: MemoryStore, name: str, model: HMTModel, *, shards: int, cpus: float = 1.0) -> ShardedCorpus:
    """Open a corpus with its indexes in so many processes, each of which has about as many segments.

    Documents that are added later go to the last one, until the corpus is opened anew.

    Args:
        store: holds the corpus.
        name: of the corpus, which is made if there is none.
        model: reads, recalls and answers.
        shards: processes.
        cpus: of each.

    Raises:
        MissingDependencyError: the extra `ray` is not installed.
        ModelMismatchError: another model made its memory.
        InputError: `shards` is less than 1, or the store is a folder and the cluster has several machines.
    """
    if shards < 1:
        raise InputError(f"shards={shards} must be at least 1.")
    store.corpus(name, model)
    with store.database.reading() as db:
        row = store.find(db, "corpus", name)
    return ShardedCorpus(store, row, model, shards=shards, cpus=cpus)


def cuts_of(shelf: Shelf, shards: int) -> list[int]:
    """Return the ids of documents that begin the second and later of so many parts, about equally large."""
    ends = [shelf.total * part / shards for part in range(1, shards)]
    edges = [bisect_left(shelf.starts, end) for end in ends]
    behind = (shelf.documents[-1] + 1) if shelf.documents else 0
    return [shelf.documents[edge] if edge < len(shelf.documents) else behind for edge in edges]
