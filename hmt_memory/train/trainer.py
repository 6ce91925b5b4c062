"""The training loop: draws rows, unrolls them, steps, logs, and can be killed at any moment and resumed.

Step n depends on the recipe, the data, n and the weights that step n - 1 left, and on nothing else: a checkpoint is the
weights, the optimizer's moments and n.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..chat.transcript import Transcript
from ..errors import CheckpointError, ConfigError
from ..files import replacing
from ..model import HMTModel
from .answering import backward_answers
from .devices import Devices
from .examples import IGNORED, Example
from .exercises import Exercises
from .losses import Weights
from .optimizer import Group, MasterAdamW
from .projections import fit_recall
from .recipe import Recipe, Stage
from .sources import Documents, Stream
from .tasks import Shape, draw
from .unrolled import Losses, unrolled_losses, view_losses

if TYPE_CHECKING:
    from accelerate import Accelerator

RECIPE_FILE, LOG_FILE, ADAPTER, BACKBONE = "recipe.json", "log.jsonl", "adapter", "backbone"
RECALL_FILE = "recall.json"  # how well the fitted projections recall held-out questions
_SAMPLE = 32
_VIEWS = 2  # rows shown as views, where a stage has them
_TEXTS_BEFORE, _SEGMENTS_BEFORE = 2, 4  # texts, and their segments, that were read before the exercises of a step
_CHECKPOINTS, _OPTIMIZER, _PROGRESS = "checkpoints", "optimizer.safetensors", "progress.json"


@dataclass(frozen=True)
class StepReport:
    """One line of the log."""

    step: int  # counted from 1
    stage: int  # counted from 1
    loss: float  # weighted total
    next_token: float | None  # cross-entropy a token; None where nothing was predicted
    answers: float | None  # cross-entropy a token of the answers to exercises
    perplexity: float | None
    distillation: float | None
    recall: float | None  # share of known evidence that got the largest weight
    tokens: int  # read with gradient so far
    tokens_per_second: float  # since the run was started or resumed
    learning_rate: float  # for the backbone or its LoRA
    gradient_norm: float
    seconds: float  # spent in steps, over all sittings


class Trainer:
    """One run in one folder: recipe, log, checkpoints, how well recall was fitted; at the end the adapter (and backbone)."""

    def __init__(
        self,
        model: HMTModel,
        recipe: Recipe,
        documents: Documents | Stream,
        folder: str | Path,
        *,
        exercises: Exercises | None = None,
        sources: Sequence[str] = (),
        start: str | Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Continue the run in `folder`, or begin one.

        Args:
            model: as `prepare` returns it.
            recipe: the stages and rates of the run.
            documents: the text to train on.
            folder: holds everything about the run.
            exercises: for stages that have them; None: about made-up facts only.
            sources: names of the data, recorded beside the recipe.
            start: the adapter that `prepare` went on from, which was calibrated when it was trained.
            accelerator: for several devices; None: the model's device alone.

        Raises:
            ConfigError: the folder holds a run of another recipe.
        """
        self.model, self.recipe, self.documents, self.folder = model, recipe, documents, Path(folder)
        self._exercises = exercises or Exercises()
        self._transcript = Transcript(model.backbone)
        self._devices, self._stopping = Devices(accelerator, in_step=model.backbone.sharded), False
        self._trained = _groups(model, recipe)
        self._fixed = {name: value for name, value in model.memory_parameters().items() if not value.requires_grad}
        if not self._checkpoints() and start is None:
            model.calibrate(self._sample())
        self._devices.agree([*model.memory_parameters().values(), *dict(model.backbone.adapter_parameters()).values()])
        self._optimizer = MasterAdamW(self._trained, weight_decay=recipe.weight_decay, clip=recipe.clip)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._begin(
            {"model": model.backbone.name, "sources": list(sources), "start": start and str(start), "recipe": recipe.to_dict()}
        )

    @property
    def trainable(self) -> int:
        """The number of parameters that learn, counted one by one."""
        return sum(value.numel() for group in self._trained for value in group.parameters.values())

    def run(self, *, until: int | None = None) -> Iterator[StepReport]:
        """Train to the end, or to step `until`; yield a report after each step.

        A checkpoint is written every `checkpoint_every` steps and at the last step.

        Raises:
            ProcessLostError: another process of the run has ended.
        """
        last = min(self.recipe.steps, until or self.recipe.steps)
        started, tokens = time.monotonic(), self.tokens
        self.model.train()
        stopped = False
        while self.step < last and not stopped:
            begun = time.monotonic()
            with self._devices.together():
                report, stopped = self._one_step(begun - started, tokens)
            self._log(report)
            if self.step % self.recipe.checkpoint_every == 0 or self.step == last or stopped:
                self._checkpoint()
            yield report
        self._stopping = False
        self.model.eval()
        if self.step == self.recipe.steps:
            self._finish()

    def stop(self) -> None:
        """End the run after the step at work, with a checkpoint; on several devices, all of them."""
        self._stopping = True

    def _sample(self) -> list[torch.Tensor]:
        """Draw segments of the training text, to measure what memory embeddings are like before the first step."""
        shape, pool = Shape(self.model.config.segment_length, 1), self.documents.at(0)
        encode = self.model.backbone.encode
        return [
            draw({"text": 1.0}, pool, f"{self.recipe.seed}/sample/{number}", shape, encode).ids for number in range(_SAMPLE)
        ]

    def _one_step(self, elapsed: float, tokens_before: int) -> tuple[StepReport, bool]:
        """Take a step. Returns its report, and whether the run is to stop."""
        begun = time.monotonic()
        number, stage = self.recipe.stage_at(self.step)
        if stage.mode == "hmt" and self.recipe.recall_questions and not self.model.is_trained:
            self._fit_recall()
        model = self.model.with_config(mode=stage.mode)
        torch.manual_seed(_seed(self.recipe.seed, self.step, self._devices.number))
        rows = self._rows(stage)
        predictions, asked = sum(map(_predictions, rows)), sum(map(_asked, rows))
        mine = [row if counts else row.silent() for row, counts in self._devices.share(rows)]
        batches = [mine[start : start + stage.batch] for start in range(0, len(mine), stage.batch)]
        losses = [self._backward(model, stage, batch, predictions, asked) for batch in batches]
        self._backward_views(model, stage)
        answered = self._backward_exercises(model, stage)
        factor = self.recipe.rate_factor(self.step)
        norm = self._optimizer.step(factor, self._devices.sum_gradients)
        sums = self._devices.sum(
            [
                sum(getattr(part, name) for part in losses)
                for name in ("next_token", "distillation", "recalls", "recalled", "tokens")
            ]
            + [sum(float(part.recall_total.detach()) for part in losses), answered or 0.0, self._stopping]
        )
        next_token, distillation, recalls, recalled, counted, recall_sum, answers, stopping = sums
        read = sum(len(row.ids) for row in rows)
        self.step, self.tokens = self.step + 1, self.tokens + read
        seconds = time.monotonic() - begun
        self.seconds += seconds
        entropy = next_token / counted if counted else None
        report = StepReport(
            step=self.step,
            stage=number + 1,
            loss=(stage.next_token * next_token + stage.distillation * distillation) / max(counted, 1)
            + stage.recall * recall_sum / max(asked, 1),
            next_token=entropy,
            answers=None if answered is None else answers,
            perplexity=None if entropy is None else math.exp(min(entropy, 50)),
            distillation=distillation / counted if stage.distillation and counted else None,
            recall=recalled / recalls if recalls else None,
            tokens=self.tokens,
            tokens_per_second=(self.tokens - tokens_before) / max(elapsed + seconds, 1e-9),
            learning_rate=self.recipe.learning_rate * factor,
            gradient_norm=norm,
            seconds=self.seconds,
        )
        return report, stopping > 0

    def _fit_recall(self) -> None:
        pool, encode = self.documents.at(self.step), self.model.backbone.encode
        fitted = fit_recall(self.model, pool, questions=self.recipe.recall_questions, seed=self.recipe.seed, encode=encode)
        self._devices.agree(self.model.memory_parameters().values())
        if self._devices.is_main:
            _write(self.folder / RECALL_FILE, json.dumps(fitted._asdict()))
        self._optimizer.adopt("recall.", "memory_input.")

    def _rows(self, stage: Stage) -> list[Example]:
        """Return the rows of this step, of all devices."""
        shape = Shape(self.model.config.segment_length, stage.segments, stage.before)
        pool, encode = self.documents.at(self.step), self.model.backbone.encode
        return [
            draw(stage.tasks, pool, f"{self.recipe.seed}/{self.step}/{number}", shape, encode)
            for number in range(self.recipe.accumulate * stage.batch)
        ]

    def _backward(self, model: HMTModel, stage: Stage, batch: list[Example], predictions: float, asked: float) -> Losses:
        losses = unrolled_losses(
            model,
            batch,
            Weights(stage.next_token, stage.distillation),
            activations=self.recipe.activations,
            teacher_tokens=self.recipe.teacher_tokens,
            in_step=self._devices.in_step,
        )
        total = losses.token_total / max(predictions, 1) + stage.recall * losses.recall_total / max(asked, 1)
        if total.requires_grad:
            total.backward()
        return losses._replace(token_total=losses.token_total.detach(), recall_total=losses.recall_total.detach())

    def _backward_views(self, model: HMTModel, stage: Stage) -> None:
        if not stage.view_tokens:
            return
        length = model.config.segment_length
        shape = Shape(length, max(1, stage.view_tokens // length), max(1, stage.before))
        pool, encode = self.documents.at(self.step), model.backbone.encode
        rows = [draw({"text": 1.0}, pool, f"{self._drawn}/view/{number}", shape, encode) for number in range(_VIEWS)]
        mine = [row if counts else row.silent() for row, counts in self._devices.share(rows)]
        if not mine:
            return
        total = view_losses(model, mine, Weights(stage.next_token, stage.distillation)).token_total
        if total.requires_grad:
            (total / sum(map(_predictions, rows))).backward()

    def _backward_exercises(self, model: HMTModel, stage: Stage) -> float | None:
        """Learn from this device's share of the exercises.

        Returns what it adds to their cross-entropy a token; None without any.
        """
        if not stage.exercises:
            return None
        pool, encode = self.documents.at(self.step), model.backbone.encode
        drawn = [self._exercises.draw(f"{self._drawn}/exercise/{number}") for number in range(stage.exercises)]
        shape, seed = Shape(model.config.segment_length, _SEGMENTS_BEFORE), f"{self._drawn}/before"
        before = [draw({"text": 1.0}, pool, f"{seed}/{number}", shape, encode).ids for number in range(_TEXTS_BEFORE)]
        views = [each.tokens(self._transcript) for each in drawn]
        weights = {"weight": stage.answers, "abstaining": stage.abstaining}
        return backward_answers(model, views, before, **weights, devices=self._devices)

    @property
    def _drawn(self) -> str:
        """The beginning of the seeds of what a step draws besides its rows."""
        return f"{self.recipe.seed}/{self.step}/0"

    def _begin(self, content: dict[str, Any]) -> None:
        path, text = self.folder / RECIPE_FILE, json.dumps(content, indent=2)
        if path.is_file():
            if json.loads(path.read_text()) != json.loads(text):
                raise ConfigError(f"{self.folder} holds a run of another recipe, model or data. Name another folder.")
            self._resume()
        elif self._devices.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, text)
        if self._devices.sum([self.step])[0] != self.step * self._devices.count:
            raise CheckpointError(f"the processes of this run see different checkpoints. Put {self.folder} where all see it.")

    def _log(self, report: StepReport) -> None:
        if self._devices.is_main:
            with (self.folder / LOG_FILE).open("a") as file:
                file.write(json.dumps(asdict(report)) + "\n")

    def _checkpoint(self) -> None:
        if not self._devices.is_main:
            return
        from safetensors.torch import save_file

        kept = self.folder / _CHECKPOINTS
        scratch, target = kept / ".new", kept / f"step-{self.step:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fixed = {f"fixed/{name}": value.detach().cpu() for name, value in self._fixed.items()}
        save_file(self._optimizer.state() | fixed, scratch / _OPTIMIZER)
        progress = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        (scratch / _PROGRESS).write_text(json.dumps(progress))
        for file in scratch.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / _CHECKPOINTS).glob("step-*"))

    def _resume(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if checkpoints := self._checkpoints():
            try:
                held = load_file(checkpoints[-1] / _OPTIMIZER)
                self._optimizer.load(held)
                for name, value in self._fixed.items():
                    value.copy_(held[f"fixed/{name}"])
                progress = json.loads((checkpoints[-1] / _PROGRESS).read_text())
            except (OSError, SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
                raise CheckpointError(
                    f"the checkpoint {checkpoints[-1]} is damaged: {error}. Remove it to resume from the one before."
                ) from error
            self.step, self.tokens, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        if self._devices.is_main:
            _truncate_log(self.folder / LOG_FILE, self.step)

    def _finish(self) -> None:
        if not self._devices.is_main:
            return
        if self.recipe.lora_rank == 0:
            self.model.backbone.save(self.folder / BACKBONE)
        self.model.save_pretrained(self.folder / ADAPTER)


def _groups(model: HMTModel, recipe: Recipe) -> list[Group]:
    unused = {"keys"}  # fitted afterwards, on hidden states that stay as they are (`train.keys`)
    unused |= {"recall", "summary_prompt"} if all(stage.mode != "hmt" for stage in recipe.stages) else set()
    plain = all(stage.mode == "plain" for stage in recipe.stages)
    memory = {
        name: value
        for name, value in model.memory_parameters().items()
        if value.requires_grad and not plain and name.split(".")[0] not in unused
    }
    rest = {name: value for name, value in model.backbone.named_parameters() if value.requires_grad}
    recall = {name: value for name, value in memory.items() if name.startswith("recall.")}
    matrices = {name: value for name, value in memory.items() if name.endswith(".weight") and name not in recall}
    prompts = {name: value for name, value in memory.items() if name not in recall and name not in matrices}
    rate = recipe.learning_rate if recipe.memory_learning_rate is None else recipe.memory_learning_rate
    recall_rate = rate if recipe.recall_learning_rate is None else recipe.recall_learning_rate
    prompt_rate = rate if recipe.prompt_learning_rate is None else recipe.prompt_learning_rate
    rates = (recipe.learning_rate, rate, recall_rate, prompt_rate)
    apart = (False, False, recipe.recall_learning_rate is not None, False)
    groups = [Group(*values) for values in zip((rest, matrices, recall, prompts), rates, apart, strict=True)]
    return [group for group in groups if group.parameters]


def _predictions(example: Example) -> int:
    return int((example.labels[1:] != IGNORED).sum())


def _asked(example: Example) -> int:
    return sum(bool(places) for places in example.evidence.values())


def _seed(*parts: int) -> int:
    value = 0
    for part in parts:
        value = (value * 1_000_003 + part) % (2**63)
    return value


def _truncate_log(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint: the run takes these steps again."""
    if path.is_file():
        kept = [line for line in path.read_text().splitlines() if (read := _step_of(line)) is not None and read <= step]
        _write(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
