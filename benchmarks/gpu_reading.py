"""Reading and answering on a GPU, on the CPU and by plain transformers. A piece of gpu.py."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from measure import english, seconds
from torch import Tensor

from hmt_memory import HMTConfig, HMTModel, MemoryStore
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.evaluate.speed import history

if TYPE_CHECKING:
    from gpu_pieces import Job, Record

QUESTION = {"role": "user", "content": "What did I say about the neighbours?"}
SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


class Sizes(NamedTuple):
    """How much one device reads and answers."""

    text: int  # tokens of one text
    documents: int
    document: int  # characters
    histories: tuple[int, ...]  # tokens
    written: int  # tokens of an answer
    rounds: int


HISTORIES = (1000, 10_000, 100_000)
FULL, ON_CPU = Sizes(16_384, 32, 10_000, HISTORIES, 32, 2), Sizes(2048, 8, 2000, HISTORIES, 16, 2)
ENGINE = "the engine, all visible"
SMALL = Sizes(100, 3, 100, (100, 300), 4, 1)
PROMPTS, SMALL_PROMPTS = (1000, 4000, 8000), (50,)  # tokens that plain transformers sees


def model_name(job: Job) -> str:
    """Return the model's name; a dry run has a tiny random one, which is made here."""
    if not job.small:
        return DEFAULT_MODEL
    folder = Path(job.out) / "tiny"
    if not folder.exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        sys.path.insert(0, str(SUPPORT))
        from tiny import byte_tokenizer

        torch.manual_seed(0)
        sizes: dict[str, int] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        ends: dict[str, int] = {"eos_token_id": 256, "bos_token_id": 257}
        config = LlamaConfig(vocab_size=300, max_position_embeddings=4096, **sizes, **ends)
        LlamaForCausalLM(config).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return str(folder)


def load(job: Job, device: str) -> HMTModel:
    """Load the model: in bf16 by torch on a GPU, as users have it on a CPU."""
    config = HMTConfig(segment_length=16, sensory_length=4) if job.small else None
    dtype = "bfloat16" if device == "cuda" else "auto"
    return HMTModel.from_pretrained(model_name(job), config=config, dtype=dtype, device=device)


def reading(job: Job, record: Record) -> None:
    """Measure reading, first tokens and writing on both devices, and beside plain transformers on the first."""
    sizes = SMALL if job.small else FULL
    model = load(job, job.device)
    record.settings |= {"model": Path(model.backbone.name).name, "dtype": str(model.backbone.dtype)[6:]}
    found: dict[str, dict[str, Any]] = {}
    devices = list(dict.fromkeys((job.device, "cpu")))
    _as_users_meet_it(record, model, sizes, found, devices)
    if job.device == "cuda":
        most = torch.cuda.max_memory_allocated() / 2**20
        record.notes.append(f"memory of the device that torch held at most: {most:.0f} MiB")
    columns = ["prompt, tokens", "who", "first token, s", "writing, tokens/s", "tokens alike"]
    rows: list[list[Any]] = []
    for prompt in SMALL_PROMPTS if job.small else PROMPTS:
        rows += beside(model, english(model, prompt), sizes)
        record.table("one prompt, greedily, with the same weights and a KV cache", columns, rows)
    if not any(row[4] for row in rows if row[1] == ENGINE):
        raise AssertionError("the engine writes other tokens than transformers")
    record.notes.append(f"tokens alike: how many of {sizes.written}, from the first on, are those of transformers")
    if job.device != "cpu":
        model = load(job, "cpu")
        record.settings["on the CPU"] = f"{str(model.backbone.dtype)[6:]}, {model.backbone.engine}"
        _as_users_meet_it(record, model, ON_CPU, found, devices)
    record.end("done")


def _as_users_meet_it(
    record: Record, model: HMTModel, sizes: Sizes, found: dict[str, dict[str, Any]], devices: list[str]
) -> None:
    """Measure on the device of a model, and write the table of all devices.

    Args:
        record: takes the table.
        model: reads and answers.
        sizes: how much.
        found: what was measured, by device; grows.
        devices: the columns.
    """
    here = model.backbone.device.type
    record.notes.append(f"on {here}: {sizes._asdict()}")
    for what, value, unit in measured(model, sizes):
        found.setdefault(what, {"unit": unit})[here] = value
        rows = [[name, *(row.get(place) for place in devices), row["unit"]] for name, row in found.items()]
        record.table("as users meet it", ["what", *devices, "unit"], rows)


@torch.no_grad()
def beside(model: HMTModel, prompt: Tensor, sizes: Sizes) -> Iterator[list[Any]]:
    """Yield, for transformers, the engine, and HMT's view of a stream: first token, writing, tokens alike.

    Args:
        model: on any device, computed by torch.
        prompt: [t] token ids.
        sizes: how much is written, how often.
    """
    ways: dict[str, Callable[[int], list[int] | None]] = {
        "transformers": lambda count: _by_transformers(model, prompt, count),
        ENGINE: lambda count: _by_engine(model, prompt, count),
        "HMT, reading the prompt": lambda count: _by_hmt(model, prompt, count),
    }
    truth: list[int] | None = None
    for who, write in ways.items():
        written = write(sizes.written)  # warms up
        truth = truth or written
        first = statistics.median(seconds(lambda write=write: write(1)) for _ in range(sizes.rounds))
        whole = statistics.median(seconds(lambda write=write: write(sizes.written)) for _ in range(sizes.rounds))
        alike = None if written is None else _alike(written, truth or [])
        yield [len(prompt), who, first, (sizes.written - 1) / max(whole - first, 1e-9), alike]


def _by_transformers(model: HMTModel, prompt: Tensor, count: int) -> list[int]:
    from transformers import GenerationConfig

    ids = prompt[None].to(model.backbone.device)
    options = GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0, use_cache=True)
    made = model.backbone.causal_lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
    return [int(token) for token in made[0, len(prompt) :]]


def _by_engine(model: HMTModel, prompt: Tensor, count: int) -> list[int]:
    backbone, made = model.backbone, list[int]()
    hidden, cache = backbone.advance(backbone.embed(prompt.to(backbone.device))[None])
    while True:
        chosen = backbone.head(hidden).argmax(dim=-1)
        made += chosen.tolist()  # waits for it
        if len(made) == count:
            return made
        hidden, cache = backbone.advance(backbone.embed(chosen)[None], cache)


def _by_hmt(model: HMTModel, prompt: Tensor, count: int) -> None:
    model.generate(prompt, max_new_tokens=count, min_new_tokens=count).finish()


def _alike(ours: list[int], theirs: list[int]) -> int:
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return same.index(False) if False in same else len(same)


def measured(model: HMTModel, sizes: Sizes) -> Iterator[tuple[str, float, str]]:
    """Yield what, value and unit of reading a text and a corpus, and of answers in sessions with histories behind them.

    Args:
        model: reads and answers.
        sizes: how much.
    """
    from pydoc_data.topics import topics

    ids, wait = english(model, sizes.text), _waiting(model)
    model.read(ids[: 2 * model.config.segment_length])
    spent = [seconds(lambda: (model.read(ids), wait())) for _ in range(sizes.rounds)]
    yield "reading one text", len(ids) / statistics.median(spent), "tokens/s"
    text = "\n\n".join(topics[key] for key in sorted(topics))
    documents = [text[number * sizes.document :][: sizes.document] for number in range(sizes.documents)]
    tokens = sum(len(model.backbone.encode(document, literal=True)) for document in documents)
    with tempfile.TemporaryDirectory(prefix="hmt-gpu-") as folder, MemoryStore(folder) as store:
        spent = [
            seconds(lambda name=f"corpus {number}": (store.corpus(name, model).add_documents(documents), wait()))
            for number in range(sizes.rounds)
        ]
        yield "reading documents of a corpus together", tokens / statistics.median(spent), "tokens/s"
        for behind in sizes.histories:
            yield from _answering(store, model, behind, sizes)


def _answering(store: MemoryStore, model: HMTModel, behind: int, sizes: Sizes) -> Iterator[tuple[str, float, str]]:
    """Measure answers in a session with so many tokens behind it; the first one opens it."""
    session = history(store, model, f"{behind} tokens", behind)
    firsts, speeds = [], []
    for _ in range(sizes.rounds + 1):
        begun = time.perf_counter()
        reply = session.reply(QUESTION, max_new_tokens=sizes.written, min_new_tokens=sizes.written)
        next(reply)
        firsts.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        reply.finish()
        speeds.append((sizes.written - 1) / (time.perf_counter() - begun))
    yield f"first token behind {behind:,} tokens, as the session opens", firsts[0], "s"
    yield f"first token behind {behind:,} tokens", statistics.median(firsts[1:]), "s"
    yield f"writing behind {behind:,} tokens", statistics.median(speeds[1:]), "tokens/s"


def _waiting(model: HMTModel) -> Callable[[], None]:
    return torch.cuda.synchronize if model.backbone.device.type == "cuda" else lambda: None
