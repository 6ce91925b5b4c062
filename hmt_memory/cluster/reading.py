"""Reading a corpus by many workers, with Ray Data. The documents are stored before; each worker stores what it has read.

A worker that dies leaves whole chunks: another one goes on behind them. Nothing is stored twice, whoever reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..sessions.memory_store import MemoryStore
from ..sessions.reading import TOGETHER
from .connection import check_place, connect

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..sessions.reading import Progress

_PATIENCE = 120.0  # seconds to wait for others that write


@dataclass(frozen=True)
class RayEngine:
    """Workers on a Ray cluster, each with a model of its own.

    Args:
        workers: at most; None: as many as the cluster has room for.
        cpus: of a worker.
        gpus: of a worker.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def read(self, place: str, name: str, model: HMTModel, documents: Mapping[int, int], progress: Progress | None) -> None:
        """Read documents.

        Args:
            place: folder or address of the store.
            name: of the corpus.
            model: that reads; a copy goes to each worker.
            documents: their ids, with the tokens that are left to read of each.
            progress: called with the tokens read so far and the tokens to read.

        Raises:
            MissingDependencyError: the extra `ray` is not installed.
            InputError: the cluster has no room for a worker, or the store is a folder and it has several machines.
        """
        ray = connect()
        check_place(ray, place)
        from ray.data import ActorPoolStrategy, DataContext, from_items

        DataContext.get_current().enable_progress_bars = False
        longest = sorted(documents, key=lambda number: -documents[number])
        most = min(self._room(ray), -(-len(longest) // TOGETHER))
        rows = from_items(
            [{"document": number, "tokens": documents[number]} for number in longest],
            override_num_blocks=-(-len(longest) // TOGETHER),
        )
        read = rows.map_batches(
            _Worker,
            fn_constructor_args=(place, name, [ray.put(model)]),
            batch_size=None,
            compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        done, total = 0, sum(documents.values())
        for batch in read.iter_batches(batch_size=None, prefetch_batches=0):
            done += int(batch["tokens"].sum())
            if progress is not None:
                progress(done, total)

    def _room(self, ray: Any) -> int:
        """Return how many workers there may be.

        Raises:
            InputError: none.
        """
        cluster = ray.cluster_resources()
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        room = min((int(cluster.get(kind, 0) / each) for kind, each in needs.items() if each), default=len(ray.nodes()))
        room = room if self.workers is None else min(room, self.workers)
        if room < 1:
            raise InputError(f"the cluster has no room for a worker with {self.cpus:g} CPUs and {self.gpus:g} GPUs.")
        return room


class _Worker:
    """A process that reads.

    Args:
        place: folder or address of the store.
        name: of the corpus.
        model: that reads: a reference to it, in a list, so that it is fetched here.
    """

    def __init__(self, place: str, name: str, model: list[Any]) -> None:
        ray = connect()
        self._corpus = MemoryStore(place, timeout=_PATIENCE).corpus(name, ray.get(model[0]))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Read documents."""
        self._corpus.read_documents(batch["document"].tolist())
        return batch
