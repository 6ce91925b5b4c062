"""The terminal that commands write to, and `hmt ask`: read with progress, stream an answer, show passages.

Knows consoles and text; of a model only its public calls. Answers go to `Screen.out`, everything else to `Screen.notes`.
torch is imported with the first call that needs it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..engine import places
from ..errors import InputError
from . import keyboard
from .documents import Document

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.generate import Generation
    from ..engine.state import HMTState
    from ..model import HMTModel
    from ..retrieval.ranking import RecalledSegment, ViewRecollection

_INTRODUCTION = "Read this text and answer the question after it.\n\n"
_CHUNK_SEGMENTS = 8  # between two movements of the progress bar; larger reads hardly faster
_PASSAGE_CHARACTERS = 200
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Screen:
    """The place where a command writes; it also tells whether a person types to it."""

    notes: Console  # progress, passages, hints
    out: TextIO  # answers, and nothing else
    interactive: bool = False

    @classmethod
    def standard(cls) -> Screen:
        """Wrap the process's own streams; characters that stdout cannot encode are replaced."""
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        width = None if sys.stderr.isatty() else 240
        return cls(Console(stderr=True, highlight=False, width=width), sys.stdout, sys.stdin.isatty())

    def unechoed(self) -> AbstractContextManager[None]:
        """Hide what a person types meanwhile; it is there for the next prompt."""
        return keyboard.unechoed() if self.interactive else contextlib.nullcontext()

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line for the person, its characters taken literally. Only a terminal's lines are wrapped."""
        self.notes.print(Text(text, style=style), soft_wrap=not self.notes.is_terminal)


class Reading(NamedTuple):
    """The state after reading, and what reading took."""

    state: HMTState
    tokens: int
    seconds: float


class Passage(NamedTuple):
    """A recalled segment with its text."""

    segment: int  # counted from 0
    weight: float  # share of the recall softmax
    text: str


def load_model(name: str, screen: Screen, **options: Any) -> HMTModel:
    """Call `HMTModel.from_pretrained` under a short status; say so when weights are converted first.

    Args:
        name: a bundled name, hub id, model folder or .gguf file.
        screen: where the status goes.
        **options: of `HMTModel.from_pretrained`.
    """
    with screen.unechoed(), screen.notes.status(f"loading {name}"):
        from ..model import HMTModel

        if _converts_first(name):
            screen.note(f"The first start of {name} converts its weights once: about 20 s.")
        return HMTModel.from_pretrained(name, **options)


def _converts_first(name: str) -> bool:
    path = places.bundled_file(name) if name.lower() in places.BUNDLED else Path(name).expanduser()
    return path.suffix.lower() == ".gguf" and path.is_file() and not places.converted_folder(path).is_dir()


def note_if_untrained(model: HMTModel, screen: Screen, state: HMTState | None = None) -> None:
    """Say what answers rest on while the memory parameters are untrained.

    Args:
        model: the model that answers.
        screen: where the note goes.
        state: the stream that it has read; None: a session or corpus.
    """
    if model.is_trained:
        return
    if state is None:
        rests_on = f"the last {model.view.recent_tokens or 0:,} tokens and passages recalled by their words"
    else:
        visible = visible_tokens(model, state)
        whole = state.tokens == visible
        rests_on = "the text itself, which the view holds whole" if whole else f"the last {visible:,} tokens"
    screen.note(f"The memory parameters are untrained: the memorisation prompt carries little yet; answers rest on {rests_on}.")


def ask(
    model: HMTModel,
    documents: Sequence[Document],
    question: str,
    screen: Screen,
    *,
    passages: int = 3,
    decoding: Mapping[str, Any],
) -> None:
    """Read the documents as one stream, stream the answer to a question about them, then show passages and usage.

    Args:
        model: the model that reads and answers.
        documents: the texts, in order.
        question: what to answer.
        screen: where answer, passages and usage go.
        passages: how many recalled passages to show.
        decoding: options of `HMTModel.generate`, and `system`.
    """
    ids = encode_documents(model, documents)
    with screen.unechoed():
        reading = read(model, ids, screen)
    note_if_untrained(model, screen, reading.state)
    started = time.perf_counter()
    memory = remembering(model, question, ids)
    answer = ask_about(model, question, reading.state, recollection=memory, **decoding)
    stream(answer, screen)
    seconds = time.perf_counter() - started
    if passages and memory.recalled:
        rows = [(f"segment {passage.segment}", f"{passage.weight:.2f}", passage.text) for passage in memory.recalled[:passages]]
        _show_rows("Replayed passages (segment, weight, text)", rows, screen)
    elif passages:
        show_passages(recalled_passages(model, question, reading.state, ids, top_k=passages), screen)
    show_usage(reading, answer, seconds, screen)


def encode_documents(model: HMTModel, documents: Sequence[Document]) -> Tensor:
    """Return the token ids [t] of the documents one after the other; several are each preceded by a line with their name."""
    import torch

    headed = len(documents) > 1
    texts = [f"File: {name}\n\n{text}\n\n" if headed else text for name, text in documents]
    return torch.tensor([token for text in texts for token in model.backbone.encode(text, literal=True)], dtype=torch.long)


def read(model: HMTModel, ids: Tensor, screen: Screen, *, line_every: int | None = None) -> Reading:
    """Read token ids with a progress bar.

    Args:
        model: the model that reads.
        ids: [t] token ids.
        screen: where the bar goes.
        line_every: without a terminal, print a line after so many tokens; None: print nothing.
    """
    from ..engine.reader import read_in_chunks

    with reading_bar(screen.notes) as bar:
        task = bar.add_task("reading", total=len(ids), pace="")
        bar.refresh()
        started, lines = time.perf_counter(), 0
        state = model.empty_state()
        for state in read_in_chunks(model, ids, segments=_CHUNK_SEGMENTS):
            speed = state.tokens / (time.perf_counter() - started)
            left = timedelta(seconds=round((len(ids) - state.tokens) / max(speed, 1)))
            bar.update(task, completed=state.tokens, pace=f"{speed:,.0f} tokens/s, {left} left", refresh=True)
            if line_every and not screen.notes.is_terminal and state.tokens // line_every > lines:
                lines = state.tokens // line_every
                screen.note(f"read {state.tokens:,} of {len(ids):,} tokens, {speed:,.0f} tokens/s")
    return Reading(state, len(ids), time.perf_counter() - started)


def reading_bar(console: Console) -> Progress:
    """Make a progress bar that is drawn when it moves: a thread that redraws it would take time from the model."""
    count = TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TextColumn("{task.fields[pace]}"))
    return Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)


def ask_about(model: HMTModel, question: str, state: HMTState, *, system: str | None = None, **decoding: Any) -> Generation:
    """Answer a question about the text that `state` has read.

    Every view is one user turn that holds the recent text and then the question; a model without a chat template gets
    a plain prompt.

    Args:
        model: the model that has read the text.
        question: what to answer.
        state: the text so far.
        system: pinned in front.
        **decoding: options of `HMTModel.generate`.
    """
    from ..chat.transcript import Transcript

    transcript, asked = Transcript(model.backbone), f"\n\nQuestion: {question}"
    if not transcript.has_template:
        script = f"{asked}\nAnswer:"
        pinned = f"{system}\n\n{_INTRODUCTION}" if system else _INTRODUCTION
        return model.generate(script, state=state, pinned=pinned, stop="\nQuestion:", **decoding)
    before, after = transcript.around(_INTRODUCTION, asked, system=system)
    return model.generate(after, state=state, pinned=before, **decoding)


def remembering(model: HMTModel, question: str, ids: Tensor) -> ViewRecollection:
    """Recall what a text holds for a question; passages that the view does not show anyway are replayed in it.

    Args:
        model: the model that has read the text.
        question: what to recall for.
        ids: [t] token ids of the text.
    """
    from ..retrieval.ranking import ViewRecollection, alone
    from ..retrieval.sources import StreamShard

    backbone, length = model.backbone, model.config.segment_length
    shard = StreamShard("text", ids.tolist(), backbone.decode, length=length, slots=model.recalled_slots, until=len(ids))

    def aside(text: str) -> list[int]:
        return backbone.encode(f"{text}\n\n", literal=True)

    return ViewRecollection(model, aside, alone(shard), own=True, question=question)


def stream(pieces: Iterable[str], screen: Screen) -> None:
    """Write pieces as they come and end the line. A terminal gets no control characters, which could be commands."""
    with screen.unechoed():
        _write(pieces, screen.out)


def _write(pieces: Iterable[str], out: TextIO) -> None:
    terminal = out.isatty()
    last = ""
    try:
        for piece in pieces:
            out.write(_CONTROL_CHARACTERS.sub("", piece) if terminal else piece)
            out.flush()
            last = piece
    except KeyboardInterrupt:
        out.write("\n")
        raise
    if not last.endswith("\n"):
        out.write("\n")
    out.flush()


def recalled_passages(model: HMTModel, question: str, state: HMTState, ids: Tensor, *, top_k: int) -> list[Passage]:
    """Return the segments of a text that a question recalls, by falling weight.

    Args:
        model: the model that has read the text.
        question: what to recall for.
        state: the text so far.
        ids: [t] token ids of the text.
        top_k: how many segments, at most.
    """
    from ..engine.generate import recall_segments

    return [
        Passage(segment.segment, segment.weight, model.backbone.decode(ids[slice(*segment.token_span)].tolist()))
        for segment in recall_segments(model, question, state, top_k=top_k)
    ]


def show_passages(passages: Sequence[Passage], screen: Screen) -> None:
    """Print a line for each passage: segment, weight and how its text begins."""
    if not passages:
        return screen.note("No passages: the text is shorter than one segment.")
    rows = [(f"segment {passage.segment}", f"{passage.weight:.2f}", passage.text) for passage in passages]
    _show_rows("Recalled passages (segment, weight, text)", rows, screen)


def show_recalled(passages: Sequence[RecalledSegment], screen: Screen) -> None:
    """Print a line for each recalled segment: its source, when it was said, its weight, and how its text begins."""
    if not passages:
        return screen.note("Nothing to recall yet: no segment is full.")
    rows = [
        (f"{passage.source} #{passage.segment}", f"{passage.created_at:%Y-%m-%d %H:%M}", f"{passage.weight:.2f}", passage.text)
        for passage in passages
    ]
    _show_rows("Recalled (source and segment, time in UTC, weight, text)", rows, screen)


def _show_rows(title: str, rows: Sequence[tuple[str, ...]], screen: Screen) -> None:
    table = Table.grid(padding=(0, 2))
    for *columns, text in rows:
        table.add_row(*(Text(printable(column)) for column in columns), Text(beginning(text)))
    screen.note(title)
    screen.notes.print(table, style="dim")


def beginning(text: str, characters: int = _PASSAGE_CHARACTERS) -> str:
    """Return the first `characters` of a text on one line."""
    words = " ".join(text.split())
    return printable(words[:characters] + ("…" if len(words) > characters else ""))


def printable(text: str) -> str:
    """Remove control characters, which a terminal could take for commands."""
    return _CONTROL_CHARACTERS.sub("", text)


def show_usage(reading: Reading, answer: Generation, seconds: float, screen: Screen) -> None:
    """Say what was read and answered, and how long each took.

    Args:
        reading: what was read.
        answer: the whole answer.
        seconds: how long the answer took.
        screen: where the line goes.
    """
    segments = reading.state.segments  # only full ones cost time
    pace = f" in {reading.seconds:.1f} s ({reading.tokens / reading.seconds:,.0f} tokens/s)" if segments else ""
    cut = "; cut at --max-tokens" if answer.finish_reason == "length" else ""
    screen.note(
        f"{reading.tokens:,} tokens read{pace}, {segments:,} segments; answer of {answer.usage.completion_tokens:,} tokens "
        f"from a view of {answer.usage.view_tokens:,} in {seconds:.1f} s{cut}"
    )


def visible_tokens(model: HMTModel, state: HMTState) -> int:
    """Count the tokens of a stream that stand verbatim in a view of it: the recent ones and the open segment."""
    return min(len(state.recent_ids), model.view.recent_tokens or 0) + len(state.open_ids)


def check_text(text: str) -> None:
    """Raise InputError if `text` holds bytes that did not decode in the terminal's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the text is not UTF-8. Set the terminal to UTF-8, such as with LC_ALL=C.UTF-8.") from error
