"""Quantised weights, as transformers loads them: what they are called, and the numbers that tell them apart.

Knows the configurations and tensors of bitsandbytes, torchao and checkpoints such as GPTQ's and AWQ's; imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn


def kind(causal_lm: Any) -> str | None:
    """Return the method and the precision of a loaded model's weights, as "bitsandbytes nf4"; None: they are not quantised.

    Raises:
        BackboneError: they compute a token otherwise for what else is in its batch.
    """
    config = getattr(causal_lm.config, "quantization_config", None)
    if config is None or not getattr(causal_lm, "is_quantized", False):
        return None
    said = _fields(config)
    if said.get("load_in_8bit") and said.get("llm_int8_threshold"):
        raise BackboneError(
            f"LLM.int8() computes the numbers apart that are large in any token of a batch (llm_int8_threshold="
            f"{said['llm_int8_threshold']}), so what is read would depend on what is read beside it. Set it to 0, in "
            "BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0) or in the model's config.json; or load 4 bits, or "
            "torchao's 8."
        )
    return kind_of(config)


def kind_of(config: Any) -> str:
    """Return the method and the precision that a quantisation's configuration asks for.

    Args:
        config: transformers' object, or what `config.json` says.
    """
    said = _fields(config)
    method = str(getattr(said.get("quant_method"), "value", said.get("quant_method") or "unknown"))
    words = [method, *filter(None, [_precision(method, said)])]
    return "".join(char if char.isprintable() else "?" for char in " ".join(words))[:100]


def _fields(config: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return fields


def _precision(method: str, said: Mapping[str, Any]) -> str:
    if method == "bitsandbytes":
        return "int8" if said.get("load_in_8bit") else str(said.get("bnb_4bit_quant_type") or "4-bit")
    if method == "torchao":
        chosen = said.get("quant_type")
        chosen = chosen.get("default", chosen) if isinstance(chosen, Mapping) else chosen
        return str(chosen.get("_type", "")) if isinstance(chosen, Mapping) else str(chosen or "")
    bits = said.get("bits")
    return f"{bits}-bit" if bits else ""


def numbers(causal_lm: nn.Module, *, leave_out: Callable[[str], bool]) -> Iterator[Tensor]:
    """Yield the tensors that quantised weights are made of: codes, scales, and what is not quantised.

    Args:
        causal_lm: the model.
        leave_out: tells by a parameter's name that it does not count.
    """
    for name, value in chain(causal_lm.named_parameters(), causal_lm.named_buffers()):
        if not leave_out(name):
            yield from _parts(value.detach())


def _parts(value: Tensor) -> Iterator[Tensor]:
    """Yield what a tensor of torchao's is made of, or any other tensor itself."""
    if not hasattr(value, "__tensor_flatten__"):
        yield value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from _parts(getattr(value, name))
