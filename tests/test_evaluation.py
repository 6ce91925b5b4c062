"""Evaluation: perplexity under each kind of memory, intervals, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SMALL, random_ids, tiny_model

from hmt_memory import HMTModel
from hmt_memory.cli import main
from hmt_memory.errors import InputError
from hmt_memory.evaluate.perplexity import Contender, compare, token_losses
from hmt_memory.evaluate.statistics import gain_interval, mean_interval, perplexity_interval
from hmt_memory.train import PRESETS, Recipe

L = SMALL.segment_length


def plain_losses(model: HMTModel, ids: torch.Tensor) -> np.ndarray:
    """By the model's own forward pass."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    found = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
    return found.double().numpy()


CENTRED = replace(SMALL, memory_input="centred", memory_tokens=2)


@pytest.mark.parametrize("config", [SMALL, CENTRED], ids=["paper", "centred"])
@pytest.mark.parametrize(("memory", "mode"), [("recalled", "hmt"), ("previous", "rmt"), ("none", "plain")])
def test_losses_are_those_of_the_model_in_each_mode(config: Any, memory: Any, mode: Any) -> None:
    model = tiny_model(config=config)
    ids = random_ids(7 * L + 5)
    np.testing.assert_allclose(token_losses(model, ids, memory), plain_losses(model.with_config(mode=mode), ids), rtol=1e-4)


def test_initial_memory_is_a_model_that_remembers_nothing() -> None:
    model = tiny_model(config=CENTRED)
    ids = random_ids(9 * L + 3)
    found = token_losses(model, ids, "initial")
    segments = ids.split(L)
    for number in (1, 4, 9):
        tail = segments[number - 1][-SMALL.sensory_length :]
        step = model.augment(model.initial_memory[None], [tail], [segments[number]])
        logits = model.backbone.head(step.hidden[0])[:-1]
        expected = torch.nn.functional.cross_entropy(logits, segments[number][1:], reduction="none").detach()
        np.testing.assert_allclose(found[number * L : number * L + len(expected)], expected, rtol=1e-4)


def test_exchanged_memory_is_another_text_s() -> None:
    model = tiny_model(config=replace(SMALL, recall_window=3))
    ids, other = random_ids(8 * L, seed=1), random_ids(9 * L, seed=2)
    own = token_losses(model, ids)
    np.testing.assert_allclose(token_losses(model, ids, "exchanged", other=ids), own, rtol=1e-4)
    exchanged = token_losses(model, ids, "exchanged", other=other)
    np.testing.assert_allclose(exchanged[: L - 1], own[: L - 1], rtol=1e-4)
    assert np.abs(exchanged[L:] - own[L:]).max() > 0.01
    with pytest.raises(InputError, match="at least as long"):
        token_losses(model, ids, "exchanged", other=other[: 3 * L])


def test_intervals_hold_what_they_should() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = mean_interval(values)
    assert found.low < 3.0 < found.high and found.high - found.low < 0.3
    losses = np.random.default_rng(2).normal(2.0, 0.5, 4000)
    perplexity = perplexity_interval(losses, block=100)
    assert perplexity.low < np.exp(2.0) < perplexity.high
    gain = gain_interval(losses - 0.1, losses, block=100)
    assert gain == pytest.approx((1 - np.exp(-0.1),) * 3)
    none = gain_interval(losses, np.random.default_rng(3).permutation(losses), block=100)
    assert none.low < 0 < none.high


def test_a_comparison_reports_every_contender_and_its_files_hold_it(tmp_path: Path) -> None:
    model = tiny_model(config=CENTRED)
    ids, other = random_ids(80 * L, seed=1), random_ids(80 * L, seed=2)
    contenders = [
        Contender("HMT", model, "recalled"),
        Contender("exchanged", model, "exchanged"),
        Contender("window", model, "none"),
    ]
    seen: list[int] = []
    report = compare(contenders, ids, other=other, settings={"text": "random"}, progress=seen.append)
    assert sum(seen) == 3 * len(ids)
    whole, curves = report.tables
    assert [row[0] for row in whole.rows] == ["HMT", "exchanged", "window"]
    assert whole.rows[0][2] == pytest.approx(float(np.exp(token_losses(model, ids).mean())))
    assert whole.rows[2][5:] == [0.0, 0.0, 0.0] and whole.columns[5] == "% below window"
    assert list(curves.columns) == ["memory", "first 1,024", "first 1,280"]
    made = report.write(tmp_path / "out")
    assert [path.name for path in made] == ["perplexity.json", "perplexity.md", "perplexity.png"]
    held = json.loads(made[0].read_text())
    assert held["settings"]["text"] == "random" and held["environment"]["torch"] == torch.__version__
    assert held["tables"][0]["rows"][0][0] == "HMT" and "| HMT |" in made[1].read_text()
    assert made[2].read_bytes().startswith(b"\x89PNG")


def test_train_and_eval_on_the_command_line(plain: str, tmp_path: Path, capsys: Any) -> None:
    recipe = {
        "config": {"segment_length": 16, "sensory_length": 4, "memory_tokens": 2, "memory_input": "centred"},
        "stages": [{"steps": 4, "segments": 3, "batch": 2, "tasks": {"text": 1, "recitation": 1}, "recall": 0.1}],
        "lora_rank": 2,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "text.txt").write_text("Some words that mean nothing much. " * 60)
    (tmp_path / "other.txt").write_text("Others, of which the same is true. " * 60)
    files = [str(tmp_path / name) for name in ("text.txt", "recipe.json", "run", "other.txt", "results")]
    train = ["train", files[0], "--recipe", files[1], "--out", files[2], "--model", plain]
    assert run(train) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'adapter'}\n"
    assert {"log.jsonl", "recipe.json", "training.png", "adapter"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert run(train) == 0 and "Resumed at step 4 of 4" in capsys.readouterr().err
    assert run([*train[:-4], "--out", str(tmp_path / "twin"), "--model", plain, "--mode", "plain", "--scale", "0.5"]) == 0
    twin = str(tmp_path / "twin/adapter")
    evaluate = ["eval", "perplexity", files[0], "--adapter", f"{files[2]}/adapter", "--plain", twin, "--other", files[3]]
    assert run([*evaluate, "--tokens", "200", "--out", files[4], "--model", plain]) == 0
    held = json.loads((tmp_path / "results/perplexity.json").read_text())
    names = [row[0] for row in held["tables"][0]["rows"]]
    assert names[:4] == ["HMT", "HMT without recall", "HMT, P_0 alone", "HMT, another text's memories"]
    assert "sliding window, equally trained" in names and held["tables"][0]["columns"][5].endswith("equally trained")


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "none.txt"], "there is no file"),
        (["train", "x", "--recipe", "none"], "paper-lora"),
        (["train", "--recipe", "paper"], "name the training text"),
        (["eval", "perplexity", "none.txt"], "there is no file"),
    ],
)
def test_wrong_use_says_what_to_do(arguments: list[str], words: str, plain: str, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "run"), "--model", plain]
    assert run([*arguments, *out]) == 1
    assert words in capsys.readouterr().err


def test_a_recipe_is_shown_as_json_that_is_a_recipe(capsys: Any) -> None:
    assert run(["train", "--recipe", "paper-lora", "--mode", "rmt", "--show-recipe"]) == 0
    shown = Recipe.from_dict(json.loads(capsys.readouterr().out))
    assert shown == PRESETS["paper-lora"].in_mode("rmt")
