"""Eq. 1-5 over the segments of a batch with their losses: back-propagation through all of them, in flat memory.

Knows the model's steps and the losses. What the backward pass needs of a segment is kept, or recomputed from its inputs when
its turn comes (only memory embeddings, a few vectors a segment, stay), or kept on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from ..engine.modes import eval_mode
from ..engine.unroll import Steps, Turn, unroll
from ..errors import InputError
from .examples import IGNORED, Example
from .losses import Weights, recall_loss, token_losses

if TYPE_CHECKING:
    from ..engine.cell import MemoryCell, Step
    from ..model import HMTModel

_TAUGHT_AT_ONCE = 8  # segments a pass of the teacher
Activations = Literal["keep", "recompute", "offload"]


class Losses(NamedTuple):
    """Sums over a batch."""

    token_total: Tensor  # scalar fp32, weighted and differentiable, summed over `tokens`
    recall_total: Tensor  # scalar fp32, differentiable, summed over `recalls`
    next_token: float  # cross-entropy, summed over `tokens`
    distillation: float  # KL(teacher || student), summed over `tokens`
    tokens: int  # predictions that counted
    recalls: int  # segments whose evidence is known
    recalled: int  # segments whose largest weight fell on the evidence


def unrolled_losses(
    model: HMTModel,
    examples: Sequence[Example],
    weights: Weights,
    *,
    activations: Activations = "keep",
    teacher_tokens: int = 0,
    in_step: bool = False,
) -> Losses:
    """Compute the losses of a batch; gradients flow through every segment's memory.

    Args:
        model: the model that learns.
        examples: the rows of the batch.
        weights: how much of each token loss goes into the total.
        activations: `keep` for speed; `recompute` for memory that hardly grows with the number of segments, at the price
            of one more forward pass; `offload` keeps them on the CPU, as the authors do.
        teacher_tokens: with `weights.distillation`, how many tokens before a segment the teacher sees verbatim, at least.
            The teacher is the backbone itself, without its adapter.
        in_step: whether to pass through the model as often as for any other batch of as many rows and segments, wanted or not.

    Raises:
        InputError: the text before an example is not whole segments.
    """
    states = model.states(None, len(examples))
    if any(len(example.before) for example in examples):
        # Without memory only the last tokens before an example count.
        start = -model.config.segment_length if model.config.mode == "plain" else 0
        with torch.no_grad(), eval_mode(model):
            states, _ = unroll(model, states, [example.before[start:] for example in examples], keep_hidden=False)
        if any(len(state.open_ids) for state in states):
            raise InputError("the text before an example must be whole segments. Cut it at a multiple of segment_length.")
    steps = _TrainingSteps(model, examples, weights, activations, teacher_tokens, in_step=in_step)
    unroll(model, states, [example.ids for example in examples], keep_hidden=False, final=True, steps=steps)
    return steps.losses()


def view_losses(model: HMTModel, examples: Sequence[Example], weights: Weights) -> Losses:
    """Compute the losses of views: P of the text `before`, then `ids` verbatim, as an answer sees its text.

    Segments teach the model to read a few tokens behind a memory; without views it forgets how to read many. The teacher is the
    backbone itself, which sees the text before verbatim too.

    Args:
        model: the model that learns.
        examples: the rows of the batch.
        weights: how much of each token loss goes into the total.
    """
    with torch.no_grad(), eval_mode(model):
        befores = [example.before for example in examples]
        states, _ = unroll(model, model.states(None, len(examples)), befores, keep_hidden=False)
        last = [ids[-(model.config.summary_length or 1) :] for ids in (example.ids for example in examples)]
        summaries = model.summarize(last) if model.config.mode == "hmt" else [None] * len(last)
        prompt = model.prompt(list(summaries), [model.by_segment(state) for state in states])
        none = examples[0].ids[:0]
    step = model.augment(prompt, [none] * len(examples), [example.ids for example in examples])
    teacher = None
    if weights.distillation and model.backbone.has_adapter:
        taught = _taught(model, [torch.cat([example.before, example.ids]) for example in examples])
        teacher = torch.cat([hidden[len(example.before) :] for hidden, example in zip(taught, examples, strict=True)])
    targets = torch.cat([_shifted(example.labels) for example in examples]).to(prompt.device)
    losses = token_losses(model.backbone.head, torch.cat(step.hidden), targets, weights, teacher)
    nothing = torch.zeros((), device=prompt.device)
    return Losses(
        losses.total, nothing, float(losses.next_token.detach()), float(losses.distillation.detach()), losses.tokens, 0, 0
    )


@torch.no_grad()
def _taught(model: MemoryCell, texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the hidden states [t, d] of the backbone without its adapter, for each text [t]."""
    backbone = model.backbone
    with backbone.without_adapter():
        padded = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True).to(backbone.device)
        hidden = backbone.body(backbone.embed(padded))
    return [states[: len(text)] for states, text in zip(hidden, texts, strict=True)]


class _TrainingSteps(Steps):
    """The steps of Eq. 1-5 with their losses, so that no segment's hidden states or logits outlive its step."""

    def __init__(
        self,
        model: HMTModel,
        examples: Sequence[Example],
        weights: Weights,
        activations: Activations,
        teacher_tokens: int,
        *,
        in_step: bool,
    ) -> None:
        super().__init__(model)
        length = model.config.segment_length
        # A summary costs half a segment: summarizing two segments of each row takes no more room than reading one.
        self.summary_tokens = 2 * len(examples) * ((model.config.summary_length or length) + 2)
        self._examples, self._weights = examples, weights
        self._saved, self._in_step = _SAVED[activations], in_step
        self._teacher = teacher_tokens if weights.distillation and model.backbone.has_adapter else 0
        self._targets = [_shifted(example.labels).split(length) for example in examples]
        device = model.backbone.device
        self._tokens = [torch.zeros((), device=device)]
        self._recall = [torch.zeros((), device=device)]
        self._sums = torch.zeros(2, device=device)
        self._taught: dict[tuple[int, int], Tensor] = {}
        self._counts = {"tokens": 0, "recalls": 0, "recalled": 0}

    def summarize(self, segments: Sequence[Tensor]) -> Tensor:
        """Compute the summaries of Eq. 1, saving activations as the run wants it."""
        return self._saved(super().summarize, segments)

    def read(self, turn: Turn) -> Step:
        """Read one segment of each row and add its token losses. The hidden states of the result are empty."""
        prompt = self._recalled(turn)
        step: Step = self._saved(self.model.augment, prompt, turn.tails, turn.segments)
        targets = [self._targets[row][turn.number].to(prompt.device) for row in turn.rows]
        if self._in_step or any(bool((target != IGNORED).any()) for target in targets):
            teacher = self._teach(turn) if self._teacher else None
            losses = token_losses(self.model.backbone.head, torch.cat(step.hidden), torch.cat(targets), self._weights, teacher)
            self._tokens.append(losses.total)
            self._sums += torch.stack([losses.next_token.detach(), losses.distillation.detach()])
            self._counts["tokens"] += losses.tokens
        return step._replace(hidden=[])

    def _recalled(self, turn: Turn) -> Tensor:
        """Build the prompts of Eq. 2-3; add the recall loss where a segment's evidence is known and still remembered."""
        for row, summary, window in zip(turn.rows, turn.summaries, turn.windows, strict=True):
            wanted = self._examples[row].evidence.get(turn.number, ())
            oldest = turn.number - len(window)
            places = [place - oldest for place in wanted if place >= oldest]
            if summary is None or not places:
                continue
            # Only W_q and W_k learn from the recall loss: it must not change what is read and written.
            known = self.model.recallable(window).detach()
            weights = self.model.recall(summary[None].detach(), known[None]).weights[0]
            self._recall.append(recall_loss(weights, places))
            self._counts["recalls"] += 1
            self._counts["recalled"] += int(weights.argmax()) in places
        return self.model.prompt(turn.summaries, turn.windows)

    def _teach(self, turn: Turn) -> Tensor:
        """Return hidden states of the backbone itself where it sees the text before each segment verbatim."""
        wanted = [(row, turn.number) for row in turn.rows]
        if any(key not in self._taught for key in wanted):
            self._taught = self._teach_ahead(turn)
        return torch.cat([self._taught[key] for key in wanted])

    def _teach_ahead(self, turn: Turn) -> dict[tuple[int, int], Tensor]:
        """Run the teacher once over the next few segments of each row, whose contexts overlap. By row and segment: [t, d]."""
        length, texts, starts = self.model.config.segment_length, [], []
        for row in turn.rows:
            example = self._examples[row]
            text = torch.cat([example.before, example.ids])
            start = len(example.before) + turn.number * length
            first = max(0, start - self._teacher)
            texts.append(text[first : start + _TAUGHT_AT_ONCE * length])
            starts.append(start - first)
        return {
            (row, turn.number + offset): part
            for row, states, start in zip(turn.rows, _taught(self.model, texts), starts, strict=True)
            for offset, part in enumerate(states[start:].split(length))
        }

    def losses(self) -> Losses:
        """Return the sums over the batch."""
        return Losses(
            torch.stack([value.float() for value in self._tokens]).sum(),
            torch.stack([value.float() for value in self._recall]).sum(),
            *self._sums.tolist(),
            **self._counts,
        )


def _shifted(labels: Tensor) -> Tensor:
    """Return what each position predicts: the label of the next position."""
    return torch.cat([labels[1:], labels.new_full((1,), IGNORED)])


def _kept(step: Callable[..., Any], *inputs: Any) -> Any:
    return step(*inputs)


def _recomputed(step: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(step, *inputs, use_reentrant=False)


def _offloaded(step: Callable[..., Any], *inputs: Any) -> Any:
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return step(*inputs)


_SAVED: dict[str, Callable[..., Any]] = {"keep": _kept, "recompute": _recomputed, "offload": _offloaded}
