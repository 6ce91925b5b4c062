"""The fields of every LlamaIndex class of HMT, and the assistant behind them. Importing this loads no torch and no weights."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hmt_memory.assistant import DEFAULT_MODEL, ModelSettings, default_store

if TYPE_CHECKING:
    from typing_extensions import Self

    from hmt_memory import Assistant

_T = TypeVar("_T")


class HMTEngine(BaseModel):
    """Fields of every class here. Equal models share one set of weights, which load with the first call."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True, protected_namespaces=(), extra="forbid")

    model_name: str = Field(default_factory=lambda: os.environ.get("HMT_MODEL", DEFAULT_MODEL), alias="model")
    """A bundled name, hub id, folder or .gguf file; the environment's HMT_MODEL, else the default model."""
    adapter: str | None = None
    """Folder with trained memory parameters; None: the one the package brings, if it brings one."""
    reader: str | None = None
    """Another model, which reads and remembers, while `model` answers from notes; "same": `model` does both.

    None: `model` does both if its memory is trained, else "smollm2-135m-instruct" reads.
    """
    store: Any = None
    """Folder of the sessions and corpora, or an open `MemoryStore`; None: where the `hmt` command keeps them."""
    dtype: str = "auto"
    device: str = "auto"
    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `hmt_memory.Assistant` to use instead of what the fields name."""

    @model_validator(mode="after")
    def _name_the_engine(self) -> Self:
        """Set the fields from an engine or an open store, so that they lead back to the same memory once written down."""
        if self.engine is None and hasattr(self.store, "folder"):
            self.engine = self._made()
        if self.engine is not None:
            told, self.store = self._told_by(self.engine), self.engine.folder
            self.model_name = told.pop("model")
            for name, value in told.items():
                setattr(self, name, value)
        elif self.store is not None:
            self.store = str(self.store)
        return self

    def assistant(self) -> Assistant:
        """Return the assistant behind this object."""
        if self.engine is None or not self._is_of(self.engine):
            self.engine = self._made()
        assistant: Assistant = self.engine
        return assistant

    def _named(self) -> dict[str, Any]:
        """Return the settings that the fields name."""
        return {"model": self.model_name} | {name: getattr(self, name) for name in ("adapter", "dtype", "device", "reader")}

    def _told_by(self, engine: Assistant) -> dict[str, Any]:
        """Return the settings that lead back to an assistant."""
        return {name: getattr(engine.settings, name) for name in ("model", "adapter", "dtype", "device", "reader")}

    def _folder(self) -> str:
        return str(default_store() if self.store is None else self.store)

    def _is_of(self, engine: Assistant) -> bool:
        """Return whether an assistant is still the one that the fields name."""
        return (self._named(), self._folder()) == (self._told_by(engine), engine.folder)

    def _made(self) -> Assistant:
        from hmt_memory import Assistant

        return Assistant.shared(ModelSettings(**self._named()), self.store)

    def __deepcopy__(self, memo: Any = None) -> Self:
        return self.model_copy()

    def __getstate__(self) -> dict[Any, Any]:
        pickle.dumps(self.engine)  # LlamaIndex would leave out what cannot be pickled, and load another model instead
        return super().__getstate__()


def assistant_of(llm: Any, settings: Mapping[str, Any]) -> Assistant:
    """Return the assistant of an `HMTLLM`, or without one the assistant of settings (fields of `HMTEngine`).

    Raises:
        ValueError: both are given, or `llm` is another LLM.
    """
    if llm is None:
        return HMTEngine(**settings).assistant()
    if not isinstance(llm, HMTEngine):
        raise ValueError(f"llm gives the model that reads, so it has to be an HMTLLM, not {type(llm).__name__}: leave it out.")
    if settings:
        raise ValueError(f"the model and the store are those of llm: leave out {', '.join(settings)}.")
    return llm.assistant()


async def off_the_loop(responses: Iterator[_T]) -> AsyncGenerator[_T, None]:
    """Take each step in a thread. If the reader stops, the rest is dropped and nothing is stored."""
    while (response := await asyncio.to_thread(next, responses, None)) is not None:
        yield response
