"""One object behind all frameworks: a model and a store, asked with or without a session.

What an integration needs beside the public names of `hmt_memory`, whichever framework it is for, is imported from here. A name
loads what it needs with its first use, so that building a framework's objects loads neither torch nor weights.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..config import DEFAULT_MODEL, Selection
from .namespace import Namespace

if TYPE_CHECKING:
    from ..chat.grammar import tool_choice_of
    from ..chat.message import SYSTEM_ROLES
    from ..chat.tools import called
    from ..retrieval.citations import Message
    from ..retrieval.lexical import distinct_terms, terms
    from ..retrieval.ranking import quoted
    from ..sessions.answer import Answer
    from ..sessions.chat_model import ChatModel, Ending
    from ..sessions.corpus import name_of
    from ..sessions.stored_corpus import Document
    from ..store.open import default_store
    from .assistant import Assistant
    from .loading import ModelSettings, Weights
    from .reconcile import HistoryMode

__all__ = [
    "DEFAULT_MODEL",
    "SYSTEM_ROLES",
    "Answer",
    "Assistant",
    "ChatModel",
    "Document",
    "Ending",
    "HistoryMode",
    "Message",
    "ModelSettings",
    "Namespace",
    "Selection",
    "Weights",
    "called",
    "default_store",
    "distinct_terms",
    "name_of",
    "quoted",
    "terms",
    "tool_choice_of",
]

_LAZY = {
    "SYSTEM_ROLES": "..chat.message",
    "Answer": "..sessions.answer",
    "Assistant": ".assistant",
    "ChatModel": "..sessions.chat_model",
    "Document": "..sessions.stored_corpus",
    "Ending": "..sessions.chat_model",
    "HistoryMode": ".reconcile",
    "Message": "..retrieval.citations",
    "ModelSettings": ".loading",
    "Weights": ".loading",
    "called": "..chat.tools",
    "default_store": "..store.open",
    "distinct_terms": "..retrieval.lexical",
    "name_of": "..sessions.corpus",
    "quoted": "..retrieval.ranking",
    "terms": "..retrieval.lexical",
    "tool_choice_of": "..chat.grammar",
}


def __getattr__(name: str) -> Any:
    """Import a name with its first use."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
