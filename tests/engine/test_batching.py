"""Answers that share their steps: each is what it is alone, whoever steps beside it, comes, pauses or leaves."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, byte_tokenizer, else_long, random_ids, tiny_causal_lm, tiny_model

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.engine import batching as batching_module
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.batching import Batching, Row, _Step
from hmt_memory.errors import BackboneError

FAMILIES = ["llama", "qwen2", "gpt2", "opt-projected", "gpt-neox", "phi3", "cohere", "granite"]
WINDOWS = ["mistral", "gemma3"]  # which slide; 12 positions wide here
STEPS = 14


@pytest.fixture(params=["torch", "openvino"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
        monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    return str(request.param)


def backbone(family: str, engine: str) -> Backbone:
    made = tiny_model(family).backbone
    if engine == "openvino":
        made.use_openvino()
    return made


class Stream:
    """A text that is continued token by token, and what a pass over all of it says."""

    def __init__(self, model: Backbone, number: int) -> None:
        length = 3 + 7 * number
        embedded = model.embed(random_ids(length + STEPS, seed=number)[None])
        self.expected = model.body(embedded)[0, length:]
        self.given = [embedded[:, place : place + 1] for place in range(length, length + STEPS)]
        self.row = Row(model.extend(embedded[:, :length])[1])
        self.made: list[torch.Tensor] = []

    def check(self, most: float) -> None:
        made, expected = torch.cat(self.made), self.expected[: len(self.made)]
        assert float((made - expected).norm() / expected.norm()) < most


@torch.no_grad()
@pytest.mark.parametrize("family", else_long([*FAMILIES, *WINDOWS], "llama", "gpt2", *WINDOWS))
def test_whoever_steps_together_each_row_is_what_it_is_alone(family: str, engine: str) -> None:
    """Rows come, pause, come back and leave for good, in any order."""
    if engine == "torch" and family in WINDOWS:
        pytest.skip("refused")
    model = backbone(family, engine)
    batching, chance = Batching(model), random.Random(family)
    streams = [Stream(model, number) for number in range(4)]
    sizes = set()
    while streams:
        together = chance.sample(streams, chance.randint(1, len(streams)))
        for stream in streams:
            stream.row.missed = 0  # none is left to step by itself
        steps = [_Step(stream.row, stream.given[len(stream.made)]) for stream in together]
        batching._take(steps)
        sizes.add(len(steps))
        for stream, step in zip(together, steps, strict=True):
            assert step.error is None and step.hidden is not None
            stream.made.append(step.hidden)
            stream.check(1e-4 if engine == "torch" else 5e-3)
        streams = [stream for stream in streams if len(stream.made) < STEPS]
    assert {1, 2, 3} <= sizes


@pytest.mark.parametrize("family", ["mamba", "rwkv", "mistral"])
def test_a_family_whose_cache_cannot_be_padded_is_refused(family: str) -> None:
    with pytest.raises(BackboneError, match=r"several at once.*one at a time"):
        tiny_model(family).batch_answers()


@torch.no_grad()
def test_threads_that_write_at_the_same_time_share_steps_and_each_gets_its_own() -> None:
    model = backbone("llama", "torch")
    batching = Batching(model, most=3)
    streams = [Stream(model, number) for number in range(5)]

    def write(stream: Stream) -> None:
        with torch.no_grad():
            held: Any = stream.row.cache
            stream.row = Row(None)
            for given in stream.given:
                hidden, held = batching.advance(given, held)
                stream.made.append(hidden)
                time.sleep(0.002)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(write, streams))
    for stream in streams:
        assert len(stream.made) == STEPS
        stream.check(1e-4)
    assert batching.tokens == 5 * STEPS and batching.steps < 4 * STEPS


@torch.no_grad()
def test_an_answer_that_nobody_goes_on_with_holds_nobody_up() -> None:
    model = backbone("llama", "torch")
    batching = Batching(model)
    paused, first, second = (Stream(model, number) for number in range(3))
    steps = [_Step(stream.row, stream.given[0]) for stream in (paused, first, second)]
    batching._take(steps)
    batching._expected.update([paused.row, first.row])
    times = []
    for given in first.given[1:4]:
        batching._seconds = 1.0
        begun = time.monotonic()
        batching.advance(given, first.row)
        times.append(time.monotonic() - begun)
    assert times[0] > 0.5 > max(times[1:])  # it was waited for once


def advanced(batching: Batching, stream: Stream) -> BaseException | None:
    """Go on by a token; return what was raised."""
    with torch.no_grad():
        try:
            hidden, stream.row = batching.advance(stream.given[len(stream.made)], stream.row)
        except BaseException as error:
            return error
    stream.made.append(hidden)
    return None


def go_on(batching: Batching, streams: list[Stream]) -> list[BaseException | None]:
    """Go on with several at once."""
    batching._seconds = 1.0
    batching._expected.update(stream.row for stream in streams)
    with ThreadPoolExecutor(len(streams)) as threads:
        return list(threads.map(advanced, [batching] * len(streams), streams))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt("no more")])
def test_what_fails_fails_for_all_that_took_part_and_the_next_begin_anew(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model = backbone("llama", "torch")
    batching = Batching(model)
    streams = [Stream(model, number) for number in range(4)]
    assert go_on(batching, streams[:3]) == [None] * 3

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(batching_module, "extended", fail)
    raised = go_on(batching, streams[:2])
    assert sum(each is error for each in raised) == 1
    assert sum(isinstance(each, BackboneError) and "no more" in str(each) for each in raised) == 1
    monkeypatch.undo()
    for stream in streams[:2]:
        with pytest.raises(BackboneError, match="Ask again"):
            batching.advance(stream.given[1], stream.row)
    assert go_on(batching, streams[2:]) == [None] * 2, "one that waited meanwhile, and a new one"
    for stream in streams[2:]:
        stream.check(1e-4)


@torch.no_grad()
def test_an_interrupt_while_others_are_waited_for_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone("llama", "torch")
    batching, stream, other = Batching(model), Stream(model, 0), Stream(model, 1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batching, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batching.advance(stream.given[0], stream.row)
    monkeypatch.undo()
    assert go_on(batching, [stream, other]) == [None, None]
    stream.check(1e-4)
    other.check(1e-4)


@torch.no_grad()
def test_more_answers_than_share_a_step_take_turns_without_moving_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone("llama", "torch")
    batching = Batching(model, most=2)
    steps = [_Step(stream.row, stream.given[0]) for stream in (Stream(model, number) for number in range(3))]
    batching._waiting = list(steps)
    first = batching._next()
    batching._take(first)
    assert first == steps[:2]
    again = [_Step(step.row, step.embedding) for step in first]
    batching._waiting = [steps[2], *again]
    assert batching._next() == again and batching._waiting == steps[2:]


@torch.no_grad()
def test_an_answer_that_others_missed_often_steps_by_itself() -> None:
    model = backbone("llama", "torch")
    batching, streams = Batching(model), [Stream(model, number) for number in range(3)]
    moved = []
    for turn in range(8):
        together = streams if turn % 2 == 0 else streams[:2]
        steps = [_Step(stream.row, stream.given[len(stream.made)]) for stream in together]
        batching._take(steps)
        for stream, step in zip(together, steps, strict=True):
            assert step.hidden is not None
            stream.made.append(step.hidden)
            stream.check(1e-4)
        assert batching._group is not None
        moved.append(len(batching._group.rows))
    assert moved == [3, 2, 3, 2, 2, 2, 2, 2] and streams[2].row.cache is not None


@torch.no_grad()
def test_nothing_is_held_once_the_answers_are_finished() -> None:
    model = backbone("llama", "torch")
    batching, streams = Batching(model), [Stream(model, number) for number in range(2)]
    assert go_on(batching, streams) == [None, None] and batching._group is not None
    assert batching._group.cache is not None
    streams.clear()
    gc.collect()
    assert batching._group.cache is None


@torch.no_grad()
def test_a_copy_begins_without_and_so_does_a_forked_process() -> None:
    model = tiny_model()
    model.batch_answers()
    assert copy.deepcopy(model).backbone.batching is None and pickle.loads(pickle.dumps(model.backbone)).batching is None
    batching = model.backbone.batching
    assert batching is not None
    batching._process, batching._leading = -1, True
    stream = Stream(model.backbone, 0)
    assert advanced(batching, stream) is None
    stream.check(1e-4)


def test_positions_that_depend_on_the_longest_are_refused() -> None:
    model = tiny_model("phi3")
    model.backbone.config.rope_parameters = {"rope_type": "longrope"}
    with pytest.raises(BackboneError, match="depend on the longest"):
        model.batch_answers()


@pytest.fixture
def model() -> Iterator[HMTModel]:
    yield HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), SMALL).eval()


@pytest.mark.slow
def test_answers_to_several_prompts_say_what_they_say_alone(model: HMTModel) -> None:
    prompts = [f"{number} and then " * (number + 1) for number in range(6)]
    alone = [answer.ids for answer in model.generate_batch(prompts, max_new_tokens=30)]
    model.batch_answers(4)
    assert model.backbone.batching is not None
    assert [answer.ids for answer in model.generate_batch(prompts, max_new_tokens=30)] == alone
    assert model.backbone.batching.tokens > model.backbone.batching.steps > 0
    running = model.generate("once more", max_new_tokens=30)
    next(running)
    model.batch_answers(2)
    whole = running.finish().ids
    model.batch_answers(0)
    assert model.backbone.batching is None
    assert model.generate("once more", max_new_tokens=30).finish().ids == whole


@pytest.mark.slow
def test_sessions_that_are_asked_at_once_answer_and_store_what_they_do_alone(chatty: str, tmp_path: Path) -> None:
    model = HMTModel.from_pretrained(chatty, config=SMALL, dtype="float32", engine="torch")
    told = [f"My number is {number}." for number in range(5)]

    def replies(store: MemoryStore) -> list[tuple[str, int]]:
        sessions = [store.session(f"s{number}", model) for number in range(5)]
        for session, text in zip(sessions, told, strict=True):
            session.add([{"role": "user", "content": text}, {"role": "assistant", "content": "Noted."}])

        def ask(session: Any) -> str:
            return str(session.reply({"role": "user", "content": "Which number?"}, max_new_tokens=40).finish().text)

        with ThreadPoolExecutor(5) as threads:
            texts = list(threads.map(ask, sessions))
        return [(text, len(session.messages())) for text, session in zip(texts, sessions, strict=True)]

    with MemoryStore(tmp_path / "alone") as store:
        alone = replies(store)
    model.batch_answers()
    with MemoryStore(tmp_path / "together") as store:
        assert replies(store) == alone
    assert model.backbone.batching is not None and model.backbone.batching.tokens > model.backbone.batching.steps
