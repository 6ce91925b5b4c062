"""Sources of training text: text files, JSONL, meetings with questions, Hugging Face datasets. Knows files and tokens.

Documents of files are held as token ids; a dataset by name is streamed through a window of recent documents. Which
documents step n may draw from depends on the seed and on n alone, so a run resumes where it was killed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingDependencyError

Encode = Callable[[str], Sequence[int]]
_TEXT = {".txt", ".md", ".rst", ".text"}
_ROWS = {".jsonl", ".ndjson"}
_HUB = "hf:"
_POOL = 256  # documents of a streamed dataset that are in reach at a time


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a document, with the tokens that hold its answer."""

    question: str
    answer: str
    spans: tuple[tuple[int, int], ...]  # [start, stop) in the document's tokens


@dataclass(frozen=True, eq=False)
class Document:
    """One text as token ids."""

    name: str
    ids: Tensor  # [t] int64
    questions: tuple[Question, ...] = ()


class Documents:
    """All documents of some files, in reach at any time."""

    def __init__(self, documents: Sequence[Document]) -> None:
        if not documents:
            raise InputError("there is no text to train on. Name text files, .jsonl files or a dataset.")
        self._documents = list(documents)

    def at(self, step: int) -> Sequence[Document]:
        """Return the documents that a step may draw from: the same sequence each time."""
        return self._documents


class Stream:
    """A window that moves by one document a step over a stream too large to hold."""

    def __init__(self, open_stream: Callable[[], Iterable[Document]], *, seed: int, size: int = _POOL) -> None:
        self._open, self._seed, self._size = open_stream, seed, size
        self._restart()

    def _restart(self) -> None:
        self._random = random.Random(self._seed)
        self._source = self._endless()
        self._pool = [next(self._source) for _ in range(self._size)]
        self._step = 0

    def _endless(self) -> Iterator[Document]:
        while True:
            empty = True
            for document in self._open():
                empty = False
                yield document
            if empty:
                raise InputError("the dataset has no documents with text. Check its name, split and column.")

    def at(self, step: int) -> Sequence[Document]:
        """Return the documents that a step may draw from. A step before the present one starts the stream anew."""
        if step < self._step:
            self._restart()
        while self._step < step:
            self._pool[self._random.randrange(self._size)] = next(self._source)
            self._step += 1
        return self._pool


def open_sources(names: Sequence[str], encode: Encode, *, seed: int = 0) -> Documents | Stream:
    """Open documents by name: text files, `.jsonl` files, folders of them, or one `hf:NAME[:SPLIT[:COLUMN]]`.

    A row of a `.jsonl` file has `text`, or `messages` (role, content), or `turns` (speaker, text) with optional `queries`
    (query, answer, turn_spans), as QMSum has.

    Args:
        names: files, folders, or a single dataset of the hub.
        encode: text to token ids.
        seed: decides which documents of a streamed dataset are in reach at a step.

    Raises:
        InputError: nothing has that name, or a row has another form; the message names the line.
        MissingDependencyError: a dataset by name needs the `datasets` package.
    """
    streamed = [name for name in names if name.startswith(_HUB)]
    if not streamed:
        return Documents([document for name in names for document in _of_path(Path(name).expanduser(), encode)])
    if len(names) > 1:
        raise InputError(f"{streamed[0]} is streamed and cannot be mixed with other sources. Name it alone.")
    return Stream(_of_hub(streamed[0].removeprefix(_HUB), encode), seed=seed)


def _of_path(path: Path, encode: Encode) -> Iterator[Document]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in _TEXT | _ROWS:
                yield from _of_path(file, encode)
    elif not path.is_file():
        raise InputError(f"there is no file or folder {path}. Check the path; a dataset by name is written hf:NAME.")
    elif path.suffix.lower() in _ROWS:
        yield from _of_rows(path, encode)
    else:
        yield Document(path.name, _ids(encode(path.read_text(encoding="utf-8", errors="replace"))))


def _of_rows(path: Path, encode: Encode) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield document_of(json.loads(line), f"{path.name}:{number}", encode)
            except (json.JSONDecodeError, InputError, KeyError, TypeError, IndexError) as error:
                raise InputError(f"{path}, line {number}: {error}. A row has text, messages, or turns.") from error


def document_of(row: Mapping[str, Any], name: str, encode: Encode) -> Document:
    """Build a document from one row of a `.jsonl` file or of a dataset.

    Args:
        row: an object with `text`, `messages` or `turns`.
        name: the document's name where the row has no `id`.
        encode: text to token ids.

    Raises:
        InputError: the row has neither text, messages nor turns.
    """
    if not isinstance(row, Mapping):
        raise InputError("it is no object")
    if isinstance(row.get("text"), str):
        return Document(name, _ids(encode(row["text"])))
    if "messages" in row:
        lines = [f"{message['role']}: {message['content']}\n" for message in row["messages"]]
        return Document(name, _ids([token for line in lines for token in encode(line)]))
    if "turns" not in row:
        raise InputError("no text, messages or turns in it")
    parts = [list(encode(f"{turn['speaker']}: {turn['text']}\n")) for turn in row["turns"]]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    questions = tuple(
        Question(
            query["query"],
            query["answer"],
            tuple((starts[first], starts[last + 1]) for first, last in query.get("turn_spans", [])),
        )
        for query in row.get("queries", [])
    )
    return Document(str(row.get("id", name)), _ids([token for part in parts for token in part]), questions)


def _of_hub(name: str, encode: Encode) -> Callable[[], Iterator[Document]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "datasets by name need the datasets package. Run: pip install 'hmt-memory[train]'"
        ) from error
    path, split, column, *_ = [*name.split(":"), "", ""]
    split, column = split or "train", column or "text"

    def read() -> Iterator[Document]:
        try:
            rows = datasets.load_dataset(path, split=split, streaming=True)
        except Exception as error:  # whatever the hub or a loading script raises
            raise InputError(f"the dataset {path} (split {split}) does not load: {error}") from error
        for number, row in enumerate(rows):
            if column not in row:
                raise InputError(
                    f"the dataset {path} has no column {column!r} but {', '.join(row)}. Write hf:{path}:{split}:COLUMN."
                )
            yield Document(f"{path}:{number}", _ids(encode(row[column])))

    return read


def _ids(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long)
