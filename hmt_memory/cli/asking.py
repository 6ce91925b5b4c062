"""`hmt ask` about files: read them with progress, stream an answer, show passages. torch is imported with the first call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import Document
from .models import note_if_untrained
from .terminal import Screen, reading_bar, show_rows, stream

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.generate import Generation
    from ..engine.state import HMTState
    from ..model import HMTModel
    from ..retrieval.recollection import ViewRecollection

_INTRODUCTION = "Read this text and answer the question after it.\n\n"
_CHUNK_SEGMENTS = 8  # between two movements of the progress bar; larger reads hardly faster


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
    memory = remembering(model, question, ids, reading.state)
    answer = ask_about(model, question, reading.state, recollection=memory, **decoding)
    stream(answer, screen)
    seconds = time.perf_counter() - started
    if passages and memory.recalled:
        rows = [(f"segment {passage.segment}", f"{passage.weight:.2f}", passage.text) for passage in memory.recalled[:passages]]
        show_rows("Notes (segment, weight, text)", rows, screen)
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
    from ..engine.turns import Turns

    transcript, asked = Transcript(model.backbone), f"\n\nQuestion: {question}"
    turns = Turns(question=state.tokens)
    if not transcript.has_template:
        script = f"{asked}\nAnswer:"
        pinned = f"{system}\n\n{_INTRODUCTION}" if system else _INTRODUCTION
        return model.generate(script, state=state, pinned=pinned, stop="\nQuestion:", turns=turns, **decoding)
    before, after = transcript.around(_INTRODUCTION, asked, system=system)
    return model.generate(after, state=state, pinned=before, turns=turns, **decoding)


def remembering(model: HMTModel, question: str, ids: Tensor, state: HMTState | None = None) -> ViewRecollection:
    """Recall what a text holds for a question; what the view does not show anyway is noted in it.

    Args:
        model: the model that has read the text.
        question: what to recall for.
        ids: [t] token ids of the text.
        state: the text that was read, whose keys by meaning then count.
    """
    from ..retrieval.ranking import alone
    from ..retrieval.recollection import ViewRecollection
    from ..retrieval.sources import StreamShard

    backbone, length = model.backbone, model.config.segment_length
    shard = StreamShard("text", ids.tolist(), backbone.decode, length=length, slots=model.recalled_slots, until=len(ids))
    if state is not None:
        shard.end_ids = backbone.end_ids
        shard.know([keys.numpy() for keys in state.keys], state.segments)

    def encode(text: str) -> list[int]:
        return backbone.encode(text, literal=True)

    return ViewRecollection(model, encode, alone(shard), own=True, question=question)


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
    show_rows("Recalled passages (segment, weight, text)", rows, screen)


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
