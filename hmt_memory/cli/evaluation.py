"""`hmt eval`: what memory gains, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import DEFAULT_MODEL, Dtype
from .terminal import Screen

app = typer.Typer(no_args_is_help=True, help="Measure what memory gains; each writes JSON, Markdown and a picture.")
Results = Annotated[Path, typer.Option("--out", help="Folder for the results.")]


@app.command(no_args_is_help=True)
def perplexity(
    text: Annotated[str, typer.Argument(help="A long text that the model was not trained on.")],
    adapter: options.Adapter = None,
    rmt: Annotated[Path | None, typer.Option(help="Adapter of the twin trained with --mode rmt.", show_default=False)] = None,
    plain: Annotated[
        Path | None, typer.Option(help="Adapter of the twin trained with --mode plain.", show_default=False)
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="Another text, to exchange memories with: what memory itself carries.", show_default=False),
    ] = None,
    visible: Annotated[
        list[int] | None,
        typer.Option(help="Compare with --plain seeing so many tokens before a segment, too; repeat it.", show_default=False),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens of the text.")] = 30_000,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Measure perplexity against length for each kind of memory, with the same visible tokens."""
    from . import experiments

    experiments.perplexity(
        text,
        out,
        Screen.standard(),
        adapters={"hmt": adapter, "rmt": rmt, "plain": plain},
        other=other,
        visible=visible or [],
        tokens=tokens,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@app.command("recall", no_args_is_help=True)
def evaluate_recall(
    conversations: Annotated[str, typer.Argument(help="QMSum's .jsonl or LoCoMo's .json.")],
    adapter: options.Adapter = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Folder of a sentence encoder to compare with.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many conversations.", show_default=False)] = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Measure how much of the evidence for a question is recalled, beside BM25 and the most recent turns."""
    from . import experiments

    experiments.recall(
        conversations,
        out,
        Screen.standard(),
        encoder=encoder,
        adapter=adapter,
        limit=limit,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@app.command(no_args_is_help=True)
def conversations(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="LoCoMo's .json, REALTALK's or BEAM's chats, or QMSum's .jsonl."),
    ],
    answers: Annotated[bool, typer.Option("--answers/--no-answers", help="Let the session answer, too.")] = False,
    questions: Annotated[
        int | None, typer.Option(min=1, help="So many questions of each conversation, drawn by --seed.", show_default=False)
    ] = None,
    max_tokens: options.MaxTokens = 48,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Compare with BM25, MiniLM, the latest turns and the window.")
    ] = True,
    without_words: Annotated[
        bool, typer.Option("--without-words", help="Recall without words, too: by memories and meaning alone.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    adapter: options.Adapter = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    reader: options.Reader = None,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Tell published conversations to sessions: whether the evidence for questions is recalled, and the answers are right."""
    from . import experiments

    screen = Screen.standard()
    asked: dict[str, Any] = {"answers": answers, "questions": questions, "max_new_tokens": max_tokens, "seed": seed}
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "reader": reader, "dtype": dtype.value, "device": device}
    asked |= {"baselines": baselines, "without_words": without_words}
    experiments.conversations(paths, out, screen, asked=asked, **chosen)


@app.command()
def passkey(
    length: Annotated[
        list[int] | None, typer.Option(min=256, help="Tokens of a text; may be repeated. 1,024 to 1,048,576 if left out.")
    ] = None,
    depths: Annotated[int, typer.Option(min=1, max=16, help="How many depths.")] = 9,
    text: Annotated[
        str | None, typer.Option(help="A text to hide them in; repeated where it is too short.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses names, numbers and filler.")] = 0,
    adapter: options.Adapter = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Hide facts at every depth of texts from 1,000 to 1,000,000 tokens, and ask for each."""
    from . import experiments

    experiments.passkey(
        text,
        out,
        Screen.standard(),
        lengths=length or [],
        depths=depths,
        seed=seed,
        adapter=adapter,
        model=model,
        dtype=dtype.value,
        device=device,
    )


@app.command(no_args_is_help=True)
def questions(
    samples: Annotated[str, typer.Argument(help="PubMedQA's .json, or its rows as .jsonl.")],
    limit: Annotated[int, typer.Option(min=1, help="How many questions.")] = 50,
    seed: Annotated[int, typer.Option(help="Chooses the other contexts and their order.")] = 0,
    adapter: options.Adapter = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Ask questions over 2 to 10 abstracts: perplexity of the long answer, accuracy of yes, no, maybe."""
    from . import experiments

    screen = Screen.standard()
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "dtype": dtype.value, "device": device}
    experiments.questions(samples, out, screen, limit=limit, seed=seed, **chosen)


@app.command()
def answers(
    conversations: Annotated[int, typer.Option(min=1, help="How many conversations.")] = 10,
    facts: Annotated[int, typer.Option(min=1, max=20, help="Facts told in each.")] = 20,
    talk: Annotated[int, typer.Option(min=0, help="Turns of other talk after each fact.")] = 5,
    seed: Annotated[int, typer.Option(help="Chooses facts, names and talk.")] = 0,
    replied: Annotated[
        bool, typer.Option("--replied", help="Let the model answer what it is told, as in a chat; else answers are given.")
    ] = False,
    repetition_penalty: options.Penalty = 1.0,
    adapter: options.Adapter = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    reader: options.Reader = None,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Tell facts among other talk, end the process, and ask for them in another: whether the answers say them."""
    from . import experiments

    screen = Screen.standard()
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "reader": reader, "dtype": dtype.value, "device": device}
    told: dict[str, Any] = {"conversations": conversations, "facts": facts, "talk": talk, "seed": seed, "replied": replied}
    experiments.answers(out, screen, told=told, repetition_penalty=repetition_penalty, **chosen)


@app.command(no_args_is_help=True)
def behaviour(
    text: Annotated[str, typer.Argument(help="A long text.")],
    other: Annotated[str, typer.Argument(help="Another one, to interleave it with.")],
    tokens: Annotated[int, typer.Option(min=256, help="How many tokens of each.")] = 16_384,
    adapter: options.Adapter = None,
    out: Results = Path("hmt-eval"),
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Measure how far back memory recalls, interleaved and diluted texts, sensory memory, memories kept."""
    from . import experiments

    screen = Screen.standard()
    chosen: dict[str, Any] = {"adapter": adapter, "model": model, "dtype": dtype.value, "device": device}
    experiments.behaviour(text, other, out, screen, tokens=tokens, **chosen)
