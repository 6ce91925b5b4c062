"""Chat messages as text: what is pinned (system prompt) and what joins the stream (turns). Knows templates by their output.

No template is parsed: what belongs to which part is found by rendering short conversations and comparing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    from .backbone import Backbone

SYSTEM_ROLES = ("system", "developer")
_USER, _ANSWER = "hmt-user-mark", "hmt-answer-mark"
_PROBE = {"role": "user", "content": _USER}
_PROBE_SYSTEM = {"role": "system", "content": "hmt-system-mark"}


class Rendered(NamedTuple):
    """A conversation as text for the two parts of a context."""

    pinned: str  # the system part, never scrolled away
    text: str  # the turns, ending where the answer begins


def render(backbone: Backbone, messages: Sequence[Mapping[str, Any]], *, continues: bool = False) -> Rendered:
    """Render `messages` through the model's chat template.

    Leading system messages are pinned; without any, what the template itself puts first is.

    Args:
        messages: dicts with "role" and "content" (str); at least one that is not a system message.
        continues: the stream already holds a conversation whose last turn is an answer; the text then begins with what
            the template writes between an answer and the next turn.

    Raises:
        InputError: malformed messages, or the template refuses them.
    """
    system, turns = _split(messages)
    first = lead(backbone)
    pinned = system_text(backbone, system) if system else default_system_text(backbone)
    if not continues:
        return Rendered(pinned, _after(backbone, first, turns))
    whole = backbone.render([*first, _PROBE, {"role": "assistant", "content": _ANSWER}, *turns], add_generation_prompt=True)
    return Rendered(pinned, whole.partition(_ANSWER)[2])


def around_user_text(backbone: Backbone, system: str | None = None) -> tuple[str, str]:
    """What the template writes before and after the text of a user turn that an answer follows, system part included."""
    messages = ([{"role": "system", "content": system}] if system else []) + [_PROBE]
    rendered = render(backbone, messages)
    before, _, after = rendered.text.partition(_USER)
    return rendered.pinned + before, after


def _split(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str) or "role" not in message:
            raise InputError(f"a message needs a 'role' and a 'content' string, not {message!r}.")
    turns = [dict(message) for message in messages]
    system: list[str] = []
    while turns and turns[0]["role"] in SYSTEM_ROLES:
        system.append(turns.pop(0)["content"])
    if not turns:
        raise InputError("there is nothing to answer: add a user message.")
    return "\n\n".join(system), turns


def lead(backbone: Backbone) -> list[dict[str, str]]:
    """A system message to render before the turns, so that the template adds no default of its own; none if refused."""
    return [_PROBE_SYSTEM] if renders_system(backbone) else []


def renders_system(backbone: Backbone) -> bool:
    """Whether the template writes a system message, and nothing else of its own before the turns that follow."""
    try:
        alone = backbone.render([_PROBE_SYSTEM], add_generation_prompt=False)
        followed = backbone.render([_PROBE_SYSTEM, _PROBE], add_generation_prompt=False)
    except InputError:
        return False
    return _PROBE_SYSTEM["content"] in alone and followed.startswith(alone)


def _after(backbone: Backbone, first: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> str:
    whole = backbone.render([*first, *turns], add_generation_prompt=True)
    return whole[len(backbone.render(first, add_generation_prompt=False)) :] if first else whole


def system_text(backbone: Backbone, system: str) -> str:
    """A system message as the template writes it."""
    role = "system" if renders_system(backbone) else "user"  # Gemma's template has no system turn
    return backbone.render([{"role": role, "content": system}], add_generation_prompt=False)


def default_system_text(backbone: Backbone) -> str:
    """What the template itself puts before the first turn of a conversation without a system message."""
    if not renders_system(backbone):
        return ""
    turn = _after(backbone, [_PROBE_SYSTEM], [_PROBE])
    whole = backbone.render([_PROBE], add_generation_prompt=True)
    return whole.removesuffix(turn) if whole.endswith(turn) else ""
