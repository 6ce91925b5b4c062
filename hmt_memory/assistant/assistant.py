"""A model and a store for agent frameworks: loaded when first needed, shared, asked with or without a session.

Frameworks build, copy, pickle and print their model objects freely, and pass whole conversations again and again. An
`Assistant` is the one object behind all of that. Knows sessions, corpora and models; no framework.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..chat.message import Messages, validated
from ..chat.transcript import Transcript
from ..errors import InputError
from ..store.open import default_store, shown
from .ahead import Ahead
from .loading import ModelSettings, loading
from .namespace import Namespace
from .opened import OpenSessions
from .reconcile import HistoryMode, entry

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..retrieval.ranking import RecalledSegment, RecalledSegments
    from ..sessions.answer import Answer
    from ..sessions.chat_model import ChatModel
    from ..sessions.corpus import Corpus
    from ..sessions.memory_store import MemoryStore
    from ..sessions.session import Reply, Session
    from ..sessions.tiers import Tiers
    from .stateless import StatelessAnswer

_CANDIDATES = 300  # passages to choose from, before visible ones are left out


# Assistants in use are shared; this mapping keeps none alive.
_assistants: WeakValueDictionary[tuple[ModelSettings, str, Tiers | None], Assistant] = WeakValueDictionary()
_sharing = threading.Lock()


class Assistant(Ahead):
    """A model and a store that answer conversations.

    Safe to use from several threads; a copy is the object itself, a pickle holds its settings.

    Args:
        model: a name, as for `HMTModel.from_pretrained`, or a model; or the address of a server of OpenAI's API, which answers
            from notes (`answerers.ChatServer`), while `adapter` and the like are the reader's.
        adapter: as there, like the next three.
        store: folder or database URL of the sessions, or an open `MemoryStore`; opened when a session is first named. None:
            where the `hmt` command keeps them ($HMT_STORE, else the user's data folder).
        dtype: of the weights.
        device: of the model.
        config: of an untrained model, as JSON.
        reader: another model, which reads and remembers, and which `adapter` then belongs to; `model` answers from notes. A
            name or a model; "same": `model` does both. None: `model` does both if its memory is trained, or if it is a model
            that is loaded already; for others the bundled model reads what they have not read before.
        vllm: address of a vLLM server with the weights of `model`, which writes its answers (`answerers.VLLMServer`).
        together: how many answers that are written at the same time share their steps, as of `HMTModel.batch_answers`; 0 or 1:
            none do.
        tiers: of a store that is opened here, as of `MemoryStore`.

    Raises:
        InputError: they do not go together.
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
        reader: str | HMTModel | None = None,
        vllm: str | None = None,
        together: int = 0,
        tiers: Tiers | None = None,
    ) -> None:
        self._store = None if store is None or isinstance(store, (str, Path)) else store
        place = default_store() if store is None else store if self._store is None else self._store.folder
        self.folder, self._tiers = str(place), tiers  # of the store
        chosen = loading(
            model, reader, adapter=adapter, dtype=dtype, device=device, config=config, vllm=vllm, together=together
        )
        self.settings = chosen.settings  # those that the models are loaded by
        self._weights, self._reader, self._by_default = chosen.model, chosen.reader, chosen.by_default
        self._namespace = Namespace()
        self._opening = threading.Lock()
        self._sessions = OpenSessions(
            lambda name: self.store.session(name, self._reading("session", name)),
            lambda name, session: self.store.has("session", name, session),
            lambda: self.store.hot,
        )

    @classmethod
    def shared(
        cls, settings: ModelSettings, store: str | Path | MemoryStore | None = None, tiers: Tiers | None = None
    ) -> Assistant:
        """Return the assistant of these settings and this folder: the same object for all callers, as long as one holds it.

        Args:
            settings: of the model. Its weights are shared whatever the store is.
            store: the folder of sessions and corpora; None: the default one. An open store gets an assistant of its own.
            tiers: how much the store keeps in memory and on disk; None: as the environment says.
        """
        others = {name: value for name, value in vars(settings).items() if name != "model"}
        made = cls(settings.model, store=store, tiers=tiers, **others)
        if made._store is not None:
            return made
        with _sharing:
            return _assistants.setdefault((settings, made.folder, tiers), made)

    @property
    def name(self) -> str:
        """The model's name. Does not load it."""
        return self.settings.model

    @property
    def model(self) -> HMTModel:
        """The model, loaded by `HMTModel.from_pretrained` when first asked for; the reader, if that is at an address."""
        return self._weights.model

    @property
    def reader(self) -> HMTModel:
        """The model that reads and remembers, loaded when first asked for: `model`, or another one."""
        return self.model if self._reader is self._weights else self._reader.model

    @property
    def store(self) -> MemoryStore:
        """The store, opened when first asked for."""
        with self._opening:
            if self._store is None:
                from ..sessions.memory_store import MemoryStore

                self._store = MemoryStore(self.folder, background=True, tiers=self._tiers)
            return self._store

    def session(self, name: str) -> Session:
        """Return the session of that name, made if there is none."""
        return self._sessions.get(name)

    def corpus(self, name: str) -> Corpus:
        """Return the corpus of that name, made if there is none."""
        return self.store.corpus(name, self._reading("corpus", name))

    def reply(
        self,
        messages: Messages,
        *,
        session: str | None = None,
        history: HistoryMode = "auto",
        replacing: int | None = None,
        namespace: Hashable = None,
        answerer: ChatModel | None = None,
        **options: Any,
    ) -> StatelessAnswer | Reply:
        """Answer a conversation, as an iterator of text pieces.

        Args:
            messages: without a session the whole conversation. With one, all messages that the framework passes: `history`
                says how they are compared with the session's (`reconcile.reconcile`).
            session: name of the session that remembers it; None: nothing is stored.
            history: how the messages are compared with the session's.
            replacing: id of a message of the session; it is answered as it was before that one, and nothing is compared.
            namespace: the owner of a call without a session. A prompt that was read makes the next one that begins with it
                faster in the same namespace only, or else callers could find out by the clock what others have said. None: the
                assistant's own, which is right if it has one caller.
            answerer: answers this call from notes, instead of the assistant's model.
            **options: of `Session.reply`: tools, tool_choice, schema, stop, max_new_tokens, temperature, top_p, seed, ...

        Raises:
            InputError: messages or options are malformed.
            BudgetError: a part of the view is too long.
            ModelNotFoundError: no model has the name of the one that answers.
            SessionBusyError: another process is writing the session.
            StoreError: the store fails.
        """
        from . import stateless

        if answerer is None:
            self._weights.check()  # before a reader is loaded for it
        if session is None:
            whose = self._namespace.key if namespace is None else namespace
            options["answerer"] = answerer or self._answerer(self.reader)
            return stateless.reply(self.reader, messages, cache=self._reader.prefixes, namespace=whose, **options)
        held, new = self.session(session), validated(messages)
        if replacing is None:
            with self._sessions.comparing(session):
                new, replacing = self._sessions.news(held, new, history)
        return held.reply(new, replacing=replacing, answerer=answerer or self._answerer(held.model), **options)

    def add(self, session: str, messages: Messages, *, history: HistoryMode = "auto") -> list[int]:
        """Remember the messages that the session does not hold yet, without answering.

        Args:
            session: name of the session.
            messages: those that the framework passes.
            history: how the messages are compared with the session's.

        Returns:
            The ids of the messages added.
        """
        held = self.session(session)
        with self._sessions.comparing(session):
            new, replacing = self._sessions.news(held, validated(messages), history)
            return held.add(new, replacing=replacing)

    def set(self, session: str, messages: Messages) -> None:
        """Make a session hold these messages and no others. Messages that it begins with already stay as they were read."""
        held, batch = self.session(session), validated(messages)
        with self._sessions.comparing(session):
            stored = held.messages()
            pairs = zip(stored, batch, strict=False)
            differing = (
                number for number, (before, other) in enumerate(pairs) if entry(before.to_dict()).print != entry(other).print
            )
            keep = next(differing, min(len(stored), len(batch)))
            if keep < len(batch):
                held.add(batch[keep:], replacing=stored[keep].id if keep < len(stored) else None)
            else:
                held.forget([message.id for message in stored[keep:]])

    def recall(
        self, query: str, *, session: str | None = None, corpora: Sequence[str] = (), top_k: int = 5
    ) -> RecalledSegments:
        """Return the passages of a session, or of corpora, that a text remembers most.

        If a session has fewer, its latest words, which fill no segment yet, come after them.

        Args:
            query: what to recall for.
            session: name of the session.
            corpora: names of corpora, if no session is named.
            top_k: how many, at most.

        Raises:
            InputError: neither is named, or the query is empty.
            SessionNotFoundError: no session or corpus has that name.
        """
        if session is not None:
            self.store.session(session)  # checks that it exists: without a model none is made
            held = self.session(session)
            passages = held.recall(query, top_k)
            latest = held.latest() if len(passages) < top_k else None
            passages.extend([] if latest is None else [latest])
            return passages
        first, *others = self._known(corpora)
        return first.recall(query, top_k, others=others)

    def ask(self, question: str, corpora: Sequence[str], *, answerer: ChatModel | None = None, **options: Any) -> Answer:
        """Answer one question from corpora, storing nothing.

        Args:
            question: what to answer.
            corpora: names of the corpora.
            answerer: answers this call from notes, instead of the assistant's model.
            **options: of `Corpus.ask`.

        Raises:
            InputError: no corpus is named.
            SessionNotFoundError: no corpus has that name.
            ModelNotFoundError: no model has the name of the one that answers.
        """
        if answerer is None:
            self._weights.check()
        first, *others = self._known(corpora)
        return first.ask(question, *others, answerer=answerer or self._answerer(first.model), **options)

    def _known(self, corpora: Sequence[str]) -> list[Corpus]:
        """Return corpora, all of which must exist."""
        if not corpora:
            raise InputError("name a session or a corpus to recall from.")
        for name in corpora:
            self.store.corpus(name)  # checks that it exists: without a model none is made
        reader = self._reading("corpus", *corpora)
        return [self.store.corpus(name, reader) for name in corpora]

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
        """Return the passages to tell a model that sees only some messages of a session.

        Args:
            query: what to recall for.
            shown: the texts of the messages that the model sees.
            session: name of the session.
            top_k: the heaviest so many, at most.
            tokens: the largest length of all quotes.
            before: id of the first of those messages, if they are in the session.

        Returns:
            The heaviest passages that hold something not shown, and the latest words that fill no segment yet, in the order
            they were said; none if there is no such session.
        """
        if not query.strip() or not self.has_session(session):
            return []
        visible = {text.strip() for text in shown}
        held = self.session(session)
        candidates = held.recall(query, _CANDIDATES, before=before)
        chosen = [passage for passage in candidates if _is_hidden(passage, visible)][:top_k]
        latest = held.latest()
        chosen += [latest] if latest is not None and _is_hidden(latest, visible) else []
        if tokens is not None:
            chosen = _fitting(chosen, tokens, self.token_ids)
        return sorted(chosen, key=lambda passage: (passage.source, passage.segment))

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.model.backbone.encode(text, literal=True))

    def count_message_tokens(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Count the tokens that the chat template makes of a conversation, with those before an answer."""
        from .stateless import prompt_of

        return prompt_of(Transcript(self.model.backbone), messages, tools).tokens

    def __copy__(self) -> Assistant:
        return self

    def __deepcopy__(self, memo: Any) -> Assistant:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._weights.given or self._reader.given:
            raise TypeError("an Assistant around a model object cannot be pickled: build it with the model's name instead.")
        return _shared, (self.settings, self.folder, self._tiers)

    def __repr__(self) -> str:
        return f"Assistant({self.name!r}, store={shown(self.folder)!r})"


def _shared(settings: ModelSettings, folder: str, tiers: Tiers | None = None) -> Assistant:
    """Return a pickled assistant: cloudpickle would take the class method apart."""
    return Assistant.shared(settings, folder, tiers)


def _is_hidden(passage: RecalledSegment, visible: Container[str]) -> bool:
    """Return whether a passage holds something that is not among the texts that are visible."""
    return not passage.messages or any(message.content.strip() not in visible for message in passage.messages)


def _fitting(passages: Sequence[RecalledSegment], tokens: int, encode: Callable[[str], Sequence[int]]) -> list[RecalledSegment]:
    """Return the passages whose quotes fit into so many tokens, taking them in order."""
    fitting: list[RecalledSegment] = []
    for passage in passages:
        needed = len(encode(passage.quote()))
        if needed <= tokens:
            fitting.append(passage)
            tokens -= needed
    return fitting
