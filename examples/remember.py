"""Ten facts, much else, the end of the process, and a new process that is asked for them: the second half of `make demo`.

The conversation outgrows the view: what was said first is shown to the model only if memory brings it back. The store is a
temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pydoc_data.topics import topics

from rich.console import Console

from hmt_memory import HMTModel, MemoryStore, Session
from hmt_memory.assistant import DEFAULT_MODEL
from hmt_memory.cli.terminal import Screen, beginning, show_recalled, stream

SESSION = "demo"
NOTED = "I will remember that."
MUCH_ELSE = f"Please keep this text about Python for me: {topics['while']}"  # more than the view shows
FACTS = (  # what is told, what is asked, and the word that a right answer says
    ("The door code of the office is 4071.", "What is the door code of the office?", "4071"),
    ("We got a dog last week, he is called Bruno.", "What is my dog called?", "Bruno"),
    ("The meeting with Carla is on Friday at noon.", "On which day is the meeting with Carla?", "Friday"),
    ("I'm allergic to hazelnuts, by the way.", "What am I allergic to?", "hazelnuts"),
    ("My sister Nora works as a beekeeper now.", "What is my sister's job?", "beekeep"),
    ("The spare key hangs behind the blue cupboard.", "Where is the spare key?", "blue cupboard"),
    ("We booked the hotel in Trieste for the holidays.", "In which city is the hotel that we booked?", "Trieste"),
    ("The new dishwasher was 640 euros.", "How much was the dishwasher?", "640"),
    ("Dr. Okafor wants to see me about my knee.", "Which doctor looks at my knee?", "Okafor"),
    ("My favourite tea is rooibos.", "Which tea do I like best?", "rooibos"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for part in ("tell", "ask"):
            subprocess.run([sys.executable, __file__, part, folder], check=True)


def open_session(folder: str) -> tuple[MemoryStore, Session]:
    """Open the session in `folder`, from what lies on disk."""
    started = time.perf_counter()
    model = HMTModel.from_pretrained(os.environ.get("HMT_MODEL", DEFAULT_MODEL))
    loaded = time.perf_counter()
    store = MemoryStore(folder)
    session = store.session(SESSION, model)
    opened = time.perf_counter()
    print(f"model loaded in {loaded - started:.1f} s, session opened in {(opened - loaded) * 1000:.0f} ms")
    return store, session


def tell(folder: str) -> None:
    """Tell the facts and much else; each call is on disk when it returns."""
    print(f"\n--- process {os.getpid()}: tells")
    _, session = open_session(folder)
    for text in (*(told for told, _, _ in FACTS), MUCH_ELSE):
        print(f"> {beginning(text, 100)}")
        session.add([{"role": "user", "content": text}, {"role": "assistant", "content": NOTED}])
    stats = session.stats()
    print(f"{stats['messages']} messages, {stats['tokens']} tokens, {stats['segments']} segments; the store is not closed")
    sys.stdout.flush()
    os._exit(0)


def ask(folder: str) -> None:
    """Ask for the facts, from what the other process left."""
    print(f"\n--- process {os.getpid()}: asks")
    store, session = open_session(folder)
    screen, right = Screen(Console(highlight=False), sys.stdout), 0
    print(f"The facts were told {session.stats()['tokens']} tokens ago; the view shows the last few hundred.")
    for _, question, word in FACTS:
        print(f"\n> {question}")
        reply = session.reply({"role": "user", "content": question}, max_new_tokens=32)
        stream(reply, screen)
        show_recalled(reply.recalled, screen)
        right += word in reply.text
        print("Right." if word in reply.text else f"Wrong, for the word {word!r} is missing.")
    print(f"\n{right} of {len(FACTS)} answers are right.")
    print(f"The record after an exit without closing: {'whole' if store.verify().ok else 'damaged'}.")
    store.close()


if __name__ == "__main__":
    {"tell": tell, "ask": ask}[sys.argv[1]](sys.argv[2]) if len(sys.argv) == 3 else main()
