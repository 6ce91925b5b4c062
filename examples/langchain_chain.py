"""A chat model with memory in a LangChain chain: only the line that makes the model is HMT's.

The conversation is kept in a temporary folder. Run: python examples/langchain_chain.py
"""

from __future__ import annotations

import tempfile

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_hmt import HMTChatModel, HMTRetriever

TALK = (
    "The door code of the office is 4071.",
    "What is the capital of France?",
    "How do I cook rice?",
    "What is a prime number?",
)
QUESTION = "What is the door code of the office?"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = HMTChatModel(store=folder, max_tokens=24)  # instead of ChatOpenAI(...)
        prompt = ChatPromptTemplate.from_messages([("system", "You are brief."), ("human", "{text}")])
        chain = prompt | model | StrOutputParser()
        config = {"configurable": {"session_id": "alice"}}
        for text in (*TALK, QUESTION):
            print(f"> {text}")
            for piece in chain.stream({"text": text}, config):
                print(piece, end="", flush=True)
            print("\n")
        retriever = HMTRetriever(store=folder, session_id="alice", k=8)
        print("Recalled for 'the door code', by weight:")
        for passage in retriever.invoke("the door code"):
            print(f"[{passage.metadata['attention_weight']:.2f}] {' '.join(passage.page_content.split())}")


if __name__ == "__main__":
    main()
