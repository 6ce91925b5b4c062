"""Retrieval-augmented answers without an embedding model: this project's README is read into a corpus once and asked about.

Run: python examples/langchain_rag.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_hmt import HMTChatModel, HMTRetriever

README = Path(__file__).parent.parent / "README.md"
QUESTION = "What happens to a session when the disk is full?"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        retriever = HMTRetriever(store=folder, corpora=("readme",), k=2)
        retriever.add_documents([Document(README.read_text(encoding="utf-8"), metadata={"source": README.name})])
        model = HMTChatModel(store=folder, max_tokens=40)
        prompt = ChatPromptTemplate.from_template("{passages}\n\nAnswer from these passages: {question}")
        passages = retriever.invoke(QUESTION)
        for passage in passages:
            print(f"[{passage.id}, {passage.metadata['attention_weight']:.2f}] {' '.join(passage.page_content.split())[:100]}")
        chain = (
            {
                "passages": retriever | (lambda documents: "\n\n".join(document.page_content for document in documents)),
                "question": RunnablePassthrough(),
            }
            | prompt
            | model
            | StrOutputParser()
        )
        print(f"\n> {QUESTION}\n{chain.invoke(QUESTION)}")


if __name__ == "__main__":
    main()
