"""Assistants that share model, store and memory but not the view: the budgets of an answer and the selection of passages."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from hmt_memory import Assistant
from hmt_memory.assistant import Weights

from .errors import HMTInvalidRequestError

if TYPE_CHECKING:
    from hmt_memory import HMTModel, MemoryStore

_Changes = tuple[tuple[str, Any], ...]


class ViewedAssistant(Assistant):
    """An assistant that answers under a changed configuration: the weights and the store are those of another.

    Args:
        base: the other. changes: fields of `HMTConfig` that memory does not depend on.
    """

    def __init__(self, base: Assistant, changes: _Changes) -> None:
        super().__init__(base.name, store=base.folder, reader="same")
        self.base, self.changes = base, changes
        self.settings = base.settings
        self._weights = Weights(base.settings)  # the prompts that it has read depend on the view
        self._reader = self._weights if base._reader is base._weights else base._reader
        self._by_default = base._by_default
        self._viewed: HMTModel | None = None
        self._viewing = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """True once the weights are in memory."""
        return self.base.is_loaded

    @property
    def model(self) -> HMTModel:
        """The base's model under this view, loaded when first asked for."""
        with self._viewing:
            if self._viewed is None:
                self._viewed = self.base.model.with_config(**dict(self.changes))
            return self._viewed

    @property
    def store(self) -> MemoryStore:
        """The base's store, opened when first asked for."""
        return self.base.store

    def __reduce__(self) -> tuple[Any, ...]:
        return under, (self.base, dict(self.changes))


# Held by those who use them: equal views of one assistant are one object, with one set of open sessions.
_views: WeakValueDictionary[tuple[int, _Changes], ViewedAssistant] = WeakValueDictionary()
_sharing = threading.Lock()


def under(assistant: Assistant, changes: Mapping[str, Any]) -> Assistant:
    """Return an assistant's view with these changes; without changes, the assistant itself."""
    base = assistant.base if isinstance(assistant, ViewedAssistant) else assistant
    wanted = tuple(sorted(changes.items()))
    if not wanted:
        return base
    if base.only_answers:
        raise HMTInvalidRequestError(
            f"{', '.join(name for name, _ in wanted)} cannot be set for {base.name}. Pass it as a LangChain chat model: "
            "model=ChatOpenAI(base_url=...)."
        )
    with _sharing:
        key = (id(base), wanted)  # the view holds its base, so no other object gets this id
        return _views.get(key) or _views.setdefault(key, ViewedAssistant(base, wanted))
