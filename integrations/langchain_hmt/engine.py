"""The base of the LangChain classes: fields that name a model and a store, the assistant behind them, a call's session."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from langchain_core.language_models import BaseLanguageModel
from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from langchain_core.runnables import ensure_config
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from hmt_memory.assistant import DEFAULT_MODEL, Namespace, Selection

from .checks import as_list, check_names, reasons, session_name
from .errors import HMTInvalidRequestError, as_langchain

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from pydantic.fields import FieldInfo
    from typing_extensions import Self

    from hmt_memory import Assistant

log = logging.getLogger("langchain_hmt")
SESSION_KEYS = ("session_id", "thread_id")
Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]


class Engine(Serializable):
    """Fields of every class here. Equal models share one set of weights, which load with the first call."""

    model_config = ConfigDict(
        populate_by_name=True, arbitrary_types_allowed=True, protected_namespaces=(), use_attribute_docstrings=True
    )
    hosted: ClassVar[tuple[str, ...]] = ()  # arguments that LangChain passes to any model and a local one does not use

    model_name: str = Field(default_factory=lambda: os.environ.get("HMT_MODEL", DEFAULT_MODEL), alias="model")
    """A bundled name, hub id, folder or .gguf file; the environment's HMT_MODEL, else the default model."""
    adapter: str | None = None
    """Folder with trained memory parameters; None: the one the package brings, if it brings one; "none": no adapter."""
    reader: str | None = None
    """Another model, which reads and remembers, while `model` answers from notes; "same": `model` does both.

    None: `model` does both if its memory is trained, else "smollm2-135m-instruct" reads.
    """
    store: Any = Field(default=None, repr=False)
    """Folder of the sessions and corpora, or an open `MemoryStore`; None: where the `hmt` command keeps them."""
    dtype: str = "auto"
    """Precision of the weights: "auto" (bf16 where the hardware multiplies it, else fp32), or the name of a torch dtype."""
    device: str = "auto"
    """The device that the model runs on: "auto" (CUDA, else MPS, else CPU), or the name of a torch device."""
    selection: Selection | None = None
    """The way passages are recalled: "fused" (memory and words), "recall" or "words"; None: as the model is configured."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `hmt_memory.Assistant` that gives the model and the store, except where a field names another."""
    _others: dict[str, Any] = PrivateAttr(default_factory=dict)  # assistants of models that calls have named: each loads once

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        unused = [name for name in cls.hosted if name in values and name not in cls.model_fields]
        if unused:
            log.warning("%s: for hosted models; a model that runs here has no use for it.", ", ".join(unused))
        aliases = {name for field in cls.model_fields.values() for name in _other_names(field)}
        kept = {name: value for name, value in values.items() if name not in unused}
        check_names(kept, cls.model_fields.keys() | aliases)
        return kept

    @model_validator(mode="after")
    def _name_the_engine(self) -> Self:
        """Set the fields from an engine or an open store, so that they lead back to the same memory once written down."""
        if hasattr(self.store, "folder"):
            if self.engine is not None:
                raise HMTInvalidRequestError("an engine has a store of its own. Leave out store=, or engine=.")
            self.engine, self.store = self._made(), str(self.store.folder)
        elif self.engine is not None:
            parts = self._told_by(self.engine)
            for name in parts.keys() - self.model_fields_set:
                setattr(self, name, parts[name])
        self.store = None if self.store is None else str(self.store)
        return self

    def assistant(self, model: str | None = None) -> Assistant:
        """Return the assistant behind this object, or for one call that of another `model`."""
        from .view import under

        if model is not None:
            known = self._others.get(model) or self._made(model_name=model, adapter=None)
            other = self._others[model] = under(known, self.view())
            return other
        known = self.engine if self._is_of(self.engine) else self._made()
        self.engine = chosen = under(known, self.view())
        return chosen

    def view(self) -> dict[str, Any]:
        """Return the fields of `HMTConfig` that are not left to the model."""
        return {} if self.selection is None else {"selection": self.selection}

    def _named(self) -> dict[str, Any]:
        """Return the fields that name what an assistant loads."""
        return {name: getattr(self, name) for name in ("model_name", "adapter", "dtype", "device", "reader")}

    def _told_by(self, engine: Assistant) -> dict[str, Any]:
        """Return the values of such fields that lead back to an assistant, and of `store`."""
        return _parts(engine)

    def _made(self, **changes: Any) -> Assistant:
        from hmt_memory import Assistant
        from hmt_memory.assistant import ModelSettings

        named = self._named() | changes
        return Assistant.shared(ModelSettings(named.pop("model_name"), **named), self.store)

    def _is_of(self, engine: Assistant | None) -> bool:
        """Return whether an assistant is still the one that the fields name."""
        own = self._named() | {"store": self.store}
        return engine is not None and own in (_parts(engine), {**_parts(engine), "store": None})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: LangChain may write the object down; reading it gives the same model, store and options."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what LangChain writes down. An engine that no name leads back to is included, and refused when it is read."""
        constructor = super().to_json()
        try:
            pickle.dumps(self.engine)
        except TypeError:
            constructor["kwargs"]["engine"] = self.engine  # type: ignore[typeddict-item]
        return constructor


class Sessioned(Engine):
    """Fields of the classes whose calls belong to a session."""

    session_id: str | None = None
    """The session of calls that name none."""
    session_keys: Names = SESSION_KEYS
    """The keys of a call's `configurable` that may name its session; empty: none."""

    def with_session(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """Put a call's session into its options: as given, from its config or that of the run around it, or this object's.

        Resolved where a call comes in and passed on as an argument: context variables do not reach worker threads reliably.

        Raises:
            HMTInvalidRequestError: the value cannot name a session.
        """
        session = options.pop("session_id", None)
        if session is None and is_about_the_conversation(config, options):
            return options
        if session is None:
            session = first_named(ensure_config(config).get("configurable") or {}, self.session_keys)
        session = self.session_id if session is None else session
        if session is not None:
            options["session_id"] = session_name(session)
        return options


class Decoding(BaseModel):
    """The decoding of an answer; a call may override each field."""

    model_config = ConfigDict(populate_by_name=True, use_attribute_docstrings=True)

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The randomness in the choice of words; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The share of the probability that the smallest set of words to choose from has."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest answer, in tokens."""
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(as_list)] = Field(
        default=None, alias="stop"
    )
    """Texts that end an answer and are no part of it; one text is a list of one."""
    seed: int | None = None
    """The seed of sampling: the same seed gives the same words."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The penalty on words that were shown or said already: above 1 they are less likely; 1 is none."""


class Decoder(Sessioned, Decoding, BaseLanguageModel[Any]):
    """The common base of the two models: decoding of answers, and calls that carry their session.

    invoke() and the methods like it do not hand their config down, so the session is looked up here. The streams are plain
    functions that return the base's generators: the lookup happens when the call is made, and closing them reaches the model.
    """

    hosted = ("timeout", "max_retries", "api_key")

    recent_tokens: int | None = Field(default=None, ge=0)
    """Budget of the latest turns, which an answer is shown word for word; None: as the model's configuration says."""
    replay_tokens: int | None = Field(default=None, ge=0, validation_alias=AliasChoices("replay_tokens", "note_tokens"))
    """Budget of the notes that an answer is shown, as `note_tokens` of a view; None: as the model's configuration says."""
    pinned_tokens: int | None = Field(default=None, ge=0)
    """Budget of system messages and tools, which never scroll away; None: as the model's configuration says."""
    corpora: Names = ()
    """Corpora to recall from besides the session's own past: each session that a call names is attached to them."""
    namespace: str | None = None
    """The owner of calls without a session: a prompt that was read makes the next one faster in the same namespace only.

    A call may name one as well. None: a namespace of this object and its shallow copies alone.
    """
    _own: Namespace = PrivateAttr(default_factory=Namespace)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model_name", "adapter", "dtype", *Decoding.model_fields, *_BUDGETS, "selection", "corpora")
        return {name: getattr(self, name) for name in names}

    def view(self) -> dict[str, Any]:
        """Return the fields of `HMTConfig` that are not left to the model."""
        return super().view() | {name: value for name in _BUDGETS if (value := getattr(self, name)) is not None}

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with as_langchain():
            return self.assistant().token_ids(text)

    def stops(self, given: str | Sequence[str] | None) -> list[str]:
        """Return the stop strings of a call: its own if it gives any, even none at all, else the object's."""
        return list(as_list(given) if given is not None else self.stop_sequences or ())

    def decoding(self, stop: str | Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of an answer: the call's, else the object's.

        Raises:
            HMTInvalidRequestError: an option of the call is unknown or impossible.
        """
        check_names(given, [*Decoding.model_fields, *_CALL])
        own = {name: getattr(self, name) for name in Decoding.model_fields if name != "stop_sequences"}
        asked = {name: value for name, value in given.items() if value is not None}
        try:
            chosen = Decoding(**{**own, **asked, "stop": self.stops(stop)})
        except ValidationError as error:
            raise HMTInvalidRequestError(reasons(error)) from error
        values = chosen.model_dump()
        renamed = {"stop": values.pop("stop_sequences"), "max_new_tokens": values.pop("max_tokens")}
        whose = given.get("namespace") or self.namespace or self._own.key
        return {**values, **renamed, "min_new_tokens": 1, "namespace": whose}

    def remembering(self, assistant: Assistant, session_id: str | None, history: str) -> dict[str, Any]:
        """Return the options of an answer that a session remembers, attached to the corpora; none without a session.

        Args:
            assistant: holds the session.
            session_id: the session's name; None: none.
            history: how a call's messages are compared with the session's.
        """
        if session_id is None:
            return {}
        if self.corpora:
            held = assistant.session(session_id)
            if new := set(self.corpora) - set(held.stats()["corpora"]):
                held.attach(*sorted(new))
        return {"session": session_id, "history": history}

    def with_session(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """Put a call's session into its options, as in `Sessioned`.

        Raises:
            HMTInvalidRequestError: there are corpora but no session, or another object writes into the same session.
        """
        resolved = super().with_session(config, options)
        if "session_id" in resolved:
            check_writes_alone(config, self, resolved["session_id"])
        elif self.corpora and not is_about_the_conversation(config, resolved):
            raise HMTInvalidRequestError(
                f"corpora={self.corpora} are recalled from in a session, and this call has none. Name one: "
                'model.invoke(messages, config={"configurable": {"session_id": "alice"}}).'
            )
        return resolved

    def without_cache(self) -> Self:
        """Return a copy that bypasses the cache, which would give a session a stale answer and remember nothing."""
        self.assistant()  # made before the copy, so that both have it
        return self.model_copy(update={"cache": False})

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Answer in the session that the call names.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call.
        """
        return super().invoke(input, config, **self.with_session(config, kwargs))  # type: ignore[safe-super]

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Answer in the session that the call names, off the event loop.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call.
        """
        return await super().ainvoke(input, config, **self.with_session(config, kwargs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Answer piece by piece in the session that the call names.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call.
        """
        return super().stream(input, config, **self.with_session(config, kwargs))

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Answer piece by piece in the session that the call names, off the event loop.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            **kwargs: options of the call.
        """
        return super().astream(input, config, **self.with_session(config, kwargs))


_BUDGETS = ("recent_tokens", "replay_tokens", "pinned_tokens")
# The other options that a call may have.
_CALL = ("stop", "session_id", "namespace", "model", "tools", "tool_choice", "response_format", "history_mode")


def _parts(engine: Assistant) -> dict[str, Any]:
    """Return the fields that an assistant is made of."""
    made_by = engine.settings
    named = {"model_name": made_by.model, "adapter": made_by.adapter, "dtype": made_by.dtype, "device": made_by.device}
    return {**named, "reader": made_by.reader, "store": engine.folder}


def _other_names(field: FieldInfo) -> list[str]:
    """Return the names that a field is given by besides its own."""
    known = field.validation_alias
    return [name for name in (known.choices if isinstance(known, AliasChoices) else [known]) if isinstance(name, str)]


def is_about_the_conversation(config: RunnableConfig | None, options: Mapping[str, Any]) -> bool:
    """Return whether LangChain makes this call for a summary, which is not a turn of the conversation."""
    told = (ensure_config(config).get("metadata"), options.get("metadata"))
    return any((metadata or {}).get("lc_source") == "summarization" for metadata in told)


def first_named(configurable: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the first of these values that is present and not empty; 0 counts as a value."""
    return next((configurable[key] for key in keys if configurable.get(key) not in (None, "")), None)


def pieces(reply: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of an answer; raise its errors as LangChain's."""
    while True:
        with as_langchain():
            piece = next(reply, None)
        if piece is None:
            return
        yield piece


class KeepsSession:
    """An object around a model that writes into a session of its own accord, such as a message history."""

    session_id: str
    _assistant: Assistant


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
    if not isinstance(kept, KeepsSession) or kept.session_id != session_id:
        return
    folders = (Path(owner.folder).expanduser().resolve() for owner in (kept._assistant, model.assistant()))
    if len(set(folders)) == 1:
        raise HMTInvalidRequestError(
            f"RunnableWithMessageHistory and this {type(model).__name__} would both store every message in session "
            f"{session_id!r}. Call the model without RunnableWithMessageHistory: its session is its history. Or leave the "
            "session to the history: give the model session_keys=()."
        )
