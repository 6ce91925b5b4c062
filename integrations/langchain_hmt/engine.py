"""What the LangChain classes share: fields that name a model and a store, the assistant behind them, the session of a call."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import ensure_config
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from hmt_memory.config import DEFAULT_MODEL

from .errors import as_langchain

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from typing_extensions import Self

    from hmt_memory import Assistant

SESSION_KEYS = ("session_id", "thread_id")


class Engine(BaseModel):
    """Fields of every class here. Equal models share one set of weights, which load with the first call."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = Field(default_factory=lambda: os.environ.get("HMT_MODEL", DEFAULT_MODEL), alias="model")
    """A bundled name, hub id, folder or .gguf file; the environment's HMT_MODEL, else the default model."""
    adapter: str | None = None
    """Folder with trained memory parameters; None: the one the package brings, if it brings one."""
    store: Any = Field(default=None, repr=False)
    """Folder of the sessions, or an open `MemoryStore`; None: where the `hmt` command keeps them."""
    dtype: str = "auto"
    device: str = "auto"
    session_id: str | None = None
    """The session of calls that name none."""
    session_keys: tuple[str, ...] = SESSION_KEYS
    """Where in a call's `configurable` its session is looked for; empty: nowhere."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `hmt_memory.Assistant` to use instead of what the fields name."""
    _others: dict[str, Any] = PrivateAttr(default_factory=dict)  # assistants of models that calls named: each loads once

    def assistant(self, model: str | None = None) -> Assistant:
        """The assistant behind this object; `model`: of another model, for one call."""
        from hmt_memory.assistant import Assistant, ModelSettings

        found: Assistant | None = self.engine if model is None else self._others.get(model)
        if found is not None:
            return found
        settings = ModelSettings(model or self.model_name, None if model else self.adapter, self.dtype, self.device)
        found = Assistant.shared(settings, self.store)
        if model is None:
            self.engine = found
        else:
            self._others[model] = found
        return found

    def with_session(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """`options` of a call with its session in them: as given, from its config or that of the run it is part of, or ours.

        Resolved where a call comes in and passed on as an argument: context variables do not reach worker threads reliably.
        """
        whole = ensure_config(config)
        found = options.pop("session_id", None)
        if found is None and (whole.get("metadata") or {}).get("lc_source") == "summarization":
            return options  # a call about the conversation is none of its turns
        if found is None:
            found = first_named(whole.get("configurable") or {}, self.session_keys)
        found = self.session_id if found is None else found
        if found is not None:
            options["session_id"] = str(found)
        return options


class Decoder(Engine, BaseLanguageModel[Any]):
    """What the two models share: how answers are decoded, and calls that carry their session.

    invoke() and its kin do not hand their config down, so the session is looked for here. The streams are plain functions that
    return the base's generators: the lookup happens where the call is made, and closing them reaches the model.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 256
    """Of an answer."""
    stop_sequences: list[str] | None = Field(default=None, alias="stop")
    seed: int | None = None
    """Makes sampling repeatable."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model_name", "adapter", "dtype", "temperature", "top_p", "max_tokens", "stop_sequences", "seed")
        return {name: getattr(self, name) for name in names}

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with as_langchain():
            return self.assistant().token_ids(text)

    def stops(self, given: Sequence[str] | None) -> list[str]:
        """Stop strings of a call: its own, if it has any word about them, else the object's."""
        return list(given if given is not None else self.stop_sequences or ())

    def decoding(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of an answer: those of the call, else the object's."""
        return {
            "stop": self.stops(stop),
            "max_new_tokens": given.get("max_tokens") or self.max_tokens,
            "min_new_tokens": 1,
            **{name: given.get(name, getattr(self, name)) for name in ("temperature", "top_p", "seed")},
        }

    def without_cache(self) -> Self:
        """A copy that no cache answers for: it would give a stale answer to a session, and remember nothing."""
        self.assistant()  # made before the copy, so that both have it
        return self.model_copy(update={"cache": False})

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().invoke(input, config, **self.with_session(config, kwargs))  # type: ignore[safe-super]

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await super().ainvoke(input, config, **self.with_session(config, kwargs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return super().stream(input, config, **self.with_session(config, kwargs))

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        return super().astream(input, config, **self.with_session(config, kwargs))


def first_named(found: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first of these that is there and says something; 0 does."""
    return next((found[key] for key in keys if found.get(key) not in (None, "")), None)


def pieces(reply: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer; its errors are LangChain's."""
    while True:
        with as_langchain():
            piece = next(reply, None)
        if piece is None:
            return
        yield piece
