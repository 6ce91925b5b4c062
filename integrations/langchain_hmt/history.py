"""`HMTChatMessageHistory`: a stored session as the message history of any chat model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, convert_to_messages, message_chunk_to_message
from langchain_core.messages.base import BaseMessageChunk

from .checks import session_name
from .engine import Engine, KeepsSession
from .errors import as_langchain
from .messages import from_stored, to_dicts

if TYPE_CHECKING:
    pass

log = logging.getLogger("langchain_hmt")


class HMTChatMessageHistory(KeepsSession, BaseChatMessageHistory):
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
