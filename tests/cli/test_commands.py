"""The commands that look after a store: what each imports, asks, prints and leaves behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from terminal_input import FAST, SAME, run, type_in, typing_screen
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import HMTConfig, HMTModel, MemoryStore
from hmt_memory.cli import terminal

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())
HEAVY = ("torch", "transformers", "faiss", "langchain_core")
LIGHT = (  # commands that run no model, in an order in which each has what it needs
    *("--help", "--version", "sessions list", "sessions show alice", "sessions search door code", "sessions export alice FILE"),
    *(
        "sessions import FILE --name carol",
        "sessions rename carol dan",
        "sessions fork dan emil",
        "sessions attach emil book",
    ),
    *("sessions forget emil 2 --yes", "sessions retention emil --messages 1 --yes", "sessions delete emil --yes"),
    *("sessions verify", "sessions compact", "backup COPY", "corpora list", "corpora show book", "corpora search notice"),
    *("corpora remove book 1 --yes", "corpora rename book handbook", "corpora delete handbook --yes"),
)
RUN = f"""
import json, sys
from hmt_memory.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as stop:
        print('code', stop.code, *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def outcome(
    *commands: list[str], code: str = RUN, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What commands print in one process, each followed by a line with its exit code and what heavy packages are loaded."""
    call, given = [sys.executable, "-c", code, json.dumps(commands)], {**os.environ, **(environment or {})}
    return subprocess.run(call, capture_output=True, text=True, timeout=90, env=given)


HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the sessions `alice` and `bob` and the corpus `book`."""
    folder = tmp_path / "store"
    monkeypatch.setenv("HMT_STORE", str(folder))
    with MemoryStore(folder) as opened:
        alice = opened.session("alice", MODEL)
        alice.add([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The door code is 4071."}])
        alice.add({"role": "assistant", "content": "Noted: *4071*."})
        opened.session("bob", MODEL).add({"role": "user", "content": "The boat leaves at noon."})
        notice = [("notice.md", "The notice period is three months."), ("rent.md", "The rent is due on Monday.")]
        opened.corpus("book", MODEL).add_documents(notice)
    return folder


@pytest.mark.slow
def test_what_runs_no_model_loads_none(store: Path, tmp_path: Path) -> None:
    split = [[str(tmp_path / part) if part in ("FILE", "COPY") else part for part in command.split()] for command in LIGHT]
    codes = [line for line in outcome(*split).stderr.splitlines() if line.startswith("code ")]
    assert dict(zip(LIGHT, codes, strict=True)) == dict.fromkeys(LIGHT, "code 0")


def test_looking_at_a_store_loads_no_numpy(store: Path) -> None:
    looking = (
        ["--help"],
        ["sessions", "list"],
        ["sessions", "show", "alice"],
        ["corpora", "list"],
        ["corpora", "show", "book"],
    )
    assert repr(HEAVY) in RUN
    ran = outcome(*looking, code=RUN.replace(repr(HEAVY), repr(("numpy", *HEAVY))))
    codes = [line for line in ran.stderr.splitlines() if line.startswith("code ")]
    assert codes == ["code 0"] * len(looking) and "The door code is 4071." in ran.stdout


def test_what_somebody_else_is_reading_is_no_warning(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "hmt_memory")
    with MemoryStore(store) as opened:
        session = opened.session("alice", MODEL)
        with opened.reading_mutex(session._id):
            session._read_behind()
    (record,) = [one for one in caplog.records if "another thread is reading" in one.getMessage()]
    assert record.levelname == "DEBUG"


# --- models -----------------------------------------------------------------------------------------------------------


def refused(*commands: tuple[str, ...], environment: dict[str, str] | None = None) -> list[str]:
    """The lines by which commands fail, which load nothing before."""
    ran = outcome(*map(list, commands), environment={"HF_HUB_OFFLINE": "1", **(environment or {})})
    lines = ran.stderr.splitlines()
    assert lines[1::2] == ["code 1"] * len(commands), ran.stderr
    return lines[::2]


@pytest.mark.slow
def test_a_wrong_model_name_is_refused_before_anything_is_loaded(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Some text.")
    commands = (
        ("ask", str(tmp_path / "notes.txt"), "What?"),
        ("chat", "--session", "alice"),
        ("sessions", "recall", "alice", "door"),
        ("read", "--corpus", "book", str(tmp_path / "notes.txt")),
        ("corpora", "rebuild", "book"),
    )
    for said in refused(*((*command, "-m", "smolm2-135m") for command in commands)):
        assert said.startswith("hmt: no model 'smolm2-135m': not a bundled name") and "Did you mean smollm2" in said
    assert refused(("chat", "-m", "./no/folder")) == ["hmt: there is no folder no/folder. Check the path."]


@pytest.mark.slow
def test_another_model_is_refused_before_it_is_loaded_and_the_way_out_names_it(
    store: Path, chatty: str, tmp_path: Path
) -> None:
    model = HMTModel.from_pretrained(chatty, config=HMTConfig(segment_length=32, sensory_length=4), dtype="float32")
    model.save_pretrained(tmp_path / "adapter")
    adapter = ("-m", chatty, "--adapter", str(tmp_path / "adapter"))
    session, corpus, adapted = refused(
        ("chat", "-s", "alice", "-m", chatty, *SAME),
        ("ask", "--corpus", "book", "Why?", "-m", chatty, *SAME),
        ("chat", "-s", "alice", *adapter),
    )
    assert "the memory of session 'alice' was made by" in session and "its segment_length is 256, not 16" in session
    assert session.endswith(f": hmt sessions rebuild alice --model {chatty}")
    assert "the memory of corpus 'book'" in corpus and corpus.endswith(f": hmt corpora rebuild book --model {chatty}")
    assert adapted.endswith(f"rebuild alice --model {chatty} --adapter {tmp_path / 'adapter'}")
    elsewhere = ("chat", "-s", "alice", "-m", chatty, *SAME, "--store", str(store))
    (said,) = refused(elsewhere, environment={"HMT_STORE": "/elsewhere"})
    assert said.endswith(f"rebuild alice --model {chatty} --store {store}")


def test_what_only_loading_tells_is_refused_then(store: Path, chatty: str, capsys: pytest.CaptureFixture[str]) -> None:
    with MemoryStore(store) as opened:
        opened.session("carol", HMTModel.from_pretrained(chatty, dtype="float32", device="cpu")).add(HELLO)
    assert run("sessions", "recall", "carol", "x", "-m", chatty, "--dtype", "float16", "--device", "cpu") == 1
    assert capsys.readouterr().err.endswith(f"hmt sessions rebuild carol --model {chatty}\n")


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_erasing_shows_what_and_needs_a_yes(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sessions", "forget", "alice", "2") == 1
    assert capsys.readouterr().err == ("hmt: Erase this message of 'alice' for good? Nobody can be asked here: add --yes.\n")
    assert run("sessions", "forget", "alice", "2", "77") == 1 and "no message 77" in capsys.readouterr().err
    screen = typing_screen()
    monkeypatch.setattr(terminal.Screen, "standard", lambda: screen)
    monkeypatch.setattr("builtins.input", lambda: (_ for _ in ()).throw(EOFError))
    assert run("sessions", "forget", "alice", "2") == 0
    shown = screen.notes.file.getvalue()  # type: ignore[attr-defined]
    assert "2 user: The door code is 4071." in shown and "Nothing was erased." in shown


def test_a_session_gets_another_name(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sessions", "rename", "alice", "carol") == 0 and "'alice' is called 'carol' now" in capsys.readouterr().err
    assert run("sessions", "rename", "bob", "carol") == 1 and "'carol' already" in capsys.readouterr().err
    assert run("sessions", "list", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["sessions"]] == ["bob", "carol"]


def test_a_transcript_is_markdown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sessions", "show", "alice", "--markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# alice" and lines[2].startswith("## System, 20") and lines[2].endswith(" UTC")
    assert lines[4] == "Be brief." and lines[-1] == "Noted: *4071*."
    assert run("sessions", "show", "alice", "--markdown", "--json") == 2


def test_words_are_searched_in_all_sessions(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sessions", "search", "door", "code") == 0
    (head, first) = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["source", "id"] and first.startswith("alice") and "The door code is 4071." in first
    assert run("sessions", "search", "boat", "--json", "--session", "alice") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("sessions", "search", "submarine") == 0 and "Nothing holds any" in capsys.readouterr().err
    assert run("sessions", "search", "?") == 1 and "no word to search for" in capsys.readouterr().err


def test_limits_are_shown_set_and_taken_off(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert run("sessions", "retention", "alice", *arguments) == 0
        return capsys.readouterr().err

    assert "'alice' keeps every message; it holds 3 messages." in said()
    assert "keeps messages of the last 30 days" in said("--days", "30", "--yes")
    assert "keeps the latest 1 message of the last 30 days; it holds 2 messages" in said("--messages", "1", "--yes")
    assert "keeps every message" in said("--off")
    assert run("sessions", "retention", "alice", "--days", "1") == 1 and "add --yes" in capsys.readouterr().err
    assert run("sessions", "retention", "alice", "--off", "--days", "1") == 2


# --- corpora and the store --------------------------------------------------------------------------------------------


def test_corpora_are_looked_at(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("corpora", "list") == 0 and capsys.readouterr().out.splitlines()[1].startswith("book")
    assert run("corpora", "show", "book", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["documents"]] == ["notice.md", "rent.md"]
    for document in ("notice.md", "1"):
        assert run("corpora", "show", "book", document) == 0
        assert capsys.readouterr().out == "The notice period is three months.\n"
    assert run("corpora", "show", "book", "gone.md") == 1
    assert "no document gone.md. List them: hmt corpora show book" in capsys.readouterr().err
    assert run("corpora", "search", "rent") == 0 and "book/rent.md" in capsys.readouterr().out


def test_a_corpus_recalls_by_its_model(store: Path, chatty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("The harbour opens at six. " * 30)
    device = ("--model", chatty, "--dtype", "float32", "--device", "cpu")
    assert run("read", "--corpus", "port", str(tmp_path / "notes.txt"), *device) == 0
    assert "Corpus 'port': 1 document read. It holds 1 document, 780 tokens." in capsys.readouterr().err
    assert run("corpora", "recall", "port", "harbour", "--top", "1", *device) == 0
    assert "The harbour opens at six." in capsys.readouterr().out


def test_documents_and_corpora_are_removed_after_asking(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("corpora", "remove", "book", "rent.md") == 1 and "add --yes" in capsys.readouterr().err
    assert run("corpora", "remove", "book", "rent.md", "2", "--yes") == 0
    assert "1 document of 'book' is erased" in capsys.readouterr().err
    assert run("corpora", "rename", "book", "handbook") == 0
    assert run("corpora", "delete", "handbook") == 1 and "with its 1 document for good?" in capsys.readouterr().err
    assert run("corpora", "delete", "handbook", "--yes") == 0
    assert run("corpora", "list") == 0 and "hmt read --corpus NAME" in capsys.readouterr().err


def test_a_store_is_backed_up(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("backup", str(tmp_path / "copy")) == 0
    assert "2 sessions and 1 corpus are copied to" in capsys.readouterr().err
    assert run("sessions", "verify", "--store", str(tmp_path / "copy")) == 0
    assert run("backup", str(tmp_path / "copy")) == 1 and "Name a new folder" in capsys.readouterr().err


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_take_a_system_prompt_and_a_penalty(
    chatty: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("Some text.")
    given: dict[str, Any] = {}
    generate = HMTModel.generate
    monkeypatch.setattr(HMTModel, "generate", lambda *some, **more: given.update(more) or generate(*some, **more))
    for folder, head in ((chatty, "system: Be brief.</s>\nuser: Read this"), (plain, "Be brief.\n\nRead this")):
        command = ("ask", str(tmp_path / "notes.txt"), "When?", "-m", folder, *FAST)
        assert run(*command, "--system", "Be brief.", "--repetition-penalty", "1.5") == 0
        pinned = given["pinned"] if folder == plain else byte_tokenizer().decode(given["pinned"])
        assert pinned.startswith(head) and given["repetition_penalty"] == 1.5
    type_in(monkeypatch, b"hello\n")
    assert (
        run("chat", "-m", chatty, *SAME, "--repetition-penalty", "1.3", *FAST) == 0
        and given["decoding"].repetition_penalty == 1.3
    )
    assert run("chat", "-m", chatty, "--repetition-penalty", "0") == 2


# --- the shell and the keyboard ---------------------------------------------------------------------------------------


# Asks, as the shell does, for what words may end with. Each answer follows a line of its own.
COMPLETE = f"""
import json, os, sys
from hmt_memory.cli import main
os.environ['_HMT_COMPLETE'] = 'complete_bash'
for words in json.loads(sys.argv[1]):
    os.environ.update(COMP_WORDS=' '.join(words), COMP_CWORD=str(len(words) - 1))
    print('asked')
    try:
        main([])
    except SystemExit as stop:
        print('code', stop.code, *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""
COMPLETED = {
    "hmt sessions show a": "alice",
    "hmt chat --session b": "bob",
    "hmt corpora show b": "book",
    "hmt ask --corpus b": "book",
    "hmt chat --model s": "smollm2-135m-instruct",
    "hmt sessions show x": "",
    "hmt sessions show --store /nowhere a": "",
}


def test_the_shell_completes_names(store: Path) -> None:
    ran = outcome(*(words.split() for words in COMPLETED), code=COMPLETE)
    offered = [names.strip() for names in ran.stdout.split("asked\n")[1:]]
    assert dict(zip(COMPLETED, offered, strict=True)) == COMPLETED
    assert "torch" not in ran.stderr and "Traceback" not in ran.stderr


SLOW = """
import sys, time
from rich.console import Console
from hmt_memory.cli.terminal import Screen, stream

def pieces():
    for number in range(8):
        yield f"piece{number} "
        time.sleep(0.25)

stream(pieces(), Screen(Console(stderr=True), sys.stdout, sys.stdin.isatty()))
print("typed:", input())
"""


def in_terminal(code: str, typed: bytes, *, end: int | None = None) -> tuple[str, bool]:
    """Run `code` in a terminal of its own, type when it has begun, or send it a signal: what is shown, and the echo after."""
    main, keyboard = pty.openpty()
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    code = f"import signal; {heard}\n{code}"  # a job behind a shell ignores the one, and one under nohup the other
    ran = subprocess.Popen([sys.executable, "-c", code], stdin=keyboard, stdout=keyboard, stderr=keyboard)
    shown, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.1)[0]:
            shown += os.read(main, 4096)
        if typed and b"piece1" in shown:
            os.write(main, typed)
            typed = b""
        if end is not None and b"piece1" in shown:
            ran.send_signal(end)
            end = None
        if ran.poll() is not None and not select.select([main], [], [], 0.1)[0]:
            break
    echoes = bool(termios.tcgetattr(keyboard)[3] & termios.ECHO)
    os.close(main), os.close(keyboard)
    return shown.decode().replace("\r", ""), echoes


@pytest.mark.slow
def test_what_is_typed_meanwhile_is_not_among_the_answer_and_is_there_afterwards() -> None:
    shown, echoes = in_terminal(SLOW, b"next question\n")
    answer, _, rest = shown.partition("\n")
    assert answer == "".join(f"piece{number} " for number in range(8)) and "typed: next question" in rest and echoes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_keyboard_is_as_it_was_whatever_ends_an_answer(number: int) -> None:
    shown, echoes = in_terminal(SLOW, b"", end=number)
    assert "piece1" in shown and "piece7" not in shown and echoes
