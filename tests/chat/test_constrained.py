"""Answers with a form: random weights, which say anything, have to write what the grammar allows and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer, light_model, tiny_model

from hmt_memory.chat.grammar import Constraint, Form, Speech, form_of, json_form, strict, tool_choice_of
from hmt_memory.chat.tools import parse_calls
from hmt_memory.errors import InputError

MODEL = light_model(tokenizer=byte_tokenizer())
NUMBER = {"type": "object", "properties": {"input": {"type": "integer", "exclusiveMinimum": 0}}, "required": ["input"]}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters or {}}}


TOOLS = [tool("magic", NUMBER), tool("nothing")]


def said(form: Form | None, seed: int, limit: int = 160) -> str:
    processors = [] if form is None else [Constraint(MODEL.backbone, form, limit=limit)]
    options: dict[str, Any] = {"max_new_tokens": limit, "temperature": 1.0, "seed": seed, "logits_processors": processors}
    return MODEL.generate("Well", **options).finish().text


@pytest.mark.parametrize("seed", range(6))
def test_a_required_call_is_a_call_of_one_of_the_tools(seed: int) -> None:
    _, (call,) = parse_calls(said(form_of(TOOLS, "required"), seed))
    assert call.name in ("magic", "nothing")
    if call.name == "magic":
        assert set(call.arguments) == {"input"} and isinstance(call.arguments["input"], int) and call.arguments["input"] > 0
    else:
        assert call.arguments == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_named_call_calls_that_tool(seed: int) -> None:
    assert [call.name for call in parse_calls(said(form_of(TOOLS, "nothing"), seed))[1]] == ["nothing"]


@pytest.mark.parametrize("seed", range(6))
def test_json_has_what_its_schema_asks_for_and_ends_within_the_limit(seed: int) -> None:
    """References, lists and long texts; near the limit what was begun is brought to an end."""
    part = {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}
    properties = {"text": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "minItems": 1}}
    schema = {"type": "object", "properties": properties, "required": ["text", "parts"], "$defs": {"Part": part}}
    found = json.loads(said(json_form(schema), seed))
    assert set(found) == {"text", "parts"} and isinstance(found["text"], str)
    assert found["parts"] and all(set(one) == {"note"} for one in found["parts"])


def test_a_short_limit_leaves_room_for_values() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "string", "minLength": 1}}, "required": ["n"]}
    texts = [json.loads(said(json_form(schema), seed, limit=30))["n"] for seed in range(4)]
    assert max(map(len, texts)) > 2


def test_a_reference_inside_the_arguments_of_a_call_is_found() -> None:
    color = {"enum": ["red", "green"]}
    parameters = {"type": "object", "properties": {"color": {"$ref": "#/$defs/Color"}}, "required": ["color"]}
    form = form_of([tool("paint", {**parameters, "$defs": {"Color": color}})], "required")
    (call,) = parse_calls(said(form, 0))[1]
    assert call.arguments["color"] in ("red", "green")


def test_with_tools_and_a_schema_an_answer_is_one_of_both() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = form_of(TOOLS, None, schema)
    assert form is not None and form.trigger is None
    for seed in range(4):
        text, calls = parse_calls(said(form, seed))
        assert calls or set(json.loads(text)) == {"ok"}
    for beginning in ('<tool_call>{"name":"nothing"', '{"ok":t'):  # the grammar allows both
        processors = [Constraint(MODEL.backbone, form, limit=160), Scripted(beginning)]
        found = MODEL.generate("Well", max_new_tokens=160, temperature=1.0, seed=0, logits_processors=processors).finish()
        assert found.text.startswith(beginning) and (parse_calls(found.text)[1] or json.loads(found.text) == {"ok": True})


class Scripted:
    """Makes a model say a text, then anything."""

    def __init__(self, text: str) -> None:
        self.ids, self.at = MODEL.backbone.encode(text, literal=True), 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.at < len(self.ids):
            scores = torch.full_like(scores, float("-inf"))
            scores[:, self.ids[self.at]] = 0.0
            self.at += 1
        return scores


def test_free_text_is_free_until_a_call_begins_and_the_call_is_whole() -> None:
    form = form_of(TOOLS)
    assert form is not None and form.trigger == "<tool_call>"
    constraint = Constraint(MODEL.backbone, form, limit=200)
    processors = [Scripted("Let me see. <tool_call>"), constraint]
    answer = MODEL.generate("Well", max_new_tokens=200, temperature=1.0, seed=3, logits_processors=processors).finish()
    text, calls = parse_calls(answer.text)
    assert text.startswith("Let me see. ") and len(calls) == 1 and calls[0].name in ("magic", "nothing")
    free = MODEL.generate("Well", max_new_tokens=30, temperature=1.0, seed=3).finish()
    processors = [Constraint(MODEL.backbone, form, limit=30)]
    same = MODEL.generate("Well", max_new_tokens=30, temperature=1.0, seed=3, logits_processors=processors).finish()
    assert same.ids == free.ids  # nothing is constrained where no call begins


def test_forms_follow_the_choice() -> None:
    assert form_of(None) is None and form_of([], "auto") is None and form_of(TOOLS, "none") is None
    assert form_of(TOOLS, "none", NUMBER) == json_form(NUMBER)
    with pytest.raises(InputError, match=r"no tool 'other' to choose\. Tools of this call: 'magic', 'nothing'"):
        form_of(TOOLS, "other")
    with pytest.raises(InputError, match="required, and there are no tools"):
        form_of([], "required")
    with pytest.raises(InputError, match="a tool is"):
        form_of([{"name": "magic"}], "required")


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, None),
        (False, None),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        (True, "required"),
        ("magic", "magic"),
        ({"type": "function", "function": {"name": "magic"}}, "magic"),
        ({"name": "magic"}, "magic"),
    ],
)
def test_a_choice_is_understood_in_every_form(given: Any, choice: str | None) -> None:
    assert tool_choice_of(given, TOOLS) == choice


def test_a_choice_of_no_tool_is_refused() -> None:
    for wrong in ("other", 3, {"function": {}}):
        with pytest.raises(InputError, match="names no tool of this call"):
            tool_choice_of(wrong, TOOLS)


def test_a_schema_that_is_not_supported_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="not supported"):
        Constraint(MODEL.backbone, json_form({"type": "object", "properties": {"a": {"$ref": "#/$defs/Gone"}}}), limit=10)
    with pytest.raises(InputError, match="a JSON schema is an object"):
        json_form([])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without a tokenizer"):
        Constraint(tiny_model().backbone, json_form(NUMBER), limit=10)


def test_strict_leaves_maps_and_explicit_choices_alone() -> None:
    assert "additionalProperties" not in strict({"type": "object"})
    chosen = {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert strict(chosen) == chosen
    assert strict({"anyOf": [NUMBER]})["anyOf"][0]["additionalProperties"] is False
    for whole in ({"const": {"properties": {"x": 1}}}, {"allOf": [NUMBER, NUMBER]}, {"enum": [{"properties": {}}]}):
        assert strict(whole) == whole
    assert set(strict({"properties": {"properties": {"type": "string"}}})["properties"]) == {"properties"}


def test_an_object_of_several_parts_can_be_answered() -> None:
    parts = [{"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab"]
    assert {"a", "b"} <= set(json.loads(said(json_form({"allOf": parts}), 0)))


def test_a_call_that_may_not_be_made_is_text() -> None:
    from hmt_memory.assistant.stateless import reply

    text = '<tool_call>{"name": "magic", "arguments": {}}</tool_call>'
    answer = reply(
        MODEL, [{"role": "user", "content": "x"}], tool_choice="none", max_new_tokens=80, logits_processors=[Scripted(text)]
    ).finish()
    assert answer.tool_calls == [] and answer.text.startswith(text)


@pytest.mark.parametrize(
    "text", ["<tool_call>{}</tool_call>", "<tool_call>no json", "a <tool_call> b", '<tool_call>{"name": 1}']
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_calls(text) == (text, [])


def test_unicode_arguments_are_written_as_they_are() -> None:
    (call,) = parse_calls('<tool_call>{"name": "greet", "arguments": {"name": "你好"}}</tool_call>')[1]
    assert json.loads(call.to_dict()["function"]["arguments"]) == {"name": "你好"}
    assert "你好" in call.to_dict()["function"]["arguments"]


CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@given(st.lists(st.sampled_from(["a", "<", "<tool", "_call>", CALL, " b ", "</tool_call>"]), max_size=6), st.data())
def test_pieces_and_what_is_held_are_the_free_text(parts: list[str], data: Any) -> None:
    """However an answer is cut into pieces, no part of a call is given out and nothing else is lost."""
    whole = "".join(parts)
    speech, given = Speech(tools=True), ""
    at = 0
    while at < len(whole):
        size = data.draw(st.integers(1, 5))
        given += speech.push(whole[at : at + size])
        at += size
    given += speech.finish()
    assert (given, [call.name for call in speech.tool_calls]) == (
        parse_calls(whole)[0],
        [c.name for c in parse_calls(whole)[1]],
    )
    plain = Speech(tools=False)
    assert "".join([*(plain.push(part) for part in parts), plain.finish()]) == whole and plain.tool_calls == []
