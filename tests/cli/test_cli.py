"""The `hmt` command on a tiny random model: streams, exit codes, one-line errors, the chat loop, doctor."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from terminal_input import FAST, SAME, TEXT, run, type_in, typing_screen

from hmt_memory import HMTModel, ViewConfig
from hmt_memory.assistant import stateless
from hmt_memory.cli import asking, command, dialogue, documents, models, terminal
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.engine import places

DECODING = {"max_new_tokens": 8}


@pytest.fixture(scope="session")
def model(chatty: str) -> HMTModel:
    return HMTModel.from_pretrained(chatty, dtype="float32", device="cpu")


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "notes.md"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def notes(screen: terminal.Screen) -> str:
    assert isinstance(screen.notes.file, io.StringIO)
    return screen.notes.file.getvalue()


def test_help_names_the_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in ("ask", "read", "chat", "sessions", "doctor"))
    assert run("ask", "--help") == 0
    shown = capsys.readouterr().out
    assert all(
        option in shown for option in ("--model", "--adapter", "--max-tokens", "--passages", "HMT_MODEL", "FILE", "QUESTION")
    )
    assert run("chat", "--help") == 0
    assert "--system" in capsys.readouterr().out


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, hmt_memory.cli; sys.exit(bool({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("hmt-memory 0.")


def test_the_default_model_is_the_bundled_one() -> None:
    assert DEFAULT_MODEL in places.BUNDLED


@pytest.mark.parametrize("arguments", [[], ["ask"]])
def test_no_arguments_show_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Usage: hmt" in captured.out + captured.err and "hmt:" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["summon"], "summon"),
        (["ask", "what is this?"], "name files before the question, or a --corpus"),
        (["ask", "FILE", "what?", "--corpus", "book"], "not both"),
        (["read", "--corpus", "book"], "Missing argument 'FILE...'"),
        (["chat", "--corpus", "book"], "needs a --session"),
        (["ask", "FILE", "FILE"], "FILE is a file. End with the question"),
        (["ask", "FILE"], "End with the question"),
        (["ask", "-"], "- is a file"),
        (["ask", "FILE", " "], "the question is empty"),
        (["ask", "FILE", "what?", "--temperature", "-1"], "--temperature"),
        (["ask", "FILE", "what?", "--top-p", "0"], "--top-p"),
        (["ask", "FILE", "what?", "--max-tokens", "0"], "--max-tokens"),
        (["ask", "FILE", "what?", "--dtype", "int8"], "--dtype"),
        (["chat", "hello"], "hello"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(text_file if argument == "FILE" else argument for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hmt: ") and captured.err.count("\n") == 1
    assert said.replace("FILE is", f"{text_file} is") in captured.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\x7fELF\0\0", "is a program, not text"),
        ("café".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_one_line_and_exit_code_1(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    assert run("ask", str(path), "What?") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("hmt: ") and str(path) in captured.err and said in captured.err


def test_arguments_may_be_longer_than_a_file_name(text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ask", text_file, "why " * 2000, "--model", "./no/such/folder") == 1
    assert capsys.readouterr().err.startswith("hmt: there is no folder")
    assert run("ask", "why " * 2000, "why?") == 1
    assert "cannot be read: File name too long" in capsys.readouterr().err


def test_a_question_in_another_encoding_is_refused(text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ask", text_file, "caf\udce9?") == 1
    assert capsys.readouterr().err.startswith("hmt: the text is not UTF-8.")


def test_a_folder_and_a_repeated_dash_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ask", str(tmp_path), "What?") == 1
    assert "is a folder" in capsys.readouterr().err
    assert run("ask", "-", "-", "What?") == 1
    assert "once" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read every file")
def test_an_unreadable_file_is_refused(text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(text_file).chmod(0)
    assert run("ask", text_file, "What?") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_errors_of_the_engine_are_one_line(text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ask", text_file, "What?", "--model", "./no/such/folder") == 1
    captured = capsys.readouterr()
    assert captured.err == "hmt: there is no folder no/such/folder. Check the path.\n"
    assert run("--debug", "ask", text_file, "What?", "--model", "./no/such/folder") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (RuntimeError("out of\nmemory"), 1, "hmt: unexpected RuntimeError: out of memory (hmt --debug shows where)\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "gone"), 1, ""),
    ],
)
def test_whatever_else_ends_a_command_shows_no_traceback(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    text_file: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(models, "load_model", fail)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # typer replaces both after a broken pipe
    assert run("ask", text_file, "What?") == code
    assert capfd.readouterr().err.strip("\n") == said.strip("\n")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_is_130_whatever_typer_makes_of_it(raised: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(command, "_command", lambda: fail)
    assert run("doctor") == 130


def test_ask_writes_only_the_answer_to_stdout(
    model: HMTModel, chatty: str, text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = asking.ask_about(model, "When?", model.read(TEXT), max_new_tokens=8).finish().text
    assert run("ask", text_file, "When?", "--model", chatty, *FAST) == 0
    captured = capsys.readouterr()
    assert captured.out == expected + "\n" * (not expected.endswith("\n"))
    assert captured.err.count("untrained") == 1
    assert captured.err.count("\nsegment ") == 3 and "The meeting is on Friday" in captured.err
    assert f"{len(TEXT):,} tokens read" in captured.err and "answer of 8 tokens" in captured.err


def test_ask_reads_standard_input(
    chatty: str, text_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ask", text_file, "When?", "--model", chatty, *FAST) == 0
    expected = capsys.readouterr().out
    type_in(monkeypatch, TEXT.encode())
    assert run("ask", "-", "When?", "--model", chatty, *FAST) == 0
    assert capsys.readouterr().out == expected
    type_in(monkeypatch, b"")
    assert run("ask", "-", "When?", "--model", chatty, *FAST) == 1
    assert "standard input is empty" in capsys.readouterr().err


def test_ask_of_a_model_without_a_chat_template(
    plain: str, text_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HMT_MODEL", plain)
    assert run("ask", text_file, "When?", *FAST) == 0
    assert capsys.readouterr().out.strip()


def test_passages_can_be_left_out_and_a_short_text_has_none(
    chatty: str, text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ask", text_file, "When?", "--model", chatty, "--passages", "0", *FAST) == 0
    shown = capsys.readouterr().err
    assert "Recalled passages" not in shown and "No passages" not in shown
    (tmp_path / "short.txt").write_text("One line.")
    assert run("ask", str(tmp_path / "short.txt"), "When?", "--model", chatty, *FAST) == 0
    shown = capsys.readouterr().err
    assert "No passages" in shown and "which the view holds whole" in shown and "tokens/s" not in shown


def test_trained_parameters_are_not_called_untrained(
    chatty: str, text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = HMTModel.from_pretrained(chatty, dtype="float32", device="cpu")
    with torch.no_grad():
        trained.recall.query.weight.mul_(0.5)
    trained.save_pretrained(tmp_path / "adapter")
    assert run("ask", text_file, "When?", "--model", chatty, "--adapter", str(tmp_path / "adapter"), *FAST) == 0
    assert "untrained" not in capsys.readouterr().err


def test_the_view_is_one_user_turn_that_ends_with_the_question(model: HMTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(model, "generate", lambda prompt, **options: given.update(options, prompt=prompt))
    asking.ask_about(model, "When?", model.empty_state())
    whole = model.backbone.tokenizer.decode([*given["pinned"], *given["prompt"]])
    assert whole.startswith("user: ") and whole.endswith("Question: When?</s>\nassistant: ") and whole.count("</s>") == 1


def test_several_files_are_headed_by_their_names(model: HMTModel) -> None:
    ids = asking.encode_documents(model, [documents.Document("a.md", "First."), documents.Document("b.md", "Second.")])
    assert model.backbone.decode(ids.tolist()) == "File: a.md\n\nFirst.\n\nFile: b.md\n\nSecond.\n\n"
    alone = asking.encode_documents(model, [documents.Document("a.md", "First.")])
    assert model.backbone.decode(alone.tolist()) == "First."


def test_byte_order_marks_are_understood(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / encoding).write_bytes("Grüße".encode(encoding))
        (document,) = documents.open_documents([str(tmp_path / encoding)], typing_screen())
        assert document.text == "Grüße"


def test_reading_shows_a_bar_on_a_terminal_only(model: HMTModel) -> None:
    ids = asking.encode_documents(model, [documents.Document("a", TEXT)])
    bright = terminal.Screen(Console(file=io.StringIO(), force_terminal=True, width=120), io.StringIO())
    reading = asking.read(model, ids, bright)
    assert reading.state.tokens == reading.tokens == len(ids) and reading.seconds > 0
    assert f"{len(ids):,}/{len(ids):,} tokens" in notes(bright) and "tokens/s" in notes(bright)
    quiet = typing_screen()
    asking.read(model, ids, quiet)
    assert notes(quiet) == ""
    asking.read(model, ids, quiet, line_every=500)
    assert f"read {len(ids):,} of {len(ids):,} tokens" in notes(quiet)


def test_passages_are_the_text_of_the_recalled_segments(model: HMTModel) -> None:
    ids = asking.encode_documents(model, [documents.Document("a", TEXT)])
    found = asking.recalled_passages(model, "Friday?", model.read(ids), ids, top_k=2)
    assert len(found) == 2 and found[0].weight >= found[1].weight
    assert all(passage.text == TEXT[passage.segment * 256 : (passage.segment + 1) * 256] for passage in found)


def test_a_terminal_gets_no_control_characters_and_a_pipe_gets_all() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, expected in ((Terminal(), "a[2Jb\n"), (io.StringIO(), "a\x1b[2Jb\n")):
        terminal.stream(["a\x1b", "[2J", "b"], terminal.Screen(Console(file=io.StringIO()), out))
        assert out.getvalue() == expected


def test_the_first_start_of_a_gguf_file_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: None)
    for announced in (1, 0):
        screen = typing_screen()
        models.load_model(str(gguf), screen)
        assert notes(screen).count("converts its weights once") == announced
        places.converted_folder(gguf).mkdir(parents=True, exist_ok=True)


def test_a_piped_chat(chatty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(monkeypatch, b"Hello\n\n/stats\n/reset\n/stats\n/nonsense\n/help\n/quit\nnever read\n")
    assert run("chat", "--model", chatty, *SAME, "--system", "Be brief.", *FAST) == 0
    captured = capsys.readouterr()
    model = HMTModel.from_pretrained(chatty, dtype="float32", device="cpu")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = stateless.reply(model, said, max_new_tokens=8, repetition_penalty=1.1).finish()
    assert captured.out == answer.text + "\n" * (not answer.text.endswith("\n"))
    assert ">" not in captured.err
    lines = captured.err.splitlines()
    counts = [line for line in lines if "nothing of it is stored" in line]
    tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert counts[0].startswith(f"2 messages, {tokens} tokens") and counts[1].startswith("0 messages, 0 tokens")
    assert sum("no command /nonsense" in line for line in lines) == 1 and any("/reset" in line for line in lines)


def test_a_chat_ends_with_its_input(plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(monkeypatch, b"Hello")
    assert run("chat", "--model", plain, *SAME, "--system", "Be brief.", *FAST) == 0
    assert capsys.readouterr().out.strip()
    type_in(monkeypatch, b"caf\xe9\n")
    assert run("chat", "--model", plain, *SAME, *FAST) == 1
    assert "not UTF-8" in capsys.readouterr().err


class _Interrupted(io.StringIO):
    """Raises KeyboardInterrupt at the second piece of the answer to `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.pieces = {at: 2}
        self.turn = 0

    def write(self, text: str) -> int:
        left = self.pieces[self.turn] = self.pieces.get(self.turn, 0) - 1
        if left == 0:
            raise KeyboardInterrupt
        return super().write(text)

    def lines(self, *texts: str) -> Iterator[str]:
        for self.turn, text in enumerate(texts):
            yield text


def test_ctrl_c_during_an_answer_forgets_that_turn_and_goes_on(model: HMTModel) -> None:
    out = _Interrupted(at=1)
    screen = typing_screen(out)
    messages = dialogue.chat(model, out.lines("one", "two", "three"), screen, decoding=DECODING)
    assert messages == dialogue.chat(model, ["one", "three"], typing_screen(), decoding=DECODING)
    assert [message["content"] for message in messages[::2]] == ["one", "three"] and "Stopped" in notes(screen)


def test_ctrl_c_ends_a_chat_that_nobody_types_in(model: HMTModel) -> None:
    out = _Interrupted(at=0)
    screen = terminal.Screen(Console(file=io.StringIO()), out)
    with pytest.raises(KeyboardInterrupt):
        dialogue.chat(model, out.lines("one"), screen, decoding=DECODING)


def test_the_conversation_goes_on_from_turn_to_turn(model: HMTModel) -> None:
    once = dialogue.chat(model, ["one"], typing_screen(), decoding=DECODING)
    twice = dialogue.chat(model, ["one", "two"], typing_screen(), decoding=DECODING)
    assert len(once) == 2 and len(twice) == 4 and twice[:2] == once
    assert dialogue.chat(model, ["one", "/reset"], typing_screen(), decoding=DECODING) == []
    assert dialogue.chat(model, ["/quit", "one"], typing_screen(), decoding=DECODING) == []


def test_a_chat_brings_back_what_was_said_and_is_not_visible(model: HMTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    small = model.with_view(ViewConfig(recent_tokens=40, note_tokens=120, pinned_tokens=20))
    shown: list[str] = []
    real = stateless.reply
    monkeypatch.setattr(stateless, "reply", lambda *given, **options: shown.append(answer := real(*given, **options)) or answer)
    lines = ["The code is 4071.", "It rains today. " * 40, "Which code?"]
    dialogue.chat(small, lines, typing_screen(), decoding=DECODING)
    assert [note.text for note in shown[-1].recalled] == ["The code is 4071."]


def test_a_failed_turn_is_reported_to_a_person_and_ends_a_pipe(
    model: HMTModel, chatty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = typing_screen()
    assert dialogue.chat(model, ["\ud800"], screen, decoding=DECODING) == []
    assert "hmt: " in notes(screen)
    type_in(monkeypatch, b"caf\xe9\n")
    assert run("chat", "--model", chatty, *SAME, *FAST) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("hmt: ")


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_a_person_gets_a_prompt_and_leaves_by_ctrl_c_or_ctrl_d(
    ending: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(["Hello"])

    def answer(prompt: str = "") -> str:
        for line in given:
            return line
        raise ending

    monkeypatch.setattr("builtins.input", answer)
    screen = typing_screen()
    assert list(dialogue.typed_lines(screen)) == ["Hello"]
    assert notes(screen).count("> ") == 2  # the answers go elsewhere, so the prompt is among the notes
