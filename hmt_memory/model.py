"""`HMTModel`: the memory, its backbone and the backbone's text in one object, to be loaded, trained, read with and asked.

A facade: the work is done in `engine/` and `chat/`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .chat.transcript import Transcript
from .config import Engine, HMTConfig, ViewConfig
from .engine import checkpoint
from .engine.backbone import Backbone
from .engine.batching import Batching
from .engine.cell import MemoryCell
from .engine.decoding import Decoding, DecodingOptions
from .engine.export import export
from .engine.generate import Generation, generate
from .engine.modes import eval_mode
from .engine.reader import read, token_ids
from .engine.state import HMTState
from .engine.unroll import unroll
from .engine.view import Recollection
from .engine.view_cache import Prefill, read_whole
from .engine.writing import Writer, compare
from .errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .engine.turns import Turns


class HMTOutput(NamedTuple):
    """The result of `HMTModel.forward` for B rows of T tokens."""

    loss: Tensor | None  # scalar fp32: mean cross-entropy of the next token, where `labels` were given
    logits: Tensor  # [B, T, vocab], aligned with the input; positions that are padding carry nothing
    state: list[HMTState]  # one per row, with gradient history: detach() it to truncate


class HMTModel(MemoryCell):
    """The Hierarchical Memory Transformer (arXiv 2405.06067) around one backbone.

    Build it with `from_pretrained` or `wrap`. Its parameters, and the equations they stand in, are `MemoryCell`'s.
    """

    @classmethod
    def wrap(cls, causal_lm: nn.Module, tokenizer: Any = None, config: HMTConfig | None = None) -> Self:
        """Put untrained memory parameters around a loaded Hugging Face decoder. Its `requires_grad` flags stay.

        Args:
            causal_lm: a `PreTrainedModel` with a language-model head, or a PEFT model around one.
            tokenizer: needed for text; without it, token ids only.
            config: the sizes; None: the paper's.

        Raises:
            BackboneError: the model is not a causal decoder.
            ConfigError: the sizes do not fit it; the message names the field.
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
        engine: Engine = "auto",
        **options: Any,
    ) -> Self:
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
            engine: what computes where nothing learns: "openvino" (8-bit weights, on a CPU), "openvino-4bit" (4-bit weights
                in the body), "torch", or "auto": OpenVINO with 8 bits where it is installed, `dtype` is left at "auto" and
                comes to fp32 on a CPU, and the backbone has between 10 million and 2 billion weights.
            **options: passed to transformers' `from_pretrained`.

        Raises:
            ModelNotFoundError: nothing has that name.
            BackboneError: the model is not a causal decoder, or would run code.
            CheckpointError: the adapter is damaged or for another backbone.
            ConfigError: a value is impossible, or the sizes do not fit the backbone.
            MissingDependencyError: OpenVINO is asked for and not installed.
        """
        return checkpoint.load_model(
            cls,
            str(name),
            adapter=adapter,
            config=config,
            dtype=dtype,
            device=device,
            merge=merge,
            engine=engine,
            options=options,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the memory parameters, the configuration and a PEFT adapter if the backbone has one; never its weights."""
        checkpoint.save(self, Path(folder))

    def save_merged(self, folder: str | Path) -> None:
        """Write the backbone with its adapter merged, as a Hugging Face model folder: for vLLM, and `with_writer`.

        Raises:
            BackboneError: the folder holds something already or cannot be written, or the adapter cannot be merged.
        """
        export(self.backbone, Path(folder))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: HMTState | Sequence[HMTState] | None = None,
    ) -> HMTOutput:
        """Compute Eq. 1-5 over whole rows, differentiable through all segments.

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
        return read(self, ids_or_text, state)

    def generate(
        self,
        prompt: Any,
        *,
        state: HMTState | None = None,
        pinned: Any = None,
        notes: Any = (),
        literal: bool = True,
        recollection: Recollection | None = None,
        turns: Turns | None = None,
        view: ViewConfig | None = None,
        decoding: Decoding | None = None,
        prefill: Prefill = read_whole,
        **options: Unpack[DecodingOptions],
    ) -> Generation:
        """Continue a stream with `prompt` and an answer of any length, as an iterator of text pieces.

        Args:
            prompt: text or token ids as they are, or chat messages (dicts with role and content) for the chat template, whose
                system messages are pinned. Messages continue a stream as its next turn: whatever it ends with is closed by
                the template's end of an answer first. Without a template they are a plain script: `User: ...`,
                `Assistant: ...`.
            state: the stream so far; None: a fresh one. It is not changed.
            pinned: text or token ids at the head of every view, instead of the messages' system part. The tokenizer's start
                token, in families that have one, always comes first.
            notes: text or token ids shown before the question, never added to the stream.
            literal: whether special tokens in a given text are plain text; False for a text that a chat template has written.
                In messages they always are.
            recollection: what P recalls from, and what is noted, instead of the state's own memory and `notes`.
            turns: where the turns of the stream begin, those of `prompt` included. None: those of messages are known; in a text
                notes stand behind the pinned part.
            view: the view's budgets, instead of the model's own.
            decoding: how tokens are chosen, and what ends the answer.
            prefill: reads views. With `ViewCache().of(name)` the next answer in a stream comes sooner: keys and values of what
                its view begins with are kept; a session does so by itself.
            **options: fields of `Decoding` that differ from `decoding`, such as max_new_tokens=64.

        Raises:
            InputError: there is nothing to continue, or an option is out of range.
            BudgetError: the pinned text or the notes are too long.
        """
        model = self if view is None else self.with_view(view)
        chosen = (decoding or Decoding()).changed(**options)
        notes = token_ids(self, notes, literal=literal)
        if _are_messages(prompt):
            transcript = Transcript(self.backbone)
            latest = [] if state is None else torch.cat([state.recent_ids, state.open_ids])[-1:].tolist()
            asked = transcript.asked(prompt, before=latest if state is not None and state.tokens else None)
            chosen, prompt = chosen.also_stopping_at(transcript.stop), asked.ids
            turns = turns or asked.turns.behind(state.tokens if state is not None else 0)
            pinned = asked.pinned if pinned is None else pinned
        return generate(
            model,
            token_ids(self, prompt, literal=literal),
            state=state,
            pinned=token_ids(self, () if pinned is None else pinned, literal=literal),
            notes=notes,
            recollection=recollection,
            turns=turns,
            decoding=chosen,
            prefill=prefill,
        )

    def with_writer(self, writer: Writer | None) -> Self:
        """Share the parameters with a model whose answers a `Writer` writes, such as `hmt_memory.answerers.VLLMServer`.

        Reading and recall stay here. Some tokens are written at once, to compare.

        Args:
            writer: a model with the backbone's weights; None: the backbone writes.

        Raises:
            BackboneError: it computes something else than the backbone.
            AnswererError: it does not answer.
        """
        if writer is not None:
            compare(self.backbone, writer)
        twin = copy.copy(self)
        twin.writer = writer
        return twin

    def generate_batch(
        self, prompts: Sequence[Any], states: Sequence[HMTState | None] | None = None, **options: Any
    ) -> list[Generation]:
        """Finish answers to several prompts.

        They are written one after the other, so that none depends, even by rounding, on its neighbours; at the same time once
        `batch_answers` was called.

        Args:
            prompts: as of `generate`.
            states: one for each prompt; None: fresh streams.
            **options: as of `generate`.

        Raises:
            InputError: there are not as many states as prompts.
        """
        given = [None] * len(prompts) if states is None else states
        if len(given) != len(prompts):
            raise InputError(f"{len(given)} states for {len(prompts)} prompts. Pass one state per prompt.")

        def answered(prompt: Any, state: HMTState | None) -> Generation:
            return self.generate(prompt, state=state, **options).finish()

        if self.backbone.batching is None:
            return list(map(answered, prompts, given))
        with eval_mode(self), ThreadPoolExecutor(self.backbone.batching.most) as threads:
            return list(threads.map(answered, prompts, given))

    def batch_answers(self, most: int = 8) -> None:
        """Let answers that are written at the same time, in several threads, share their steps (continuous batching).

        For servers whose device computes several rows about as fast as one. Two CPU cores do not: there eight answers were
        slower so (docs/log.md). No answer sees another; against one that is written alone it may differ by rounding. It holds
        for every model with this backbone, and for answers that begin from then on.

        Args:
            most: how many share a step, while others wait for their turn; 0 or 1: none do.

        Raises:
            BackboneError: caches of this family cannot be padded: those of state spaces, and of windows that slide.
        """
        self.backbone.batching = Batching(self.backbone, most) if most > 1 else None


def _are_messages(prompt: Any) -> bool:
    """Return whether a prompt is a message or several, rather than text or token ids."""
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0
    return isinstance(prompt[0] if several else prompt, Mapping)


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
