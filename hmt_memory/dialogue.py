"""`hmt chat`: a conversation in memory, line by line. Nothing is stored.

Knows the commands inside a chat and what Ctrl-C does; streaming and notes are `terminal`'s.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import HMTError, InputError
from .terminal import Screen, check_text, has_chat_template, note_if_untrained, stream

if TYPE_CHECKING:
    from .generate import Generation
    from .model import HMTModel
    from .state import HMTState

_HELP = """\
/help   this list
/reset  forget the conversation
/stats  tokens and segments so far
/quit   leave; Ctrl-D and, at the prompt, Ctrl-C do the same
Ctrl-C while the model answers stops the answer and forgets that turn. To send a leading /, begin with a space."""


def chat(
    model: HMTModel,
    lines: Iterable[str],
    screen: Screen,
    *,
    system: str | None = None,
    decoding: Mapping[str, Any],
) -> HMTState | None:
    """Answer each line that is not a command, until /quit or the last line.

    Args:
        system: pinned in front of every view. decoding: options of `HMTModel.generate`.

    Returns:
        The conversation afterwards; None if it is empty. A turn that Ctrl-C or an error ended is not part of it where a
        person types; elsewhere both are raised.
    """
    check_text(system or "")
    _greet(model, screen)
    state: HMTState | None = None
    for line in lines:
        command = line.partition(" ")[0].strip()
        if command == "/quit":
            break
        if re.fullmatch(r"/\w+", command):
            state = _command(command, model, state, screen)
        elif line.strip():
            state = _turn(model, line.strip(), state, screen, system=system, decoding=decoding)
    return state


def typed_lines(screen: Screen) -> Iterator[str]:
    """The lines of standard input until it ends, or until Ctrl-C at the prompt; only a person is shown a prompt.

    Raises:
        InputError: a line is not UTF-8.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and history
    while True:
        try:
            line = _typed_line(screen)
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 text (byte {error.start}). Convert it first.") from error
        except EOFError:
            break
        yield line
    if screen.interactive:
        screen.notes.print()


def reply(model: HMTModel, text: str, state: HMTState | None, *, system: str | None = None, **decoding: Any) -> Generation:
    """The model's answer to the user's `text`; without a chat template, in a plain User/Assistant script."""
    if has_chat_template(model):
        turns = [{"role": "system", "content": system}] if system else []
        return model.generate([*turns, {"role": "user", "content": text}], state=state, **decoding)
    pinned = f"{system}\n\n" if system else ""
    script = f"{chr(10) if state else ''}User: {text}\nAssistant:"
    return model.generate(script, state=state, pinned=pinned, stop="\nUser:", **decoding)


def _greet(model: HMTModel, screen: Screen) -> None:
    if screen.interactive:
        precision = str(model.backbone.dtype).removeprefix("torch.")
        screen.note(f"{model.backbone.name} ({model.backbone.device}, {precision}). /help lists the commands, Ctrl-D leaves.")
    note_if_untrained(model, screen)


def _typed_line(screen: Screen) -> str:
    prompt = "> " if screen.interactive else ""
    if prompt and not screen.out.isatty():
        screen.notes.print(prompt, end="")  # input() would write it among the answers
        prompt = ""
    try:
        return input(prompt)
    except KeyboardInterrupt:
        if screen.interactive:
            raise EOFError from None
        raise


def _command(command: str, model: HMTModel, state: HMTState | None, screen: Screen) -> HMTState | None:
    """Carry out /help, /reset or /stats; the conversation afterwards."""
    if command == "/reset":
        screen.note("The conversation is forgotten.")
        return None
    if command == "/help":
        screen.note(_HELP)
    elif command == "/stats":
        now = state or model.empty_state()
        size = now.memory.numel() * now.memory.element_size()
        screen.note(f"{now.tokens:,} tokens, {now.segments:,} segments in memory ({size:,} bytes)")
    else:
        screen.note(f"There is no command {command}; /help lists them. To send a leading /, begin with a space.")
    return state


def _turn(
    model: HMTModel,
    text: str,
    state: HMTState | None,
    screen: Screen,
    *,
    system: str | None,
    decoding: Mapping[str, Any],
) -> HMTState | None:
    """Answer `text`; the conversation afterwards, or as it was where the answer was stopped or failed."""
    try:
        check_text(text)
        answer = reply(model, text, state, system=system, **decoding)
        stream(answer, screen.out)
        if answer.finish_reason == "length":
            screen.note("(cut at --max-tokens)")
        return answer.state
    except KeyboardInterrupt:
        if not screen.interactive:
            raise
        screen.note("Stopped; this turn is forgotten.")
    except HMTError as error:
        if not screen.interactive:
            raise
        screen.note(f"hmt: {error}", style="")
    return state
