"""The commands that look after a store: what each imports, asks, prints and leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore

MODEL = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer())
HEAVY = ("torch", "transformers", "faiss", "langchain_core")
RUN = (
    "import sys, hmt_memory.cli\n"
    "try:\n    hmt_memory.cli.main(sys.argv[1:])\n"
    "except SystemExit as stop:\n"
    f"    print('code', stop.code, *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
)


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


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "sessions list",
        "sessions show alice",
        "sessions rename alice carol",
        "sessions fork alice carol",
        "sessions forget alice 2 --yes",
        "sessions attach alice book",
        "sessions export alice FILE",
        "sessions delete alice --yes",
        "sessions verify",
        "sessions compact",
        "corpora list",
    ],
)
def test_what_runs_no_model_loads_none(command: str, store: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "alice.hmt") if part == "FILE" else part for part in command.split()]
    ran = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=60)
    assert ran.stderr.splitlines()[-1] == "code 0", ran.stderr


def test_what_somebody_else_is_reading_is_no_warning(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "hmt_memory")
    with MemoryStore(store) as opened:
        session = opened.session("alice", MODEL)
        with opened.reading_mutex(session._id):
            session._after_reply()
    (record,) = [one for one in caplog.records if "another thread is reading" in one.getMessage()]
    assert record.levelname == "DEBUG"
