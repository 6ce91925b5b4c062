"""A Hugging Face causal decoder seen as three functions: embed, body, head. The only file that knows its attribute names.

Knows no HMT: token ids in, hidden states after the final norm and logits out, plus the tokenizer's text functions.
Sequences are right-padded, never masked: a causal decoder cannot see what stands to the right, so padding is invisible to
every family alike, the state-space ones included.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError
from . import offloaded, quantized
from .adapter import Merged, merge
from .modes import eval_mode, learning_kept
from .probe import probe
from .text import TextCodec
from .traced import head_scale

if TYPE_CHECKING:
    from .openvino import OpenVinoEngine

_STATE_SPACE = ("cache_params", "state")  # Mamba, RWKV
_CACHE_ARGUMENTS = ("cache", "past_key_values", *_STATE_SPACE)  # attention families since transformers 5.24, and before


class Backbone(TextCodec, nn.Module):
    """A wrapper of `causal_lm` (a `PreTrainedModel` with a language-model head, or a PEFT model around one) and its tokenizer.

    Checks by two tiny forward passes that the model is causal, as wide inside as out, and has a head that is understood.

    Raises:
        BackboneError: the model is an encoder, an encoder-decoder, or has a head this class cannot reproduce.
    """

    batching: Any = None  # a `Batching`, which takes the steps of several answers together
    sharded = False  # whether its blocks lie in parts on several devices
    quantization: str | None = None  # what its weights are, as "bitsandbytes nf4"; None: they are not quantised

    def __init__(self, causal_lm: Any, tokenizer: Any = None, *, name: str | None = None) -> None:
        super().__init__()
        self.merged: Merged | None = None  # a LoRA adapter that is merged into the weights
        self.kept_digest: str | None = None  # of weights that were merged or divided since
        plain: Any = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
        self.name = name or str(getattr(plain, "name_or_path", "") or "unnamed")
        _check_decoder(causal_lm, plain, self.name)
        self.causal_lm: Any = causal_lm
        self.quantization = quantized.kind(plain)
        self.tokenizer = tokenizer
        self.config = plain.config.get_text_config()
        self._plain = (plain,)  # in a tuple, so that the module is registered once
        self.cache_argument = cache_argument(self._body)  # the name of the cache in its forward pass
        self.compiled, self._mark = False, object()
        self._engine: OpenVinoEngine | None = None
        self._head_scale = head_scale(self.config)
        self.appends = probe(self, lambda ids: plain(input_ids=ids, use_cache=False).logits)

    @property
    def _body(self) -> Any:
        return self._plain[0].base_model

    @property
    def embedding(self) -> Any:
        """The input embedding module; calling it includes the family's own scaling (Gemma)."""
        return self._plain[0].get_input_embeddings()

    @property
    def hidden_size(self) -> int:
        """d: width of an input embedding and of a hidden state after the final norm (and projection, in OPT-350m)."""
        return int(self.embedding.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """The number of input embeddings."""
        return int(self.embedding.weight.shape[0])

    @property
    def positions(self) -> int | None:
        """The number of positions the backbone was built for; None for state-space families."""
        if self.cache_argument in _STATE_SPACE:
            return None
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the input embeddings."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings."""
        return self.embedding.weight.device

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token id that ends an answer, by the tokenizer, the model's and the generation configuration."""
        generation = getattr(self._plain[0], "generation_config", None)
        ids: set[int] = set()
        for owner in (self.tokenizer, self.config, generation):
            value = getattr(owner, "eos_token_id", None)
            ids |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
        return frozenset(token for token in ids if token < self.vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Turn token ids [..., T] into input embeddings [..., T, d]."""
        return self.embedding(ids)

    @property
    def engine(self) -> str:
        """What computes where nothing learns, by the name that chooses it."""
        return "torch" if self._engine is None else self._engine.name

    @property
    def conversion(self) -> Path | None:
        """The folder of the engine's conversion; None: torch computes."""
        return None if self._engine is None else self._engine.folder

    def use_openvino(self, bits: int = 8) -> None:
        """Let OpenVINO compute body and head where nothing learns, until weights change; with 8-bit or 4-bit weights.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
            BackboneError: the backbone is not an attention model in fp32 on a CPU, or its adapter is not merged.
        """
        self._engine = None  # what torch computes is converted
        self._engine = _openvino(self, bits)
        self._watch(list(self.parameters()))

    def _watch(self, values: Sequence[Tensor]) -> None:
        self._watched = (values, self._weights(values))  # set at once: other threads may be answering

    def _weights(self, values: Iterable[Tensor]) -> tuple[Any, ...]:
        return self.dtype, self.device, sum(value._version for value in values)

    @property
    def version(self) -> Hashable:
        """Who computes: another value for another backbone, and once weights were loaded, have learned, moved or been cast."""
        return self.written(), self._fast and self._fast.name

    def written(self) -> Hashable:
        """Return which weights are in memory, and how often each was written to."""
        return self._mark, self.dtype, self.device, tuple((id(value), value._version) for value in self._values())

    def _values(self) -> Iterable[Tensor]:
        return self.parameters()

    @property
    def _fast(self) -> OpenVinoEngine | None:
        if self._engine is None or torch.is_grad_enabled():
            return None
        watched, then = self._watched
        return self._engine if self._weights(watched) == then else None

    def body(self, embeddings: Tensor) -> Tensor:
        """Turn input embeddings [B, T, d] into hidden states [B, T, d] after the final norm; no cache, no head."""
        if self._fast is not None:
            return self._fast.body(embeddings)
        if self.compiled:
            self._choose_attention(learning=torch.is_grad_enabled())
        return self._body(inputs_embeds=embeddings, use_cache=False).last_hidden_state.to(self.embedding.weight)

    def masked(self, embeddings: Tensor, seen: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Turn input embeddings [B, T, d] at positions [B, T] that see what `seen` [B, T, S] says into hidden states [B, T, d].

        Args:
            embeddings: [B, T, d] of the input.
            seen: [B, T, S], whether each of the T new places sees each of S: those of the cache and the new ones.
            positions: [B, T] of the new places.
            cache: of keys and values, which grows; None: there are no places before.
        """
        if self.compiled:
            self._choose_attention(learning=torch.is_grad_enabled())
        mask = torch.where(seen, 0.0, torch.finfo(embeddings.dtype).min).to(embeddings.dtype)
        given = {"attention_mask": mask[:, None], "position_ids": positions, "use_cache": cache is not None}
        given |= {} if cache is None else {self.cache_argument: cache}
        return self._body(inputs_embeds=embeddings, **given).last_hidden_state.to(self.embedding.weight)

    def _choose_attention(self, *, learning: bool) -> None:
        """Choose plain attention for learning on a CPU: the backward pass of fused attention takes ten times as long there."""
        if self.device.type == "cpu" and self.config._attn_implementation in ("sdpa", "eager"):
            self.config._attn_implementation = "eager" if learning else "sdpa"

    def advance(self, embeddings: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Append [1, T, d] to a cache. Returns the last hidden state [1, d] and the new cache; the old one is spent.

        Raises:
            BackboneError: the model keeps no cache in this mode.
        """
        hidden, kept = self.extend(embeddings, cache)
        return hidden[:, -1], kept

    def extend(self, embeddings: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Append [B, T, d] to a cache. Returns the hidden states [B, T, d] and the new cache; the old one is spent.

        Raises:
            BackboneError: the model keeps no cache in this mode.
        """
        if self._fast is not None:
            return self._fast.extend(embeddings, cache)
        output = self._body(inputs_embeds=embeddings, use_cache=True, **{self.cache_argument: cache})
        kept = getattr(output, self.cache_argument, None)
        if kept is None:
            raise BackboneError(
                f"{self.name} ({self.config.model_type}) keeps no cache in this mode: it cannot answer. Put it in eval mode; "
                "if it is, choose another model."
            )
        return output.last_hidden_state.to(self.embedding.weight), kept

    def repeat(self, cache: Any, rows: int) -> Any:
        """Return a cache of one row as one of several rows, with its gradient; the old one is spent.

        Raises:
            BackboneError: the family's cache cannot be repeated.
        """
        if self._fast is not None:
            return cache.repeat(rows)
        try:
            cache.batch_repeat_interleave(rows)
        except AttributeError as error:  # of the cache, or of one of its layers
            raise BackboneError(
                f"{self.name} ({self.config.model_type}) has a cache that cannot be repeated. Train without exercises."
            ) from error
        return cache

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., d] into logits [..., vocab], with the family's scaling and soft cap."""
        logits = (self._project(hidden) if self._fast is None else self._fast.head(hidden)) * self._head_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _project(self, hidden: Tensor) -> Tensor:
        project = self._plain[0].get_output_embeddings()
        weight = getattr(project, "weight", self.embedding.weight)  # packed weights have another name, or hold codes
        return project(hidden.to(weight.dtype if weight.is_floating_point() else self.dtype))

    @torch.no_grad()
    def embedding_sample(self) -> Tensor:
        """Return input embeddings [v, d] in fp32 of up to 4096 tokens spread over the vocabulary, as they enter the body."""
        ids = torch.arange(0, self.vocab_size, -(-self.vocab_size // 4096), device=self.device)
        return self.embed(ids).float()

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint records of its backbone: architecture and a digest of its weights, adapters left out."""
        quantization = {} if self.quantization is None else {"quantization": self.quantization}
        return {
            "name": self.name,
            "model_type": str(self.config.model_type),
            "hidden_size": self.hidden_size,
            "num_hidden_layers": int(self.config.num_hidden_layers),
            "vocab_size": self.vocab_size,
            "weights_digest": self._digest(),
            **quantization,
        }

    def merge_lora(self, folder: Path) -> bool:
        """Merge the LoRA adapter in `folder` into the weights. Returns False, with nothing changed, if that takes PEFT."""
        if self.quantization is not None:  # whose rounding would lose it
            return False
        digest = self._digest()
        self.merged = merge(self.causal_lm, folder)
        if self.merged is not None:
            self.kept_digest = digest
        return self.merged is not None

    def _digest(self) -> str | None:
        """Compute a digest of 64 values of every weight, rounded to bf16: the same for fp32 and bf16, None in other precisions.

        Of quantised weights it is the codes' and the scales', in any precision that they compute in.

        RWKV rescales its weights when it turns from training to eval mode, so there only the embeddings count.
        """
        if self.merged is not None or self.sharded:
            return self.kept_digest
        if self.quantization is not None:
            return _digest_of(quantized.numbers(self.causal_lm, leave_out=self._of_adapter))
        if self.dtype not in (torch.float32, torch.bfloat16):
            return None
        embeddings = getattr(self.embedding, "original_module", self.embedding).weight
        weights = [value for name, value in offloaded.named_weights(self.causal_lm) if not self._of_adapter(name)]
        return _digest_of([embeddings] if self.config.model_type == "rwkv" else weights)

    def save(self, folder: str | Path) -> None:
        """Write the whole backbone and its tokenizer as a Hugging Face model folder."""
        self._plain[0].save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def adapter_parameters(self) -> list[tuple[str, Tensor]]:
        """Return the parameters of an adapter by name, merged or not; none without one."""
        if self.merged is not None:
            return sorted(self.merged.tensors.items())
        active = f".{getattr(self.causal_lm, 'active_adapter', '')}."
        named = self.causal_lm.named_parameters()
        parameters = ((name.replace(active, "."), value) for name, value in named if self._of_adapter(name))
        return sorted(parameters, key=lambda pair: pair[0])

    @property
    def has_adapter(self) -> bool:
        """True if a PEFT adapter is around the backbone."""
        return bool(_peft_configs(self.causal_lm))

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Use the backbone without its PEFT adapter inside, in eval mode; unchanged if it has none."""
        with eval_mode(self), _without_peft(self.causal_lm) if self.has_adapter else nullcontext():
            yield

    def _of_adapter(self, name: str) -> bool:
        prefix = getattr(getattr(self.causal_lm, "base_model", None), "prefix", None)  # PEFT's mark of its own weights
        return prefix is not None and (prefix in name or "modules_to_save" in name)


def _check_decoder(causal_lm: Any, plain: Any, name: str) -> None:
    """Refuse a model, maybe with an adapter around `plain`, that is no decoder with a head. Raises `BackboneError`."""
    config = getattr(plain, "config", None)
    if config is None or not hasattr(plain, "get_input_embeddings"):
        raise BackboneError(f"{type(causal_lm).__name__} is not a Hugging Face model. Pass a causal language model.")
    if any(config.is_prompt_learning for config in _peft_configs(causal_lm)):
        raise BackboneError(
            f"{name} has a prompt-learning adapter, whose virtual tokens have no place in a segment. Use LoRA, or "
            "another adapter that changes the weights."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(f"{name} ({config.model_type}) is an encoder-decoder model. HMT needs a decoder-only model.")
    if plain.get_output_embeddings() is None:
        raise BackboneError(f"{name} ({type(plain).__name__}) has no language-model head. Load it with AutoModelForCausalLM.")


def _peft_configs(causal_lm: Any) -> list[Any]:
    return list(getattr(causal_lm, "peft_config", {}).values())


def _digest_of(weights: Iterable[Tensor]) -> str:
    samples = [value.detach().flatten()[:: max(1, value.numel() // 64)][:64] for value in weights]
    floats = [sample.to(torch.bfloat16).view(torch.int16) for sample in samples if sample.is_floating_point()]
    codes = [sample.to(torch.int32) for sample in samples if not sample.is_floating_point()]
    digest = hashlib.sha256()
    for values in filter(None, (floats, codes)):
        digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _without_peft(causal_lm: Any) -> Iterator[None]:
    with learning_kept(causal_lm), causal_lm.disable_adapter():  # it lets all of an adapter learn when it comes back
        yield


def _openvino(backbone: Backbone, bits: int) -> OpenVinoEngine:
    from .openvino import OpenVinoEngine
    from .traced import TracedBody, shapes

    if backbone.quantization is not None:
        raise BackboneError(
            f"OpenVINO makes 8-bit weights itself, from weights that are not quantised; those of {backbone.name} are quantised "
            f"({backbone.quantization}). Load the model that they were made from, or with engine='torch'."
        )
    if offloaded.some(backbone):
        raise BackboneError(
            f"OpenVINO converts weights that are in memory; device_map keeps some of {backbone.name} elsewhere."
        )
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32 or backbone.has_adapter:
        raise BackboneError(
            f"OpenVINO runs a backbone in fp32 on a CPU, with its adapter merged; {backbone.name} is in {backbone.dtype} on "
            f"{backbone.device}. Load it with dtype='float32' and device='cpu', or with engine='torch'."
        )
    with torch.no_grad(), eval_mode(backbone):
        held = shapes(backbone.extend(backbone.embed(torch.zeros(1, 2, dtype=torch.long)))[1])
        sample = backbone.embed(torch.arange(1, 25).reshape(2, 12) * (backbone.vocab_size // 26))
    project = backbone._plain[0].get_output_embeddings()
    body = TracedBody(backbone._body, backbone.config, backbone.cache_argument)
    return OpenVinoEngine.convert(body, held, (project.weight, getattr(project, "bias", None)), sample, bits=bits)


def cache_argument(body: Any) -> str:
    """Return the name of the cache in a body's forward pass."""
    parameters = inspect.signature(body.forward).parameters
    named = next((name for name in _CACHE_ARGUMENTS if name in parameters), None)
    if named is None:
        raise BackboneError(f"{type(body).__name__} takes no cache of a kind this package knows. Choose another model.")
    return named
