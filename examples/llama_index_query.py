"""Questions to a folder of documents, with citations and without an embedding model.

The folder is read once: asked again in another process, only what has changed would be read.
Run: python examples/llama_index_query.py [FOLDER QUESTION]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.llms.hmt import HMTLLM
from llama_index.retrievers.hmt import HMTQueryEngine

HANDBOOK = {
    "contract.md": """# Working here

The notice period is three months to the end of a quarter. Thirty days of leave a year are yours; ten of them may be taken over
into the next year, until the end of March.""",
    "travel.md": """# Travel

Book trains, not planes, for journeys of less than six hours. Hotels are paid up to 120 euros a night, in London and Paris up
to 180 euros. Receipts go to Carla in accounting within two weeks.""",
    "house.md": """# The house

The canteen opens at half past eleven. Bicycles stand in the cellar, whose door code is 4071. The roof terrace is closed in
winter.""",
}
QUESTIONS = ["How long is the notice period?", "What is the door code of the cellar?", "Who gets the receipts of a journey?"]


def ask(store: str, folder: str, *questions: str) -> None:
    """Answer questions, with the passages that were shown for each."""
    documents = SimpleDirectoryReader(folder).load_data()
    engine = HMTQueryEngine.from_documents(documents, "handbook", llm=HMTLLM(store=store, max_tokens=40))
    for question in questions:
        response = engine.query(question)
        print(f"> {question}\n{response}")
        for one in response.source_nodes[:2]:
            print(f"  [{one.score:.2f}] {one.metadata['file_name']}: {' '.join(one.text.split())[:90]}")
        print()


def main() -> None:
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as folder:
        for name, text in HANDBOOK.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        ask(store, folder, *QUESTIONS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        ask(store, *sys.argv[1:]) if len(sys.argv) > 2 else main()
