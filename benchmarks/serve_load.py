"""Clients of several tenants that do everything at once to a server which is restarted and killed; and what must hold then.

Each client alone writes to its sessions and its corpus, so that it knows what has to be in them. After a call whose answer
never came both is right, that it was done and that it was not: the next look says which, and from there on it holds. Every
text that is said has a canary, `~tenant-hexadecimal~`: none may come in an answer to another tenant, none from what was
forgotten.
"""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
from serving import Server

_CUT = "ASGI callable returned without completing response."  # what uvicorn says of a stream when the server is told to end
_CANARY = re.compile(r"~(\w+)-[0-9a-f]{12}~")
_BUSY = (409, 429, 503)
_LONGEST = 24  # messages of a session, after which it is deleted
_PATIENCE = 120.0  # seconds that a server may take to come back
_SAMPLE = 0.5  # seconds between looks at the process
# The processes of the server: for how long, in shares of the time, and how each ends.
_LIVES = ((0.3, signal.SIGTERM), (0.3, signal.SIGTERM), (0.2, signal.SIGKILL), (0.2, None))
_LONG = 600  # samples of a process from which on its memory is judged: before, it grows by what it keeps
_MOST_GROWTH = 0.2  # of its memory in the second half
_MOST_DESCRIPTORS = 400  # each of the threads has a connection to the store
TENANTS = ("ann", "bob", "eve")


class Said(NamedTuple):
    """A message as the server has stored it."""

    id: int
    role: str
    text: str


Expected = tuple[str, str | None]  # role and text of a message; None: an answer that nobody has seen


class Gone(Exception):
    """A call whose answer never came."""


@dataclass
class Ledger:
    """What a session has to hold: what is known, and after a call without an answer what may be there instead."""

    known: list[Said] = field(default_factory=list)
    instead: list[list[Expected]] = field(default_factory=list)  # the whole session, if the call was done, or part of it

    def settle(self, found: Sequence[Said]) -> str | None:
        """Take what was found for known. Returns what is wrong with it; None: nothing is."""
        wanted = [(message.role, message.text) for message in self.known]
        wrong = None
        if list(found) != self.known and not any(_fits(found, each) for each in self.instead):
            wrong = f"{_shown(found)} is stored, not {wanted}"
        ids = [message.id for message in found]
        if len(set(ids)) != len(ids):
            wrong = f"ids come twice: {ids}"
        self.known, self.instead = list(found), []
        return wrong


def _fits(found: Sequence[Said], expected: Sequence[Expected]) -> bool:
    return len(found) == len(expected) and all(
        message.role == role and text in (None, message.text) for message, (role, text) in zip(found, expected, strict=True)
    )


def _shown(found: Sequence[Said]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in found]


class Findings:
    """What all clients did, and what was wrong."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def did(self, what: str) -> None:
        """Count a call."""
        with self._lock:
            self.done[what] += 1

    def found(self, wrong: str) -> None:
        """Note what is wrong."""
        with self._lock:
            self.wrong.append(wrong)


def failures(log: str, clients: int = 0) -> list[str]:
    """Return the lines that tell of a failure in a server's log, whose own lines are JSON.

    Args:
        log: what it has written.
        clients: whose streams may have been cut each time that the server was told to end.
    """
    failed = [line for line in log.splitlines() if _failed(line)]
    cut = [line for line in failed if _CUT in line]
    told = sum(end is signal.SIGTERM for _, end in _LIVES)
    return failed if len(cut) > told * clients else [line for line in failed if line not in cut]


def _failed(line: str) -> bool:
    try:
        about = json.loads(line)
    except ValueError:
        return line.startswith(("Traceback", "Fatal"))
    return about["level"] in ("error", "critical") or "exception" in about


class Client:
    """One client: a session at a time, and a corpus.

    Args:
        number: of the client, in its names.
        tenant: whose token it shows.
        server: that it calls.
        token: that it shows.
        findings: of all clients.
        tokens: of an answer at most.
    """

    def __init__(self, number: int, tenant: str, server: Server, token: str, findings: Findings, tokens: int) -> None:
        self._random, self._number, self._tenant = random.Random(number), number, tenant
        self._findings, self._tokens = findings, tokens
        self._http = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=None)
        self._made, self._forgotten, self._repeated = 0, set[str](), set[str]()
        self.ledger, self.documents = Ledger(), dict[str, str]()
        self._unsure: dict[str, str] = {}  # documents whose call was not answered
        self._session = self._new_name()
        self._corpus = f"corpus-{number}"

    def run(self, over: threading.Event) -> None:
        """Call until it is over."""
        work = (
            [self._ask] * 4 + [self._stream] * 3 + [self._go_away] * 2 + [self._edit, self._add, self._add, self._forget]
        ) + [self._upload, self._recall, self._search, self._embed, self._complete]
        while not over.is_set():
            if len(self.ledger.known) >= _LONGEST:
                self._delete()
            act = self._random.choice(work)
            try:
                act()
                self._findings.did(act.__name__.strip("_"))
            except Gone:
                self._findings.did("unanswered")
            except Exception as error:
                self._findings.found(f"{self._session}: {act.__name__} raised {type(error).__name__}: {error}")
            self.check()

    def check(self, patience: float = _PATIENCE) -> None:
        """Look whether everything is stored that was said, once, and nothing else.

        Args:
            patience: seconds to wait for a server that is restarted.
        """
        last = time.monotonic() + patience
        while True:
            try:
                answer = self._call("GET", f"/v1/sessions/{self._session}/messages", missing=True)
                break
            except Gone:
                if time.monotonic() > last:
                    return self._findings.found(f"{self._session}: the server does not come back")
                time.sleep(0.1)
        found = [Said(one["id"], one["role"], one["content"]) for one in answer.get("data", ())]
        if wrong := self.ledger.settle(found):
            self._findings.found(f"{self._session}: {wrong}")

    def check_all(self) -> None:
        """Look at the corpus, and read every row of the session."""
        self.check()
        listed = self._call("GET", f"/v1/corpora/{self._corpus}/documents", missing=True).get("data", ())
        names = sorted(document["name"] for document in listed)
        if len(set(names)) != len(names) or not set(self.documents) <= set(names) <= {*self.documents, *self._unsure}:
            self._findings.found(f"{self._corpus}: {names} are stored, not {sorted(self.documents)}")
        if self.ledger.known:
            verified = self._call("GET", f"/v1/sessions/{self._session}/verify")
            if not verified["ok"]:
                self._findings.found(f"{self._session}: {verified['problems']}")

    # --- what it does -------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        text = self._text()
        with self._maybe(self._expected(text)):
            answer = self._call("POST", "/v1/chat/completions", self._asking(text), key=uuid.uuid4().hex)
            self._answered(text, answer["choices"][0]["message"]["content"], answer["hmt"])

    def _stream(self) -> None:
        text, answer, about = self._text(), "", None
        with self._maybe(self._expected(text)):
            for chunk in self._chunks(self._asking(text) | {"stream": True}):
                answer += (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""
                about = chunk.get("hmt", about)
            if about is None:
                raise Gone
            self._answered(text, answer, about)

    def _go_away(self) -> None:
        """Leave in the middle of an answer, and ask for another: what was left is whole, or not there."""
        left, text = self._text(), self._text()
        whole = self._expected(left)
        asked = self._asking(left) | {"stream": True, "max_tokens": 8 * self._tokens}
        with self._maybe(whole), closing(self._chunks(asked)) as chunks:
            for _ in zip(range(2), chunks, strict=False):
                pass
        before = [message.id for message in self.ledger.known]
        with self._maybe(whole, self._expected(text), self._expected(left, text)):
            answer = self._call("POST", "/v1/chat/completions", self._asking(text))
            # Now nothing is being written. What is there is the old, perhaps the answer that was left, and the new.
            found = self._stored()
        new = found[-2:]
        rest = found[:-2]
        kept = [message for message in rest if message.id in before]
        if not (_fits(new, [("user", text), ("assistant", answer["choices"][0]["message"]["content"])])):
            self._findings.found(f"{self._session}: {_shown(new)} is not what was answered")
        if kept != self.ledger.known or not (rest == kept or _fits(rest, whole)):
            self._findings.found(f"{self._session}: {_shown(rest)} is stored after a client went away from {whole}")
        self.ledger = Ledger(found)

    def _edit(self) -> None:
        asked = next((at for at in reversed(range(len(self.ledger.known))) if self.ledger.known[at].role == "user"), None)
        if not asked:  # the first message with other words is another message
            return
        before, text = self.ledger.known[:asked], self._text()
        history = [{"role": message.role, "content": message.text} for message in before]
        body = self._asking(text) | {"messages": [*history, {"role": "user", "content": text}]}
        with self._maybe([*_shown(before), ("user", text), ("assistant", None)]):
            answer = self._call("POST", "/v1/chat/completions", body)
            self._forget_texts(self.ledger.known[asked:])
            self.ledger.known = before
            self._answered(text, answer["choices"][0]["message"]["content"], answer["hmt"])

    def _add(self) -> None:
        texts = [self._text(), "I see."]
        expected = [("user", texts[0]), ("assistant", texts[1])]
        with self._maybe([*self._expected(), *expected]):
            messages = [{"role": role, "content": text} for role, text in expected]
            ids = self._call("POST", f"/v1/sessions/{self._session}/messages", {"messages": messages})["message_ids"]
            self.ledger.known += [Said(made, *each) for made, each in zip(ids, expected, strict=True)]

    def _forget(self) -> None:
        asked = [at for at, message in enumerate(self.ledger.known[:-1]) if message.role == "user"]
        if not asked:
            return
        at = self._random.choice(asked)
        going, left = self.ledger.known[at : at + 2], [*self.ledger.known[:at], *self.ledger.known[at + 2 :]]
        with self._maybe(list(_shown(left))):
            query = "&".join(f"id={message.id}" for message in going)
            self._call("DELETE", f"/v1/sessions/{self._session}/messages?{query}")
            self._forget_texts(going)
            self.ledger.known = left

    def _delete(self) -> None:
        gone = self.ledger.known
        try:
            self._call("DELETE", f"/v1/sessions/{self._session}", missing=True)
        except Gone:
            return
        self._forget_texts(gone)
        self._session, self.ledger = self._new_name(), Ledger()
        self._findings.did("delete")

    def _upload(self) -> None:
        name, text = f"document {self._random.randrange(5)}", " ".join(self._text() for _ in range(5))
        before, self._unsure[name] = self.documents.get(name), text
        body = {"documents": [{"name": name, "text": text}]}
        self._call("POST", f"/v1/corpora/{self._corpus}/documents", body)
        self._forgotten |= set(_canaries(before or ""))
        self.documents[name] = self._unsure.pop(name)

    def _recall(self) -> None:
        if self.ledger.known:
            self._looks("GET", f"/v1/sessions/{self._session}/recall?query=morning+sea&top_k=20")

    def _search(self) -> None:
        self._looks("GET", "/v1/search?query=morning+sea&top_k=50")

    def _embed(self) -> None:
        self._call("POST", "/v1/embeddings", {"input": [self._text()]}, refused=True)

    def _complete(self) -> None:
        self._call("POST", "/v1/completions", {"prompt": self._text(), "max_tokens": self._tokens})

    # --- how it does it -----------------------------------------------------------------------------------------------

    def _text(self) -> str:
        return f"Good morning ~{self._tenant}-{uuid.uuid4().hex[:12]}~, what do you know of the sea?"

    def _new_name(self) -> str:
        self._made += 1
        return f"client-{self._number}-{self._made}"

    def _asking(self, text: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        options = {"max_tokens": self._tokens, "temperature": 1.0}  # a tiny model would give the same answer again and again
        return {"messages": messages, "metadata": {"session_id": self._session}, **options}

    def _expected(self, *asked: str) -> list[Expected]:
        """Return what the session holds once these are answered."""
        new: list[Expected] = [each for text in asked for each in (("user", text), ("assistant", None))]
        return [*_shown(self.ledger.known), *new]

    def _stored(self) -> list[Said]:
        answer = self._call("GET", f"/v1/sessions/{self._session}/messages", missing=True)
        return [Said(one["id"], one["role"], one["content"]) for one in answer.get("data", ())]

    def _answered(self, text: str, answer: str | None, about: dict[str, Any]) -> None:
        asked, answered = about["message_ids"]
        self.ledger.known += [Said(asked, "user", text), Said(answered, "assistant", answer or "")]
        self._repeated |= set(_canaries(answer or ""))

    def _forget_texts(self, messages: Sequence[Said]) -> None:
        self._forgotten |= {canary for message in messages for canary in _canaries(message.text)}

    @contextmanager
    def _maybe(self, *instead: list[Expected]) -> Iterator[None]:
        """Note what the session may hold as well if no answer comes."""
        try:
            yield
        except Gone:
            self.ledger.instead = list(instead)
            raise

    def _looks(self, method: str, path: str) -> None:
        gone = self._forgotten - self._repeated  # an answer may have said it again
        told = gone & set(_canaries(str(self._call(method, path))))
        if told:
            self._findings.found(f"{self._session}: {path} tells what was forgotten: {sorted(told)}")

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        missing: bool = False,
        refused: bool = False,
    ) -> dict[str, Any]:
        """Call, again while others are busy, and return the body of the answer."""
        headers = {} if key is None else {"Idempotency-Key": key}
        while True:
            try:
                answer = self._http.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                raise Gone from error
            if answer.status_code in _BUSY:
                time.sleep(0.05)
                continue
            self._see(answer.text)
            if answer.is_success:
                return answer.json() if answer.content else {}
            if (missing and answer.status_code == 404) or (refused and answer.status_code == 400):
                return {}
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")

    def _chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an answer that is streamed."""
        while True:
            try:
                with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    if answer.status_code in _BUSY:
                        time.sleep(0.05)
                        continue
                    answer.raise_for_status()
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            self._see(line)
                            yield json.loads(line[6:])
                    return
            except httpx.TransportError as error:
                raise Gone from error

    def _see(self, text: str) -> None:
        """Look for words of other tenants in an answer."""
        if others := {tenant for tenant in _CANARY.findall(text) if tenant != self._tenant}:
            self._findings.found(f"{self._session} of {self._tenant} was told words of {sorted(others)}")


def _canaries(text: str) -> list[str]:
    return [found.group() for found in _CANARY.finditer(text)]


@dataclass
class Life:
    """One process of the server: resident memory and descriptors over time."""

    megabytes: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, server: Server) -> None:
        """Take a sample."""
        self.megabytes.append(server.megabytes())
        self.descriptors.append(server.descriptors())

    @property
    def is_judged(self) -> bool:
        """Whether it ran for long enough to say that its memory does not grow."""
        return len(self.megabytes) >= _LONG

    def wrong(self) -> Iterator[str]:
        """Yield what looks like a leak."""
        half = self.megabytes[len(self.megabytes) // 2 :]
        if self.is_judged and half[-1] > (1 + _MOST_GROWTH) * half[0]:
            yield f"memory grows: {half[0]:.0f} MB, then {half[-1]:.0f} MB"
        if max(self.descriptors, default=0) > _MOST_DESCRIPTORS:
            yield f"{max(self.descriptors)} descriptors are open"

    def __str__(self) -> str:
        memory, files = self.megabytes, self.descriptors
        return (
            f"{len(memory) * _SAMPLE:.0f} s: {memory[0]:.0f} MB at first, {memory[len(memory) // 2]:.0f} MB half-way, "
            f"{memory[-1]:.0f} MB at last; {files[0]}, {files[len(files) // 2]} and {files[-1]} descriptors"
            + ("" if self.is_judged else f"; memory not judged in less than {_LONG * _SAMPLE:.0f} s")
        )


def verdict(wrong: Sequence[str], lives: Sequence[Life]) -> str:
    """Return what is said of a load at last: all that was wrong, or what was looked for and not found."""
    if wrong:
        return "\n".join(["WRONG:", *wrong])
    judged = sum(life.is_judged for life in lives)
    leak = "no leak" if judged == len(lives) else f"no leak of files; memory judged in {judged} of {len(lives)} processes"
    return f"nothing lost, nothing twice, no words of others, {leak}"


def load(
    server: Server, tokens: dict[str, str], minutes: float, *, clients: int, length: int
) -> tuple[Findings, list[Life], list[Client]]:
    """Let clients call a server that runs, restart it twice under them, kill it once, and check all that is stored.

    Args:
        server: a running one.
        tokens: of `TENANTS`.
        minutes: how long.
        clients: how many.
        length: of an answer, in tokens at most.
    """
    findings, lives, over = Findings(), list[Life](), threading.Event()
    names = [TENANTS[number % len(TENANTS)] for number in range(clients)]
    callers = [Client(number, name, server, tokens[name], findings, length) for number, name in enumerate(names)]
    with ThreadPoolExecutor(clients) as threads:
        running = [threads.submit(caller.run, over) for caller in callers]
        try:
            for share, end in _LIVES:
                lives.append(Life())
                until = time.monotonic() + share * 60 * minutes
                while not lives[-1].megabytes or time.monotonic() < until:
                    time.sleep(_SAMPLE)
                    lives[-1].look(server)
                if end is not None:
                    server.stop(end)
                    server.start()
        finally:
            over.set()
    for future in running:
        future.result()
    for caller in callers:
        caller.check_all()
    findings.wrong += [f"process {number}: {wrong}" for number, life in enumerate(lives) for wrong in life.wrong()]
    return findings, lives, callers
