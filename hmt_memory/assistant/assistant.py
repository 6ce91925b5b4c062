"""A model and a store as an agent framework wants them: loaded when first needed, shared, asked with or without a session.

Frameworks build, copy, pickle and print their model objects freely, and pass whole conversations again and again. An
`Assistant` is the one object behind all of that. Knows sessions, corpora and models; no framework.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..chat.message import Messages, validated
from ..chat.transcript import Transcript
from ..errors import InputError
from ..store.open import default_folder
from .loading import ModelSettings, Weights, shared_weights
from .namespace import Namespace
from .opened import OpenSessions
from .reconcile import HistoryMode, entry

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..retrieval.ranking import RecalledSegment, RecalledSegments
    from ..sessions.answer import Answer
    from ..sessions.corpus import Corpus
    from ..sessions.memory_store import MemoryStore
    from ..sessions.session import Reply, Session
    from .stateless import StatelessAnswer

_CANDIDATES = 300  # passages looked at, of which those that show anyway are left out


# What is in memory anyway is not made a second time: held by those who use it, not by this.
_assistants: WeakValueDictionary[tuple[ModelSettings, str], Assistant] = WeakValueDictionary()
_sharing = threading.Lock()


class Assistant:
    """Answers conversations. Safe to use from several threads; copies are the object itself, pickles its settings.

    Args:
        model: a name, as for `HMTModel.from_pretrained`, or a model.
        adapter, dtype, device, config: as there.
        store: folder of the sessions, or an open `MemoryStore`; opened when a session is first named. None: where the `hmt`
            command keeps them ($HMT_STORE, else the user's data folder).
    """

    def __init__(
        self,
        model: str | HMTModel = ModelSettings.model,
        *,
        adapter: str | Path | None = None,
        store: str | Path | MemoryStore | None = None,
        dtype: str = "auto",
        device: str = "auto",
        config: str | None = None,
    ) -> None:
        self._store = None if store is None or isinstance(store, (str, Path)) else store
        self.folder = str(
            default_folder() if store is None else store if self._store is None else self._store.folder
        )  # of the store
        if isinstance(model, str):
            self._weights = shared_weights(
                ModelSettings(model, None if adapter is None else str(adapter), dtype, device, config)
            )
        else:
            self._weights = Weights(ModelSettings(model.backbone.name), model)
        self._namespace = Namespace()
        self._opening = threading.Lock()
        self._sessions = OpenSessions(
            lambda name: self.store.session(name, self.model), lambda name, session: self.store.has("session", name, session)
        )

    @classmethod
    def shared(cls, settings: ModelSettings, store: str | Path | MemoryStore | None = None) -> Assistant:
        """The assistant of these settings and this folder: the same object for whoever asks, while somebody holds it.

        That of an open store is the caller's own; weights are shared all the same.
        """
        made = cls(settings.model, store=store, **{name: value for name, value in vars(settings).items() if name != "model"})
        if made._store is not None:
            return made
        with _sharing:
            return _assistants.setdefault((settings, made.folder), made)

    @property
    def name(self) -> str:
        """Of the model, without loading it."""
        return self._weights.settings.model

    @property
    def settings(self) -> ModelSettings:
        """What the model is loaded by."""
        return self._weights.settings

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._weights.is_loaded

    @property
    def model(self) -> HMTModel:
        """The model, loaded when first asked for.

        Raises:
            ModelNotFoundError and others: as `HMTModel.from_pretrained`.
        """
        return self._weights.model

    @property
    def store(self) -> MemoryStore:
        """The store, opened when first asked for."""
        with self._opening:
            if self._store is None:
                from ..sessions.memory_store import MemoryStore

                self._store = MemoryStore(self.folder)
            return self._store

    def session(self, name: str) -> Session:
        """The session of that name, made if there is none."""
        return self._sessions.get(name)

    def corpus(self, name: str) -> Corpus:
        """The corpus of that name, made if there is none."""
        return self.store.corpus(name, self.model)

    # --- answering --------------------------------------------------------------------------------------------------

    def reply(
        self,
        messages: Messages,
        *,
        session: str | None = None,
        history: HistoryMode = "auto",
        namespace: Hashable = None,
        **options: Any,
    ) -> StatelessAnswer | Reply:
        """Answer a conversation, as an iterator of text pieces.

        Args:
            messages: without a session the whole conversation. With one, whatever the framework passes: `history` says how
                that is compared with what the session holds (`reconcile.reconcile`).
            session: name of the session that remembers it; None: nothing is stored.
            namespace: whose call without a session this is. What was read of a prompt makes the next one that begins with it
                faster in the same namespace only, or else callers could find out by the clock what others have said. None: the
                assistant's own, which is right where it has one caller.
            options: of `Session.reply`: tools, tool_choice, schema, stop, max_new_tokens, temperature, top_p, seed, ...

        Raises:
            InputError, BudgetError, SessionBusyError, StoreError: as `Session.reply`.
        """
        from . import stateless

        if session is None:
            whose = self._namespace.key if namespace is None else namespace
            return stateless.reply(self.model, messages, cache=self._weights.prefixes, namespace=whose, **options)
        held = self.session(session)
        with self._sessions.comparing(session):
            new, replacing = self._sessions.news(held, validated(messages), history)
        return held.reply(new, replacing=replacing, **options)

    def add(self, session: str, messages: Messages, *, history: HistoryMode = "auto") -> list[int]:
        """Remember messages without answering: what the session does not hold yet.

        Returns:
            The ids of those added.
        """
        held = self.session(session)
        with self._sessions.comparing(session):
            new, replacing = self._sessions.news(held, validated(messages), history)
            return held.add(new, replacing=replacing)

    def set(self, session: str, messages: Messages) -> None:
        """Make a session hold these messages and no others. What both begin with stays as it was read."""
        held, batch = self.session(session), validated(messages)
        with self._sessions.comparing(session):
            stored = held.messages()
            pairs = zip(stored, batch, strict=False)
            differing = (at for at, (one, other) in enumerate(pairs) if entry(one.to_dict()).print != entry(other).print)
            keep = next(differing, min(len(stored), len(batch)))
            if keep < len(batch):
                held.add(batch[keep:], replacing=stored[keep].id if keep < len(stored) else None)
            else:
                held.forget([one.id for one in stored[keep:]])

    # --- looking ----------------------------------------------------------------------------------------------------

    def recall(
        self,
        query: str,
        *,
        session: str | None = None,
        corpora: Sequence[str] = (),
        top_k: int = 5,
    ) -> RecalledSegments:
        """The passages of a session, or of corpora, that a text remembers most.

        Of a session that has fewer, what was said last and fills no segment yet comes after them.

        Raises:
            InputError: neither is named, or the query is empty. SessionNotFoundError: there is none of that name.
        """
        if session is not None:
            self.store.session(session)  # without a model, which makes none
            held = self.session(session)
            found = held.recall(query, top_k)
            latest = held.latest() if len(found) < top_k else None
            found.extend([] if latest is None else [latest])
            return found
        first, *others = self._known(corpora)
        return first.recall(query, top_k, others=others)

    def ask(self, question: str, corpora: Sequence[str], **options: Any) -> Answer:
        """Answer one question from corpora, storing nothing; options of `Corpus.ask`.

        Raises:
            InputError: none is named. SessionNotFoundError: there is none of that name.
        """
        first, *others = self._known(corpora)
        return first.ask(question, *others, **options)

    def _known(self, corpora: Sequence[str]) -> list[Corpus]:
        """Corpora that are there."""
        if not corpora:
            raise InputError("name a session or a corpus to recall from.")
        for name in corpora:
            self.store.corpus(name)  # without a model, which makes none
        return [self.corpus(name) for name in corpora]

    def recall_hidden(
        self,
        query: str,
        shown: Sequence[str],
        *,
        session: str,
        top_k: int | None = None,
        tokens: int | None = None,
        before: int | None = None,
    ) -> list[RecalledSegment]:
        """The passages that a model which sees only the messages `shown` of a session should be told for a query.

        Args:
            shown: what those messages say. top_k: at most so many of the heaviest. tokens: at most so many tokens of quotes.
            before: id of the first of those messages, if they are in the session.

        Returns:
            The heaviest that hold something not shown, and what was said last and fills no segment yet, in the order they were
            said; none where there is no such session.
        """
        if not query.strip() or not self.has_session(session):
            return []
        visible = {text.strip() for text in shown}

        def hidden(one: RecalledSegment) -> bool:
            return not one.messages or any(message.content.strip() not in visible for message in one.messages)

        held = self.session(session)
        candidates = held.recall(query, _CANDIDATES, before=before)
        chosen = [one for one in candidates if hidden(one)][:top_k]
        latest = held.latest()
        chosen += [latest] if latest is not None and hidden(latest) else []
        if tokens is not None:
            chosen = self._fitting(chosen, tokens)
        return sorted(chosen, key=lambda one: (one.source, one.segment))

    def _fitting(self, passages: Sequence[RecalledSegment], tokens: int) -> list[RecalledSegment]:
        """Those whose quotes fit into so many tokens, the first first."""
        found: list[RecalledSegment] = []
        for one in passages:
            needed = len(self.token_ids(one.quote()))
            if needed <= tokens:
                found.append(one)
                tokens -= needed
        return found

    def has_session(self, name: str) -> bool:
        """Whether there is a session of that name."""
        return self.store.has("session", name)

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self.model.backbone.encode(text, literal=True))

    def count_message_tokens(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> int:
        """How many tokens the chat template makes of a conversation, with what it puts before an answer."""
        from .stateless import prompt_of

        return prompt_of(Transcript(self.model.backbone), messages, tools).tokens

    # --- what frameworks do with objects ----------------------------------------------------------------------------

    def __copy__(self) -> Assistant:
        return self

    def __deepcopy__(self, memo: Any) -> Assistant:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._weights.given:
            raise TypeError("an Assistant around a model object cannot be pickled: build it with the model's name instead.")
        return Assistant.shared, (self._weights.settings, self.folder)

    def __repr__(self) -> str:
        return f"Assistant({self.name!r}, store={self.folder!r})"
