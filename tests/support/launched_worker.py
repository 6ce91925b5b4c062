"""One of the processes that a launcher starts: FOLDER, and what `hmt` is given. What it was part of is written to FOLDER."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate import PartialState

from hmt_memory.cli import main

prepare = import_module("hmt_memory.train.prepare")  # the package has a function of this name

if __name__ == "__main__":
    sharded: list[Any] = []
    real = prepare.shard_blocks

    def shard_blocks(*arguments: Any, **options: Any) -> Any:
        sharded.append(options)
        return real(*arguments, **options)

    try:
        with mock.patch.object(prepare, "shard_blocks", shard_blocks):
            main(sys.argv[2:])
    finally:
        state = PartialState()
        told = {"processes": state.num_processes, "sharded": len(sharded)}
        (Path(sys.argv[1]) / f"{state.process_index}.json").write_text(json.dumps(told))
