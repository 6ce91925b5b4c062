"""What a server costs beside the library, and how it answers many clients at once, on this machine's own address.

    python benchmarks/bench_serve.py [--calls 100] [--clients 1 4 16 32] [--tokens 32]

The cost of a call and of a token is measured on a tiny random model with the default tokenizer, whose own time is small; many
clients at once ask the default model, in 32 sessions. Prints times and ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import transformers
import uvicorn
from measure import interleaved, machine

from hmt_memory import Assistant, HMTModel
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

_SESSIONS = 32
_HELLO = {"role": "user", "content": "Good morning. What do you know of the sea?"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    model = HMTModel.from_pretrained(DEFAULT_MODEL)
    print(machine(model))
    with tempfile.TemporaryDirectory() as folder:
        tiny = _tiny(Path(folder) / "tiny", model)
        costs(
            Assistant(tiny, reader="same", store=Path(folder) / "one", device="cpu", dtype="float32"),
            options.calls,
            options.tokens,
        )
        print(f"\n{'clients':>8} {'answers/s':>10} {'first token p50':>16} {'p99':>8}")
        for clients in options.clients:
            store = Path(folder) / f"{clients} clients"
            crowd(Assistant(model, store=store), clients, options.tokens)


def costs(assistant: Assistant, calls: int, tokens: int) -> None:
    """Print what HTTP adds to a call, and to a token that is streamed."""
    asked = {"messages": [_HELLO], "max_tokens": tokens}

    def direct() -> None:
        assistant.reply([_HELLO], max_new_tokens=tokens).finish()

    with served(assistant) as url, httpx.Client(base_url=url, timeout=600) as client:

        def whole() -> None:
            client.post("/v1/chat/completions", json=asked).raise_for_status()

        def streamed() -> None:
            assert list(_pieces(client, asked))

        times = interleaved({"alone": direct, "whole": whole, "streamed": streamed}, calls)
    alone, by_call, by_token = (statistics.median(each) for each in times.values())
    call, token = 1000 * (by_call - alone), 1000 * (by_token - by_call) / tokens
    print(f"the library alone, an answer of {tokens} tokens: {1000 * alone:.1f} ms")
    print(f"through the server: {call:+.1f} ms a call, and {token:+.2f} ms a token if it is streamed")


def crowd(assistant: Assistant, clients: int, tokens: int) -> None:
    """Print how many answers a second clients at once are given, and how long each waits for its first word."""
    rounds = max(1, _SESSIONS // (2 * clients))

    def ask(number: int) -> list[float]:
        waited = []
        with httpx.Client(base_url=url, timeout=600) as client:
            for turn in range(rounds):
                session = f"session {(number + turn * clients) % _SESSIONS}"
                asked = {"messages": [_HELLO], "max_tokens": tokens, "metadata": {"session_id": session}}
                begun = time.perf_counter()
                for at, _ in enumerate(_pieces(client, asked)):
                    if at == 0:
                        waited.append(time.perf_counter() - begun)
        return waited

    with served(assistant) as url, ThreadPoolExecutor(clients) as threads:
        begun = time.perf_counter()
        firsts = sorted(second for waited in threads.map(ask, range(clients)) for second in waited)
        spent = time.perf_counter() - begun
    late = firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))]
    print(f"{clients:>8} {len(firsts) / spent:>10.2f} {statistics.median(firsts):>14.2f} s {late:>6.2f} s", flush=True)


@contextmanager
def served(assistant: Assistant) -> Iterator[str]:
    """Run a server in a thread; yield its address."""
    app = create_app(assistant, Settings(waiting=1000))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


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
