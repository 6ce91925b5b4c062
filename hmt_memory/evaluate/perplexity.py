"""Perplexity of a long text under several kinds of memory, all with the same visible tokens.

Each segment of L tokens sees itself and the k tokens before it. A token's loss is computed from the hidden state before it, as
in training. Only P_n differs: recalled (Eq. 1-5), the previous memory alone (RMT), the constant P_0, or made from another
text's memories, wholly or in its recalled part. This separates what memory carries from what training has adapted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..engine.modes import eval_mode
from ..engine.state import HMTState
from ..engine.unroll import Steps, Turn, unroll
from ..errors import InputError
from .report import Figure, Report, Table
from .statistics import gain_interval, perplexity_interval

if TYPE_CHECKING:
    from ..engine.cell import Step
    from ..model import HMTModel

Memory = Literal["recalled", "previous", "initial", "exchanged", "misrecalled", "none"]
_ROWS = 8  # segments at a time, where none depends on another
_HEAD_ROWS = 512
_LENGTHS = [1 << power for power in range(10, 21)]


@torch.no_grad()
def token_losses(
    model: HMTModel,
    ids: Tensor,
    memory: Memory = "recalled",
    *,
    other: Tensor | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """Compute the loss of every token but the first, [t - 1] nats.

    Args:
        model: the model to measure.
        ids: [t] token ids of the text.
        memory: what P_n is. `recalled`: Eq. 1-5. `previous`: the same weights without recall, P_n = M_{n-1}. `initial`: P_0
            everywhere. `exchanged`: as `recalled`, from the memories of `other`. `misrecalled`: M_{n-1} is the text's own, and
            what is recalled behind it is from `other` (for models with `recalled_tokens`). `none`: no prompt, the k tokens
            alone.
        other: [t'] token ids of another text, as long.
        progress: called with the number of tokens done since the last call.

    Raises:
        InputError: there are fewer than two tokens, or another text is needed and is missing or shorter.
    """
    if len(ids) < 2:
        raise InputError("the text is shorter than two tokens.")
    with eval_mode(model):
        if memory in ("initial", "none"):
            hidden = _each_alone(model.with_config(mode="plain") if memory == "none" else model, ids, progress)
        else:
            chosen = model.with_config(mode="rmt") if memory == "previous" else model
            strange = None if memory not in ("exchanged", "misrecalled") else _memories(model, ids, other, progress)
            steps = _Scoring(chosen, strange, progress, own=memory == "misrecalled")
            unroll(chosen, chosen.states(None, 1), [ids], keep_hidden=False, final=True, steps=steps)
            hidden = torch.cat(steps.hidden)
        return _losses(model, hidden[:-1], ids[1:])


class _Scoring(Steps):
    """The usual steps with the hidden states kept.

    `strange` [n, m, d], if given, replaces the memories of the text; with `own`, all of them but M_{n-1}.
    """

    def __init__(self, model: HMTModel, strange: Tensor | None, progress: Callable[[int], None], *, own: bool) -> None:
        super().__init__(model)
        self.hidden: list[Tensor] = []
        self._strange, self._progress, self._own = strange, progress, own

    def read(self, turn: Turn) -> Step:
        """Read a segment behind the chosen memory and keep its hidden states."""
        windows = turn.windows
        if self._strange is not None:
            windows = [self._strange[: turn.number][-self.model.config.recall_window :]]
        prompt = self.model.prompt(turn.summaries, windows)
        if self._own and turn.number:
            recalled = self.model.recalled(turn.summaries, [self.model.recallable(windows[0])])
            prompt = self.model.joined([turn.windows[0][-1]], recalled)
        step = self.model.augment(prompt, turn.tails, turn.segments)
        self.hidden += step.hidden
        self._progress(sum(map(len, turn.segments)))
        return step


def _memories(model: HMTModel, ids: Tensor, other: Tensor | None, progress: Callable[[int], None]) -> Tensor:
    length = model.config.segment_length
    if other is None or len(other) // length < (len(ids) - 1) // length:
        raise InputError("exchanged memory needs another text that is at least as long.")
    state = model.states(None, 1)[0]
    for chunk in other[: len(ids)].split(16 * length):
        ((state,), _) = unroll(model, [state], [chunk], keep_hidden=False)
    return model.by_segment(state)


def _each_alone(model: HMTModel, ids: Tensor, progress: Callable[[int], None]) -> Tensor:
    """Return hidden states [t, d] where no segment has a memory, many segments at a time."""
    segments = ids.split(model.config.segment_length)
    tails = [ids[:0], *segments[:-1]]
    hidden: list[Tensor] = []
    for start in range(0, len(segments), _ROWS):
        rows = segments[start : start + _ROWS]
        empty = model.empty_state()
        states = [HMTState(empty.memory, tail, empty.open_ids) for tail in tails[start : start + _ROWS]]
        _, outputs = unroll(model, states, rows, keep_hidden=True)
        hidden += outputs
        progress(sum(map(len, rows)))
    return torch.cat(hidden)


def _losses(model: HMTModel, hidden: Tensor, targets: Tensor) -> np.ndarray:
    losses = [
        cross_entropy(model.backbone.head(rows).float(), wanted.to(rows.device), reduction="none").cpu()
        for rows, wanted in zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    ]
    return torch.cat(losses).numpy().astype(np.float64)


def by_length(losses: np.ndarray, lengths: Sequence[int]) -> dict[int, float]:
    """Return the perplexity of the first n tokens, for each n that the text has.

    >>> by_length(np.array([0.0, 0.0, np.log(4.0), np.log(4.0)]), [2, 4, 8])
    {2: 1.0, 4: 2.0}
    """
    return {n: round(float(np.exp(losses[:n].mean())), 4) for n in lengths if n <= len(losses)}


class Contender(NamedTuple):
    """One kind of memory in a comparison."""

    name: str
    model: HMTModel
    memory: Memory


def compare(
    contenders: Sequence[Contender],
    ids: Tensor,
    *,
    other: Tensor | None = None,
    reference: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Report:
    """Compare the perplexity of one text for each contender, against length, and each one's gain over the reference.

    Args:
        contenders: the kinds of memory to compare.
        ids: [t] token ids of the text.
        other: another text, for contenders with exchanged memory.
        reference: the name of the contender that gains are over; None: the last.
        settings: what else the report records.
        progress: called with the number of tokens done since the last call.
    """
    losses = {
        contender.name: token_losses(contender.model, ids, contender.memory, other=other, progress=progress)
        for contender in contenders
    }
    basis = reference or contenders[-1].name
    block = contenders[0].model.config.segment_length
    lengths = [length for length in _LENGTHS if length <= len(ids)] + ([len(ids)] if len(ids) not in _LENGTHS else [])
    columns = ["memory", "visible tokens", "perplexity", "low", "high", f"% below {basis}", "low", "high"]
    summarized = contenders[0].model.config.summary_length or 0
    beyond = np.arange(1, len(ids)) % block >= summarized

    def rows(chosen: np.ndarray, size: int) -> list[list[Any]]:
        table = []
        for contender in contenders:
            own, other = losses[contender.name][chosen], losses[basis][chosen]
            gain = (round(100 * value, 2) for value in gain_interval(own, other, block=size))
            table.append([contender.name, contender.model.config.sensory_length, *perplexity_interval(own, block=size), *gain])
        return table

    def against(name: str) -> list[float]:
        gain = gain_interval(losses[contenders[0].name], losses[name], block=block)
        return [round(100 * value, 2) for value in gain]

    curves = {name: by_length(values, [length - 1 for length in lengths]) for name, values in losses.items()}
    return Report(
        "perplexity",
        "Perplexity of a long text",
        {**(settings or {}), "tokens": len(ids), "intervals": f"95 %, bootstrap over blocks of {block} tokens, seed 0"},
        [
            Table("All tokens", columns, rows(np.ones_like(beyond), block)),
            # What P_n recalls depends on the first tokens of a segment, which were summarised; these come after them.
            Table(f"Tokens after the first {summarized} of a segment", columns, rows(beyond, max(1, block - summarized))),
            Table(
                f"How far {contenders[0].name} is below each",
                ["memory", "%", "low", "high"],
                [[contender.name, *against(contender.name)] for contender in contenders[1:]],
            ),
            Table(
                "By length",
                ["memory", *(f"first {length:,}" for length in lengths)],
                [[name, *curve.values()] for name, curve in curves.items()],
            ),
        ],
        [
            Figure(
                "Perplexity of the first n tokens",
                "tokens",
                "perplexity",
                {name: [(length + 1, value) for length, value in curve.items()] for name, curve in curves.items()},
                logarithmic=True,
            )
        ],
    )
