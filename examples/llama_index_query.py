"""Questions to a folder of documents, with citations and without an embedding model.

The folder is read once: asked again in another process, only what has changed would be read.
Run: python examples/llama_index_query.py
"""

from __future__ import annotations

import os
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


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        Path("office").mkdir()
        for name, text in HANDBOOK.items():
            Path("office", name).write_text(text, encoding="utf-8")
        documents = SimpleDirectoryReader("office").load_data()
        engine = HMTQueryEngine.from_documents(documents, "handbook", llm=HMTLLM(store="memories", max_tokens=24))
        for question in QUESTIONS:
            response = engine.query(question)
            print(f"> {question}\n{response}")
            for source in response.source_nodes:
                print(f"  [{source.score:.2f}] {source.metadata['file_name']}: {' '.join(source.text.split())[:90]}")
            print()
        os.chdir("/")


if __name__ == "__main__":
    main()
