"""HMT memory for LangChain: a chat model, an LLM, a retriever and a message history on local models, offline.

Importing this loads neither torch nor weights; they come with the first call.
"""

from __future__ import annotations

try:
    import langchain_core as _  # noqa: F401
except ImportError as error:
    raise ImportError("langchain_hmt needs LangChain. Run: pip install 'hmt-memory[langchain]'") from error

from .chat_model import HMTChatModel
from .history import HMTChatMessageHistory
from .llm import HMTLLM
from .retriever import HMTRetriever

__all__ = ["HMTLLM", "HMTChatMessageHistory", "HMTChatModel", "HMTRetriever"]
