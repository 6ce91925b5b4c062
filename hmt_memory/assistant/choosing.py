"""Which model reads and which one answers, where they are not the same. Knows models and addresses; no call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from ..engine.places import is_address
from ..sessions.default_reader import makers, reads_itself

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..sessions.chat_model import ChatModel
    from ..sessions.memory_store import MemoryStore
    from .loading import ModelSettings, Weights


class Choosing(ABC):
    """The choice among the models of an assistant."""

    settings: ModelSettings
    _weights: Weights
    _reader: Weights
    _by_default: bool  # whether the reader was chosen because nobody has named one

    @property
    @abstractmethod
    def model(self) -> HMTModel:
        """The model."""

    @property
    @abstractmethod
    def reader(self) -> HMTModel:
        """The model that reads."""

    @property
    @abstractmethod
    def store(self) -> MemoryStore:
        """The store."""

    def _reading(self, kind: str, *names: str) -> HMTModel:
        """Return the model that reads a session or corpora: the reader, unless `model` has read them before there was one."""
        itself = self._by_default and reads_itself(self.settings.model, makers(self.store, kind, names))
        return self.model if itself else self.reader

    @cached_property
    def _server(self) -> ChatModel:
        """The chat model behind the address that the model is."""
        from ..answerers import ChatServer

        return ChatServer(self.settings.model)

    @property
    def only_answers(self) -> bool:
        """True if the model is behind an address: it answers messages, and does nothing else."""
        return is_address(self.settings.model)

    def _answerer(self, reader: HMTModel | None) -> HMTModel | ChatModel | None:
        """Return the model that answers, where another one reads."""
        if self.only_answers:
            return self._server
        return None if self._reader is self._weights or reader is self.model else self.model
