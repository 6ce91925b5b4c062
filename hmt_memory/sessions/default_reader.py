"""The model that reads where nobody has named one: an untrained memory costs time and recalls nothing.

Knows the files of models and who has made a memory; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DEFAULT_MODEL
from ..engine import places
from ..engine.outline import difference, sources
from ..errors import ModelNotFoundError

if TYPE_CHECKING:
    from ..engine.fingerprint import Fingerprint
    from .memory_store import MemoryStore

SAME = "same"  # names the model itself as the one that reads


def default_reader(model: str, adapter: str | Path | None = None, config: object = None) -> str | None:
    """Return the name of the bundled model, to read for a model whose memory is not trained.

    Args:
        model: its name, as for `HMTModel.from_pretrained`.
        adapter: its adapter. Whoever gives one, or "none", wants this model to read.
        config: sizes of an untrained memory; the same goes for them.

    Returns:
        None where the model reads itself: its memory is trained, something is given, or the bundled model is not installed.
    """
    if adapter is not None or config is not None or sources(model, None).adapter is not None:
        return None
    try:
        places.bundled_file(DEFAULT_MODEL)
    except ModelNotFoundError:
        return None
    return DEFAULT_MODEL


def reads_itself(model: str, made: Iterable[Fingerprint]) -> bool:
    """Return whether memories that are stored already are those of a model itself, and not the bundled one's.

    As far as files tell: opening them compares the weights.

    Args:
        model: its name.
        made: the makers of the memories; if there are none, they are nobody's.
    """
    known = list(made)
    reader, own = sources(DEFAULT_MODEL, None), sources(model, None)
    return bool(known) and all(difference(reader, by.parts) and difference(own, by.parts) is None for by in known)


def makers(store: MemoryStore, kind: str, names: Iterable[str]) -> list[Fingerprint]:
    """Return the models that have made the memories of sessions, with the corpora attached to them, or of corpora.

    Args:
        store: holds them.
        kind: "session" or "corpus".
        names: theirs; a name that is new has none.
    """
    known = [name for name in names if store.has(kind, name)]
    if kind == "corpus":
        return [by for name in known if (by := store.corpus(name).made_by()) is not None]
    sessions = [store.session(name) for name in known]
    attached = {corpus for session in sessions for corpus in session.stats()["corpora"]}
    own = [by for session in sessions if (by := session.made_by()) is not None]
    return [*own, *makers(store, "corpus", sorted(attached))]
