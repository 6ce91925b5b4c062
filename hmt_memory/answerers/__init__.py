"""Models elsewhere that answer: from notes behind any server of OpenAI's API, or from embeddings, in vLLM with our weights.

Importing a name from here loads neither the client nor vLLM; they come with the first object.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat_server import ChatServer
    from .vllm_engine import VLLMEngine
    from .vllm_server import VLLMServer

__all__ = ["ChatServer", "VLLMEngine", "VLLMServer"]

_LAZY = {"ChatServer": ".chat_server", "VLLMEngine": ".vllm_engine", "VLLMServer": ".vllm_server"}


def __getattr__(name: str) -> Any:
    """Import a name with its first use."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
