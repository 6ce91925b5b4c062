"""Answering: memory equals reading, the bounded view, stop strings, UTF-8, sampling, chat templates, interruption."""

from __future__ import annotations

import gc
import inspect
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import counting_tokens, same
from tiny import CHATML, FAMILIES, KINDS, NO_SYSTEM, SMALL, byte_tokenizer, else_long, random_ids, tiny_causal_lm, tiny_model

from hmt_memory import HMTModel, HMTState, ViewConfig
from hmt_memory.chat.transcript import Transcript
from hmt_memory.engine.backbone import cache_argument
from hmt_memory.engine.decoding import Decoding, Detokenizer, StopStrings, align
from hmt_memory.engine.generate import recall_segments
from hmt_memory.engine.turns import Turns
from hmt_memory.engine.view import View
from hmt_memory.errors import BackboneError, BudgetError, InputError

TOKENIZER = byte_tokenizer()


def decode(ids: Any) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


class Script:
    """A logits processor that forces the answer to a given text: decoding and stopping become predictable."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.calls = ids, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.ids[self.calls]] = 0
        self.calls += 1
        return forced


# --- any length, and memory equals reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", else_long(FAMILIES, *KINDS))
def test_long_answers_close_segments_and_equal_reading(family: str) -> None:
    model = tiny_model(family)
    prompt, length = random_ids(37), SMALL.segment_length
    answer = model.generate(prompt, max_new_tokens=5 * length + 3, min_new_tokens=5 * length + 3).finish()
    assert len(answer.ids) == answer.usage.completion_tokens == 5 * length + 3
    assert answer.finish_reason == "length" and answer.usage.prompt_tokens == 37
    assert answer.state.segments == (37 + 5 * length + 3) // length
    assert same(answer.state, model.read([*prompt.tolist(), *answer.ids]))


@pytest.mark.parametrize("family", else_long(FAMILIES, *KINDS))
def test_the_cache_gives_what_a_view_without_cache_gives(family: str) -> None:
    """Greedy tokens one by one, each from a freshly assembled view with P of the answer's start, equal cached ones."""
    model = tiny_model(family)
    state = model.read(random_ids(16 * 3))
    answer = model.generate(random_ids(4, seed=9), state=state, max_new_tokens=10, min_new_tokens=10).finish()
    stream = model.read(random_ids(4, seed=9), state)
    with torch.no_grad():
        (summary,) = model.summarize([torch.cat([stream.recent_ids[-20:], stream.open_ids])[-8:]])
        prompt = model.prompt([summary], [model.by_segment(stream)[-5:]])[0]
        ids = [*stream.recent_ids[-20:].tolist(), *stream.open_ids.tolist()]
        for token in answer.ids:
            inputs = torch.cat([prompt, model.backbone.embed(torch.tensor(ids))])[None]
            logits = model.backbone.head(model.backbone.body(inputs))[0, -1]
            logits[list(model.backbone.end_ids)] = float("-inf")
            assert int(logits.argmax()) == token
            ids.append(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "rmt"},
        {"mode": "plain"},
        {"memory_tokens": 3, "memory_input": "mapped"},
        {"memory_tokens": 2, "memory_input": "centred"},
        {"memory_tokens": 3, "recalled_tokens": 1},
    ],
    ids=str,
)
def test_every_mode_answers_and_equals_reading(changes: dict[str, Any]) -> None:
    model = tiny_model(config=replace(SMALL, **changes))
    answer = model.generate(random_ids(37), max_new_tokens=40, min_new_tokens=40).finish()
    assert same(answer.state, model.read([*random_ids(37).tolist(), *answer.ids]))


@pytest.mark.parametrize("read", [16 * 6 + 5, 20, 3])
def test_a_view_carries_the_memory_of_the_last_segment_that_it_does_not_show(read: int) -> None:
    """Where the state has let it go, that of P_0; P_0 and nothing recalled where everything is shown."""
    model = tiny_model(config=replace(SMALL, memory_tokens=3, recalled_tokens=1))
    state = model.read(random_ids(read))
    shown = min(read, 20 + read % 16)
    hidden = (read - shown) // 16
    memory = model.by_segment(state)
    with torch.no_grad():
        (summary,) = model.summarize([torch.cat([state.recent_ids[-20:], state.open_ids])[-8:]])
        found = model.recalled([summary], [memory[-model.config.recall_window :, 2:]])[0]
        context = View(model, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0, None)
        initial = model.initial_memory
        expected = torch.cat([memory[hidden - 1], found] if hidden else [initial])
        torch.testing.assert_close(context._prompt(state), expected)
        if hidden:
            let_go = state.tail(1)
            torch.testing.assert_close(context._prompt(let_go)[:3], initial)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_memory_an_answer_is_transformers_own(family: str) -> None:
    model = tiny_model(family).with_config(mode="plain")
    ids = random_ids(9)
    answer = model.generate(ids, max_new_tokens=6, min_new_tokens=6, repetition_penalty=1.3).finish()
    theirs = model.backbone.causal_lm.generate(
        ids[None], max_new_tokens=6, min_new_tokens=6, do_sample=False, repetition_penalty=1.3
    )
    assert answer.ids == theirs[0, 9:].tolist()


def test_a_repetition_penalty_counts_the_stream_and_the_answer_but_no_notes_and_nothing_pinned() -> None:
    counted: list[list[int]] = []

    def seen(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counted.append(ids[0].tolist())
        return scores

    said, notes, pinned = random_ids(9), random_ids(5, seed=1), random_ids(4, seed=2)
    decoding = Decoding(max_new_tokens=2, min_new_tokens=2, repetition_penalty=1.1, logits_processors=(seen,))
    answer = tiny_model().generate(said, notes=notes, pinned=pinned, decoding=decoding).finish()
    assert counted == [said.tolist(), [*said.tolist(), answer.ids[0]]]


def test_answers_continue_a_state_like_one_stream() -> None:
    model = tiny_model()
    ids = random_ids(60)
    options: dict[str, Any] = {"max_new_tokens": 20}
    split = model.generate(ids[50:], state=model.read(ids[:50]), **options).finish()
    assert split.ids == model.generate(ids, **options).finish().ids


def test_an_answer_that_fills_a_segment_goes_on_as_one_that_begins_there() -> None:
    model = tiny_model()
    whole = model.generate(random_ids(43), max_new_tokens=15, min_new_tokens=15).finish()
    boundary = model.read([*random_ids(43).tolist(), *whole.ids[:5]])
    assert len(boundary.open_ids) == 0
    assert whole.ids[5:] == model.generate([], state=boundary, max_new_tokens=10, min_new_tokens=10).finish().ids


def test_abandoned_and_interrupted_answers_leave_the_state_alone(model: HMTModel) -> None:
    state = model.read(random_ids(40))
    kept = state.memory.clone(), state.open_ids.clone()
    answer = model.generate("Hello", state=state, max_new_tokens=100, min_new_tokens=100)
    for _ in range(3):
        next(answer)
    with pytest.raises(InputError, match="not finished"):
        _ = answer.state
    del answer

    class Interrupt(Script):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate("Hello", state=state, logits_processors=[Interrupt([])]).finish()
    assert torch.equal(state.memory, kept[0]) and torch.equal(state.open_ids, kept[1])
    again = model.generate("Hello", state=state, max_new_tokens=5).finish()
    assert again.ids == model.generate("Hello", state=model.read(random_ids(40)), max_new_tokens=5).finish().ids


def test_an_answer_lets_go_with_its_last_piece() -> None:
    """Nobody has to ask for a piece behind it: what is held until a process ends, Python complains of there."""
    model = tiny_model(tokenizer=byte_tokenizer()).train()
    generation = model.generate("Hello", max_new_tokens=3, logits_processors=[Script(model.backbone.encode("abc"))])
    assert [next(generation), next(generation), next(generation)] == ["a", "b", "c"]
    assert model.training
    assert next(generation, None) is None and generation.state.tokens == 8


def test_a_batch_of_prompts_equals_one_by_one(model: HMTModel) -> None:
    states = [None, model.read(random_ids(50)), model.read(random_ids(20))]
    prompts = ["One", "Two and more", [5, 6, 7]]
    together = model.generate_batch(prompts, states, max_new_tokens=9)
    for prompt, state, answer in zip(prompts, states, together, strict=True):
        assert answer.ids == model.generate(prompt, state=state, max_new_tokens=9).finish().ids


# --- the view -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recent", [20, 2, 0])  # more and fewer than the sensory tokens, and none
def test_the_view_is_bounded_whatever_the_history(recent: int) -> None:
    model, sizes = tiny_model(config=replace(SMALL, recent_tokens=recent)), []
    state = model.read(random_ids(16 * 4 + 7))
    for _ in range(3):
        with counting_tokens(model) as seen:
            answer = model.generate([5], state=state, max_new_tokens=8, min_new_tokens=8).finish()
        sizes.append((answer.usage.view_tokens, sum(seen)))
        state = model.read(random_ids(16 * 20), state)
    assert sizes == [sizes[0]] * 3
    assert sizes[0][0] == 1 + recent + 8  # P, recent tokens, open segment


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "state"])
def test_the_cache_goes_by_what_a_release_and_a_family_call_it(name: str) -> None:
    def forward(**_: Any) -> None: ...

    forward.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)])  # type: ignore[attr-defined]
    assert cache_argument(SimpleNamespace(forward=forward)) == name
    with pytest.raises(BackboneError, match="takes no cache"):
        cache_argument(SimpleNamespace(forward=lambda inputs_embeds: None))


def test_long_answers_never_pass_the_window() -> None:
    model, longest = tiny_model(), 0

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal longest
        cache = kwargs.get(model.backbone.cache_argument)
        longest = max(longest, kwargs["inputs_embeds"].shape[1] + (cache.get_seq_length() if cache is not None else 0))

    model.backbone.causal_lm.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    model.generate(random_ids(90), max_new_tokens=80, min_new_tokens=80).finish()
    assert longest <= 1 + 20 + SMALL.segment_length - 1


def test_pinned_text_and_notes_shape_the_answer_but_not_the_stream(model: HMTModel) -> None:
    state = model.read(random_ids(40))
    plain = model.generate("Q", state=state, max_new_tokens=12, min_new_tokens=12).finish()
    for name in ("pinned", "notes"):
        other = model.generate("Q", state=state, max_new_tokens=12, min_new_tokens=12, **{name: "Be brief!"}).finish()
        assert other.ids != plain.ids
        assert other.usage.view_tokens == plain.usage.view_tokens + 9
        assert same(other.state, model.read([*encode("Q"), *other.ids], state))


@pytest.mark.parametrize("prompt", ["Q", [{"role": "user", "content": "Q"}]])
def test_every_view_begins_with_the_tokenizers_start_token(prompt: Any) -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer(NO_SYSTEM)  # this template, too, writes the start token, which would scroll away
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    model, views = tiny_model(config=replace(SMALL, recent_tokens=30), tokenizer=tokenizer), []
    state = model.read(random_ids(90))
    model.backbone.causal_lm.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: views.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model.generate(prompt, state=state, max_new_tokens=30, min_new_tokens=30).finish()
    begins = model.backbone.embed(torch.tensor(start))
    assembled = [view for view in views if view.shape[1] > 30]  # what reading passes is shorter
    assert len(assembled) >= 2 and all(torch.equal(view[0, 1], begins) for view in assembled)


def test_a_start_token_in_the_prompt_is_not_doubled() -> None:
    model = tiny_model(tokenizer=byte_tokenizer(NO_SYSTEM))
    model.backbone.start_ids = lambda: [257]  # type: ignore[method-assign]
    answer = model.generate([257, 5, 6], max_new_tokens=2, min_new_tokens=2).finish()
    assert answer.usage.prompt_tokens == 2 and answer.usage.view_tokens == 1 + 3


def test_pinned_takes_token_ids_too(model: HMTModel) -> None:
    as_text = model.generate("Q", pinned="Be brief!", max_new_tokens=5).finish().ids
    for pinned in (encode("Be brief!"), torch.tensor(encode("Be brief!"))):
        assert model.generate("Q", pinned=pinned, max_new_tokens=5).finish().ids == as_text


@pytest.mark.slow
def test_a_long_answer_holds_no_state_of_each_segment() -> None:
    model, held = tiny_model(), []
    state = model.read(random_ids(16 * 200))

    class Count(Script):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls in (40, 95):  # two and six segments into the answer; looking is slow
                held.append(sum(type(one) is HMTState for one in gc.get_objects()))
            return scores

    gc.collect()
    model.generate([5], state=state, max_new_tokens=100, min_new_tokens=100, logits_processors=[Count([])]).finish()
    assert held[1] <= held[0]


def test_nothing_visible_is_an_error() -> None:
    model = tiny_model(config=replace(SMALL, recent_tokens=0, mode="plain"))
    with pytest.raises(BudgetError, match="recent_tokens"):
        model.generate(random_ids(16)).finish()


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(InputError, match="without a tokenizer"):
        tiny_model().generate([5], stop="x")


def test_answering_and_reading_ignore_dropout_and_leave_the_training_flag() -> None:
    model = tiny_model("gpt2").train()
    assert same(model.read(random_ids(90)), model.read(random_ids(90)), 0)
    first = model.generate(random_ids(9), max_new_tokens=5).finish().ids
    assert first == model.generate(random_ids(9), max_new_tokens=5).finish().ids
    assert model.training and all(module.training for module in model.modules())


def test_text_over_its_budget_is_refused_by_name() -> None:
    model = tiny_model(config=replace(SMALL, pinned_tokens=4, replay_tokens=3), tokenizer=TOKENIZER)
    with pytest.raises(BudgetError, match="pinned_tokens=4"):
        model.generate("Q", pinned="12345")
    with pytest.raises(BudgetError, match="note_tokens=3"):
        model.generate("Q", notes="12345")


def test_recall_names_segments_by_falling_weight(model: HMTModel) -> None:
    state = model.read(random_ids(16 * 9))
    found = recall_segments(model, "what?", state, top_k=4)
    weights = [one.weight for one in found]
    assert len(found) == 4 and weights == sorted(weights, reverse=True)
    assert all(one.token_span == (one.segment * 16, one.segment * 16 + 16) for one in found)
    everything = recall_segments(model, "what?", state, top_k=99)
    assert sum(one.weight for one in everything) == pytest.approx(1)
    assert recall_segments(model, "what?", model.empty_state()) == []
    with pytest.raises(InputError, match="query is empty"):
        recall_segments(model, "", state)


# --- text: UTF-8 and stop strings ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_pieces_never_break_a_character(text: str) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in encode(text)]
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "".join(pieces) == text
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_at_the_first_whatever_the_pieces(text: str, stops: list[str], data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    watcher, given_out = StopStrings(stops), ""
    for piece in pieces:
        given_out += watcher.push(piece)
        if watcher.found is not None:
            break
    given_out += watcher.flush()
    # The first stop string to be completed ends the text: what precedes it can hold no whole stop string.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert watcher.found is None and given_out == text
    else:
        assert watcher.found in stops and text.startswith(given_out + watcher.found)
        assert not any(stop in given_out for stop in stops)


def test_text_that_cannot_start_a_stop_string_is_not_held_back() -> None:
    watcher = StopStrings(["User:", "\n\n"])
    assert watcher.push("Hello U") == "Hello "
    assert watcher.push("nder") == "Under"
    assert watcher.push("\n") == "" and watcher.push("x") == "\nx"
    assert watcher.push("abc\nUser") == "abc\n" and watcher.push(": hi") == "" and watcher.found == "User:"


@pytest.mark.parametrize("stop", ["END", ["ND", "zzz"], ["世"]])
def test_a_stop_string_over_several_tokens_ends_the_answer(model: HMTModel, stop: Any) -> None:
    text = "grüße 🙂 " * 3 + "stop here 世 END and never this"
    before = text[: text.find("世" if stop == ["世"] else "END" if stop == "END" else "ND")]
    script = Script(encode(text))
    answer = model.generate("Q", stop=stop, logits_processors=[script], max_new_tokens=99)
    pieces = list(answer)
    assert "".join(pieces) == answer.text == before
    assert answer.finish_reason == "stop" and answer.stop_string in ([stop] if isinstance(stop, str) else stop)
    assert decode(answer.ids) == before and answer.usage.completion_tokens == len(answer.ids)
    assert same(answer.state, model.read([*encode("Q"), *answer.ids]))


def test_a_stop_string_that_spans_a_segments_end_rolls_the_memory_back(model: HMTModel) -> None:
    text = "x" * 13 + "STOPSTOP" + "y" * 40  # the prompt is 1 token, the segment ends inside the stop string
    answer = model.generate("Q", stop="STOPSTOP", logits_processors=[Script(encode(text))], max_new_tokens=60).finish()
    assert answer.text == "x" * 13
    assert same(answer.state, model.read("Q" + "x" * 13))


def test_align_keeps_whole_tokens_and_encodes_the_rest() -> None:
    words = {1: "Hello", 2: " wor", 3: "ld. "}

    def text_of(ids: Any) -> str:
        return "".join(words[one] for one in ids)

    assert align([1, 2, 3], "Hello world", text_of, lambda rest: [ord(c) for c in rest]) == ([1, 2, 108, 100], 2)
    assert align([1, 2], "", text_of, lambda rest: []) == ([], 0)


def test_the_end_token_ends_the_answer_and_joins_the_stream(model: HMTModel) -> None:
    end = model.backbone.tokenizer.eos_token_id
    answer = model.generate("Q", logits_processors=[Script([*encode("ok"), end])]).finish()
    assert (answer.text, answer.finish_reason, answer.ids[-1]) == ("ok", "stop", end)
    assert answer.state.open_ids[-1] == end


def test_an_unfinished_character_is_not_given_out(model: HMTModel) -> None:
    answer = model.generate("Q", logits_processors=[Script(encode("a🙂")[:3])], max_new_tokens=3).finish()
    assert answer.text == "a" and len(answer.ids) == 3


def test_a_replacement_character_of_the_models_own_is_given_out(model: HMTModel) -> None:
    end = model.backbone.tokenizer.eos_token_id
    answer = model.generate("Q", logits_processors=[Script([*encode("ok\ufffd"), end])]).finish()
    assert answer.text == "ok\ufffd"


# --- sampling -----------------------------------------------------------------------------------------------------------


def test_sampling_is_repeatable_by_seed_and_greedy_at_zero(model: HMTModel) -> None:
    def ids(**options: Any) -> list[int]:
        return model.generate("Q", max_new_tokens=20, min_new_tokens=20, **options).finish().ids

    assert ids(temperature=1.0, seed=1) == ids(temperature=1.0, seed=1) != ids(temperature=1.0, seed=2)
    assert ids() == ids(temperature=1.0, top_k=1, seed=3) == ids(temperature=0.7, top_p=1e-6, seed=4)
    assert ids() != ids(repetition_penalty=50.0)
    assert len(set(ids(repetition_penalty=1e6))) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"stop": [""]},
        {"stop": [3]},
    ],
    ids=str,
)
def test_options_out_of_range_are_named(model: HMTModel, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        model.generate("Q", **options)


def test_nothing_to_continue_is_an_error(model: HMTModel) -> None:
    with pytest.raises(InputError, match="nothing to continue"):
        model.generate("")
    assert model.generate("", state=model.read("some text"), max_new_tokens=2).finish().ids


# --- chat ---------------------------------------------------------------------------------------------------------------


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def asked(model: HMTModel, *contents: str, system: str | None = None) -> tuple[list[int], list[int]]:
    """Token ids of the system part and of the turns."""
    pinned = [{"role": "system", "content": system}] if system else []
    return Transcript(model.backbone).asked([*pinned, *turns(*contents)])[:2]


def test_messages_are_what_the_template_writes(model: HMTModel) -> None:
    system = [{"role": "system", "content": "Be kind."}]
    whole = model.backbone.render(system + turns("a", "b", "c"), add_generation_prompt=True)
    pinned, ids = asked(model, "a", "b", "c", system="Be kind.")
    assert pinned == encode("<s>system\nBe kind.</s>\n") and [*pinned, *ids] == encode(whole)
    pinned, ids = asked(model, "a")
    assert pinned == encode("<s>system\nDefault.</s>\n")
    assert [*pinned, *ids] == encode(model.backbone.render(turns("a"), add_generation_prompt=True))


def test_system_messages_are_pinned_wherever_they_stand(model: HMTModel) -> None:
    first, second = ({"role": role, "content": text} for role, text in (("system", "Be kind."), ("developer", "Be brief.")))
    found = Transcript(model.backbone).asked([*turns("a"), first, *turns("b"), second])
    assert found.pinned == encode("<s>system\nBe kind.\n\nBe brief.</s>\n")
    assert decode(found.ids) == "user\na\nuser\nb\nassistant\n"


def test_turn_by_turn_the_stream_is_the_whole_conversations_template(model: HMTModel) -> None:
    end = model.backbone.tokenizer.eos_token_id
    first = model.generate(turns("Hi"), logits_processors=[Script([*encode("Hello!"), end])]).finish()
    second = model.generate(turns("And?"), state=first.state, logits_processors=[Script(encode("cut"))], max_new_tokens=3)
    third = model.generate(turns("More"), state=second.finish().state, logits_processors=[Script([end])]).finish()
    _, ids = asked(model, "Hi", "Hello!", "And?", "cut", "More")
    assert same(third.state, model.read([*ids, end]))


def test_any_end_token_ends_a_turn_and_the_template_does_not_end_it_again() -> None:
    """Some families end turns with another token than the tokenizer's end of text."""
    template = CHATML.replace("</s>", "<t>")
    model = tiny_model(tokenizer=byte_tokenizer(template))
    turn_end = encode("<t>")[0]
    model.backbone.config.eos_token_id = [model.backbone.tokenizer.eos_token_id, turn_end]
    first = model.generate(turns("Hi"), logits_processors=[Script([*encode("Yes"), turn_end])]).finish()
    assert first.finish_reason == "stop"
    second = model.generate(turns("And?"), state=first.state, max_new_tokens=1, min_new_tokens=1).finish()
    _, ids = asked(model, "Hi", "Yes", "And?")
    assert same(second.state, model.read([*ids, *second.ids]))


def test_a_start_token_never_enters_the_stream_by_the_template() -> None:
    model = tiny_model(tokenizer=byte_tokenizer(NO_SYSTEM))
    model.backbone.start_ids = lambda: [257]  # type: ignore[method-assign]
    for messages in (turns("Q"), [{"role": "system", "content": "Sys"}, *turns("Q")]):
        answer = model.generate(messages, max_new_tokens=1, min_new_tokens=1).finish()
        assert answer.usage.prompt_tokens == len(encode("<t>user\nQ</s>\n<t>model\n"))


def test_a_template_without_system_turns_pins_it_as_a_user_turn() -> None:
    model = tiny_model(tokenizer=byte_tokenizer(NO_SYSTEM))
    pinned, ids = asked(model, "a", system="Be kind.")
    assert pinned == encode("<s><t>user\nBe kind.</s>\n") and ids == encode("<t>user\na</s>\n<t>model\n")
    assert asked(model, "a") == (encode("<s>"), ids), "what the template begins with stays in view"


def test_a_turn_is_cut_in_two_around_a_document(model: HMTModel) -> None:
    before, after = Transcript(model.backbone).around("te", "xt")
    assert [*before, *after] == encode("<s>system\nDefault.</s>\n<s>user\ntext</s>\n<s>assistant\n")
    assert Transcript(model.backbone).around("te", "xt", system="Be.")[0] == encode("<s>system\nBe.</s>\n<s>user\nte")


@pytest.mark.parametrize(
    "messages", [[{"role": "user"}], [{"content": "x"}], [{"role": "system", "content": "x"}], [{"role": "user", "content": 3}]]
)
def test_malformed_messages_are_refused(model: HMTModel, messages: Any) -> None:
    with pytest.raises(InputError):
        model.generate(messages)


def test_messages_without_a_chat_template_are_a_script() -> None:
    model = tiny_model(tokenizer=byte_tokenizer(None))
    script = Script(encode(" Hello!\nUser: me"))
    first = model.generate([{"role": "system", "content": "Be."}, *turns("Hi")], logits_processors=[script]).finish()
    assert first.text == " Hello!" and first.stop_string == "\nUser:"
    second = model.generate(turns("And?"), state=first.state, stop="x", logits_processors=[Script(encode("no x"))]).finish()
    assert same(second.state, model.read("User: Hi\nAssistant: Hello!\nUser: And?\nAssistant:no "))


def test_an_untrained_model_answers_behind_its_initial_prompt(tokenizer: Any) -> None:
    """A recalled one carries nothing yet, and derails the answer."""
    untrained = HMTModel.wrap(tiny_causal_lm("llama"), tokenizer, SMALL).eval()
    state = untrained.read(random_ids(100))
    for model, carries in ((untrained, True), (tiny_model(), False)):
        none = torch.zeros(0, dtype=torch.long)
        with torch.no_grad():
            prompt = View(model, none, none, 0, None)._prompt(state)
        assert torch.equal(prompt, model.initial_memory) is carries


# --- the window of recent turns -----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=30), recent=st.integers(6, 90))
def test_the_window_begins_at_turns_moves_in_steps_and_stays_half_full(lengths: list[int], recent: int) -> None:
    model = tiny_model().with_view(ViewConfig(recent_tokens=recent, note_tokens=8, pinned_tokens=8))
    starts = [0, *itertools.accumulate(lengths)][:-1]
    none, begins = torch.zeros(0, dtype=torch.long), []
    for tokens in range(starts[-1] + 1, sum(lengths) + 1):
        turns = Turns(starts, starts[-1])
        view = View(model, none, none, 0, None, turns)
        ids = torch.arange(tokens)
        state = replace(model.empty_state(), recent_ids=ids[-recent:], tokens=tokens)
        begin = view.begins(state)
        begins.append(begin)
        assert view.visible(state).tolist() == list(range(begin, tokens)) and tokens - begin <= recent
        assert tokens - begin >= min(tokens, recent // 2), "at least half full"
        assert begin <= starts[-1] or tokens - recent > starts[-1], "the question stays visible if it can"
    assert begins == sorted(begins)
    if sum(lengths) - recent <= starts[-1]:  # the turn of the question fits
        assert len(set(begins)) <= 2 + len(begins) // max(1, recent // 3), "between two steps it stays"


def test_notes_stand_before_the_question() -> None:
    model = tiny_model().with_view(ViewConfig(recent_tokens=30, note_tokens=8, pinned_tokens=8))
    ids = torch.arange(20)
    state = replace(model.empty_state(), recent_ids=ids, tokens=20)
    notes = torch.tensor([91, 92])
    view = View(model, torch.tensor([90]), notes, 0, None, Turns([0, 10], 13))
    assert view.ids(state).tolist() == [90, *range(13), 91, 92, *range(13, 20)]
    assert View(model, torch.tensor([90]), notes, 0, None).ids(state).tolist() == [90, 91, 92, *range(20)]


def test_what_is_recalled_stands_with_the_notes_and_what_is_carried_in_front() -> None:
    model = tiny_model(config=replace(SMALL, memory_tokens=3, recalled_tokens=1))
    state = model.read(random_ids(16 * 6 + 5))
    notes, question = torch.tensor([91, 92]), state.tokens - 9
    view = View(model, torch.tensor([90]), notes, 0, None, Turns([0, 10], question))
    begins, shown = view.begins(state), len(view.visible(state))
    carried, recalled = model.placed(view._prompt(state))
    embed = model.backbone.embed
    with torch.no_grad():
        before, behind = view.embed(state)
        shows = embed(view.visible(state)).split([question - begins, shown - (question - begins)])
        torch.testing.assert_close(before, torch.cat([carried, embed(torch.tensor([90])), shows[0]]))
        torch.testing.assert_close(behind, torch.cat([recalled, embed(notes), shows[1]]))
    assert len(carried) == 3 and len(recalled) == 1
