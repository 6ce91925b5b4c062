"""Impossible sizes are refused by name; what is left open is derived from the backbone."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from tiny import tiny_causal_lm, tiny_model

from hmt_memory import HMTConfig, HMTModel
from hmt_memory.config import ViewConfig
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.errors import ConfigError, HMTError


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"segment_length": 16, "sensory_length": 16}, "sensory_length=16 must be smaller than segment_length=16"),
        ({"segment_length": 16, "sensory_length": 4, "summary_length": 17}, "summary_length=17"),
        ({"summary_length": 0}, "summary_length=0"),
        ({"segment_length": 0}, "segment_length=0"),
        ({"segment_length": "256"}, "segment_length='256'"),
        ({"segment_length": True}, "segment_length=True"),
        ({"segment_length": None}, "segment_length=None"),
        ({"recall_window": 0}, "recall_window=0"),
        ({"recall_dim": 0}, "recall_dim=0"),
        ({"memory_tokens": 0}, "memory_tokens=0"),
        ({"memory_tokens": 2, "recalled_tokens": 3}, "recalled_tokens=3"),
        ({"recalled_tokens": 0}, "recalled_tokens=0"),
        ({"sensory_length": -1}, "sensory_length=-1"),
        ({"recent_tokens": -1}, "recent_tokens=-1"),
        ({"memory_input": "raw"}, "memory_input='raw'"),
        ({"mode": "lstm"}, "mode='lstm'"),
    ],
)
def test_impossible_values_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HMTConfig(**fields)
    assert str(caught.value).startswith(named)
    assert isinstance(caught.value, HMTError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"segment_length": 300}, "segment_length=300"),
        ({"segment_length": 224, "sensory_length": 31}, "segment_length=224 .* 257 positions, over the backbone's 256"),
        ({"segment_length": 64, "recent_tokens": 200}, "Lower recent_tokens"),
        ({"segment_length": 64, "pinned_tokens": 150, "replay_tokens": 100}, "Lower pinned_tokens"),
    ],
)
def test_what_does_not_fit_the_backbone_names_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        HMTModel.wrap(tiny_causal_lm(), None, HMTConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"recall_dim": 16_000_000},
            r"recall_dim=16000000 makes memory parameters of 4,096,004,608 bytes, over the 268,435,456",
        ),
        ({"memory_tokens": 900_000}, "memory_tokens=900000 makes memory parameters of .* Lower memory_tokens"),
    ],
)
def test_gigabytes_of_memory_parameters_are_refused_before_they_are_made(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        HMTModel.wrap(tiny_causal_lm("mamba"), None, HMTConfig(**fields))
    assert HMTConfig(mode="hmt", memory_input="mapped").resolve(hidden_size=16_384, positions=8192).recall_dim == 16_384


def test_the_largest_segment_that_fits_is_accepted() -> None:
    assert HMTModel.wrap(tiny_causal_lm(), None, HMTConfig(segment_length=222, sensory_length=32)).config.segment_length == 222


def test_a_system_prompt_has_room_before_anything_else_on_a_small_window() -> None:
    view = ViewConfig().resolve(HMTConfig(segment_length=128), hidden_size=2048, positions=256)
    assert (view.pinned_tokens, view.recent_tokens, view.note_tokens) == (63, 42, 22)


def test_positions_per_token_are_the_papers_cost() -> None:
    assert HMTConfig(segment_length=256).positions_per_token() == pytest.approx(1.64, abs=0.005)
    assert HMTConfig(segment_length=1024).positions_per_token() == pytest.approx(1.54, abs=0.005)


@pytest.mark.parametrize("positions", [200, 256, 1000, 2048, 3000, None])
def test_derived_budgets_fit_the_window(positions: int | None) -> None:
    view = ViewConfig().resolve(HMTConfig(segment_length=128), hidden_size=2048, positions=positions)
    budgets = (view.recent_tokens, view.note_tokens, view.pinned_tokens)
    assert all(isinstance(budget, int) for budget in budgets)
    total = 1 + 128 + sum(budget or 0 for budget in budgets)
    assert positions is None or total <= positions
    if positions is None or positions >= 3000:
        unused = 0 if positions is None else positions - 1 - 128 - 1024 - 256 - 512
        assert budgets == (1024, 256, 512 + unused)


def test_state_space_backbones_have_no_window() -> None:
    assert tiny_model("mamba").backbone.positions is None
    assert HMTModel.wrap(tiny_causal_lm("rwkv"), None, HMTConfig()).view.recent_tokens == 256


def test_small_backbones_have_a_short_window() -> None:
    views = [ViewConfig().resolve(HMTConfig(), hidden_size=width, positions=8192) for width in (576, 1024)]
    assert [view.recent_tokens for view in views] == [256, 1024]
    assert ViewConfig(recent_tokens=700).resolve(HMTConfig(), hidden_size=576, positions=8192).recent_tokens == 700


def test_round_trip_and_unknown_keys() -> None:
    config = HMTConfig(segment_length=64, memory_input="mapped")
    assert HMTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"unknown configuration key 'segment_lenght'\. Did you mean 'segment_length'"):
        HMTConfig.from_dict({"segment_lenght": 3})
    with pytest.raises(ConfigError, match="Known fields: segment_length"):
        HMTConfig.from_dict({"zzz": 3})


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        HMTConfig().segment_length = 3  # type: ignore[misc]


def test_a_view_belongs_to_an_answer_and_changes_no_memory() -> None:
    model = tiny_model(config=HMTConfig(segment_length=16, sensory_length=4, replay_tokens=30))
    assert model.config.view == ViewConfig(note_tokens=30) and model.view.note_tokens == 30
    twin = model.with_view(ViewConfig(recent_tokens=5, selection="words"))
    assert (twin.view.recent_tokens, twin.view.selection, twin.config) == (5, "words", model.config)
    assert fingerprint(twin).digest == fingerprint(model).digest and model.view.recent_tokens != 5
    with pytest.raises(ConfigError, match="Lower note_tokens"):
        model.with_view(ViewConfig(note_tokens=1 << 20))
    with pytest.raises(ConfigError, match="recent_tokens=-1 must be at least 0"):
        ViewConfig(recent_tokens=-1)


def test_with_config_shares_parameters_and_derives_again() -> None:
    model = tiny_model(config=HMTConfig(segment_length=16, sensory_length=4))
    twin = model.with_config(segment_length=64, mode="rmt")
    assert (twin.config.segment_length, twin.config.summary_length, twin.config.mode) == (64, 32, "rmt")
    assert model.config.segment_length == 16
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ConfigError, match="memory_tokens decides"):
        model.with_config(memory_tokens=2)
    with pytest.raises(ConfigError, match="nonsense"):
        model.with_config(nonsense=2)
