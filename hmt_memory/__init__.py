"""A memory without end for local language models: the Hierarchical Memory Transformer around any Hugging Face decoder.

>>> from hmt_memory import HMTConfig
>>> HMTConfig().segment_length
256
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .config import HMTConfig, ViewConfig
from .errors import HMTError

if TYPE_CHECKING:
    from .assistant.assistant import Assistant
    from .chat.tools import ToolCall
    from .engine.decoding import Decoding
    from .engine.generate import Generation, Usage
    from .engine.state import HMTState
    from .model import HMTModel, HMTOutput
    from .retrieval.ranking import RecalledSegment
    from .sessions.corpus import Corpus
    from .sessions.memory_store import MemoryStore
    from .sessions.session import Session
    from .sessions.tiers import Tiers
    from .store.backend import Capability

__all__ = [
    "Assistant",
    "Capability",
    "Corpus",
    "Decoding",
    "Generation",
    "HMTConfig",
    "HMTError",
    "HMTModel",
    "HMTOutput",
    "HMTState",
    "MemoryStore",
    "RecalledSegment",
    "Session",
    "Tiers",
    "ToolCall",
    "Usage",
    "ViewConfig",
]

_LAZY = {
    "Assistant": "assistant.assistant",
    "Capability": "store.backend",
    "Corpus": "sessions.corpus",
    "Decoding": "engine.decoding",
    "Generation": "engine.generate",
    "HMTModel": "model",
    "HMTOutput": "model",
    "HMTState": "engine.state",
    "MemoryStore": "sessions.memory_store",
    "RecalledSegment": "retrieval.ranking",
    "Session": "sessions.session",
    "Tiers": "sessions.tiers",
    "ToolCall": "chat.tools",
    "Usage": "engine.generate",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used; only then is torch loaded."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
