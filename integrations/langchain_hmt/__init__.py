"""HMT memory for LangChain: a chat model, an LLM, a retriever and a message history on local models, offline.

Importing this loads neither torch nor weights; they come with the first call.
"""

from __future__ import annotations

try:
    import langchain_core as _  # noqa: F401
except ImportError as error:
    raise ImportError("langchain_hmt needs LangChain. Run: pip install 'hmt-memory[langchain]'") from error

import importlib
from typing import TYPE_CHECKING, Any

from .chat_model import HMTChatModel
from .history import HMTChatMessageHistory
from .llm import HMTLLM
from .retriever import HMTRetriever

if TYPE_CHECKING:
    from .middleware import HMTMemoryMiddleware
    from .store import HMTStore

__all__ = ["HMTLLM", "HMTChatMessageHistory", "HMTChatModel", "HMTMemoryMiddleware", "HMTRetriever", "HMTStore"]


_AGENTS = {"HMTMemoryMiddleware": ".middleware", "HMTStore": ".store"}


def __getattr__(name: str) -> Any:
    """Import the classes that need LangChain's agents or LangGraph when they are first used: langchain-core brings neither."""
    if name in _AGENTS:
        return getattr(importlib.import_module(_AGENTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
