"""`HMTMemory` and `HMTMemoryBlock`: a durable session as the memory of LlamaIndex's chat engines and agents, around any LLM.

`HMTMemory` keeps the whole conversation and shows its latest turns, with what it recalls from the others. `HMTMemoryBlock`
keeps what leaves the window of LlamaIndex's own `Memory`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index_hmt.engine import HMTEngine, assistant_of  # first: it says what to install
from llama_index_hmt.messages import from_stored, to_dicts

# isort: split
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory, BaseMemoryBlock
from pydantic import Field

from hmt_memory.errors import SessionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hmt_memory import RecalledSegment
    from hmt_memory.assistant import Message

_SESSION = "session_id"  # the key in a message's additional_kwargs under which Memory names its session
_AT_ONCE = 64  # messages looked at together, from the latest back


class HMTMemory(HMTEngine, BaseMemory):
    """A session as chat memory: every message is kept, read into memory, and on disk as soon as it was put.

    `get` gives the latest messages and, in a system message before them, passages of earlier ones that the question recalls:
    at most `token_limit` tokens, however long the conversation is. Copies are the same memory. Do not put it around an `HMTLLM`
    that has the same session: both would remember every message.
    """

    session_id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    token_limit: int = Field(default=2048, gt=0)
    """The most that `get` returns, in tokens of the memory's model."""
    chat_history_token_ratio: float = Field(default=0.7, gt=0, le=1)
    """The largest share of it for the latest messages, if there is more to recall."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in written form."""
        return "HMTMemory"

    @classmethod
    def from_defaults(
        cls,
        session_id: str | None = None,
        chat_history: list[ChatMessage] | None = None,
        llm: Any = None,
        token_limit: int | None = None,
        **settings: Any,
    ) -> HMTMemory:
        """Make a memory that continues the session of a name.

        Args:
            session_id: the session's name; None: a new one.
            chat_history: messages that the conversation shall hold, unless there are none.
            llm: an `HMTLLM` whose model and store are used; others are ignored.
            token_limit: see the field.
            **settings: other fields.
        """
        given = {"session_id": session_id, "token_limit": token_limit}
        settings |= {name: value for name, value in given.items() if value is not None}
        if isinstance(llm, HMTEngine):
            own = {name: settings[name] for name in HMTEngine.model_fields if name in settings}
            settings["engine"] = assistant_of(llm, own)
        memory = cls(**settings)
        if chat_history:
            memory.set(chat_history)
        return memory

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """The tokenizer by which engines count what they put before the messages."""
        return self.assistant().token_ids

    def get(self, input: str | ChatMessage | None = None, *, initial_token_count: int = 0, **kwargs: Any) -> list[ChatMessage]:
        """Return the latest messages from a user's turn on, behind passages recalled for `input` or the user's last message.

        Args:
            input: the question; None: the user's last message.
            initial_token_count: tokens that the engine puts before.
            **kwargs: ignored.

        Raises:
            ValueError: `initial_token_count` leaves no room.
        """
        try:
            return self._shown(input, initial_token_count)
        except SessionNotFoundError:  # another thread or process has set or reset it
            return self._shown(input, initial_token_count)

    def _shown(self, asked: str | ChatMessage | None, initial_token_count: int) -> list[ChatMessage]:
        if not self.assistant().has_session(self.session_id):
            return []
        system = self.assistant().session(self.session_id).system()
        before = initial_token_count + self._tokens(system)
        if before >= self.token_limit:
            raise ValueError(f"what comes before the messages has {before} tokens, not under token_limit={self.token_limit}.")
        window, left = self._window(self.token_limit - before)
        said = asked.content if isinstance(asked, ChatMessage) else asked
        query = said or next((message.content for message in reversed(window) if message.role == "user"), "")
        front = [text for text in (system, self._recalled(query, window, left)) if text]
        opening = [ChatMessage(role=MessageRole.SYSTEM, content="\n\n".join(front))] if front else []
        return [*opening, *map(from_stored, window)]

    def get_all(self) -> list[ChatMessage]:
        """Return the whole conversation, verbatim."""
        if not self.assistant().has_session(self.session_id):
            return []
        return [from_stored(message) for message in self.assistant().session(self.session_id).messages()]

    def _window(self, limit: int) -> tuple[list[Message], int]:
        """Return the latest messages within a limit, and how many tokens that leaves for others; 0 if there are no others.

        They begin with a user's turn: a call is not parted from its result, nor an answer from its question. The last turn is
        included at any length.
        """
        from hmt_memory.assistant import SYSTEM_ROLES

        session = self.assistant().session(self.session_id)
        first, used = session.stats()["messages"], 0
        latest: list[Message] = []
        room = limit * self.chat_history_token_ratio
        best: tuple[int, int] | None = None  # counts of messages and tokens from a user's turn on
        while first > 0 and (best is None or used <= room):
            before, first = first, max(0, first - _AT_ONCE)
            for message in reversed(session.messages(first, before)):
                if message.role not in SYSTEM_ROLES:
                    used += self._tokens(message.content) + sum(map(self._tokens, _calls(message)))
                    latest.append(message)
                    if message.role == "user" and (best is None or used <= room):
                        best = len(latest), used
        if best is None or (first == 0 and used <= limit):
            return latest[::-1], 0
        count, used = best
        return latest[:count][::-1], limit - used

    def _recalled(self, query: str, window: Sequence[Message], room: int) -> str:
        shown, room = [message.content for message in window], room - self._tokens(_block([]))
        if room <= 0:
            return ""
        first = window[0].id if window else None
        passages = self.assistant().recall_hidden(query, shown, session=self.session_id, tokens=room, before=first)
        return _block(passages) if passages else ""

    def _tokens(self, text: str) -> int:
        return len(self.assistant().token_ids(text))

    def put(self, message: ChatMessage) -> None:
        """Keep a message.

        Raises:
            ValueError: its content is not text.
            hmt_memory.HMTError: it cannot be stored.
        """
        self.put_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Keep messages, all or none."""
        self.assistant().add(self.session_id, to_dicts(messages), history="incremental")

    def set(self, messages: list[ChatMessage]) -> None:
        """Make the conversation hold these messages and no others. Messages that it begins with already are not read again.

        Raises:
            ValueError: they come from `get`, and setting them would forget the rest.
        """
        if any(message.role == MessageRole.SYSTEM and _block([]) in (message.content or "") for message in messages):
            raise ValueError("these messages are what get() shows of the conversation. Set those of get_all() instead.")
        self.assistant().set(self.session_id, to_dicts(messages))

    def reset(self) -> None:
        """Forget the whole conversation, for good."""
        if self.assistant().has_session(self.session_id):
            self.assistant().store.delete(self.session_id)


class HMTMemoryBlock(HMTEngine, BaseMemoryBlock[str]):
    """A block that keeps what leaves `Memory`'s window, a session for each memory, and recalls for what the user says.

    >>> from llama_index.core.memory import Memory
    >>> memory = Memory.from_defaults(session_id="alice", token_limit=2000, memory_blocks=[HMTMemoryBlock()])

    A memory flushes only what is over its `token_limit`. Sessions never meet. Pictures, sound and files are left out.
    """

    name: str = "HMTMemory"
    session_id: str | None = None
    """The session of messages and calls that name none."""
    similarity_top_k: int = Field(default=8, gt=0)
    """The number of passages recalled."""

    async def _aget(self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **block_kwargs: Any) -> str:
        return await asyncio.to_thread(self._recall, to_dicts(messages or (), text_only=True), session_id or self.session_id)

    def _recall(self, messages: Sequence[dict[str, Any]], session: str | None) -> str:
        query = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        if session is None:
            return ""
        shown = [message["content"] for message in messages]
        passages = self.assistant().recall_hidden(query, shown, session=session, top_k=self.similarity_top_k)
        return _block(passages) if passages else ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.to_thread(self._add, messages)

    def _add(self, messages: list[ChatMessage]) -> None:
        sessions: dict[str, list[ChatMessage]] = {}
        for message in messages:
            session = message.additional_kwargs.get(_SESSION) or self.session_id
            if session is None:
                raise ValueError("whose messages are these? Pass session_id= to aput, or to the block.")
            sessions.setdefault(session, []).append(message)
        for session, said in sessions.items():
            texts = to_dicts(said, text_only=True)
            for text in texts:  # a flushed system message is no longer in force: it is kept as a user's
                text["role"] = "user" if text["role"] == "system" else text["role"]
            self.assistant().add(session, texts, history="incremental")

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> str | None:
        """Drop as many of the oldest passages as necessary. Returns None if nothing is left."""
        header, *passages = str(content).split(_BETWEEN) if content else [""]
        while passages and tokens_to_truncate > 0:
            tokens_to_truncate -= len(await asyncio.to_thread(self.assistant().token_ids, passages.pop(0)))
        return _BETWEEN.join([header, *passages]) if passages else None

    def reset(self, session_id: str | None = None) -> None:
        """Forget a session's messages for good. `Memory.reset` does not call this."""
        session = session_id or self.session_id
        if session is not None and self.assistant().has_session(session):
            self.assistant().store.delete(session)

    async def areset(self, session_id: str | None = None) -> None:
        """Forget a session's messages for good, off the event loop."""
        await asyncio.to_thread(self.reset, session_id)


def _calls(message: Message) -> list[str]:
    """Return the calls of a message as text."""
    return [json.dumps(call, ensure_ascii=False) for call in message.fields.get("tool_calls") or ()]


_BETWEEN = "\n\n["  # between passages, each of which begins with its time or source


def _block(recalled: Sequence[RecalledSegment]) -> str:
    """Return recalled passages in the form in which a model is shown them."""
    from hmt_memory.assistant import quoted

    return quoted([passage.quote() for passage in recalled])
