"""Eq. 1-5: the memory parameters and the steps of one segment.

Knows a backbone as embed, body and head. Training, reading (`reader.py`) and answering (`generate.py`) go through the same
steps. Sequences of unequal length are right-padded: invisible to a causal decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..config import HMTConfig, ViewConfig
from ..errors import ConfigError, InputError
from .backbone import Backbone
from .keys import LONGEST_QUESTION, StretchKeys
from .memory_input import MemoryInput, noise
from .recall import Recall
from .state import HMTState
from .stretches import stretches

if TYPE_CHECKING:
    from typing_extensions import Self

    from .writing import Writer


class Step(NamedTuple):
    """The result of Eq. 4-5 for one segment of B rows."""

    hidden: list[Tensor]  # B x [t_b, d] hidden states of the segment's own tokens
    memory: Tensor  # [B, m, d] M_n


class MemoryCell(nn.Module):
    """The parameters that HMT adds to a backbone, and the equations of one segment.

    Trainable: `summary_prompt` T [1, d], `initial_memory` P_0 [m, d], `recall.query` and `recall.key` [d_h, d], and
    `memory_input.*` where that extension is on; all in fp32. The backbone keeps its own flags and precision.
    """

    writer: Writer | None = None  # writes answers instead of the backbone

    def __init__(self, backbone: Backbone, config: HMTConfig) -> None:
        super().__init__()
        self.config = config.resolve(hidden_size=backbone.hidden_size, positions=backbone.positions)
        self._given_config = config
        self.view = config.view.resolve(self.config, hidden_size=backbone.hidden_size, positions=backbone.positions)
        self.backbone = backbone
        width, slots = backbone.hidden_size, self.config.memory_tokens
        sample = backbone.embedding_sample()
        # The mean embedding is neutral: in front of a text it changes nothing, whereas a start token derails short answers.
        # Rounded first, so that an untrained model is the same model, with the same fingerprint, in fp32 and in bf16.
        centre = sample.to(torch.bfloat16).float().mean(dim=0)
        self.summary_prompt = nn.Parameter(_near(centre, 1))
        self.initial_memory = nn.Parameter(_near(centre, slots))
        self.recall = Recall(width, self.config.recall_dim or width)
        self.memory_input = MemoryInput(self.config.memory_input, slots, self.config.recalled_tokens or 0, sample)
        self.keys = StretchKeys(width, self.config.key_dim) if self.config.key_dim else None
        for module in (self.recall, self.memory_input, *filter(None, [self.keys])):
            module.to(backbone.device)

    def with_config(self, **changes: Any) -> Self:
        """Share the parameters with a model of a changed configuration, e.g. `mode="rmt"`; they are not copied.

        Raises:
            ConfigError: the change would need other parameters (such as memory_tokens or key_dim).
        """
        try:
            given = replace(self._given_config, **changes)
        except TypeError as error:
            raise ConfigError(f"{error}. Known fields: {', '.join(self.config.to_dict())}.") from error
        config = given.resolve(hidden_size=self.backbone.hidden_size, positions=self.backbone.positions)
        for name in ("memory_tokens", "recalled_tokens", "memory_input", "recall_dim", "key_dim"):
            if getattr(config, name) != getattr(self.config, name):
                raise ConfigError(f"{name} decides which parameters exist. Build a new model to change it.")
        twin = copy.copy(self)
        twin.config, twin._given_config = config, given
        twin.view = given.view.resolve(config, hidden_size=self.backbone.hidden_size, positions=self.backbone.positions)
        return twin

    def with_view(self, view: ViewConfig) -> Self:
        """Share the parameters with a model whose answers are conditioned on another view.

        Raises:
            ConfigError: the budgets do not fit the backbone's window.
        """
        twin = copy.copy(self)
        twin.view = view.resolve(self.config, hidden_size=self.backbone.hidden_size, positions=self.backbone.positions)
        return twin

    def summarize(self, segments: Sequence[Tensor]) -> Tensor:
        """Compute Eq. 1: `S_n = BBM([T | H_n[0,j) | T])` at its last position, for S segments at once.

        Args:
            segments: S tensors [t] of token ids; the first j of each are used, fewer where a segment is shorter.

        Returns:
            [S, d] summaries.
        """
        prompt = self.summary_prompt.to(self.backbone.dtype)
        rows = [torch.cat([prompt, self._embed(ids[: self.config.summary_length]), prompt]) for ids in segments]
        hidden = self.backbone.body(pad_sequence(rows, batch_first=True))
        return torch.stack([hidden[number, len(row) - 1] for number, row in enumerate(rows)])

    def prompt(self, summaries: Sequence[Tensor | None], memories: Sequence[Tensor]) -> Tensor:
        """Compute Eq. 2-3: the memorisation prompt P_n; P_0 for a row without memory.

        Args:
            summaries: B x [d] S_n; only rows that recall need one.
            memories: B x [n_b, m, d], the latest N segments of each row.

        Returns:
            [B, m, d]; with `recalled_tokens` in a mode that recalls [B, m + r, d]; in plain mode [B, 0, d].
        """
        if self.config.mode == "plain":
            return self.initial_memory.new_zeros(len(memories), 0, self.backbone.hidden_size)
        before = [memory[-1] if len(memory) else self.initial_memory for memory in memories]
        if self.config.mode == "rmt":
            return torch.stack([memory.to(self.backbone.dtype) for memory in before])
        return self.joined(before, self.recalled(summaries, [self.recallable(memory) for memory in memories]))

    def recallable(self, memory: Tensor) -> Tensor:
        """Select the embeddings of a segment that recall attends to: [..., m, d] to [..., s, d], the last `recalled_tokens`."""
        return memory[..., self.slots - self.recalled_slots :, :]

    def joined(self, before: Sequence[Tensor], recalled: Tensor) -> Tensor:
        """Join the memory before, B x [m, d], and recalled embeddings [B, s, d] into P_n: both, or the recalled ones alone."""
        if self.config.recalled_tokens is None:
            return recalled
        return torch.cat([torch.stack(list(before)).to(recalled), recalled], dim=1)

    def recalled(self, summaries: Sequence[Tensor | None], memories: Sequence[Tensor]) -> Tensor:
        """Compute Eq. 2-3 over embeddings that may be recalled: [B, s, d]; those of P_0 for a row without memory.

        Args:
            summaries: B x [d] S_n; only rows with memory need one.
            memories: B x [n_b, s, d].
        """
        prompts: list[Tensor] = [self.recallable(self.initial_memory).to(self.backbone.dtype)] * len(memories)
        rows = [row for row, memory in enumerate(memories) if len(memory)]
        if rows:
            known = [memories[row].to(self.backbone.dtype) for row in rows]
            for row, prompt in zip(rows, self._recalled([summaries[row] for row in rows], known), strict=True):
                prompts[row] = prompt
        return torch.stack(prompts)

    def _recalled(self, summaries: Sequence[Tensor | None], memories: Sequence[Tensor]) -> Tensor:
        counts = torch.tensor([len(memory) for memory in memories], device=memories[0].device)
        padded = pad_sequence(list(memories), batch_first=True)  # [B, n, s, d]
        ragged = int(counts.min()) < padded.shape[1]
        mask = torch.arange(padded.shape[1], device=counts.device) < counts[:, None] if ragged else None
        return self.recall(torch.stack([summary for summary in summaries if summary is not None]), padded, mask).prompt

    def placed(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Turn P into its two parts of a view.

        Args:
            prompt: [m + r, d], or [m, d] where nothing is recalled.

        Returns:
            The input embeddings [ahead + m, d] that the view begins with, and those [r, d] that stand with the question.
        """
        front = self.memory_input.front(prompt).to(self.backbone.dtype)
        return front[: self.memory_input.ahead + self.slots], front[self.memory_input.ahead + self.slots :]

    def augment(self, prompt: Tensor, sensory: Sequence[Tensor], segments: Sequence[Tensor]) -> Step:
        """Compute Eq. 4-5: `H = BBM([P_n | H_{n-1}[L-k, L) | H_n | P_n])`, split into the segment's positions and M_n.

        Args:
            prompt: [B, m, d] P_n; embeddings recalled behind M_{n-1} are read, and write nothing.
            sensory: B x [s_b] token ids, the tail of the previous segment.
            segments: B x [t_b] token ids.
        """
        slots, dtype = min(prompt.shape[1], self.slots), self.backbone.dtype
        fronts = self.memory_input.front(prompt).to(dtype)  # [B, ahead + m + r, d]
        ends = self.memory_input.end(prompt[:, :slots]).to(dtype)  # [B, m, d]
        rows = [
            torch.cat([front, self._embed(torch.cat([tail, ids])), end])
            for front, end, tail, ids in zip(fronts, ends, sensory, segments, strict=True)
        ]
        hidden = self.backbone.body(pad_sequence(rows, batch_first=True))
        starts = [fronts.shape[1] + len(tail) for tail in sensory]
        stops = [start + len(ids) for start, ids in zip(starts, segments, strict=True)]
        return Step(
            hidden=[hidden[row, start:stop] for row, (start, stop) in enumerate(zip(starts, stops, strict=True))],
            memory=torch.stack([hidden[row, stop : stop + slots] for row, stop in enumerate(stops)]),
        )

    @torch.no_grad()
    def keys_of(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Return the keys by meaning of a segment that was read: [n, d_key] float16 on the CPU, one for each stretch of it.

        Args:
            ids: [t] its token ids.
            hidden: [t, d] its hidden states.
        """
        assert self.keys is not None
        spans = stretches(ids.tolist(), self.backbone.end_ids)
        return self.keys.of_stretches(self._embed(ids), hidden, spans).to(torch.float16).cpu()

    @torch.no_grad()
    def question_key(self, ids: Tensor) -> Tensor | None:
        """Return the key [d_key] of a question; None without keys by meaning, or of an empty one.

        Args:
            ids: [t] its token ids, of which the last `LONGEST_QUESTION` count.
        """
        if self.keys is None or not len(ids):
            return None
        embedded = self._embed(ids[-LONGEST_QUESTION:])
        hidden = self.backbone.body(torch.cat([self.summary_prompt.to(embedded.dtype), embedded])[None])[0, 1:]
        return self.keys.of_question(embedded, hidden).cpu()

    @torch.no_grad()
    def asked(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the summary [d] (Eq. 1) of a question's end and its key [d_key] in one pass.

        Args:
            ids: [t] its token ids, at least one.
        """
        prompt, end = self.summary_prompt.to(self.backbone.dtype), ids[-(self.config.summary_length or 1) :]
        rows = [torch.cat([prompt, self._embed(end), prompt])]
        if self.keys is not None and len(end) < len(ids):
            rows.append(torch.cat([prompt, self._embed(ids[-LONGEST_QUESTION:])]))
        hidden = self.backbone.body(pad_sequence(rows, batch_first=True))
        summary = hidden[0, len(rows[0]) - 1]
        if self.keys is None:
            return summary, None
        embedded = self._embed(ids[-LONGEST_QUESTION:])
        return summary, self.keys.of_question(embedded, hidden[-1, 1 : 1 + len(embedded)]).cpu()

    def _embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed(ids.to(self.backbone.device))

    @torch.no_grad()
    def calibrate(self, segments: Sequence[Tensor]) -> None:
        """Measure the typical memory embedding and the spread around it, before training with `memory_input="centred"`.

        Reads each segment on its own. Afterwards P_0 is the typical embedding, and the deviation of a memory embedding from it
        enters with half the norm of an input embedding. Other kinds of input need none of this.

        Args:
            segments: S tensors [t] of token ids; some tens from the training text.
        """
        entry = self.memory_input.map
        if self.config.memory_input != "centred" or entry is None or not self.slots:
            return
        self.initial_memory.copy_(self.memory_input.centre)
        none = segments[0][:0]
        memories = [self.augment(self.initial_memory[None], [none], [ids]).memory[0].float() for ids in segments]
        memory = torch.stack(memories)  # [S, m, d]
        self.memory_input.centre.copy_(memory.mean(dim=0))
        spread = (memory - self.memory_input.centre).pow(2).mean().sqrt()
        torch.nn.init.eye_(entry.weight).mul_(0.5 * self.memory_input.unit / spread)
        self.initial_memory.copy_(self.memory_input.centre)

    @property
    def is_trained(self) -> bool:
        """True once recall has left its start value, the identity; before, recalled embeddings mean little."""
        weights = (self.recall.query.weight, self.recall.key.weight)
        return not all(torch.equal(weight, torch.eye(*weight.shape, device=weight.device)) for weight in weights)

    @property
    def slots(self) -> int:
        """m, the number of memory embeddings that a segment leaves; 0 in plain mode."""
        return 0 if self.config.mode == "plain" else self.config.memory_tokens

    @property
    def recalled_slots(self) -> int:
        """s, the number of a segment's memory embeddings that recall attends to, its index keys; 0 in plain mode."""
        return min(self.slots, self.config.recalled_tokens or self.slots)

    def by_segment(self, state: HMTState) -> Tensor:
        """Return the state's memory as [h, m, d]: of all n segments, or of as many of the latest as it holds."""
        return state.memory.view(state.held, self.slots, self.backbone.hidden_size)

    def empty_state(self, dtype: torch.dtype | None = None) -> HMTState:
        """Return the state of a stream before its first token. Its memory is kept in `dtype`; None: the backbone's."""
        backbone = self.backbone
        return HMTState.empty(hidden_size=backbone.hidden_size, dtype=dtype or backbone.dtype, device=backbone.device)

    def states(self, state: HMTState | Sequence[HMTState] | None, rows: int) -> list[HMTState]:
        """Return one state per row, checked against this model.

        Args:
            state: one state, a sequence of them, or None for fresh streams.
            rows: the number of rows.

        Raises:
            InputError: there are not as many states as rows, or a state comes from a model of other sizes.
        """
        if state is None:
            return [self.empty_state() for _ in range(rows)]
        states = [state] if isinstance(state, HMTState) else list(state)
        if len(states) != rows:
            raise InputError(f"{len(states)} states for {rows} rows. Pass one state per row.")
        for row_state in states:
            if row_state.tokens - len(row_state.open_ids) != row_state.segments * self.config.segment_length:
                raise InputError(
                    f"a state of {row_state.segments} segments and {row_state.tokens} tokens was not read in segments of "
                    f"segment_length={self.config.segment_length}, or it was read to its end. Read the text again with this "
                    "configuration."
                )
            needed = min(row_state.segments, self.config.recall_window)
            fits = row_state.memory.shape == (row_state.held * self.slots, self.backbone.hidden_size)
            if not fits or not needed <= row_state.held <= row_state.segments:
                shape = tuple(row_state.memory.shape)
                raise InputError(
                    f"a state with memory of shape {shape} for {row_state.segments} segments does not fit this model "
                    f"({self.slots} embeddings of width {self.backbone.hidden_size} a segment). Read the text again with this "
                    "model."
                )
        return [replace(row_state, memory=row_state.memory.to(self.backbone.device)) for row_state in states]

    def check_ids(self, ids: Tensor) -> None:
        """Raise InputError unless every id is one of the backbone's tokens."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"token ids must be whole numbers, not {ids.dtype}. Pass the tokenizer's ids.")
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self.backbone.vocab_size):
            raise InputError(
                f"token ids must lie in 0..{self.backbone.vocab_size - 1}, found {int(ids.min())}..{int(ids.max())}. "
                "Use the tokenizer of this model."
            )

    def memory_parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that HMT adds to its backbone, by their names in a checkpoint."""
        parts = [("", self), *((f"{name}.", part) for name, part in self.named_children() if name != "backbone")]
        return {
            prefix + name: value for prefix, part in parts for name, value in part.named_parameters(recurse=part is not self)
        }


def _near(embedding: Tensor, rows: int) -> Tensor:
    """Return copies [rows, d] of `embedding` [d] with a little noise, so that slots can part in training."""
    return embedding + 0.02 * embedding.std() * noise(rows, len(embedding)).to(embedding.device)
