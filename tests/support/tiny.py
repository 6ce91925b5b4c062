"""Tiny random models of every supported family, and a tiny real tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hmt_memory import HMTConfig, HMTModel

VOCAB, WIDTH = 300, 32
LONG = bool(os.environ.get("HMT_LONG_TESTS"))  # ten times the random cases, and the tests marked long
SMALL = HMTConfig(segment_length=16, summary_length=8, sensory_length=4, recall_window=5, recent_tokens=20)


def else_long(values: Iterable[Any], *shown: Any) -> list[Any]:
    """The parameters of a test: all but those shown are for long runs."""
    return [value if value in shown else pytest.param(value, marks=pytest.mark.long) for value in values]


def _config(family: str, layers: int) -> Any:
    import transformers as hf

    common = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": layers, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 256}
    grouped = common | heads | {"num_key_value_heads": 2, "intermediate_size": 48}
    gemma = grouped | {"head_dim": 8, "sliding_window": 12}
    opt = common | heads | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
    builders: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaConfig(**grouped),
        "qwen2": lambda: hf.Qwen2Config(**grouped),
        "qwen3": lambda: hf.Qwen3Config(**grouped, head_dim=12),  # wider inside than their heads' share
        "mistral": lambda: hf.MistralConfig(**grouped, sliding_window=12),
        "gemma3": lambda: hf.Gemma3TextConfig(**gemma),
        "opt": lambda: hf.OPTConfig(**opt),
        "opt-projected": lambda: hf.OPTConfig(**(opt | {"word_embed_proj_dim": 20})),
        "gpt2": lambda: hf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=layers, n_head=4, n_positions=256),
        "gpt-neox": lambda: hf.GPTNeoXConfig(**common, **heads, intermediate_size=48),
        "smollm3": lambda: hf.SmolLM3Config(**grouped, no_rope_layers=[1, 0, 1, 0][:layers]),  # some do not rotate
        "phi3": lambda: hf.Phi3Config(**grouped),
        "mamba": lambda: hf.MambaConfig(**common, state_size=4),
        "rwkv": lambda: hf.RwkvConfig(**common, attention_hidden_size=WIDTH, intermediate_size=48, rescale_every=1),
        # families whose heads do more than multiply
        "gemma2": lambda: hf.Gemma2Config(**gemma, final_logit_softcapping=2.0),
        "cohere": lambda: hf.CohereConfig(**grouped, logit_scale=0.25),
        "granite": lambda: hf.GraniteConfig(**grouped, logits_scaling=4.0, attention_multiplier=0.35),
    }
    return builders[family]()


FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "smollm3",
    "mistral",
    "gemma3",
    "opt",
    "opt-projected",
    "gpt2",
    "gpt-neox",
    "phi3",
    "mamba",
    "rwkv",
    "gemma2",
    "cohere",
    "granite",
]
KINDS = ("llama", "gemma3", "opt-projected", "gpt2", "mamba", "rwkv")  # of places, windows, widths and states


def tiny_causal_lm(family: str = "llama", seed: int = 0, layers: int = 2) -> Any:
    """A random decoder whose weights are large enough that memory and context really matter."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(family, layers)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.25)
    model.tie_weights()
    return model


def randomize(model: HMTModel, seed: int = 1) -> HMTModel:
    """Random memory parameters, so that no test passes thanks to an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.memory_parameters().items():
            scale = 0.3 if name.startswith("recall") else 1.0
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return model


def tiny_model(
    family: str = "llama", config: HMTConfig = SMALL, *, tokenizer: Any = None, seed: int = 0, layers: int = 2
) -> HMTModel:
    return randomize(HMTModel.wrap(tiny_causal_lm(family, seed, layers), tokenizer, config)).eval()


def light_model(*, config: HMTConfig = SMALL, tokenizer: Any, seed: int = 0) -> HMTModel:
    """A model of one layer, which is enough for what stands above the engine and takes two thirds of the time."""
    return tiny_model(config=config, tokenizer=tokenizer, seed=seed, layers=1)


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB - 1, (count,), generator=torch.Generator().manual_seed(seed))


CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<s>system\nDefault.</s>\n{% endif %}"
    "<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<t>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<t>model\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHATML) -> Any:
    """A real fast tokenizer over bytes: any text, and characters that need several tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("</s>", "<s>", "<t>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")
    fast.chat_template = chat_template
    return fast


# Sizes under which a short conversation already needs memory: segments of 16, 20 tokens visible before the open one.
REMEMBERING = replace(SMALL, recall_window=3, recent_tokens=20, replay_tokens=100, pinned_tokens=110)


class PlainText:
    """A logits processor that allows letters and spaces, so that an answer's text has the answer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        letters = tokenizer("abcdefghijklmnopqrstuvwxyz ", add_special_tokens=False)["input_ids"]
        self.allowed = torch.tensor(sorted({*letters, tokenizer.eos_token_id}))

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, float("-inf"))
        masked[:, self.allowed] = scores[:, self.allowed]
        return masked
