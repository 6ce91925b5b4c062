"""The fingerprint of the model that made a memory: everything memory is a function of, as a digest and in words.

Backbone weights, adapter, memory parameters, tokenizer and the sizes that reading depends on; not the view's budgets, the
precision or the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .outline import READING, READING_IF_SET, digest_of_arrays

if TYPE_CHECKING:
    from torch import Tensor

    from .cell import MemoryCell

_KEPT = "_fingerprint"


class Fingerprint(NamedTuple):
    """A model as far as its memory goes."""

    digest: str  # 32 hex digits; memories with equal digests may be used together
    parts: Mapping[str, Any]  # the values behind the digest, and the backbone's name

    def __str__(self) -> str:
        config = self.parts["config"]
        name, quantization = self.parts["backbone"]["name"], self.parts["backbone"].get("quantization")
        weights = "" if quantization is None else f"{quantization}, "
        sizes = f"segment_length={config['segment_length']}, mode={config['mode']}"
        return f"{name} ({weights}{sizes}, fingerprint {self.digest[:12]})"


def fingerprint(model: MemoryCell) -> Fingerprint:
    """Compute the fingerprint of `model` as it is now; it is kept on the model until a parameter is written to."""
    added = [(id(value), value._version) for value in model.memory_parameters().values()]
    state = (model.config, model.backbone.name, added, model.backbone.written())
    known = model.__dict__.get(_KEPT)
    if known is None or known[0] != state:
        known = model.__dict__[_KEPT] = (state, _compute(model))
    result: Fingerprint = known[1]
    return result


def _compute(model: MemoryCell) -> Fingerprint:
    identity = model.backbone.identity()
    config = model.config.to_dict()
    parts: dict[str, Any] = {
        "backbone": identity,
        "tokenizer": tokenizer_digest(model.backbone.tokenizer),
        "memory": _tensors_digest(sorted(model.memory_parameters().items())),
        "adapter": _tensors_digest(model.backbone.adapter_parameters()),
        "config": {name: config[name] for name in (*READING, *filter(config.get, READING_IF_SET))},
        "start_ids": model.backbone.start_ids(),
    }
    if identity["weights_digest"] is None:
        parts["dtype"] = str(model.backbone.dtype)  # there is no digest in this precision, so at least the precision must agree
    return Fingerprint(digest_of(parts), parts)


def text_parts(parts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the token stream depends on: two models that agree here can re-read each other's tokens."""
    return parts["tokenizer"], parts["backbone"]["vocab_size"], parts["start_ids"]


def digest_of(parts: Mapping[str, Any]) -> str:
    """Compute the digest of a fingerprint's parts; the backbone's name, which may be a path, does not count."""
    counted = {**parts, "backbone": {key: value for key, value in parts["backbone"].items() if key != "name"}}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: Any) -> str | None:
    """Compute a digest of what a tokenizer does with text; None without one."""
    if tokenizer is None:
        return None
    rules = getattr(tokenizer, "backend_tokenizer", None)  # fast tokenizers: merges and normalisation as well
    known = sorted(tokenizer.get_vocab().items()) if rules is None else rules.to_str()
    content = json.dumps([known, str(getattr(tokenizer, "chat_template", None))], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    return digest_of_arrays((name, value.detach().float().cpu().contiguous().numpy()) for name, value in tensors)
