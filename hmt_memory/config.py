"""The configuration of a model: the paper's sizes and the extensions (off by default); and of a view: its token budgets.

Knows numbers and how they fit a backbone's window; knows nothing of torch, files or Hugging Face.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from .errors import ConfigError

DEFAULT_MODEL = "smollm2-135m-instruct"
MemoryInput = Literal["paper", "scaled", "mapped", "centred"]
Mode = Literal["hmt", "rmt", "plain"]
Selection = Literal["fused", "recall", "words"]
Engine = Literal["auto", "torch", "openvino", "openvino-4bit"]  # what computes where nothing learns
_CHOICES = {"memory_input": get_args(MemoryInput), "mode": get_args(Mode), "selection": get_args(Selection)}

# Budgets of the view that are left to the backbone's window: at most so many tokens, and at most this share of the room that
# the budgets before have left. A system prompt comes first; notes give way first. Room that no budget asks for goes to the
# system prompt, where chains and query engines put what they retrieve. Small backbones are lost in long windows, and slow
# machines run small backbones: theirs is shorter.
_AUTOMATIC_BUDGETS = {"pinned_tokens": (512, 0.5), "recent_tokens": (1024, 0.67), "note_tokens": (256, 1.0)}
_SMALL, _SMALL_RECENT = 1024, 256  # a backbone of a smaller width, and its `recent_tokens`
_LARGEST = 1 << 24  # for any size: a larger number is a mistake, or a damaged file
_PARAMETER_BYTES, _MATRICES = 1 << 28, 16  # limits of the memory parameters: bytes, or d x d matrices


@dataclass(frozen=True, kw_only=True)
class HMTConfig:
    """Sizes of the Hierarchical Memory Transformer (He et al., NAACL 2025, arXiv 2405.06067) in tokens, unless said.

    `None` means "derived from the backbone": `HMTModel.wrap` fills it in, so `model.config` holds numbers only.

    Raises:
        ConfigError: a value is impossible; the message names the field.

    >>> HMTConfig(segment_length=64).summary_length is None
    True
    >>> HMTConfig(segment_length=64).resolve(hidden_size=576, positions=8192).summary_length
    32
    """

    segment_length: int = 256  # L: tokens a segment
    summary_length: int | None = None  # j: leading tokens of a segment that are summarised; None: L // 2
    sensory_length: int = 32  # k: trailing tokens of the previous segment that stay visible
    recall_window: int = 300  # N: how many segments recall attends to: the latest while reading, the best of all in a session
    recall_dim: int | None = None  # d_h: width of the recall projections; None: the hidden width
    memory_tokens: int = 1  # m: memory embeddings a segment (extension; the paper has 1)
    recalled_tokens: int | None = None  # r: recalled embeddings of P_n, which follow M_{n-1} (extension); None: all of P_n
    memory_input: MemoryInput = "paper"  # how a memory embedding enters the backbone (extensions: scaled, mapped, centred)
    key_dim: int | None = None  # width of keys by meaning, which find what shares no words (extension); None: there are none
    mode: Mode = "hmt"  # hmt: Eq. 1-5; rmt: no recall, P_n = M_{n-1}; plain: the backbone with k sensory tokens
    abstain_from: float | None = None  # least probability of "I don't know" from which on it may be said (extension)
    selection: Selection = "fused"  # this and the next three: the model's own `ViewConfig`
    recent_tokens: int | None = None
    replay_tokens: int | None = None  # `note_tokens` of the view
    pinned_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_types(self, at_least_one={"segment_length", "recall_window", "recall_dim", "memory_tokens", "key_dim"})
        length = self.segment_length
        if self.sensory_length >= length:
            raise ConfigError(
                f"sensory_length={self.sensory_length} must be smaller than segment_length={length}: "
                "it is the tail of one segment. Lower sensory_length or raise segment_length."
            )
        if self.recalled_tokens is not None and not 1 <= self.recalled_tokens <= self.memory_tokens:
            raise ConfigError(
                f"recalled_tokens={self.recalled_tokens} must be between 1 and memory_tokens={self.memory_tokens}: the last of "
                'the embeddings of each segment are recalled. Choose mode="rmt" to recall none.'
            )
        if self.summary_length is not None and not 1 <= self.summary_length <= length:
            raise ConfigError(
                f"summary_length={self.summary_length} must be between 1 and segment_length={length}. "
                "Leave it out for the paper's half segment."
            )

    def resolve(self, *, hidden_size: int, positions: int | None) -> HMTConfig:
        """Fill every `None` from a backbone of width `hidden_size` with `positions` positions (None: no limit).

        Raises:
            ConfigError: the segment does not fit the window, or the memory parameters would take gigabytes.
        """
        self._check_parameters(hidden_size)
        if positions is not None and self._reading > positions:
            raise ConfigError(
                f"segment_length={self.segment_length} + sensory_length={self.sensory_length} + 2 x memory_tokens="
                f"{self.memory_tokens} is {self._reading} positions, over the backbone's {positions}. Lower segment_length."
            )
        summary_length = self.summary_length or max(1, self.segment_length // 2)
        return replace(self, summary_length=summary_length, recall_dim=self.recall_dim or hidden_size)

    def _check_parameters(self, width: int) -> None:
        """Check the size of the parameters in fp32: Q and K [d_h, d], P_0 [m, d], `memory_input` and keys."""
        rows = {
            "recall_dim": 2 * (self.recall_dim or width),
            "memory_tokens": 4 * self.memory_tokens + (self.recalled_tokens or 0),
            "key_dim": 11 * (self.key_dim or 0),
        }
        needed, most = 4 * width * (sum(rows.values()) + width), max(_PARAMETER_BYTES, _MATRICES * 4 * width**2)
        if needed > most:
            largest = max(rows, key=lambda name: rows[name])
            raise ConfigError(
                f"{largest}={getattr(self, largest)} makes memory parameters of {needed:,} bytes, over the {most:,} that suit "
                f"a backbone of width {width}. Lower {largest}."
            )

    @property
    def view(self) -> ViewConfig:
        """The budgets of the view as they were given with the model."""
        return ViewConfig(
            recent_tokens=self.recent_tokens,
            note_tokens=self.replay_tokens,
            pinned_tokens=self.pinned_tokens,
            selection=self.selection,
        )

    def positions_per_token(self) -> float:
        """Return positions through the backbone for each token read: `(L + k + 2m) / L` (Eq. 4) plus `(j + 2) / L` (Eq. 1)."""
        return (self._reading + (self.summary_length or self.segment_length // 2) + 2) / self.segment_length

    @property
    def front(self) -> int:
        """The positions that P_n takes in front of a text; `centred` has one more, the sink."""
        return self.memory_tokens + (self.recalled_tokens or 0) + (self.memory_input == "centred")

    @property
    def _reading(self) -> int:
        return self.segment_length + self.sensory_length + self.front + self.memory_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HMTConfig:
        """Build a configuration from what `to_dict` returned; missing fields take their defaults.

        Raises:
            ConfigError: a key is not a field of this version; the message names it and the nearest field.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known fields: {', '.join(known)}."
                raise ConfigError(f"unknown configuration key {key!r}. {hint} A newer hmt-memory may have written it.")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The view that an answer is conditioned on: its token budgets, and how the notes in it are selected.

    It changes no memory, so every session and every call may have its own. `None` means "as much as suits the backbone's
    window": `HMTModel.view` holds numbers only.

    Raises:
        ConfigError: a value is impossible; the message names the field.

    >>> ViewConfig(recent_tokens=512).note_tokens is None
    True
    """

    recent_tokens: int | None = (
        None  # the latest turns, verbatim, before the segment that is not full; None: up to 1,024, 256 for
    )
    # backbones narrower than 1,024
    note_tokens: int | None = None  # notes of what was said before, verbatim, next to the question; None: up to 256
    pinned_tokens: int | None = None  # system prompts and tools, which never scroll away; None: up to 512, and unused room
    selection: Selection = "fused"  # how passages are selected: by recall and words (extension), or by one of them

    def __post_init__(self) -> None:
        _check_types(self, at_least_one=set())

    def resolve(self, config: HMTConfig, *, hidden_size: int, positions: int | None) -> ViewConfig:
        """Fill every `None` for a backbone.

        Args:
            config: how the model reads.
            hidden_size: width of the backbone's hidden states.
            positions: the window of the backbone, in tokens; None: no limit.

        Raises:
            ConfigError: the budgets that are given do not fit the backbone's window.
        """
        given = {name: value for name in _AUTOMATIC_BUDGETS if (value := getattr(self, name)) is not None}
        wanted = {name: limits for name, limits in _AUTOMATIC_BUDGETS.items() if name not in given}
        if hidden_size < _SMALL and "recent_tokens" in wanted:
            wanted["recent_tokens"] = (_SMALL_RECENT, wanted["recent_tokens"][1])
        if positions is None:
            return self._filled({name: size for name, (size, _) in wanted.items()})
        room = positions - config.front - config.segment_length - sum(given.values())
        if room < 0:
            largest = max(given, key=lambda name: given[name]) if given else "segment_length"
            raise ConfigError(
                f"the view needs {positions - room} positions, over the backbone's {positions} (memory_tokens="
                f"{config.memory_tokens} + segment_length={config.segment_length} + {given}). Lower {largest}."
            )
        filled = {}
        for name, (size, share) in wanted.items():
            filled[name] = min(size, int(room * share))
            room -= filled[name]
        if "pinned_tokens" in filled:
            filled["pinned_tokens"] += room
        return self._filled(filled)

    def _filled(self, budgets: Mapping[str, int]) -> ViewConfig:
        return ViewConfig(**{**asdict(self), **budgets})


def _check_types(config: HMTConfig | ViewConfig, *, at_least_one: set[str]) -> None:
    """Check that every field holds one of its choices, or a whole number that is possible, or None if that is its default."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _CHOICES:
            if value not in _CHOICES[field.name]:
                raise ConfigError(f"{field.name}={value!r} is unknown. Choose one of {_CHOICES[field.name]}.")
        elif value is None and field.default is None:
            continue
        elif field.name == "abstain_from":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigError(f"abstain_from={value!r} must be a probability, from 0 to 1.")
        elif not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{field.name}={value!r} must be a whole number.")
        elif value < (lowest := int(field.name in at_least_one)):
            raise ConfigError(f"{field.name}={value} must be at least {lowest}.")
        elif value > _LARGEST:
            raise ConfigError(f"{field.name}={value} must be at most {_LARGEST}.")
