"""A corpus: documents read once, each a stream of its own, to recall from in any session.

Knows the model and the records; `stored_corpus` does what takes no model. A document is on disk before it is read; if a crash
left it unread, the next call reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..engine.decoding import Decoding, DecodingOptions
from ..errors import InputError
from ..retrieval import ranking
from ..retrieval.ranking import RecalledSegments, Sources
from ..retrieval.recollection import ViewRecollection
from ..retrieval.sources import CorpusShard
from ..store import lineage
from ..store.rows import CollectionRow, DocumentRow, Lineage, as_array
from .answer import Answer, Request, Wanted
from .answering import answering
from .engines import engine_named
from .reading import CHUNK_SEGMENTS, TOGETHER, Progress, load_state, read_together, segment_rows
from .stored_corpus import StoredCorpus

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config import ViewConfig
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .answering import Answerer, ChatAnswerer
    from .chat_model import ChatModel
    from .engines import Engine
    from .storage import Storage


class Corpus(StoredCorpus):
    """Documents in a store, and the model that reads and answers; `MemoryStore.corpus` makes it."""

    def add_documents(
        self,
        documents: Iterable[Any],
        *,
        replace_named: bool = False,
        replacing: Sequence[int] = (),
        progress: Progress | None = None,
        engine: Engine | str | None = None,
    ) -> list[int]:
        """Add documents and read them into memory. They are on disk when it returns.

        Args:
            documents: strings, dicts with "text" and optionally "name" and "metadata" (JSON), or (name, text) pairs.
            replace_named: whether they replace documents with the same names, which are erased.
            replacing: ids of documents that they replace; unknown ids are ignored.
            progress: called with the tokens read so far and the tokens to read.
            engine: reads in other processes: "ray", or a `cluster.reading.RayEngine` with other settings. What an earlier call
                has left unread is read as well.

        Returns:
            The documents' ids, for `remove`.

        Raises:
            InputError: a document has no text, or no engine has that name.
            MissingDependencyError: the engine is not installed.
            SessionBusyError: another process is reading into this corpus.
            StoreError: the disk is full or failing. Nothing is stored then.
        """
        model = self._needs_model()
        bodies = [_body(document) for document in documents]
        ids = [as_array(model.backbone.encode(body["text"], literal=True)) for body in bodies]
        reading = engine_named(engine) if isinstance(engine, str) else engine
        if not bodies:
            if reading is not None:
                with self._reading():
                    self._read_elsewhere(reading, progress)
            return []

        def added(db: Transaction) -> tuple[CollectionRow, int | None]:
            row, now = self._own_row(db), self._store.now()
            given_up = self._replaced(db, row, {body["name"] for body in bodies} if replace_named else (), replacing)
            row, erasure = self._erase(db, row, given_up)
            for offset, (body, tokens) in enumerate(zip(bodies, ids, strict=True)):
                stream = lineage.add_stream(db)
                lineage.append_messages(db, stream, [], tokens)
                db.add_document(row.id, DocumentRow(row.next_id + offset, stream, body, now))
            number = db.add_model(self._made_by.digest, self._made_by.parts)
            db.update_collection(replace(row, model=number, next_id=row.next_id + len(bodies), updated_at=now))
            return row, erasure

        row = self._database.again(lambda: self._changed(added, progress, reading))
        return [row.next_id + offset for offset in range(len(bodies))]

    def _changed(
        self,
        work: Callable[[Transaction], tuple[CollectionRow, int | None]],
        progress: Progress | None,
        engine: Engine | None,
    ) -> CollectionRow:
        """Do work that adds documents and begins an erasure, and what follows from both. Returns the row before."""
        with self._reading():
            row, erasure = self._database.write(work)
            with self._stored_already():
                self._store.finish_erasing(erasure)
            with self._stored_already():
                if engine is not None:
                    self._read_elsewhere(engine, progress)
                self._read_pending(progress)
        return row

    def _replaced(self, db: Transaction, row: CollectionRow, names: Iterable[str], ids: Iterable[int]) -> list[DocumentRow]:
        """Return the documents that have one of these names or ids."""
        named = [document for name in names for document in db.documents_named(row.id, name)]
        known = [db.find_document(row.id, number) for number in set(ids)]
        return list({document.id: document for document in [*named, *known] if document is not None}.values())

    def recall(self, query: str, top_k: int = 5, *, others: Sequence[Corpus] = ()) -> RecalledSegments:
        """Return the segments a text remembers most, as `Session.recall` does.

        Args:
            query: what to recall for.
            top_k: how many, at most.
            others: corpora to recall from as well.
        """
        return ranking.recall(self._needs_model(), self._sources(others), query, top_k)

    def ask(
        self,
        question: str,
        *others: Corpus,
        system: str | None = None,
        schema: Mapping[str, Any] | None = None,
        view: ViewConfig | None = None,
        answerer: HMTModel | ChatModel | None = None,
        decoding: Decoding | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Answer:
        """Answer one question from this corpus: an iterator of text pieces, with `.recalled`. Nothing is stored.

        Args:
            question: what to answer.
            *others: corpora of the same model to recall from as well.
            system: pinned instead of the template's own system text.
            schema: JSON schema of the answer.
            view: the view's budgets for this answer, instead of the model's.
            answerer: another model, which answers from notes of what the corpus's model has read, as of `Session.reply`; None:
                that one answers.
            decoding: how tokens are chosen, and what ends the answer.
            **options: fields of `Decoding` that differ from `decoding`, such as max_new_tokens=64.

        Raises:
            InputError: the question or an option is impossible.
        """
        wanted = Wanted(decoding, options, schema=schema)
        if answerer is not None:
            return self._ask_another(
                answering(answerer, wanted, reader=self._needs_model(), view=view), question, others, system
            )
        model = self._needs_model() if view is None else self._needs_model().with_view(view)
        request = Request(model, wanted)
        memory = ViewRecollection(model, self._transcript.plain, self._sources(others), own=False, question=question)
        turn = self._transcript.batch({"role": "user", "content": question}, first=True)
        generation = model.generate(
            [*turn.ids, *self._transcript.answer_opening()],
            turns=turn.turns,
            pinned=self._transcript.pinned(system),
            recollection=memory,
            decoding=request.decoding.also_stopping_at(self._transcript.stop),
        )
        return Answer(generation, memory)

    def _ask_another(
        self, other: Answerer | ChatAnswerer, question: str, others: Sequence[Corpus], system: str | None
    ) -> Answer:
        """Let another model answer from notes."""
        shown = other.shown([{"role": "user", "content": question}])
        model, budget = self._needs_model(), other.note_tokens
        memory = ViewRecollection(model, other.encode, self._sources(others), own=False, question=question, note_tokens=budget)
        memory.recall(question, model.empty_state(), 0)
        generation = other.generate(shown, system=system, notes=memory.notes(), added=len(shown.batch.ids))
        return Answer(generation, memory)

    def _read_elsewhere(self, engine: Engine, progress: Progress | None) -> None:
        """Let an engine read what is stored but not read yet. Nobody else reads into this corpus meanwhile."""
        with self._database.reading() as db:
            left = self._unread(db)
        if left:
            engine.read(str(self._store.folder), self.name, self._needs_model(), left, progress)

    def read_documents(self, document_ids: Sequence[int]) -> None:
        """Read documents that are stored but not read yet, as far as nobody else has; for whoever works for `add_documents`.

        What others read or erase meanwhile is neither read twice nor stored again.
        """
        wanted = frozenset(document_ids)
        self._database.again(lambda: self._read_pending(only=wanted))

    def _unread(self, db: Transaction) -> dict[int, int]:
        """Count the tokens of each document that are not read yet."""
        shelf, length = self._store.shelf(self._own_row(db)), self._needs_model().config.segment_length
        left = (lineage.size(volume.parts)[1] - volume.segments * length for volume in shelf.volumes)
        return {document: tokens for document, tokens in zip(shelf.documents, left, strict=True) if tokens > 0}

    def _read_pending(self, progress: Progress | None = None, *, only: Container[int] | None = None) -> None:
        """Read documents that are stored but not read yet, each to its end; those that are left longest are read together.

        Args:
            progress: called with the tokens read so far and the tokens to read.
            only: ids of documents to read; None: all.
        """
        model = self._needs_model()
        with self._database.reading() as db:
            shelf = self._store.shelf(self._own_row(db))
            left = {number: tokens for number, tokens in self._unread(db).items() if only is None or number in only}
        parts = {number: volume.parts for number, volume in zip(shelf.documents, shelf.volumes, strict=True)}
        total = sum(left.values())
        while batch := sorted((number for number, tokens in left.items() if tokens), key=lambda number: -left[number]):
            batch = batch[:TOGETHER]
            read = self._read_chunk(model, {number: parts[number] for number in batch})
            left |= {
                number: left[number] - read[number] if read.get(number) else 0 for number in batch
            }  # 0: others have read it
            if progress is not None:
                progress(total - sum(left.values()), total)

    def _read_chunk(self, model: HMTModel, documents: Mapping[int, Lineage]) -> dict[int, int]:
        """Read and store the next segments of some documents. Returns how many tokens were read of those still there."""
        segments = CHUNK_SEGMENTS if len(documents) == 1 else CHUNK_SEGMENTS // 4
        befores, texts, digests = [], [], []
        with self._database.reading() as db:
            row = self._own_row(db)
            documents = {number: parts for number, parts in documents.items() if _holds(db, row, number, parts)}
            for parts in documents.values():
                before = load_state(db, parts, model, row.memory_bits)
                start = before.tokens - len(before.open_ids)
                befores.append(replace(before, open_ids=before.open_ids[:0], tokens=start))
                stop = start + segments * model.config.segment_length
                texts.append(torch.from_numpy(lineage.tokens(db, parts, start, stop)))
                digests.append(lineage.digest_at(db, parts, before.segments))
        ends = [lineage.size(parts)[1] for parts in documents.values()]
        final = [state.tokens + len(ids) == end for state, ids, end in zip(befores, texts, ends, strict=True)]
        if not documents:
            return {}
        afters = read_together(model, texts, befores, final=final)
        with self._database.writing() as db:
            row = self._own_row(db)
            for (number, parts), before, after, digest in zip(documents.items(), befores, afters, digests, strict=True):
                if _holds(db, row, number, parts) and lineage.segment_count(db, parts) == before.segments:
                    lineage.append_segments(db, parts, segment_rows(model, before, after, digest))
            db.update_collection(row)
        return {number: len(ids) for number, ids in zip(documents, texts, strict=True)}

    def _sources(self, others: Sequence[Corpus]) -> Sources[Any]:
        """Read the unread documents of this corpus and others; return the corpora as sources, each once."""
        corpora = {corpus._id: corpus for corpus in (self, *others)}
        for corpus in corpora.values():
            with corpus._reading():
                corpus._read_pending()
        return lambda work: self._in_one_view(lambda: work([corpus._shard() for corpus in corpora.values()]))

    def _shard(self) -> CorpusShard:
        with self._database.reading() as db:
            return corpus_shard(self._store, self._own_row(db), self._needs_model(), self._made_by.digest)


def corpus_shard(store: Storage, row: CollectionRow, model: HMTModel, made_by: str) -> CorpusShard:
    """Return a corpus as a shard that recall searches, as of one view of the rows.

    Args:
        store: holds the corpus.
        row: the corpus.
        model: decodes its tokens.
        made_by: the model's digest.
    """
    indexes = store.indexes(row, model, made_by)
    shard = CorpusShard(store.database, indexes, store.shelf(row), row.name, model.backbone.decode)
    shard.end_ids = model.backbone.end_ids
    return shard


def _holds(db: Transaction, row: CollectionRow, document: int, parts: Lineage) -> bool:
    """Return whether a document is still there, and was not read anew."""
    known = db.find_document(row.id, document)
    return known is not None and known.stream == parts[-1].stream


def _body(document: Any) -> dict[str, Any]:
    if isinstance(document, str):
        document = {"text": document}
    elif isinstance(document, tuple) and len(document) == 2:
        document = {"name": document[0], "text": document[1]}
    if not isinstance(document, Mapping) or not isinstance(document.get("text"), str) or not document["text"].strip():
        raise InputError(f"a document is a text, a (name, text) pair or a dict with a 'text', not {str(document)[:100]!r}.")
    text, metadata = document["text"], dict(document.get("metadata") or {})
    body = {"name": str(document.get("name") or name_of(text)), "text": text, "metadata": metadata}
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"document {body['name']!r} cannot be stored: {error}. Use JSON types and valid Unicode.") from error
    return body


def name_of(text: str) -> str:
    """Return the name of a document without one: its first words."""
    words = " ".join(text.split())
    return words if len(words) <= 40 else f"{words[:39]}…"
