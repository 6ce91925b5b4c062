"""`hmt chat`: a conversation line by line, in memory only or in a stored session.

Knows the commands inside a chat and what Ctrl-C does; `terminal` streams answers and writes notes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import HMTError, InputError
from .models import note_if_untrained
from .terminal import Screen, check_text, show_recalled, stream

if TYPE_CHECKING:
    from ..assistant.stateless import StatelessAnswer
    from ..model import HMTModel
    from ..sessions.session import Reply, Session

_HELP_HEAD = "/help            this list"
_HELP_TAIL = """\
/stats           how much there is so far
/quit            leave; Ctrl-D and, at the prompt, Ctrl-C do the same
Ctrl-C while the model answers stops the answer and forgets that turn. To send a leading /, begin with a space."""


class _InMemory:
    """A conversation that ends with the process."""

    help = "/reset           forget the conversation"

    def __init__(self, model: HMTModel, system: str | None, decoding: Mapping[str, Any]) -> None:
        from ..assistant.stateless import PrefixCache

        self.model, self._decoding = model, decoding
        self._system = [{"role": "system", "content": system}] if system else []
        self._read = PrefixCache(entries=1)
        self._asked: dict[str, str] = {}
        self.messages: list[dict[str, str]] = []
        self._tokens = 0

    def answer(self, text: str) -> StatelessAnswer:
        """Begin an answer."""
        from ..assistant import stateless

        self._asked = {"role": "user", "content": text}
        conversation = [*self._system, *self.messages, self._asked]
        return stateless.reply(self.model, conversation, cache=self._read, **self._decoding)

    def keep(self, answer: Any) -> None:
        """Make an answer part of the conversation."""
        self.messages += [self._asked, {"role": "assistant", "content": answer.text}]
        self._tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens

    def stats(self) -> str:
        """Say how long the conversation is."""
        return f"{len(self.messages):,} messages, {self._tokens:,} tokens; nothing of it is stored"

    def command(self, name: str, rest: str, screen: Screen) -> bool:
        """Carry out a command of this kind of conversation. Returns False where there is no such command."""
        if name != "/reset":
            return False
        self.messages, self._tokens = [], 0
        screen.note("The conversation is forgotten.")
        return True


class _Stored:
    """A conversation in a session."""

    help = """\
/recall [text]   the passages recalled for the last answer, or for a text
/undo            forget the last question and its answer, for good"""

    def __init__(self, session: Session, model: HMTModel, decoding: Mapping[str, Any]) -> None:
        self.model, self._session, self._decoding = model, session, decoding
        self._last: Reply | None = None

    def answer(self, text: str) -> Reply:
        """Begin an answer."""
        return self._session.reply({"role": "user", "content": text}, **self._decoding)

    def keep(self, answer: Any) -> None:
        """Remember the answer, for /recall and /undo; the session has stored it already."""
        self._last = answer

    def stats(self) -> str:
        """Say how long the session is."""
        stats = self._session.stats()
        return f"{stats['messages']:,} messages, {stats['tokens']:,} tokens in session {self._session.name!r}"

    def command(self, name: str, rest: str, screen: Screen) -> bool:
        """Carry out a command of this kind of conversation. Returns False where there is no such command."""
        if name == "/recall":
            self._recall(rest, screen)
        elif name == "/undo":
            self._undo(screen)
        else:
            return False
        return True

    def _recall(self, text: str, screen: Screen) -> None:
        if text:
            show_recalled(self._session.recall(text), screen)
        elif self._last is None:
            screen.note("Nothing was asked yet. /recall TEXT recalls for a text.")
        elif self._last.recalled:
            show_recalled(self._last.recalled, screen)
        else:
            screen.note("Nothing was recalled for the last answer: what it rests on stood in the view itself.")

    def _undo(self, screen: Screen) -> None:
        ids = [] if self._last is None else self._last.message_ids
        self._last = None
        if not ids:
            screen.note("There is nothing to undo in this chat; hmt sessions forget erases earlier messages.")
            return
        self._session.forget(ids)
        screen.note("The last question and its answer are erased.")


def chat(
    model: HMTModel,
    lines: Iterable[str],
    screen: Screen,
    *,
    system: str | None = None,
    decoding: Mapping[str, Any],
) -> list[dict[str, str]]:
    """Answer each line that is not a command, until /quit or the last line; nothing is stored.

    Args:
        model: the model to talk with.
        lines: what the person types.
        screen: where answers and notes go.
        system: pinned in front of every view.
        decoding: options of `HMTModel.generate`.

    Returns:
        The messages afterwards. A turn that Ctrl-C or an error ended is not among them where a person types; elsewhere both
        are raised.
    """
    check_text(system or "")
    _greet(model, screen)
    conversation = _InMemory(model, system, decoding)
    _run(conversation, lines, screen)
    return conversation.messages


def resume(
    session: Session,
    model: HMTModel,
    lines: Iterable[str],
    screen: Screen,
    *,
    system: str | None = None,
    decoding: Mapping[str, Any],
) -> None:
    """Chat in a stored session: each turn is on disk when its answer is whole.

    Args:
        session: the session to go on with.
        model: the model of the session.
        lines: what the person types.
        screen: where answers and notes go.
        system: pinned from now on, if it is not already.
        decoding: options of `HMTModel.generate`.
    """
    check_text(system or "")
    _greet(model, screen)
    stats = session.stats()
    if stats["messages"]:
        screen.note(f"Session {session.name!r} goes on: {stats['messages']:,} messages, the last of {stats['updated_at']}.")
    if system and system != session.system():
        session.add({"role": "system", "content": system})
    _run(_Stored(session, model, decoding), lines, screen)


def _run(conversation: _InMemory | _Stored, lines: Iterable[str], screen: Screen) -> None:
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            break
        if re.fullmatch(r"/\w+", command) and not line.startswith(" "):
            _command(command, rest.strip(), conversation, screen)
        elif line.strip():
            _turn(line.strip(), conversation, screen)


def typed_lines(screen: Screen) -> Iterator[str]:
    """Yield the lines of standard input until it ends, or until Ctrl-C at the prompt; only a person is shown a prompt.

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


def _command(command: str, rest: str, conversation: _InMemory | _Stored, screen: Screen) -> None:
    if command == "/help":
        screen.note("\n".join([_HELP_HEAD, conversation.help, _HELP_TAIL]))
    elif command == "/stats":
        screen.note(conversation.stats())
    elif not _guarded(lambda: conversation.command(command, rest, screen), screen):
        screen.note(f"There is no command {command}; /help lists them. To send a leading /, begin with a space.")


def _turn(text: str, conversation: _InMemory | _Stored, screen: Screen) -> None:
    """Answer `text`. An answer that was stopped or failed leaves the conversation as it was."""

    def turn() -> bool:
        check_text(text)
        answer = conversation.answer(text)
        try:
            stream(answer, screen)
        except KeyboardInterrupt:
            if not getattr(answer, "message_ids", None):
                raise
            screen.note("The answer was whole and is stored; /undo erases it.")
        if answer.finish_reason == "length":
            screen.note("(cut at --max-tokens)")
        conversation.keep(answer)
        return True

    try:
        with screen.unechoed():
            _guarded(turn, screen)
    except KeyboardInterrupt:
        if not screen.interactive:
            raise
        screen.note("Stopped; this turn is forgotten.")


def _guarded(call: Callable[[], bool], screen: Screen) -> bool:
    """Return what `call` returns. If it fails, show a person the error and let the chat go on."""
    try:
        return call()
    except HMTError as error:
        if not screen.interactive:
            raise
        screen.note(f"hmt: {error}", style="")
        return True
