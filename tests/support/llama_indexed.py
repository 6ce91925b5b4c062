"""What tests of LlamaIndex's classes begin with: a model that recalls sentences, two of them, and messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.hmt import HMTLLM
from llama_index.retrievers.hmt import HMTRetriever
from scripted import MODEL as SCRIPTED_MODEL
from scripted import ScriptedAssistant
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant

# Segments that hold a sentence; random weights recall nothing in particular.
MODEL = light_model(
    config=replace(REMEMBERING, segment_length=64, replay_tokens=40, pinned_tokens=80, selection="words"),
    tokenizer=byte_tokenizer(),
)
NOTICE = "The notice period is three months to the end of a quarter."
CANTEEN = "The canteen opens at noon and closes at two."
SAYS = "Hello, nice to meet you."


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


@pytest.fixture
def llm(tmp_path: Path) -> HMTLLM:
    """Says what the script wants; tells engines that it takes 1,024 tokens."""
    return HMTLLM(engine=ScriptedAssistant(SCRIPTED_MODEL, store=tmp_path / "memories"), context_window=1024)


@pytest.fixture
def handbook(llm: HMTLLM) -> HMTRetriever:
    retriever = HMTRetriever("handbook", llm=llm, similarity_top_k=3)
    contract = Document(text=NOTICE, metadata={"file_name": "contract.md", "year": 2024})
    retriever.add_documents([contract, Document(text=CANTEEN)])
    return retriever


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)
