"""`hmt ask` and `hmt chat`: their arguments, and which model and sessions they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.places import is_address
from ..sessions.default_reader import SAME
from . import asking, dialogue, models, options, terminal
from .documents import open_documents
from .models import ModelChoice
from .options import DEFAULT_MODEL, Dtype
from .stores import open_store
from .terminal import Screen

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..sessions.collection import Collection
    from ..sessions.corpus import Corpus
    from ..sessions.memory_store import MemoryStore

CorpusOption = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        help="Recall from what hmt read has read; may be repeated.",
        autocompletion=options.corpus_names,
        show_default=False,
    ),
]


def ask(
    question: Annotated[
        list[str],
        typer.Argument(
            metavar="[FILE]... QUESTION", help="Text, PDF, Word or HTML files (- is standard input), then the question."
        ),
    ],
    corpus: CorpusOption = None,
    system: options.System = None,
    store: options.Store = None,
    model: options.Answering = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    reader: options.Reader = None,
    vllm: options.VLLM = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = None,
    passages: Annotated[int, typer.Option(min=0, help="How many recalled passages to show.")] = 3,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Read files of any length, or recall what was read before, and answer a question."""
    *files, text = question
    _check_question(text, files, corpus or [])
    screen = Screen.standard()
    for given in (text, system or ""):
        terminal.check_text(given)
    documents = open_documents(files, screen)
    decoding = _decoding(max_tokens, temperature, top_p, repetition_penalty, seed) | {"system": system}
    if not corpus:
        if reader not in (None, SAME) or is_address(model):
            raise typer.BadParameter(
                "--reader, and a server as --model, need a --corpus: read the files with hmt read --corpus, then ask."
            )
        loaded = ModelChoice(model, adapter, dtype.value, device).load(screen)
        loaded, _ = _answering(model, model, loaded, vllm, dtype, device, screen)
        return asking.ask(loaded, documents, text, screen, passages=passages, decoding=decoding)
    with open_store(store) as opened:
        known = [opened.corpus(name) for name in corpus]
        reader = models.reader_of(model, adapter, reader, screen, *known)
        loaded = ModelChoice(reader, adapter, dtype.value, device, opened.place).load(screen, *known)
        loaded, other = _answering(model, reader, loaded, vllm, dtype, device, screen)
        decoding |= other
        first, *others = (opened.corpus(name, loaded) for name in corpus)
        _ask_corpora(first, others, text, screen, model=loaded, passages=passages, decoding=decoding)


def _check_question(text: str, files: Sequence[str], corpora: Sequence[str]) -> None:
    if text == "-" or _is_file(text):
        raise typer.BadParameter(f"{text} is a file. End with the question: hmt ask {text} 'What is this about?'")
    if not text.strip():
        raise typer.BadParameter("the question is empty. End with the question, in quotes.")
    if bool(files) == bool(corpora):
        wanted = "name files or a --corpus, not both." if files else "name files before the question, or a --corpus."
        raise typer.BadParameter(wanted)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a file name can be
        return False


def _decoding(max_tokens: int, temperature: float, top_p: float, penalty: float, seed: int | None) -> dict[str, Any]:
    """Collect options of `HMTModel.generate`."""
    sampling = {"temperature": temperature, "top_p": top_p, "repetition_penalty": penalty, "seed": seed}
    return {"max_new_tokens": max_tokens, **sampling}


def _ask_corpora(
    first: Corpus,
    others: Sequence[Corpus],
    question: str,
    screen: Screen,
    *,
    model: HMTModel,
    passages: int,
    decoding: dict[str, Any],
) -> None:
    """Stream the answer to a question about corpora, then show the passages it was given."""
    models.note_if_untrained(model, screen)
    answer = first.ask(question, *others, **decoding)
    terminal.stream(answer, screen)
    if answer.finish_reason == "length":
        screen.note("(cut at --max-tokens)")
    if passages:
        terminal.show_recalled(answer.recalled[:passages], screen)


def chat(
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            help="Keep the conversation under this name, or go on with it.",
            autocompletion=options.session_names,
            show_default=False,
        ),
    ] = None,
    corpus: CorpusOption = None,
    system: options.System = None,
    store: options.Store = None,
    model: options.Answering = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    reader: options.Reader = None,
    vllm: options.VLLM = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Above 1 makes what was said already less likely; 1 is none. By default 1.1, and none where a server answers.",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = None,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Talk with the model; /help inside lists the commands. Without --session nothing is stored."""
    if corpus and session is None:
        raise typer.BadParameter("--corpus needs a --session to attach it to; hmt ask --corpus answers a single question.")
    screen = Screen.standard()
    terminal.check_text(system or "")
    if repetition_penalty is None:
        repetition_penalty = 1.0 if is_address(model) else 1.1  # small models repeat themselves otherwise
    decoding = _decoding(max_tokens, temperature, top_p, repetition_penalty, seed)
    if session is None:
        reader = models.reader_of(model, adapter, reader, screen)
        loaded = ModelChoice(reader, adapter, dtype.value, device).load(screen)
        loaded, other = _answering(model, reader, loaded, vllm, dtype, device, screen)
        decoding |= other
        dialogue.chat(loaded, dialogue.typed_lines(screen), screen, system=system, decoding=decoding)
        return
    with open_store(store, create=True) as opened:
        known = _known(opened, session, corpus or [])
        reader = models.reader_of(model, adapter, reader, screen, *known)
        loaded = ModelChoice(reader, adapter, dtype.value, device, opened.place).load(screen, *known)
        loaded, other = _answering(model, reader, loaded, vllm, dtype, device, screen)
        decoding |= other
        kept = opened.session(session, loaded)
        kept.attach(*corpus or [])
        if opened.tiers.fetch_ahead and not other:
            opened.behind.do(session, kept.prepare)  # while the first question is typed
        dialogue.resume(kept, loaded, dialogue.typed_lines(screen), screen, system=system, decoding=decoding)


def _answering(
    model: str, reader: str, loaded: HMTModel, vllm: str | None, dtype: Dtype, device: str, screen: Screen
) -> tuple[HMTModel, dict[str, Any]]:
    return models.answering(model, loaded, screen, reads=reader == model, vllm=vllm, dtype=dtype.value, device=device)


def _known(store: MemoryStore, session: str, corpora: Sequence[str]) -> list[Collection]:
    """Return a session, which may be new, and the corpora that it recalls from."""
    known = [store.session(session)] if store.has("session", session) else []
    attached = [name for kept in known for name in kept.stats()["corpora"]]
    return [*known, *(store.corpus(name) for name in dict.fromkeys([*attached, *corpora]))]
