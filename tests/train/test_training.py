"""The trainer: recipes, the optimizer, the same run twice, resume to the exact step."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from scripts import run_script
from tiny import SMALL, else_long, random_ids

from hmt_memory import HMTConfig, HMTError, HMTModel
from hmt_memory.errors import ConfigError
from hmt_memory.train import PRESETS, Recipe, Stage, Trainer, open_sources, prepare
from hmt_memory.train.optimizer import Group, MasterAdamW

L = SMALL.segment_length


# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", PRESETS.values())
def test_recipes_survive_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


def test_the_paper_s_preset_has_the_paper_s_settings() -> None:
    paper = PRESETS["paper"]
    assert [(stage.steps, stage.segments, stage.mode) for stage in paper.stages] == [(200, 2, "rmt"), (500, 15, "hmt")]
    assert (paper.learning_rate, paper.lora_rank, paper.config.segment_length) == (1e-5, 0, 1024)
    assert [round(paper.rate_factor(step), 3) for step in (0, 99, 100, 199, 200, 650)] == [1, 1, 0.9, 0.9, 1, 0.656]


@pytest.mark.parametrize(
    "change",
    [
        {"stages": []},
        {"stages": [{"steps": 0, "segments": 2}]},
        {"stages": [{"steps": 1, "segments": 2, "tasks": {"rhyme": 1}}]},
        {"stages": [{"steps": 1, "segments": 1, "tasks": {"cloze": 1}}]},
        {"stages": [{"steps": 1}]},
        {"schedule": "linear"},
        {"lora_rank": 0, "stages": [{"steps": 1, "segments": 2, "distillation": 1.0}]},
        {"learning_rte": 1},
    ],
)
def test_a_bad_recipe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Recipe.from_dict({**PRESETS["paper"].to_dict(), **change})


# --- the optimizer ------------------------------------------------------------------------------------------------------


def test_master_weights_collect_updates_that_bf16_would_lose() -> None:
    live = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([Group({"live": live}, 1e-4)])
    for _ in range(100):
        live.grad = torch.ones_like(live)
        optimizer.step(1.0)
    assert float(live.detach()[0]) == pytest.approx(0.99, abs=0.004)


def test_the_optimizer_equals_adamw_in_fp32_and_clips() -> None:
    live, twin = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours = MasterAdamW([Group({"live": live}, 0.1)], weight_decay=0.01, clip=1.0)
    reference = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.01)
    for step in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(step)) * 10
        live.grad, twin.grad = gradient.clone(), gradient / gradient.norm()
        assert ours.step(1.0) == pytest.approx(float(gradient.norm()))
        reference.step()
    torch.testing.assert_close(live, twin)


def test_a_group_apart_is_clipped_by_itself_and_the_others_together() -> None:
    names = ("first", "second", "loud")
    live, twins = ({name: torch.nn.Parameter(torch.ones(2)) for name in names} for _ in range(2))
    groups = [Group({name: live[name]}, 0.1, name == "loud") for name in names]
    reference = torch.optim.SGD(twins.values(), lr=1.0)
    ours = MasterAdamW(groups, clip=1.0)
    ours._adam = torch.optim.SGD([{"params": [ours._master[name]], "lr": 1.0} for name in names], lr=1.0)  # sees clipping whole
    ours._rates = [1.0] * 3
    for name, size in zip(names, (3.0, 4.0, 300.0), strict=True):
        live[name].grad = torch.tensor([size, 0.0])
        twins[name].grad = torch.tensor([size / (5.0 if name != "loud" else 300.0), 0.0])
    assert ours.step(1.0) == pytest.approx((25 + 300**2) ** 0.5)
    reference.step()
    for name in names:
        torch.testing.assert_close(live[name].data, twins[name].data)


# --- the loop -----------------------------------------------------------------------------------------------------------

RECIPE = Recipe(
    stages=(
        Stage(steps=3, segments=2, mode="rmt", batch=2),
        Stage(
            steps=4,
            segments=3,
            before=1,
            batch=2,
            tasks={"text": 1, "cloze": 1},
            recall=0.1,
            distillation=0.5,
            view_tokens=40,
            exercises=2,
        ),
    ),
    config=replace(SMALL, memory_tokens=2, memory_input="centred", key_dim=4),
    lora_rank=2,
    learning_rate=1e-2,
    checkpoint_every=2,
    warmup=2,
)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    letters = random.Random(0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("".join(letters.choice("abcdefgh .") for _ in range(3000)))
    return [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


def trainer(name: str, recipe: Recipe, folder: Path, data: list[str]) -> Trainer:
    model = prepare(name, recipe, dtype="float32")
    return Trainer(model, recipe, open_sources(data, model.backbone.encode), folder, sources=data)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    adapter = load_file(folder / "adapter/backbone_adapter/adapter_model.safetensors")
    return {**load_file(folder / "adapter/hmt_memory.safetensors"), **adapter}


def learned_memory(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith(("backbone.", "keys.")) and name != "memory_input.centre"}


@pytest.mark.slow
def test_a_run_trains_what_it_should_and_leaves_an_adapter_that_loads(plain: str, tmp_path: Path, data: list[str]) -> None:
    run = trainer(plain, RECIPE, tmp_path / "run", data)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    reports = list(run.run())
    changed = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora" in name or name in learned_memory(before)}
    assert [report.step for report in reports] == list(range(1, 8)) and [report.stage for report in reports] == [1] * 3 + [
        2
    ] * 4
    assert all(report.loss > 0 and report.gradient_norm > 0 for report in reports)
    assert [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()] == list(range(1, 8))
    loaded = HMTModel.from_pretrained(plain, adapter=tmp_path / "run/adapter", dtype="float32")
    ids = random_ids(60)
    torch.testing.assert_close(loaded.read(ids).memory, run.model.eval().read(ids).memory)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_weights_and_another_seed_does_not(plain: str, tmp_path: Path, data: list[str]) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        list(trainer(plain, replace(RECIPE, seed=seed), tmp_path / name, data).run())
    one, two, other = (weights_of(tmp_path / name) for name in ("one", "two", "other"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", else_long([1, 2, 5], 2))
def test_a_killed_run_resumes_to_the_same_weights_and_log(
    plain: str, tmp_path: Path, data: list[str], killed_after: int
) -> None:
    list(trainer(plain, RECIPE, tmp_path / "whole", data).run())
    first = trainer(plain, RECIPE, tmp_path / "halves", data).run()
    for _ in range(killed_after):
        next(first)
    first.close()  # as a kill: nothing more is written
    again = trainer(plain, RECIPE, tmp_path / "halves", data)
    assert again.step == killed_after // 2 * 2
    list(again.run())
    torch.testing.assert_close(weights_of(tmp_path / "halves"), weights_of(tmp_path / "whole"), rtol=0, atol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("halves", "whole")
    ]
    timeless = [[{key: value for key, value in line.items() if "second" not in key} for line in log] for log in logs]
    assert timeless[0] == timeless[1]


def test_a_folder_of_another_run_is_left_alone(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "run", data).run(until=2))
    with pytest.raises(ConfigError, match="another recipe"):
        trainer(plain, replace(RECIPE, learning_rate=0.5), tmp_path / "run", data)


def test_a_damaged_checkpoint_is_named(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "run", data).run(until=2))
    (tmp_path / "run/checkpoints/step-000002/optimizer.safetensors").write_bytes(b"none")
    with pytest.raises(HMTError, match="step-000002"):
        trainer(plain, RECIPE, tmp_path / "run", data)


@pytest.mark.slow
def test_recall_is_fitted_where_a_stage_first_recalls_and_alike_after_a_kill(
    plain: str, data: list[str], tmp_path: Path
) -> None:
    config = replace(SMALL, memory_tokens=3, recalled_tokens=2, memory_input="centred", recall_dim=8)
    stages = (Stage(steps=1, segments=2, mode="rmt"), Stage(steps=1, segments=3))
    recipe = replace(RECIPE, config=config, stages=stages, checkpoint_every=1, recall_questions=64)
    whole = trainer(plain, recipe, tmp_path / "whole", data)
    list(whole.run(until=1))
    assert not whole.model.is_trained
    list(whole.run())
    assert whole.model.is_trained
    halves = tmp_path / "halves"
    list(trainer(plain, recipe, halves, data).run(until=1))
    again = trainer(plain, recipe, halves, data)
    list(again.run())
    for name, value in whole.model.memory_parameters().items():
        assert torch.equal(value, dict(again.model.memory_parameters())[name]), name
    assert torch.equal(whole._optimizer._master["recall.key.weight"], whole.model.recall.key.weight)
    assert 0 <= json.loads((tmp_path / "whole/recall.json").read_text())["first"] <= 1


def test_full_fine_tuning_leaves_a_backbone_beside_the_adapter(plain: str, tmp_path: Path, data: list[str]) -> None:
    recipe = replace(RECIPE, lora_rank=0, stages=(Stage(steps=2, segments=2),), learning_rate=1e-3)
    run = trainer(plain, recipe, tmp_path / "run", data)
    list(run.run())
    loaded = HMTModel.from_pretrained(tmp_path / "run/backbone", adapter=tmp_path / "run/adapter", dtype="float32")
    ids = random_ids(60)
    torch.testing.assert_close(loaded.read(ids).memory, run.model.read(ids).memory, rtol=1e-3, atol=1e-4)
    assert not torch.equal(
        loaded.read(ids).memory, HMTModel.from_pretrained(plain, config=recipe.config, dtype="float32").read(ids).memory
    )


def test_accumulated_micro_batches_equal_one_large_batch(plain: str, tmp_path: Path, data: list[str]) -> None:
    stage = Stage(steps=2, segments=3, batch=4, tasks={"text": 1, "cloze": 1}, recall=0.1)
    list(trainer(plain, replace(RECIPE, stages=(stage,)), tmp_path / "large", data).run())
    list(trainer(plain, replace(RECIPE, stages=(replace(stage, batch=2),), accumulate=2), tmp_path / "micro", data).run())
    torch.testing.assert_close(weights_of(tmp_path / "micro"), weights_of(tmp_path / "large"), rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_twins_of_other_modes_train_what_they_use(plain: str, tmp_path: Path, data: list[str]) -> None:
    for mode in ("plain", "rmt"):
        run = trainer(plain, RECIPE.in_mode(mode), tmp_path / mode, data)
        before = {name: value.clone() for name, value in run.model.named_parameters()}
        list(run.run())
        changed = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
        memory = learned_memory(before)
        unused = memory if mode == "plain" else {name for name in memory if name.startswith(("recall", "summary"))}
        assert changed == {name for name in before if "lora" in name or name in memory - unused}


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "first", data).run())
    start = tmp_path / "first/adapter"
    recipe = replace(RECIPE, stages=(Stage(steps=1, segments=2),), learning_rate=1e-9)
    model = prepare(plain, recipe, start=start, dtype="float32")
    run = Trainer(model, recipe, open_sources(data, model.backbone.encode), tmp_path / "second", sources=data, start=start)
    list(run.run())
    torch.testing.assert_close(weights_of(tmp_path / "second"), weights_of(tmp_path / "first"), rtol=1e-4, atol=1e-6)
    changed = {
        name
        for name, value in weights_of(tmp_path / "second").items()
        if not torch.equal(value, weights_of(tmp_path / "first")[name])
    }
    assert any("lora" in name for name in changed) and "memory_input.centre" not in changed
    for other, words in (
        (replace(recipe, config=replace(recipe.config, segment_length=20)), "segment_length"),
        (replace(recipe, lora_rank=0), "LoRA"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(plain, other, start=start, dtype="float32")


@pytest.mark.slow
def test_the_command_in_two_processes_trains_what_it_does_in_one(plain: str, tmp_path: Path, data: list[str]) -> None:
    stage = Stage(steps=3, segments=3, batch=2, tasks={"text": 1, "cloze": 1}, recall=0.1)
    recipe = replace(RECIPE, stages=(stage,))
    (tmp_path / "two.json").write_text(recipe.to_json())
    arguments = ["train", *data, "--recipe", str(tmp_path / "two.json"), "--out", str(tmp_path / "two")]
    arguments += ["--model", plain, "--dtype", "float32", "--device", "cpu"]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    environment = os.environ | world

    def process(rank: str) -> subprocess.CompletedProcess[str]:
        place = environment | {"RANK": rank, "LOCAL_RANK": rank}
        return run_script(SUPPORT / "hmt_command.py", *arguments, environment=place, timeout=240)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, "01")
    assert [first.returncode, second.returncode] == [0, 0], first.stderr + second.stderr
    out, quiet = first.stdout, second.stdout
    assert out == f"{tmp_path / 'two' / 'adapter'}\n" and quiet == ""
    list(trainer(plain, recipe, tmp_path / "one", data).run())
    torch.testing.assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), rtol=1e-3, atol=1e-4)


def test_the_default_config_is_the_paper_s() -> None:
    assert PRESETS["paper"].config.memory_input == HMTConfig().memory_input == "paper"
