"""`HMTChatMessageHistory`: a stored session as the message history of any chat model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, convert_to_messages, message_chunk_to_message
from langchain_core.messages.base import BaseMessageChunk
from langchain_core.runnables import ensure_config

from .checks import session_name
from .engine import Engine
from .errors import HMTInvalidRequestError, as_langchain
from .messages import from_stored, to_dicts

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

log = logging.getLogger("langchain_hmt")


class HMTChatMessageHistory(BaseChatMessageHistory):
    """The messages of a session, verbatim and durable; each is read into memory as it is added.

    Args:
        session_id: name of the session.
        last: give only so many of the latest messages.
        options: fields of the other classes, such as store, model and adapter.
    """

    def __init__(self, session_id: str, *, last: int | None = None, **options: Any) -> None:
        self.session_id, self.last = session_name(session_id), last
        self.last_error: Exception | None = None  # LangChain only logs what adding raises
        self._assistant = Engine(**options).assistant()

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The conversation, oldest first; a new list each time."""
        if not self._assistant.has_session(self.session_id):
            return []
        held = self._assistant.session(self.session_id)
        count = held.stats()["messages"]
        start = 0 if self.last is None else max(0, count - self.last)
        return convert_to_messages([from_stored(message) for message in held.messages(start)])

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages, all or none.

        Raises:
            ValueError: a message's content is not text.
            hmt_memory.errors.HMTError: the messages cannot be stored.
        """
        whole = [
            message_chunk_to_message(message) if isinstance(message, BaseMessageChunk) else message for message in messages
        ]
        try:
            with as_langchain():
                self._assistant.session(self.session_id).add(to_dicts(whole))
        except Exception as error:
            self.last_error = error
            log.error("%d messages were not added to session %r: %s", len(whole), self.session_id, error)
            raise

    def clear(self) -> None:
        """Forget the whole conversation, for good."""
        if not self._assistant.has_session(self.session_id):
            return
        held = self._assistant.session(self.session_id)
        held.forget([message.id for message in held.messages()])


def check_writes_alone(config: RunnableConfig | None, model: Engine, session_id: str) -> None:
    """Refuse a call whose turn would be stored twice: by the model, and by the history of the chain around it.

    Args:
        config: of the call.
        model: keeps the session.
        session_id: the session's name.

    Raises:
        HMTInvalidRequestError: a `RunnableWithMessageHistory` keeps the same session of the same folder.
    """
    kept = (ensure_config(config).get("configurable") or {}).get("message_history")
    if not isinstance(kept, HMTChatMessageHistory) or kept.session_id != session_id:
        return
    folders = (Path(owner.folder).expanduser().resolve() for owner in (kept._assistant, model.assistant()))
    if len(set(folders)) == 1:
        raise HMTInvalidRequestError(
            f"RunnableWithMessageHistory and this {type(model).__name__} would both store every message in session "
            f"{session_id!r}. Call the model without RunnableWithMessageHistory: its session is its history. Or leave the "
            "session to the history: give the model session_keys=()."
        )
