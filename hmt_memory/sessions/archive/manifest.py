"""The manifest of an exported session: the content of the file, and the model that made its memory. Every field is checked.

Knows JSON and what a fingerprint's parts are; opens no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from ...config import HMTConfig
from ...engine.fingerprint import digest_of
from ...engine.outline import READING_IF_SET
from ...errors import ConfigError, StoreError
from . import layout
from .layout import check, record, whole

_KEYS = (
    *("format", "version", "written_by", "name", "created_at", "updated_at", "next_id"),
    *("retention", "model", "messages", "tokens", "segments", "files"),
)
_PARTS = ("backbone", "tokenizer", "memory", "adapter", "config", "start_ids")
_BACKBONE = ("name", "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "weights_digest")
_CONFIG = (
    *("segment_length", "summary_length", "sensory_length", "recall_window", "recall_dim"),
    *("memory_tokens", "memory_input", "mode"),
)
_SHORTEN = "Forget some of the session, and export it again."
_LONGEST_NAME = 4096  # a backbone's, which may be a path
_MOST_START_IDS = 64
_FIRST_TIME, _LAST_TIME = -62_135_510_400.0, 253_402_128_000.0  # a day inside what a datetime holds, for every time zone


class Stated(NamedTuple):
    """The manifest's statement about one file."""

    bytes: int
    sha256: str


class Model(NamedTuple):
    """The model that made a memory."""

    digest: str
    parts: Mapping[str, Any]

    @property
    def segment_length(self) -> int:
        """The tokens of a segment."""
        return int(self.parts["config"]["segment_length"])

    @property
    def segment_bytes(self) -> int:
        """The size of one segment's memory: m embeddings of width d in float16."""
        config = self.parts["config"]
        slots = 0 if config["mode"] == "plain" else config["memory_tokens"]
        return 2 * int(slots) * int(self.parts["backbone"]["hidden_size"])

    @property
    def key_bytes(self) -> int:
        """The size of one key by meaning in float16; 0 where there are none."""
        return 2 * int(self.parts["config"].get("key_dim") or 0)

    @property
    def vocabulary(self) -> int:
        """The number of tokens it knows."""
        return int(self.parts["backbone"]["vocab_size"])


@dataclass(frozen=True)
class Manifest:
    """An exported session's description of itself; its numbers fit one another."""

    name: str
    created_at: float
    updated_at: float
    next_id: int
    retention: Mapping[str, float]
    model: Model | None
    messages: int
    tokens: int
    segments: int
    memory_bits: int
    files: Mapping[str, Stated]

    @classmethod
    def read(cls, text: bytes) -> Manifest:
        """Read the manifest of a file.

        Raises:
            Unfit: a field is missing, unknown, or of another type or range, or the counts do not fit the sizes.
            StoreError: a newer version wrote it.
        """
        content = layout.parsed(text, "the manifest")
        check(isinstance(content, dict) and content.get("format") == layout.FORMAT, "it is not an exported session")
        version = content.get("version")
        if type(version) is not int or version not in layout.CONTENT:
            raise StoreError(
                f"the exported session is of version {str(version)[:20]!r} of its format, and this program reads "
                f"{max(layout.CONTENT)}. Upgrade hmt-memory."
            )
        record(content, _KEYS if version < 3 else (*_KEYS, "memory_bits"), "the manifest")
        made = cls(
            name=_text(content["name"], _LONGEST_NAME, "the name of the session"),
            created_at=time(content["created_at"], "created_at"),
            updated_at=time(content["updated_at"], "updated_at"),
            next_id=whole(content["next_id"], 1, layout.LARGEST_ID, "next_id"),
            retention=_retention(content["retention"]),
            model=None if content["model"] is None else _model(content["model"], version),
            messages=whole(content["messages"], 0, layout.MOST_BYTES, "the number of messages"),
            tokens=whole(content["tokens"], 0, layout.MOST_BYTES, "the number of tokens"),
            segments=whole(content["segments"], 0, layout.MOST_BYTES, "the number of segments"),
            memory_bits=_memory_bits(content.get("memory_bits", 16)),
            files=_files(content["files"], version),
        )
        made._check_counts()
        return made

    def _check_counts(self) -> None:
        length, size = (1, 0) if self.model is None else (self.model.segment_length, self.model.segment_bytes)
        content = self.messages or self.tokens or self.segments
        check(self.model is not None or not content, "it holds a conversation of no model")
        check(self.segments * length <= self.tokens, "it holds more segments than tokens for them")
        check(self.files[layout.TOKENS].bytes == 4 * self.tokens, "its tokens are not as many as it says")
        check(self.files[layout.MEMORY].bytes == size * self.segments, "its memories are not as many as it says")
        keyed = self.model is not None and self.model.key_bytes > 0
        check(keyed == (layout.KEYS in self.files), "its keys are not those of its model")
        least, most = self.messages, self.messages * layout.MOST_MESSAGE_BYTES
        check(least <= self.files[layout.MESSAGES].bytes <= most, "its messages are not as many as it says")


def time(value: Any, what: str) -> float:
    """Return seconds since 1970 that a datetime must be able to show."""
    check(type(value) in (int, float) and _FIRST_TIME <= value <= _LAST_TIME, f"{what} is no time that can be shown")
    return float(value)


def _memory_bits(value: Any) -> int:
    check(type(value) is int and value in (8, 16), "the bits of its memories are not 8 or 16")
    return int(value)


def _retention(value: Any) -> dict[str, float]:
    check(isinstance(value, dict) and set(value) <= {"messages", "seconds"}, "its retention is no object of limits")
    limits: dict[str, float] = {}
    if "messages" in value:
        limits["messages"] = whole(value["messages"], 1, layout.LARGEST_ID, "the retention's number of messages")
    if "seconds" in value:
        seconds = value["seconds"]
        holds = type(seconds) in (int, float) and math.isfinite(seconds) and 0 < seconds <= timedelta.max.total_seconds()
        check(holds, "the retention's age is no positive number of seconds")
        limits["seconds"] = seconds
    return limits


def _files(value: Any, version: int) -> dict[str, Stated]:
    files = {}
    kinds = layout.CONTENT[version]
    names = kinds[-1] if isinstance(value, dict) and layout.KEYS in value else kinds[0]
    for name, stated in record(value, names, "the list of files").items():
        record(stated, ("bytes", "sha256"), f"what it says of {name}")
        size = whole(stated["bytes"], 0, 1 << 63, f"the size of {name}")
        check(size <= layout.MOST_BYTES, f"{name} is over {layout.MOST_BYTES >> 30} GiB, the most that it may be", _SHORTEN)
        files[name] = Stated(size, _hex(stated["sha256"], 64, f"the digest of {name}"))
    return files


def _model(value: Any, version: int) -> Model:
    """Read what `fingerprint` writes, and nothing else: later code may rely on every field."""
    record(value, ("digest", "parts"), "its model")
    parts = value["parts"]
    check(isinstance(parts, dict) and isinstance(parts.get("backbone"), dict), "the parts of its model are no object")
    nameless = parts["backbone"].get("weights_digest") is None  # without a digest of the weights the precision is a part
    record(parts, (*_PARTS, "dtype") if nameless else _PARTS, "the parts of its model")
    _backbone(parts["backbone"], version)
    for name in ("tokenizer", "memory", "adapter"):
        if parts[name] is not None:
            _hex(parts[name], 16, f"the {name} of its model")
    if nameless:
        check(isinstance(parts["dtype"], str) and parts["dtype"].startswith("torch."), "the precision of its model is unknown")
        _text(parts["dtype"], 40, "the precision of its model")
    _config(parts["config"])
    _start_ids(parts["start_ids"], parts["backbone"]["vocab_size"])
    check(digest_of(parts) == value["digest"], "the digest of its model does not fit the parts")
    made = Model(value["digest"], parts)
    check(made.segment_bytes <= layout.MOST_SEGMENT_BYTES, "the memory of one of its segments is over 16 MiB")
    return made


def _backbone(value: Any, version: int) -> None:
    quantized = version >= 3 and "quantization" in value
    record(value, (*_BACKBONE, "quantization") if quantized else _BACKBONE, "the backbone of its model")
    if quantized:
        _text(value["quantization"], 100, "the quantisation of its model")
    _text(value["name"], _LONGEST_NAME, "the name of its model")
    _text(value["model_type"], 200, "the type of its model")
    whole(value["hidden_size"], 1, 1 << 20, "the width of its model")
    whole(value["num_hidden_layers"], 0, 1 << 20, "the number of layers of its model")
    whole(value["vocab_size"], 1, 1 << 32, "the vocabulary of its model")
    if value["weights_digest"] is not None:
        _hex(value["weights_digest"], 16, "the digest of its model's weights")


def _config(value: Any) -> None:
    check(isinstance(value, dict), "the config of its model is no object")
    record(value, (*_CONFIG, *(name for name in READING_IF_SET if name in value)), "the config of its model")
    for name in set(value) - {"memory_input", "mode"}:
        whole(value[name], 0, 1 << 31, f"{name} of its model")
    try:
        HMTConfig.from_dict(value)
    except ConfigError as error:
        raise layout.Unfit(f"the config of its model is impossible: {error}") from error


def _start_ids(value: Any, vocabulary: int) -> None:
    check(isinstance(value, list) and len(value) <= _MOST_START_IDS, "the start tokens of its model are no short list")
    for token in value:
        whole(token, 0, vocabulary - 1, "a start token of its model")


def _text(value: Any, longest: int, what: str) -> str:
    holds = isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()
    check(holds, f"{what} is no printable text of 1 to {longest} characters")
    return str(value)


def _hex(value: Any, digits: int, what: str) -> str:
    check(isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None, f"{what} is no digest")
    return str(value)
