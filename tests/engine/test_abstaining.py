"""Abstaining: the ways to say "I don't know" are added up, and below a threshold none of them is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer, random_ids, tiny_model

from hmt_memory import HMTConfig
from hmt_memory.engine import abstaining
from hmt_memory.engine.abstaining import OPENINGS, Abstention, abstention
from hmt_memory.errors import ConfigError, InputError
from hmt_memory.train.exercises import UNKNOWN

MODEL = tiny_model(tokenizer=byte_tokenizer())


def test_what_is_trained_to_be_said_begins_as_it_is_recognised() -> None:
    assert all(text.startswith(OPENINGS) for text in UNKNOWN)


def test_the_ways_to_abstain_are_added_up_and_their_likely_beginnings_forbidden() -> None:
    """`1` mostly goes on to abstain and must not come first; `2` does not, so only what follows it is forbidden."""
    found = Abstention([[1, 5, 6], [2, 7], [2, 8, 9]], [[0.3, 0.9, 0.9], [0.4, 0.2], [0.4, 0.3, 0.9]])
    assert found.probability == pytest.approx(0.3 * 0.81 + 0.4 * 0.2 + 0.4 * 0.27)
    assert found.forbidden([]) == {1} and found.forbidden([2]) == {7, 8} and found.forbidden([3]) == set()
    assert found.forbidden([2, 8]) == {9} and found.forbidden([2, 7]) == set() and found.forbidden([2, 8, 9]) == set()


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), min_size=1, max_size=4))
def test_nothing_that_is_forbidden_can_complete_an_opening(chances: list[list[float]]) -> None:
    openings = [[10 * number + place for place in range(len(own))] for number, own in enumerate(chances)]
    found = Abstention(openings, chances)
    for opening in openings:
        assert any(opening[place] in found.forbidden(opening[:place]) for place in range(len(opening)))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba", "rwkv"])
def test_openings_are_read_behind_the_view_whatever_a_family_keeps(family: str) -> None:
    """Caches of some families hold one row, and go on by one token at a time."""
    backbone = tiny_model(family).backbone
    view, rows = random_ids(20), [random_ids(8, seed=1), random_ids(5, seed=2)]
    _, cache = backbone.advance(backbone.embed(view[None]))
    for row, states in zip(rows, abstaining._behind(backbone, rows, cache), strict=True):
        expected = backbone.body(backbone.embed(torch.cat([view, row])[None]))[0, len(view) :]
        torch.testing.assert_close(states[: len(row)], expected, atol=1e-4, rtol=1e-3)


def test_the_chance_of_an_opening_is_that_of_its_tokens_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = MODEL.backbone
    monkeypatch.setattr(abstaining, "OPENINGS", ("ab", "cde"))
    view = torch.tensor(backbone.encode("what is it?"))
    with torch.no_grad():
        hidden, cache = backbone.advance(backbone.embed(view[None]))
        logits = backbone.head(hidden)[0]
        first = backbone.encode("a")[0]
        logits[first] = logits.max() + 1
        found = abstention(backbone, logits, cache, 1.0)
        again, _ = backbone.advance(backbone.embed(torch.tensor([[5]])), cache)
        fresh, _ = backbone.advance(backbone.embed(torch.cat([view, torch.tensor([5])])[None]))
        assert torch.allclose(again, fresh, atol=1e-4), "the cache is as it was"
        expected = 0.0
        for opening in (backbone.encode("ab"), backbone.encode("cde")):
            ids = torch.cat([view, torch.tensor(opening)])
            states = backbone.body(backbone.embed(ids[None]))[0]
            chances = [logits.softmax(-1), *(backbone.head(state).softmax(-1) for state in states[len(view) : -1])]
            own = 1.0
            for chance, token in zip(chances, opening, strict=True):
                own *= float(chance[token])
            expected += own
    assert found is not None and found.probability == pytest.approx(expected, rel=1e-3)
    assert abstention(backbone, logits, cache, expected * 0.5) is None
    logits[first] = -100.0
    assert abstention(backbone, logits, cache, 1.0) is None, "it does not begin so anyway"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_an_answer_abstains_from_a_threshold_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The opening is what greedy decoding says by itself: from a threshold above its chance on, it is not said."""
    model = tiny_model(family, tokenizer=byte_tokenizer())
    noted: Any = {"notes": torch.tensor(model.backbone.encode("It is known. ")), "max_new_tokens": 6}
    for number in range(40):
        question = f"who is number {number}?"
        plain = model.generate(question, **noted).finish()
        opening = model.backbone.decode(plain.ids[:2])
        if len(plain.ids) > 2 and list(model.backbone.encode(opening, literal=True)) == plain.ids[:2]:
            break  # what it says is text that encodes as it was said
    else:
        raise AssertionError("this model says no text")
    monkeypatch.setattr(abstaining, "OPENINGS", (opening,))
    certain = model.generate(question, **noted, abstain_from=0.0).finish()
    assert certain.ids == plain.ids
    other = model.generate(question, **noted, abstain_from=1.0).finish()
    assert other.ids[:2] != plain.ids[:2]
    fitted = model.with_config(abstain_from=1.0)
    assert fitted.generate(question, **noted).finish().ids == other.ids
    assert fitted.generate(question, **noted, abstain_from=0.0).finish().ids == plain.ids
    sampled: Any = {**noted, "temperature": 1.0, "seed": 3}
    assert fitted.generate(question, **sampled).finish().ids == model.generate(question, **sampled).finish().ids


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_threshold_is_a_probability(value: float) -> None:
    with pytest.raises(InputError, match="abstain_from"):
        MODEL.generate("who?", abstain_from=value)
    with pytest.raises(ConfigError, match="abstain_from"):
        HMTConfig(abstain_from=value)


def test_the_threshold_holds_with_notes_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, notes = torch.tensor([5, 6]), torch.tensor([7, 8, 9])
    plain, noted = (MODEL.generate(ids, notes=shown, max_new_tokens=4, abstain_from=0.0).finish().ids for shown in ((), notes))
    opening: list[int] = []
    monkeypatch.setattr(abstaining, "OPENINGS", ("as it begins",))
    monkeypatch.setattr(MODEL.backbone, "encode", lambda *_, **__: opening)
    opening[:] = plain[:2]
    assert MODEL.generate(ids, max_new_tokens=4, abstain_from=1.0).finish().ids[:2] != plain[:2]
    opening[:] = noted[:2]
    assert MODEL.generate(ids, notes=notes, max_new_tokens=4, abstain_from=1.0).finish().ids[:2] != noted[:2]
