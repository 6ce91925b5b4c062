"""A memory without end for local language models: the Hierarchical Memory Transformer around any Hugging Face decoder.

>>> from hmt_memory import HMTConfig
>>> HMTConfig().segment_length
256
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import HMTConfig
from .errors import HMTError

if TYPE_CHECKING:
    from .assistant import Assistant
    from .calls import ToolCall
    from .corpus import Corpus
    from .generate import Generation, Usage
    from .memory_store import MemoryStore
    from .model import HMTModel, HMTOutput
    from .recollection import RecalledSegment
    from .session import Session
    from .state import HMTState

__version__ = "0.1.0"
__all__ = [
    "Assistant",
    "Corpus",
    "Generation",
    "HMTConfig",
    "HMTError",
    "HMTModel",
    "HMTOutput",
    "HMTState",
    "MemoryStore",
    "RecalledSegment",
    "Session",
    "ToolCall",
    "Usage",
]

_LAZY = {
    "Assistant": "assistant",
    "Corpus": "corpus",
    "Generation": "generate",
    "HMTModel": "model",
    "HMTOutput": "model",
    "HMTState": "state",
    "MemoryStore": "memory_store",
    "RecalledSegment": "recollection",
    "Session": "session",
    "ToolCall": "calls",
    "Usage": "generate",
}


def __getattr__(name: str) -> Any:
    """torch is imported with the first name that needs it."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
