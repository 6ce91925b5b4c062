"""What may read a corpus in other processes: engines by their names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ..model import HMTModel
    from .reading import Progress

_ENGINES = {"ray": ("hmt_memory.cluster.reading", "RayEngine")}  # found when they are named: their layer is above this one


class Engine(Protocol):
    """Reads stored documents, each to its end, by calling `Corpus.read_documents` where it likes."""

    def read(self, place: str, name: str, model: HMTModel, documents: Mapping[int, int], progress: Progress | None) -> None:
        """Read documents.

        Args:
            place: folder or address of the store.
            name: of the corpus.
            model: that reads.
            documents: their ids, with the tokens that are left to read of each.
            progress: called with the tokens read so far and the tokens to read.
        """
        ...


def engine_named(name: str) -> Engine:
    """Return the engine of a name, with its usual settings.

    Raises:
        InputError: none has that name.
    """
    if name not in _ENGINES:
        raise InputError(f"no engine is called {name!r}. Choose {', '.join(map(repr, _ENGINES))}, or leave it out.")
    module, engine = _ENGINES[name]
    made: Engine = getattr(importlib.import_module(module), engine)()
    return made
