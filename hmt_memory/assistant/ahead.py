"""What an assistant makes ahead of a question. Knows sessions by their names; no call."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from .choosing import Choosing

if TYPE_CHECKING:
    from ..sessions.session import Session


class Ahead(Choosing):
    """The work of an assistant ahead of questions."""

    @property
    def is_loaded(self) -> bool:
        """True once the weights are in memory."""
        return self._weights.is_loaded

    @property
    def is_ready(self) -> bool:
        """True once nothing has to be loaded any more: the weights that answer and those that read are in memory."""
        return self.is_loaded and (self._reader is self._weights or self._reader.is_loaded)

    def load(self) -> None:
        """Load the model and its reader, unless they are in memory.

        Raises the errors of `HMTModel.from_pretrained`.
        """
        _ = self.model, self.reader

    @abstractmethod
    def session(self, name: str) -> Session:
        """Return the session of that name, made if there is none."""

    def has_session(self, name: str) -> bool:
        """Return whether there is a session of that name."""
        return self.store.has("session", name)

    def prepare(self, session: str, *, asked: bool = True) -> None:
        """Make what the next answer in a session needs, in a thread where the store works behind answers.

        Args:
            session: its name; if there is none, nothing is done.
            asked: whether somebody asks for it. Otherwise nothing is done unless the store's tiers fetch ahead and the model is
                loaded.
        """
        if asked or (self.store.tiers.fetch_ahead and self.is_loaded):
            self.store.behind.do(f"session {session!r}", lambda: self._prepare(session))

    def _prepare(self, session: str) -> None:
        if not self.has_session(session):
            return
        held = self.session(session)
        if self._answerer(held.model) is None:
            held.prepare()
        else:  # the view is another model's
            held.keep_up()
