"""Sessions and stores as the tests look into them: messages, tokens, memories, bytes on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import postgres
from tiny import PlainText, byte_tokenizer

from hmt_memory import MemoryStore, Session
from hmt_memory.store import lineage

FAST: dict[str, Any] = {"max_new_tokens": 8}
DECODING: dict[str, Any] = {"max_new_tokens": 20, "logits_processors": [PlainText(byte_tokenizer())]}


def tokens_of(session: Session) -> list[int]:
    with session._database.reading() as db:
        parts = lineage.of(db, session._row(db))
        return lineage.tokens(db, parts, 0, lineage.size(parts)[1]).tolist()


def memory_of(session: Session) -> np.ndarray[Any, Any]:
    with session._reading():
        session._read_pending()
    with session._database.reading() as db:
        parts = lineage.of(db, session._row(db))
        rows = lineage.segments(db, parts, 0, lineage.segment_count(db, parts))
        return np.frombuffer(b"".join(row.memory + (row.keys or b"") for row in rows), "<f2").astype(np.float32)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bytes_in(folder: Path, *secrets: bytes) -> list[str]:
    """Files of a folder that hold any of these bytes, read by another process: a store is open in this one."""
    code = (
        "import sys, pathlib; folder, *secrets = sys.argv[1:];"
        "files = [path for path in pathlib.Path(folder).rglob('*') if path.is_file()];"
        "print(*sorted(path.name for path in files if any(bytes.fromhex(secret) in path.read_bytes() for secret in secrets)))"
    )
    call = [sys.executable, "-S", "-c", code, folder, *(secret.hex() for secret in secrets)]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()


def holds(store: MemoryStore, secret: bytes) -> bool:
    """Whether any file of a store holds these bytes; with a server, any row of content, or any file on this machine."""
    if isinstance(store.folder, Path):
        return bool(bytes_in(store.folder, secret))
    rows = postgres.run(store.folder, "SELECT data FROM payloads")
    return any(secret in data for (data,) in rows) or bool(bytes_in(store.database.cache, secret))
