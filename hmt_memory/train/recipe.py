"""Recipes of training runs: sizes, stages, rates. Knows numbers; no tensors, no files but its own JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ..config import HMTConfig, Mode
from ..errors import ConfigError
from .tasks import TASKS

Activations = Literal["keep", "recompute", "offload"]
Schedule = Literal["steps", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run. The paper has two: S1 without recall over 2 segments, S2 with recall over as many as fit."""

    steps: int
    segments: int  # unrolled, back-propagated through all of them
    before: int = 0  # segments read first, without gradient: memory from further back at little cost
    mode: Mode = "hmt"  # rmt: no recall, P_n = M_{n-1}, as S1 has it; plain: the equally trained sliding window
    batch: int = 2  # rows a micro-batch; a step has `accumulate` times as many, shared out among devices
    tasks: Mapping[str, float] = field(default_factory=lambda: {"text": 1.0})  # shares of text, recitation, cloze, questions
    next_token: float = 1.0  # weight of the cross-entropy of the next token
    distillation: float = 0.0  # weight of KL(the backbone that sees `teacher_tokens` more || the model)
    recall: float = 0.0  # weight of the recall loss where evidence is known
    view_tokens: int = 0  # length of two more rows, each whole behind P as an answer sees text; 0: no such rows
    exercises: int = 0  # exercises in answering from notes, a step
    answers: float = 1.0  # weight of the cross-entropy of their answers, a token
    abstaining: float = 0.0  # weight of the cross-entropy of whether they abstain, an answer

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ConfigError(f"unknown task {unknown[0]!r}. Choose from {', '.join(TASKS)}.")
        if not self.tasks or min(self.tasks.values()) < 0 or not sum(self.tasks.values()):
            raise ConfigError("tasks needs at least one share above 0.")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode={self.mode!r} is unknown. Choose one of {get_args(Mode)}.")
        for name in ("steps", "segments", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.segments < 2 and set(self.tasks) != {"text"}:
            raise ConfigError("recitation, cloze and questions need at least 2 segments: one to remember, one to ask.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. Two runs of one recipe on the same CPU, data and versions give the same weights."""

    stages: tuple[Stage, ...]
    config: HMTConfig = field(default_factory=HMTConfig)
    lora_rank: int = 8  # 0: full fine-tune of the backbone
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_from_layer: int = 0  # LoRA of earlier layers stays as it is: they then need no backward pass
    lora_targets: tuple[str, ...] = ()  # names of linear modules; empty: all of them
    learning_rate: float = 1e-4  # for the backbone or its LoRA
    memory_learning_rate: float | None = None  # for the memory's matrices; None: the same
    recall_learning_rate: float | None = None  # for W_q and W_k, which learn in the last stage alone; None: the same
    recall_questions: int = 0  # W_q and W_k are fitted to so many before the first stage that recalls; 0: no fit
    prompt_learning_rate: float | None = None  # for the memory's embeddings (T, P_0, offsets, sink); None: the same
    weight_decay: float = 0.0
    schedule: Schedule = (
        "steps"  # steps: times `decay` every 100 steps of a stage, as the authors; cosine: to `floor` at the end
    )
    schedule_steps: int | None = None  # steps until cosine reaches `floor`; None: all steps of the run
    decay: float = 0.9
    floor: float = 0.05
    warmup: int = 0
    clip: float = 1.0  # largest norm of the gradient; W_q and W_k are clipped apart where they have their own rate
    accumulate: int = 1  # micro-batches a step, of all devices
    teacher_tokens: int = 512  # tokens that the teacher sees verbatim before a segment, at least
    activations: Activations = "keep"
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a recipe needs at least one stage.")
        for name, choices in (("schedule", get_args(Schedule)), ("activations", get_args(Activations))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown. Choose one of {choices}.")
        if self.lora_rank == 0 and any(stage.distillation for stage in self.stages):
            raise ConfigError(
                "distillation needs the backbone as it was: train LoRA (lora_rank > 0), or set distillation to 0."
            )
        for name in ("accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def steps(self) -> int:
        """The number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Return the number of a step's stage (counted from 0) and the stage.

        Raises:
            IndexError: the recipe has fewer steps.
        """
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, stage
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps")

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rates at a step."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            span = self.schedule_steps or self.steps
            return warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / span))))
        number, _ = self.stage_at(step)
        return warm * float(self.decay ** ((step - sum(stage.steps for stage in self.stages[:number])) // 100))

    def in_mode(self, mode: Mode) -> Recipe:
        """Return the same run for another kind of memory: the equally trained twin that a gain is measured against.

        `plain` and `rmt` apply to every stage; `hmt` leaves the stages as they are.
        """
        if mode == "hmt":
            return self
        stages = tuple(replace(stage, mode=mode, recall=0.0) for stage in self.stages)
        return replace(self, stages=stages, config=replace(self.config, mode=mode))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return all fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from what `to_dict` returned; missing fields take their defaults.

        Raises:
            ConfigError: a key is unknown or a value impossible; the message names it.
        """
        content = dict(values)
        try:
            config = HMTConfig.from_dict(content.pop("config", {}))
            stages = tuple(_known(Stage, stage) for stage in content.pop("stages", ()))
            content["lora_targets"] = tuple(content.get("lora_targets", ()))
            recipe: Recipe = _known(cls, {**content, "config": config, "stages": stages})
        except TypeError as error:
            raise ConfigError(f"not a recipe: {error}. hmt train --show-recipe prints one.") from error
        return recipe


def _known(kind: Any, values: Mapping[str, Any]) -> Any:
    names = [known.name for known in fields(kind)]
    for key in values:
        if key not in names:
            raise ConfigError(f"unknown key {key!r} in the recipe. Known: {', '.join(names)}.")
    return kind(**values)


def _two_stages(**s2: Any) -> tuple[Stage, ...]:
    return Stage(steps=200, segments=2, mode="rmt"), Stage(steps=500, segments=15, **s2)


# The authors' settings (He et al. 2025, section 4 and their scripts).
PAPER = Recipe(
    stages=_two_stages(),
    config=HMTConfig(segment_length=1024),
    lora_rank=0,
    learning_rate=1e-5,
    decay=0.9,
    activations="recompute",
)
PAPER_LORA = replace(PAPER, config=HMTConfig(segment_length=256), lora_rank=8, learning_rate=1e-4, decay=0.7)
# For a small model on two CPU cores (docs/log.md): short segments, memories that enter by what sets them apart, distillation
# from the backbone that sees more, then recall over text that returns.
COMPACT = Recipe(
    stages=(
        Stage(steps=260, segments=4, mode="rmt", batch=16, distillation=1.0, next_token=0.1),
        Stage(
            steps=50,
            segments=3,
            before=9,
            batch=8,
            distillation=1.0,
            next_token=0.1,
            recall=0.1,
            view_tokens=512,
            tasks={"text": 3, "recitation": 1, "cloze": 1},
        ),
    ),
    config=HMTConfig(
        segment_length=64, sensory_length=16, memory_tokens=8, recalled_tokens=4, memory_input="centred", recall_dim=128
    ),
    learning_rate=1.5e-3,
    memory_learning_rate=1.5e-3,
    recall_learning_rate=1e-3,
    recall_questions=8000,
    prompt_learning_rate=5e-3,
    schedule="cosine",
    schedule_steps=350,
    warmup=10,
    teacher_tokens=576,
    checkpoint_every=10,
)
# Goes on from an adapter that reads: short answers from notes, while text is read as before.
NOTES = replace(
    COMPACT,
    stages=(Stage(steps=100, segments=2, before=2, batch=1, distillation=1.0, next_token=0.1, exercises=8, abstaining=0.5),),
    lora_from_layer=8,
    learning_rate=1e-3,
    memory_learning_rate=1e-4,
    recall_learning_rate=1e-4,
    recall_questions=0,
    prompt_learning_rate=2e-4,
    schedule_steps=None,
    teacher_tokens=256,
    checkpoint_every=20,
)
PRESETS = {"paper": PAPER, "paper-lora": PAPER_LORA, "compact": COMPACT, "notes": NOTES}
