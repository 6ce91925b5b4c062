"""A writer elsewhere: the same answers and the same memory as the backbone's own, over any number of views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measuring import same
from tiny import SMALL, PlainText, byte_tokenizer, random_ids, tiny_model
from writers import Here

from hmt_memory import HMTModel
from hmt_memory.engine.writing import Choice
from hmt_memory.errors import AnswererError, BackboneError

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> HMTModel:
    return tiny_model(tokenizer=TOKENIZER)


def test_answers_and_memory_are_those_of_the_backbone_itself(model: HMTModel) -> None:
    here, length = Here(model), SMALL.segment_length
    elsewhere, state = model.with_writer(here), model.read(random_ids(75))
    here.views.clear()
    asked = {"state": state, "max_new_tokens": 3 * length, "min_new_tokens": 3 * length, "logprobs": 2}
    own, answer = (each.generate(random_ids(6, seed=3), **asked).finish() for each in (model, elsewhere))
    assert answer.ids == own.ids and answer.text == own.text and same(answer.state, own.state)
    assert len(here.views) == 4 and answer.usage == own.usage and model.writer is None
    assert [round(chance.chosen.logprob, 4) for chance in answer.chances] == [
        round(chance.chosen.logprob, 4) for chance in own.chances
    ]
    assert [[other.text for other in chance.likeliest] for chance in answer.chances] == [
        [other.text for other in chance.likeliest] for chance in own.chances
    ]


def test_memory_reaches_the_writer_as_embeddings(model: HMTModel) -> None:
    here = Here(model)
    elsewhere, prompt = model.with_writer(here), random_ids(6, seed=3)
    for seed in (1, 2):
        elsewhere.generate(prompt, state=model.read(random_ids(64, seed=seed)), max_new_tokens=1).finish()
    first, second = here.views[-2:]
    assert first.shape == second.shape and not torch.equal(first[0], second[0]), "P comes first, and differs"
    assert torch.equal(first[-6:], model.backbone.embed(prompt)) and torch.equal(second[-6:], first[-6:])


def test_seeds_and_limits_go_on_behind_the_next_view(model: HMTModel) -> None:
    here = Here(model)
    model.with_writer(here).generate(random_ids(4), max_new_tokens=20, min_new_tokens=14, seed=5, temperature=1.0).finish()
    (first, most, least), (second, then_most, then_least) = here.asked[-2:]
    assert (first.seed, most, least) == (5, 12, 12) and (second.seed, then_most, then_least) == (17, 8, 2)


def test_a_stop_string_or_a_caller_who_leaves_ends_the_work(model: HMTModel) -> None:
    here = Here(model)
    elsewhere = model.with_writer(here)
    whole = model.generate(random_ids(5), max_new_tokens=10).finish()
    last = whole.text[4]
    stopped = elsewhere.generate(random_ids(5), max_new_tokens=10, stop=last)
    assert [*stopped] == [whole.text[: whole.text.index(last)]] or stopped.text + last in whole.text
    assert stopped.stop_string == last and here.closed == 1
    left = elsewhere.generate(random_ids(5), max_new_tokens=10, min_new_tokens=10)
    next(left)
    del left
    assert here.closed == 2


def test_what_only_the_backbone_can_do_it_does(model: HMTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(model)
    elsewhere, processors = model.with_writer(here), [PlainText(TOKENIZER)]
    before = len(here.views)
    answer = elsewhere.generate(random_ids(5), max_new_tokens=6, logits_processors=processors).finish()
    assert answer.ids == model.generate(random_ids(5), max_new_tokens=6, logits_processors=processors).finish().ids
    assert len(here.views) == before
    token = model.generate(random_ids(5), max_new_tokens=1).finish().ids[0]
    monkeypatch.setattr(model.backbone.__class__, "encode", lambda self, text, **_: [token, 40, 41])
    own = model.generate(random_ids(5), max_new_tokens=6, abstain_from=0.99).finish()
    weighed = elsewhere.generate(random_ids(5), max_new_tokens=6, abstain_from=0.99).finish()
    assert here.closed == 1 and weighed.ids == own.ids and len(here.views) == before + 1, (
        "it is asked, and its abstention is weighed here"
    )


class Ends(Here):
    def write(self, *given: Any, **options: Any) -> Iterator[Choice]:  # type: ignore[override]
        yield from list(super().write(*given, **options))[:1]


def test_an_answer_without_its_end_is_none(model: HMTModel) -> None:
    with pytest.raises(AnswererError, match="before its end"):
        model.with_writer(Ends(model)).generate(random_ids(5), max_new_tokens=5, min_new_tokens=5).finish()


class Wide(Here):
    width = 33  # type: ignore[assignment]


class Silent(Here):
    def write(self, *given: Any, **options: Any) -> Iterator[Choice]:  # type: ignore[override]
        yield Choice(5)


def test_other_weights_are_refused(model: HMTModel) -> None:
    with pytest.raises(BackboneError, match="computes something else"):
        model.with_writer(Here(tiny_model(tokenizer=TOKENIZER, seed=1)))
    with pytest.raises(BackboneError, match="is 33 wide"):
        model.with_writer(Wide(model))
    with pytest.raises(BackboneError, match="without its probability"):
        model.with_writer(Silent(model))
    assert model.with_writer(Here(model)).with_writer(None).writer is None
