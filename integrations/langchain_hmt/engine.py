"""What the LangChain classes share: fields that name a model and a store, the assistant behind them, the session of a call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import ensure_config
from pydantic import BaseModel, ConfigDict, Field

from .errors import as_langchain

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from hmt_memory import Assistant

_MODEL, _STORE = "smollm2-135m-instruct", "hmt-memories"


class Engine(BaseModel):
    """Fields of every class here. Equal models share one set of weights, which load with the first call."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = Field(default_factory=lambda: os.environ.get("HMT_MODEL", _MODEL), alias="model")
    """A bundled name, hub id, folder or .gguf file; the environment's HMT_MODEL, else the default model."""
    adapter: str | None = None
    """Folder with trained memory parameters; None: the one the package brings, if it brings one."""
    store: Any = Field(default=None, repr=False)
    """Folder of the sessions, or an open `MemoryStore`; None: the environment's HMT_STORE, else `hmt-memories`."""
    dtype: str = "auto"
    device: str = "auto"
    session_id: str | None = None
    """The session of calls that name none."""
    session_keys: tuple[str, ...] = ("session_id", "thread_id")
    """Where in a call's `configurable` its session is looked for; empty: nowhere."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `hmt_memory.Assistant` to use instead of what the fields name."""
    others: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Assistants of other models that calls have named, so that each loads once."""

    def assistant(self, model: str | None = None) -> Assistant:
        """The assistant behind this object; `model`: of another model, for one call."""
        from hmt_memory.assistant import Assistant, ModelSettings

        if model is None and self.engine is not None:
            found: Assistant = self.engine
            return found
        if model in self.others:
            return self.others[model]  # type: ignore[no-any-return]
        settings = ModelSettings(model or self.model_name, None if model else self.adapter, self.dtype, self.device)
        store = self.store if self.store is not None else os.environ.get("HMT_STORE", _STORE)
        if isinstance(store, (str, Path)):
            found = Assistant.shared(settings, str(store))
        else:
            found = Assistant(settings.model, adapter=settings.adapter, dtype=self.dtype, device=self.device, store=store)
        if model is None:
            self.engine = found
        else:
            self.others[model] = found
        return found

    def with_session(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """`options` of a call with its session in them: as given, from its config or that of the run it is part of, or ours.

        Resolved where a call comes in and passed on as an argument: context variables do not reach worker threads reliably.
        """
        found = options.pop("session_id", None)
        if found is None and self.session_keys:
            configurable = ensure_config(config).get("configurable") or {}
            found = next((configurable[key] for key in self.session_keys if configurable.get(key)), None)
        found = self.session_id if found is None else found
        if found is not None:
            options["session_id"] = str(found)
        return options


def pieces(reply: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer; its errors are LangChain's."""
    while True:
        with as_langchain():
            piece = next(reply, None)
        if piece is None:
            return
        yield piece


def stops(given: Sequence[str] | None, default: Sequence[str] | None) -> list[str]:
    """Stop strings of a call: its own, if it has any word about them, else the object's."""
    return list(given if given is not None else default or ())
