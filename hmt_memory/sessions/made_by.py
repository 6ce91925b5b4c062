"""The model that made the memory of a session or corpus, and the remedy if it is another one. Imports no torch."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..config import DEFAULT_MODEL
from ..engine.fingerprint import Fingerprint
from ..errors import ModelMismatchError

if TYPE_CHECKING:
    from ..store.rows import CollectionRow
    from ..store.transaction import Transaction


def made_by(db: Transaction, row: CollectionRow) -> Fingerprint | None:
    """Return the fingerprint of the model that made the memory of a session or corpus; None where nothing was added yet."""
    if row.model is None:
        return None
    stored = db.model(row.model)
    return Fingerprint(stored.digest, stored.parts)


def check_made_by(db: Transaction, row: CollectionRow, fingerprint: Fingerprint) -> None:
    """Raise ModelMismatchError if another model made the memory of a session or corpus.

    Args:
        db: the transaction to look in.
        row: the session or corpus.
        fingerprint: of the model that wants to use it.
    """
    stored = made_by(db, row)
    if stored is not None and stored.digest != fingerprint.digest:
        command = rebuild_command(row.kind, row.name, model=str(fingerprint.parts["backbone"]["name"]))
        what = f"was made by {stored}, not by {fingerprint}"
        before, now = (made.parts["backbone"].get("quantization") or "not quantised" for made in (stored, fingerprint))
        if before != now:
            what += f" (its weights were {before}, these are {now})"
        raise mismatch(row.kind, row.name, what, f"rebuild(model), or {command}")


def mismatch(kind: str, name: str, what: str, command: str) -> ModelMismatchError:
    """Make the error for a session or corpus whose memory another model made.

    Args:
        kind: "session" or "corpus".
        name: its name.
        what: what shows that the model is another.
        command: reads it again with the wanted model.
    """
    return ModelMismatchError(
        f"the memory of {kind} {name!r} {what}, to which it means nothing. Open it with the model that made it, beside another "
        f"one that answers as its reader (--reader, reader=), or read its text anew with this one: {command}"
    )


def rebuild_command(kind: str, name: str, **options: str) -> str:
    """Write the command that reads a session or corpus again.

    Args:
        kind: "session" or "corpus".
        name: its name.
        **options: such as `model`; the default model is left out.
    """
    given = [part for key, value in options.items() if value != DEFAULT_MODEL for part in (f"--{key}", value)]
    return shlex.join(["hmt", "sessions" if kind == "session" else "corpora", "rebuild", name, *given])
