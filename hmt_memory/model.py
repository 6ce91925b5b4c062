"""Eq. 1-5: the memory parameters and the steps of one segment.

Knows a backbone as embed, body and head. Training (`forward`), reading (`reader.py`) and answering (`generate.py`) go
through the same steps. Sequences of unequal length are right-padded: invisible to a causal decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.rnn import pad_sequence

from .config import HMTConfig
from .engine.backbone import Backbone
from .engine.recall import Recall
from .engine.state import HMTState
from .engine.unroll import unroll
from .errors import ConfigError, InputError

if TYPE_CHECKING:
    from .engine.generate import Generation


class HMTOutput(NamedTuple):
    """What `HMTModel.forward` returns for B rows of T tokens."""

    loss: Tensor | None  # scalar fp32: mean cross-entropy of the next token, where `labels` were given
    logits: Tensor  # [B, T, vocab], aligned with the input; positions that are padding carry nothing
    state: list[HMTState]  # one per row, with gradient history: detach() it to truncate


class Step(NamedTuple):
    """What Eq. 4-5 give for one segment of B rows."""

    hidden: list[Tensor]  # B x [t_b, d] hidden states of the segment's own tokens
    memory: Tensor  # [B, m, d] M_n


class MemoryInput(nn.Module):
    """How memory embeddings [..., m, d] enter the backbone, in front of a text and at its end. `paper`: as they are.

    Extensions beyond the paper, because a memory embedding is a hidden state, not an input embedding:
    `scaled`: standardised and brought to the norm of an input embedding times one learned gain. `mapped`: the same, then a
    learned d x d map that starts as the identity. `centred`: what a memory embedding differs by from the typical one (nine
    tenths of it are the same whatever was read), through a learned d x d map, plus one learned offset per slot in front
    (read) and another at the end (write); and in front of all a learned sink, because a decoder's first position becomes
    an attention sink (Xiao et al., arXiv 2309.17453) and tells the others nothing.
    """

    def __init__(self, kind: str, slots: int, recalled: int, sample: Tensor) -> None:
        """`recalled`: embeddings that P_n has behind those of M_{n-1}. `sample`: [v, d] input embeddings, fp32."""
        super().__init__()
        width, self.kind = sample.shape[1], kind
        # A hidden state after the final norm has about unit variance times the norm's own weights.
        self.unit = float(sample.norm(dim=-1).mean()) / width**0.5
        self.gain = nn.Parameter(torch.ones(1)) if kind in ("scaled", "mapped") else None
        self.map = nn.Linear(width, width, bias=False) if kind in ("mapped", "centred") else None
        if self.map is not None:
            nn.init.eye_(self.map.weight)
        if kind == "centred":
            middle = sample.mean(dim=0)
            self.centre = nn.Parameter(torch.zeros(slots, width), requires_grad=False)  # measured, not learned
            self.read = nn.Parameter(middle.repeat(slots + recalled, 1))
            self.write = nn.Parameter(middle + 0.3 * sample.std() * _noise(slots, width).to(sample.device))
            self.sink = nn.Parameter(middle[None].clone())

    @property
    def ahead(self) -> int:
        """Learned embeddings in front of the prompt."""
        return int(self.kind == "centred")

    def front(self, prompt: Tensor) -> Tensor:
        """[..., m + r, d] memory embeddings to the input embeddings [..., ahead + m + r, d] that a text begins with."""
        if self.kind != "centred" or not prompt.numel():
            return self._scaled(prompt)
        entering = self._deviation(prompt) + self.read[: prompt.shape[-2]]
        return torch.cat([self.sink.expand(*entering.shape[:-2], -1, -1), entering], dim=-2)

    def end(self, prompt: Tensor) -> Tensor:
        """[..., m, d] memory embeddings to the input embeddings [..., m, d] whose hidden states become M_n."""
        return self._deviation(prompt) + self.write if self.kind == "centred" and prompt.numel() else self._scaled(prompt)

    def _deviation(self, prompt: Tensor) -> Tensor:
        assert self.map is not None
        # What is recalled comes from the last embeddings of its segments.
        behind = prompt.shape[-2] - len(self.centre)
        centre = torch.cat([self.centre, self.centre[-behind:]]) if behind > 0 else self.centre
        return linear(prompt.float() - centre, self.map.weight.float())

    def _scaled(self, prompt: Tensor) -> Tensor:
        if self.gain is None or not prompt.numel():
            return prompt
        wide = prompt.float()
        deviation, mean = torch.std_mean(wide, dim=-1, keepdim=True, correction=0)
        scaled = (wide - mean) / (deviation + 1e-6) * self.unit * self.gain
        return scaled if self.map is None else linear(scaled, self.map.weight.float())


class HMTModel(nn.Module):
    """The Hierarchical Memory Transformer (arXiv 2405.06067) around one backbone.

    Trainable: `summary_prompt` T [1, d], `initial_memory` P_0 [m, d], `recall.query` and `recall.key` [d_h, d], and
    `memory_input.*` where that extension is on; all in fp32. The backbone keeps its own flags and precision.
    Build it with `from_pretrained` or `wrap`.
    """

    def __init__(self, backbone: Backbone, config: HMTConfig) -> None:
        super().__init__()
        self.config = config.resolve(hidden_size=backbone.hidden_size, positions=backbone.positions)
        self._given_config = config
        self.backbone = backbone
        width, slots = backbone.hidden_size, self.config.memory_tokens
        sample = backbone.embedding_sample()
        # The mean embedding says least: in front of a text it changes nothing, where a start token derails short answers.
        # Rounded first, so that an untrained model is the same model, with the same fingerprint, in fp32 and in bf16.
        centre = sample.to(torch.bfloat16).float().mean(dim=0)
        self.summary_prompt = nn.Parameter(_near(centre, 1))
        self.initial_memory = nn.Parameter(_near(centre, slots))
        self.recall = Recall(width, self.config.recall_dim or width)
        self.memory_input = MemoryInput(self.config.memory_input, slots, self.config.recalled_tokens or 0, sample)
        for module in (self.recall, self.memory_input):
            module.to(backbone.device)

    # --- building ---------------------------------------------------------------------------------------------------

    @classmethod
    def wrap(cls, causal_lm: nn.Module, tokenizer: Any = None, config: HMTConfig | None = None) -> HMTModel:
        """Around a loaded Hugging Face decoder, with untrained memory parameters. Its `requires_grad` flags stay.

        Raises:
            BackboneError: not a causal decoder. ConfigError: the sizes do not fit it; the message names the field.
        """
        return cls(Backbone(causal_lm, tokenizer), config or HMTConfig())

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        adapter: str | Path | None = None,
        config: HMTConfig | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        merge: bool = True,
        **options: Any,
    ) -> HMTModel:
        """Load a backbone, frozen and in eval mode, and the memory parameters of an adapter folder if there is one.

        Args:
            name: `smollm2-135m-instruct`, a hub id, a model folder, a `.gguf` file, or a folder that `save_pretrained`
                wrote (its backbone is then loaded by the name recorded there).
            adapter: a folder that `save_pretrained` wrote; None: the one this package brings for `name`, if it brings one
                and no `config` is given; "none": no adapter, untrained memory.
            config: sizes for an untrained model; with an adapter its own configuration holds.
            dtype: "auto": bf16 where the hardware multiplies it natively, else fp32; or a torch dtype or its name.
            device: "auto": CUDA, else MPS, else CPU; or a torch device.
            merge: whether a LoRA adapter is merged into the backbone's weights, which is faster; False: it stays beside
                them, in PEFT, and can be trained on.
            options: passed to transformers' `from_pretrained`.

        Raises:
            ModelNotFoundError, BackboneError, CheckpointError, ConfigError: each says what to do.
        """
        from .engine import checkpoint

        return checkpoint.load_model(
            cls, str(name), adapter=adapter, config=config, dtype=dtype, device=device, merge=merge, options=options
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the memory parameters, the configuration and a PEFT adapter if the backbone has one; never its weights."""
        from .engine import checkpoint

        checkpoint.save(self, Path(folder))

    def with_config(self, **changes: Any) -> HMTModel:
        """The same parameters (shared, not copied) under a changed configuration, e.g. `mode="rmt"`.

        Raises:
            ConfigError: the change would need other parameters (memory_tokens, recalled_tokens, memory_input, recall_dim).
        """
        try:
            given = replace(self._given_config, **changes)
        except TypeError as error:
            raise ConfigError(f"{error}. Known fields: {', '.join(self.config.to_dict())}.") from error
        config = given.resolve(hidden_size=self.backbone.hidden_size, positions=self.backbone.positions)
        for name in ("memory_tokens", "recalled_tokens", "memory_input", "recall_dim"):
            if getattr(config, name) != getattr(self.config, name):
                raise ConfigError(f"{name} decides which parameters exist. Build a new model to change it.")
        twin = copy.copy(self)
        twin.config, twin._given_config = config, given
        return twin

    def stored_config(self) -> HMTConfig:
        """The configuration a checkpoint keeps: what memory depends on in numbers, the view's budgets as they were given."""
        given = self._given_config
        return replace(
            self.config,
            recent_tokens=given.recent_tokens,
            replay_tokens=given.replay_tokens,
            pinned_tokens=given.pinned_tokens,
        )

    # --- Eq. 1-5 ----------------------------------------------------------------------------------------------------

    def summarize(self, segments: Sequence[Tensor]) -> Tensor:
        """Eq. 1: `S_n = BBM([T | H_n[0,j) | T])` at its last position, for S segments at once.

        Args:
            segments: S tensors [t] of token ids; the first j of each are used, fewer where a segment is shorter.

        Returns:
            [S, d] summaries.
        """
        prompt = self.summary_prompt.to(self.backbone.dtype)
        rows = [torch.cat([prompt, self._embed(ids[: self.config.summary_length]), prompt]) for ids in segments]
        hidden = self.backbone.body(pad_sequence(rows, batch_first=True))
        return torch.stack([hidden[at, len(row) - 1] for at, row in enumerate(rows)])

    def prompt(self, summaries: Sequence[Tensor | None], memories: Sequence[Tensor]) -> Tensor:
        """Eq. 2-3: the memorisation prompt P_n; P_0 for a row without memory.

        Returns:
            [B, m, d], where `recalled_tokens` is set and the mode recalls [B, m + r, d], in plain mode [B, 0, d].

        Args:
            summaries: B x [d] S_n; only rows that recall need one.
            memories: B x [n_b, m, d], the latest N segments of each row.
        """
        if self.config.mode == "plain":
            return self.initial_memory.new_zeros(len(memories), 0, self.backbone.hidden_size)
        before = [memory[-1] if len(memory) else self.initial_memory for memory in memories]
        if self.config.mode == "rmt":
            return torch.stack([memory.to(self.backbone.dtype) for memory in before])
        return self.joined(before, self.recalled(summaries, [self.recallable(memory) for memory in memories]))

    def recallable(self, memory: Tensor) -> Tensor:
        """[..., m, d] to [..., s, d]: the embeddings of a segment that recall attends to, all or the last `recalled_tokens`."""
        return memory[..., self.slots - self.recalled_slots :, :]

    def joined(self, before: Sequence[Tensor], recalled: Tensor) -> Tensor:
        """P_n of the memory before, B x [m, d], and what is recalled [B, s, d]: both, or the latter alone."""
        if self.config.recalled_tokens is None:
            return recalled
        return torch.cat([torch.stack(list(before)).to(recalled), recalled], dim=1)

    def recalled(self, summaries: Sequence[Tensor | None], memories: Sequence[Tensor]) -> Tensor:
        """Eq. 2-3 over what may be recalled: [B, s, d]; of P_0 for a row without memory.

        Args:
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

    def augment(self, prompt: Tensor, sensory: Sequence[Tensor], segments: Sequence[Tensor]) -> Step:
        """Eq. 4-5: `H = BBM([P_n | H_{n-1}[L-k, L) | H_n | P_n])`, split into the segment's positions and M_n.

        Args:
            prompt: [B, m, d] P_n; what is recalled behind M_{n-1} is read, and writes nothing.
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
            hidden=[hidden[at, start:stop] for at, (start, stop) in enumerate(zip(starts, stops, strict=True))],
            memory=torch.stack([hidden[at, stop : stop + slots] for at, stop in enumerate(stops)]),
        )

    def _embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed(ids.to(self.backbone.device))

    @torch.no_grad()
    def calibrate(self, segments: Sequence[Tensor]) -> None:
        """Before training with `memory_input="centred"`: measure the typical memory embedding, and how much they differ.

        Reads each segment on its own. Afterwards P_0 is the typical one, and what a memory embedding differs by from it
        enters with half the norm of an input embedding. Other kinds need none of this.

        Args:
            segments: S tensors [t] of token ids; some tens from the training text.
        """
        entry = self.memory_input.map
        if self.config.memory_input != "centred" or entry is None or not self.slots:
            return
        self.initial_memory.copy_(self.memory_input.centre)
        none = segments[0][:0]
        found = [self.augment(self.initial_memory[None], [none], [ids]).memory[0].float() for ids in segments]
        memory = torch.stack(found)  # [S, m, d]
        self.memory_input.centre.copy_(memory.mean(dim=0))
        spread = (memory - self.memory_input.centre).pow(2).mean().sqrt()
        torch.nn.init.eye_(entry.weight).mul_(0.5 * self.memory_input.unit / spread)
        self.initial_memory.copy_(self.memory_input.centre)

    # --- using ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: HMTState | Sequence[HMTState] | None = None,
    ) -> HMTOutput:
        """Eq. 1-5 over whole rows, differentiable through all segments.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T], nonzero where a token is real; padding may stand anywhere and changes nothing.
            labels: [B, T] token ids, -100 where no loss is wanted; shifted here, as in transformers.
            state: what the rows continue (one for B = 1, else a sequence of B); None: fresh streams.

        Raises:
            InputError: shapes, types or token ids do not fit.
        """
        real = _real_tokens(input_ids, attention_mask)
        self.check_ids(input_ids[real])
        states = self.states(state, len(input_ids))
        if labels is not None:
            self.check_ids(labels[labels != -100])
        rows = [ids[keep] for ids, keep in zip(input_ids, real, strict=True)]
        states_after, hidden = unroll(self, states, rows, keep_hidden=True)
        wide = torch.zeros(*input_ids.shape, self.backbone.hidden_size, dtype=hidden[0].dtype, device=hidden[0].device)
        wide[real.to(wide.device)] = torch.cat(hidden)
        logits = self.backbone.head(wide)
        loss = None if labels is None else _next_token_loss(logits, labels, real)
        return HMTOutput(loss, logits, states_after)

    def read(self, ids_or_text: Any, state: HMTState | None = None) -> HMTState:
        """Read tokens or text into memory; any length, any chunk size. See `hmt_memory.engine.reader.read`."""
        from .engine import reader

        return reader.read(self, ids_or_text, state)

    def generate(self, prompt: Any, *, state: HMTState | None = None, **options: Any) -> Generation:
        """Answer `prompt` as an iterator of text pieces. See `hmt_memory.engine.generate.Generation`."""
        from .engine import generate

        return generate.generate(self, prompt, state=state, **options)

    @property
    def is_trained(self) -> bool:
        """Whether recall has left its start value, the identity: before, what is recalled means little."""
        weights = (self.recall.query.weight, self.recall.key.weight)
        return not all(torch.equal(weight, torch.eye(*weight.shape, device=weight.device)) for weight in weights)

    @property
    def slots(self) -> int:
        """m, how many memory embeddings a segment leaves; 0 in plain mode."""
        return 0 if self.config.mode == "plain" else self.config.memory_tokens

    @property
    def recalled_slots(self) -> int:
        """s, how many memory embeddings of a segment recall attends to: its index keys; 0 in plain mode."""
        return min(self.slots, self.config.recalled_tokens or self.slots)

    def by_segment(self, state: HMTState) -> Tensor:
        """The state's memory as [h, m, d]: of all n segments, or of as many of the latest as it holds."""
        return state.memory.view(state.held, self.slots, self.backbone.hidden_size)

    def empty_state(self, dtype: torch.dtype | None = None) -> HMTState:
        """The state of a stream before its first token. Its memory is kept in `dtype`; None: that of the backbone."""
        backbone = self.backbone
        return HMTState.empty(hidden_size=backbone.hidden_size, dtype=dtype or backbone.dtype, device=backbone.device)

    def states(self, state: HMTState | Sequence[HMTState] | None, rows: int) -> list[HMTState]:
        """One state per row.

        Raises:
            InputError: as many states as rows are needed, each from a model of this width and memory_tokens.
        """
        if state is None:
            return [self.empty_state() for _ in range(rows)]
        found = [state] if isinstance(state, HMTState) else list(state)
        if len(found) != rows:
            raise InputError(f"{len(found)} states for {rows} rows. Pass one state per row.")
        for one in found:
            if one.tokens - len(one.open_ids) != one.segments * self.config.segment_length:
                raise InputError(
                    f"a state of {one.segments} segments and {one.tokens} tokens was not read in segments of "
                    f"segment_length={self.config.segment_length}, or it was read to its end. Read the text again with this "
                    "configuration."
                )
            needed = min(one.segments, self.config.recall_window)
            fits = one.memory.shape == (one.held * self.slots, self.backbone.hidden_size)
            if not fits or not needed <= one.held <= one.segments:
                raise InputError(
                    f"a state with memory of shape {tuple(one.memory.shape)} for {one.segments} segments does not fit this "
                    f"model ({self.slots} embeddings of width {self.backbone.hidden_size} a segment). Read the text again with "
                    "this model."
                )
        return [replace(one, memory=one.memory.to(self.backbone.device)) for one in found]

    def check_ids(self, ids: Tensor) -> None:
        """Raises InputError unless every id is one of the backbone's tokens."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"token ids must be whole numbers, not {ids.dtype}. Pass the tokenizer's ids.")
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self.backbone.vocab_size):
            raise InputError(
                f"token ids must lie in 0..{self.backbone.vocab_size - 1}, found {int(ids.min())}..{int(ids.max())}. "
                "Use the tokenizer of this model."
            )

    def memory_parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters HMT adds to its backbone, by their names in a checkpoint."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("backbone.")}


def _real_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if input_ids.dim() != 2 or not input_ids.numel():
        raise InputError(f"input_ids must be [batch, tokens], not {tuple(input_ids.shape)}. Add the batch dimension.")
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids {tuple(input_ids.shape)}."
        )
    return attention_mask.bool()


def _next_token_loss(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    if labels.shape != real.shape:
        raise InputError(f"labels {tuple(labels.shape)} must have the shape of input_ids {tuple(real.shape)}.")
    losses = [
        cross_entropy(row[keep][:-1].float(), wanted[keep][1:], reduction="sum", ignore_index=-100)
        for row, wanted, keep in zip(logits, labels.to(logits.device), real.to(logits.device), strict=True)
    ]
    counted = sum((wanted[keep][1:] != -100).sum() for wanted, keep in zip(labels, real, strict=True))
    return torch.stack(losses).sum() / counted


def _near(embedding: Tensor, rows: int) -> Tensor:
    """[rows, d]: copies of `embedding` [d] with a little noise, so that slots can part in training."""
    return embedding + 0.02 * embedding.std() * _noise(rows, len(embedding)).to(embedding.device)


def _noise(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
