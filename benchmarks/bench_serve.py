"""What a server costs beside the library, and how it answers many clients at once, on this machine's own address.

    python benchmarks/bench_serve.py [--calls 100] [--clients 1 4 16 32] [--tokens 32]
    python benchmarks/bench_serve.py --minutes 60 [--clients 6] [--tokens 32] [--model NAME]

The server runs in a process of its own. The cost of a call and of a token is measured on a tiny random model with the default
tokenizer, whose own time is small; many clients at once ask the default model, each of 32 sessions once. Prints times of one
run; of the waits for a first word the longest, since of so few there is no 99th percentile.

With --minutes, clients of three tenants ask, edit, forget, upload and go away while the server, with the tiny model or the one
that is named, is restarted twice and killed once. It fails if anything was lost or stored twice, if anybody was told another
tenant's words or what was forgotten, or if memory or open files grow; the memory of a process that ran for less than five
minutes is not judged, and it says so.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `hmt` sets it: the same threads on both sides

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import transformers
from measure import interleaved, machine
from serve_load import TENANTS, failures, load, verdict
from serving import Server

from hmt_memory import Assistant, HMTModel
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.server.tokens import Tokens

_SESSIONS = 32
_PLAIN = ("--reader", "same", "--device", "cpu", "--dtype", "float32")  # of the tiny model
_HELLO = {"role": "user", "content": "Good morning. What do you know of the sea?"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--clients", type=int, nargs="*")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--model")
    options = parser.parse_args()
    if options.minutes is not None:
        sys.exit(mixed(options.minutes, (options.clients or [6])[0], options.tokens, options.model))
    model = HMTModel.from_pretrained(DEFAULT_MODEL)
    print(machine(model))
    with tempfile.TemporaryDirectory() as folder:
        costs(Path(folder) / "one", _tiny(Path(folder) / "tiny", model), options.calls, options.tokens)
        print(f"\n{'clients':>8} {'answers/s':>10} {'first token p50':>16} {'longest':>8}")
        for clients in options.clients or [1, 4, 16, 32]:
            crowd(Path(folder) / f"{clients} clients", clients, options.tokens)


def mixed(minutes: float, clients: int, tokens: int, model: str | None) -> int:
    """Print what came of a mixed load. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        name = model or _tiny(Path(folder) / "tiny", HMTModel.from_pretrained(DEFAULT_MODEL))
        store = Path(folder) / "store"
        store.mkdir()
        kept = Tokens(store)
        secrets = {tenant: kept.make(tenant) for tenant in TENANTS}
        with Server(store, name, "--log-format", "json", *(() if model else _PLAIN)) as server:
            findings, lives, callers = load(server, secrets, minutes, clients=clients, length=tokens)
        errors = failures((Path(folder) / "server.log").read_text(), clients)
    print(f"{clients} clients of {len(TENANTS)} tenants for {minutes} minutes; the server ran {len(lives)} times:")
    print("\n".join(f"    {life}" for life in lives))
    print("calls: " + ", ".join(f"{count} {what}" for what, count in sorted(findings.done.items())))
    print(f"at last: {sum(len(caller.ledger.known) for caller in callers)} messages in {clients} sessions")
    wrong = [*findings.wrong, *(f"the server has written: {line}" for line in errors)]
    print(verdict(wrong, lives))
    return int(bool(wrong))


def costs(store: Path, model: str, calls: int, tokens: int) -> None:
    """Print what HTTP adds to a call, and to a token that is streamed."""
    assistant = Assistant(model, reader="same", store=store, device="cpu", dtype="float32")
    asked = {"messages": [_HELLO], "max_tokens": tokens}

    def direct() -> None:
        assistant.reply([_HELLO], max_new_tokens=tokens).finish()

    with Server(store, model, *_PLAIN) as server, httpx.Client(base_url=server.url, timeout=600) as client:

        def whole() -> None:
            client.post("/v1/chat/completions", json=asked).raise_for_status()

        def streamed() -> None:
            assert list(_pieces(client, asked))

        times = interleaved({"alone": direct, "whole": whole, "streamed": streamed}, calls)
    alone, by_call, by_token = (statistics.median(each) for each in times.values())
    call, token = 1000 * (by_call - alone), 1000 * (by_token - by_call) / tokens
    print(f"the library alone, an answer of {tokens} tokens: {1000 * alone:.1f} ms")
    print(f"through the server: {call:+.1f} ms a call, and {token:+.2f} ms a token if it is streamed")


def sessions_of(number: int, clients: int) -> range:
    """Return the sessions that a client asks in: together they ask in each once, and no two in the same.

    Args:
        number: of the client, from 0.
        clients: how many there are.
    """
    return range(number, max(_SESSIONS, clients), clients)


def crowd(store: Path, clients: int, tokens: int) -> None:
    """Print how many answers a second clients at once are given, and how long each waits for its first word."""

    def ask(number: int) -> list[float]:
        waited = []
        with httpx.Client(base_url=server.url, timeout=600) as client:
            for session in sessions_of(number, clients):
                asked = {"messages": [_HELLO], "max_tokens": tokens, "metadata": {"session_id": f"session {session}"}}
                begun = time.perf_counter()
                for at, _ in enumerate(_pieces(client, asked)):
                    if at == 0:
                        waited.append(time.perf_counter() - begun)
        return waited

    with Server(store, DEFAULT_MODEL) as server, ThreadPoolExecutor(clients) as threads:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "Good", "max_tokens": 1}, timeout=600)  # loads the model
        begun = time.perf_counter()
        firsts = [second for waited in threads.map(ask, range(clients)) for second in waited]
        spent = time.perf_counter() - begun
    print(f"{clients:>8} {len(firsts) / spent:>10.2f} {statistics.median(firsts):>14.2f} s {max(firsts):>6.2f} s", flush=True)


def _pieces(client: httpx.Client, asked: dict[str, object]) -> Iterator[str]:
    """Yield the pieces of an answer that is streamed."""
    with client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if piece := chunk["choices"][0]["delta"].get("content"):
                    yield piece


def _tiny(folder: Path, model: HMTModel) -> str:
    """Write a tiny random model with the tokenizer of another one."""
    config = transformers.LlamaConfig(
        vocab_size=model.backbone.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=2048,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    model.backbone.tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
