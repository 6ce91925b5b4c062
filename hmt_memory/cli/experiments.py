"""`hmt eval` on a terminal: progress, results, files. Knows consoles; the work is in `evaluate/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn

from ..errors import InputError
from .terminal import Screen

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate.report import Report
    from ..model import HMTModel


def perplexity(
    text: str,
    out: Path,
    screen: Screen,
    *,
    adapters: dict[str, Path | None],
    other: str | None,
    visible: Sequence[int],
    tokens: int,
    model: str,
    dtype: str,
    device: str,
) -> None:
    """Compare kinds of memory on one text.

    Args:
        text: the file to measure on.
        out: folder of the results.
        screen: where progress and results go.
        adapters: folders of adapters by their kind of training: hmt, rmt, plain.
        other: a file to exchange memories with.
        visible: numbers of tokens that the plain twin sees before a segment, besides its own.
        tokens: how many tokens of the text are read.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.

    Raises:
        InputError: `visible` is given without a plain adapter.
    """
    from ..evaluate.perplexity import Contender, compare
    from .models import load_model

    if visible and adapters.get("plain") is None:
        raise InputError("--visible compares with the twin trained without memory: name it with --plain.")
    loaded = {
        kind: load_model(model, screen, adapter=folder, dtype=dtype, device=device)
        for kind, folder in adapters.items()
        if folder is not None or kind == "hmt"
    }
    hmt = loaded["hmt"]
    config = replace(hmt.config, mode="plain")
    bare = load_model(model, screen, config=config, adapter=None, dtype=dtype, device=device)
    contenders = [Contender("HMT", hmt, "recalled"), Contender("HMT without recall", hmt, "previous")]
    contenders.append(Contender("HMT, P_0 alone", hmt, "initial"))
    if other is not None:
        contenders.append(Contender("HMT, another text's memories", hmt, "exchanged"))
        if hmt.config.recalled_tokens:
            contenders.append(Contender("HMT, recalled from another text", hmt, "misrecalled"))
    if "rmt" in loaded:
        contenders.append(Contender("RMT, equally trained", loaded["rmt"], "previous"))
    if "plain" in loaded:
        plain = loaded["plain"]
        contenders.append(Contender("no context, equally trained", plain.with_config(sensory_length=0), "none"))
        contenders.append(Contender("sliding window, equally trained", plain, "none"))
        wider = [(count, plain.with_config(sensory_length=count)) for count in visible]
        contenders += [Contender(f"sliding window of {count}, equally trained", twin, "none") for count, twin in wider]
    contenders.append(Contender("no context, backbone as it is", bare.with_config(sensory_length=0), "none"))
    contenders.append(Contender("sliding window, backbone as it is", bare, "none"))
    reference = next(
        (contender.name for contender in contenders if contender.name == "sliding window, equally trained"), contenders[-1].name
    )
    ids = _tokens_of(text, hmt, tokens)
    another = None if other is None else _tokens_of(other, hmt, len(ids))
    with Progress(TextColumn("reading"), BarColumn(), console=screen.notes, transient=True) as progress:
        task = progress.add_task("reading", total=len(contenders) * len(ids))
        report = compare(
            contenders,
            ids,
            other=another,
            reference=reference,
            settings={"text": Path(text).name, "other text": other and Path(other).name, **_described(hmt, adapters)},
            progress=lambda done: progress.advance(task, done),
        )
    _publish(report, out, screen)


def recall(
    conversations: str,
    out: Path,
    screen: Screen,
    *,
    encoder: Path | None,
    adapter: Path | None,
    limit: int | None,
    model: str,
    dtype: str,
    device: str,
) -> None:
    """Measure how much evidence is recalled, beside BM25 and a sentence encoder.

    Args:
        conversations: a file of QMSum or LoCoMo.
        out: folder of the results.
        screen: where progress and results go.
        encoder: folder of a sentence encoder to compare with.
        adapter: folder of the trained memory.
        limit: the first so many conversations; None: all.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..evaluate.conversations import load_conversations
    from ..evaluate.evidence import measure, sentence_encoder
    from .models import load_model

    chosen = load_conversations(conversations)[:limit]
    compared = None if encoder is None else sentence_encoder(encoder)
    loaded = load_model(model, screen, adapter=adapter, dtype=dtype, device=device)
    with Progress(TextColumn("reading"), BarColumn(), console=screen.notes, transient=True) as progress:
        task = progress.add_task(
            "reading", total=sum(len(loaded.backbone.encode(conversation.text)) for conversation in chosen)
        )
        settings = {
            "conversations of": Path(conversations).name,
            "encoder": encoder and encoder.resolve().parent.name,
            **_described(loaded, {"hmt": adapter}),
        }
        report = measure(
            loaded, chosen, encoder=compared, settings=settings, progress=lambda done: progress.advance(task, done)
        )
    _publish(report, out, screen)


def conversations(
    paths: Sequence[str],
    out: Path,
    screen: Screen,
    *,
    asked: Mapping[str, Any],
    adapter: Path | None,
    model: str,
    reader: str | None,
    dtype: str,
    device: str,
) -> None:
    """Tell published conversations to sessions, and ask for what was said. Answers go to a file beside the report.

    Args:
        paths: files of conversations.
        out: folder of the results.
        screen: where progress and results go.
        asked: fields of `Plan`.
        adapter: folder of the trained memory.
        model: a folder or the name of the model that answers.
        reader: the model that reads, as the command line names it.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..engine.fingerprint import fingerprint
    from ..evaluate.evidence import packaged_encoder
    from ..evaluate.published import load
    from ..evaluate.remembering import Plan, measure
    from .models import load_model, reader_of

    plan = Plan(**asked)
    told = load(paths)
    encoder = packaged_encoder() if plan.baselines else None
    reads = reader_of(model, adapter, reader, screen)
    loaded = load_model(reads, screen, adapter=adapter, dtype=dtype, device=device)
    answerer = None if reads == model else load_model(model, screen, dtype=dtype, device=device)
    settings = {
        "files": ", ".join(Path(path).name for path in paths),
        **_described(loaded, {}),
        "adapter": adapter.name if adapter else "as shipped",
        "fingerprint": fingerprint(loaded).digest[:16],  # of model and adapter together
        "recall is trained": loaded.is_trained,
        "answered by": model,
    }
    with screen.notes.status("telling") as status:
        report, outcomes = measure(
            loaded, told, plan, answerer=answerer, encoder=encoder, settings=settings, progress=status.update
        )
    _publish(report, out, screen)
    if plan.answers:
        target = out / "conversations-answers.jsonl"
        lines = [json.dumps(outcome.to_dict(), ensure_ascii=False) for outcome in outcomes if outcome.reply is not None]
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        screen.out.write(f"{target}\n")


def passkey(
    text: str | None,
    out: Path,
    screen: Screen,
    *,
    lengths: Sequence[int],
    depths: int,
    seed: int,
    adapter: Path | None,
    model: str,
    dtype: str,
    device: str,
) -> None:
    """Hide facts in texts of many lengths and ask for them.

    Args:
        text: a file to hide them in; None: sentences that say nothing.
        out: folder of the results.
        screen: where progress and results go.
        lengths: of the texts, in tokens; empty: the usual ones.
        depths: the number of facts in each text.
        seed: decides names, numbers and filler.
        adapter: folder of the trained memory.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..evaluate.passkey import LENGTHS, measure
    from .documents import open_documents
    from .models import load_model

    filler = None if text is None else open_documents([text], screen)[0].text
    loaded = load_model(model, screen, adapter=adapter, dtype=dtype, device=device)
    settings = {"text": text and Path(text).name, **_described(loaded, {"hmt": adapter})}
    hidden: dict[str, Any] = {"depths": depths, "filler": filler, "seed": seed, "settings": settings}
    with screen.notes.status("hiding passkeys") as status:
        report = measure(loaded, lengths or LENGTHS, **hidden, progress=status.update, done=lambda report: report.write(out))
    _publish(report, out, screen)


def answers(
    out: Path,
    screen: Screen,
    *,
    told: Mapping[str, Any],
    repetition_penalty: float,
    adapter: Path | None,
    model: str,
    reader: str | None,
    dtype: str,
    device: str,
) -> None:
    """Tell facts in conversations, and ask for them in another process.

    Args:
        out: folder of the results.
        screen: where progress and results go.
        told: fields of `Plan`; of the facts, a quarter is told anew later.
        repetition_penalty: how answers are kept from repeating what was said; 1: not.
        adapter: folder of the trained memory.
        model: a folder or the name of the model that answers.
        reader: the model that reads, as the command line names it.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..evaluate.answers import DECODING, Loading, Plan, measure
    from .models import reader_of

    plan = Plan(**told, changed=told["facts"] // 4)
    reads, placed = reader_of(model, adapter, reader, screen), {"dtype": dtype, "device": device}
    loading = Loading(reads, {"adapter": adapter, **placed}, None if reads == model else Loading(model, placed))
    settings = {"model": reads, "adapter": str(adapter or "as shipped"), "answered by": model}
    decoding = DECODING.changed(repetition_penalty=repetition_penalty)
    with screen.notes.status("telling facts") as status:
        report = measure(loading, plan, decoding=decoding, settings=settings, progress=status.update)
    _publish(report, out, screen)


def questions(
    samples: str, out: Path, screen: Screen, *, limit: int, seed: int, adapter: Path | None, model: str, dtype: str, device: str
) -> None:
    """Ask over several contexts, with recall, without it, and with the sliding window alone.

    Args:
        samples: a file of PubMedQA.
        out: folder of the results.
        screen: where progress and results go.
        limit: the number of questions.
        seed: decides which contexts stand beside a question, and their order.
        adapter: folder of the trained memory.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..evaluate.questions import COUNTS, load_samples, measure
    from .models import load_model

    loaded_samples = load_samples(samples)
    counts = [count for count in COUNTS if count <= len(loaded_samples)]
    loaded = load_model(model, screen, adapter=adapter, dtype=dtype, device=device)
    contenders = {
        "HMT": loaded,
        "HMT without recall": loaded.with_config(mode="rmt"),
        "sliding window": loaded.with_config(mode="plain"),
    }
    with Progress(TextColumn("asking"), BarColumn(), console=screen.notes, transient=True) as progress:
        task = progress.add_task("asking", total=len(contenders) * len(counts) * min(limit, len(loaded_samples)))
        report = measure(
            contenders,
            loaded_samples,
            counts=counts,
            limit=limit,
            seed=seed,
            settings={"samples of": Path(samples).name, **_described(loaded, {"hmt": adapter})},
            progress=lambda done: progress.advance(task, done),
        )
    _publish(report, out, screen)


def behaviour(
    text: str,
    other: str,
    out: Path,
    screen: Screen,
    *,
    tokens: int,
    adapter: Path | None,
    model: str,
    dtype: str,
    device: str,
) -> None:
    """Run the paper's behaviour studies.

    Args:
        text: the file to measure on.
        other: a file to interleave it with.
        out: folder of the results.
        screen: where progress and results go.
        tokens: how many tokens of each file are read.
        adapter: folder of the trained memory.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..evaluate.behaviour import measure
    from .models import load_model

    loaded = load_model(model, screen, adapter=adapter, dtype=dtype, device=device)
    ids, another = _tokens_of(text, loaded, tokens), _tokens_of(other, loaded, tokens)
    settings = {"text": Path(text).name, "other text": Path(other).name, **_described(loaded, {"hmt": adapter})}
    with screen.notes.status("reading") as status:
        report = measure(loaded, ids, another, settings=settings, progress=status.update)
    _publish(report, out, screen)


def _tokens_of(name: str, model: HMTModel, tokens: int) -> Tensor:
    """Return the first `tokens` tokens of a text file."""
    from ..engine.reader import token_ids
    from .documents import open_documents

    (document,) = open_documents([name], Screen.standard())
    # Enough characters for that many tokens, whatever the language; the rest of a long file need not be tokenised.
    return token_ids(model, document.text[: 16 * tokens], literal=True)[:tokens]


def _described(model: HMTModel, adapters: Mapping[str, Path | None]) -> dict[str, Any]:
    named = {f"{kind} adapter": folder for kind, folder in adapters.items() if folder is not None}
    config = model.config
    sizes = ("segment_length", "summary_length", "sensory_length", "recall_window")
    kinds = ("memory_tokens", "recalled_tokens", "memory_input")
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    ran = {"model": model.backbone.name, "dtype": dtype, "engine": model.backbone.engine}
    return {**ran, **named, **{name: getattr(config, name) for name in (*sizes, *kinds)}}


def _publish(report: Report, out: Path, screen: Screen) -> None:
    """Show the tables on the screen and write everything to files."""
    from rich.table import Table

    from ..evaluate.report import shown

    for table in report.tables:
        grid = Table(title=table.title, title_justify="left", title_style="bold")
        for number, column in enumerate(table.columns):
            grid.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            grid.add_row(*map(shown, row))
        screen.notes.print(grid)
    for path in report.write(out):
        screen.out.write(f"{path}\n")
