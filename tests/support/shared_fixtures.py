"""Fixtures: a tokenizer, a tiny model, and the real default model (loaded once). A plugin wherever tests run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres
import processes
import pytest
import torch
import transformers
from tiny import LONG, byte_tokenizer, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from hmt_memory import HMTConfig, HMTModel
from hmt_memory.assistant import assistant, loading
from hmt_memory.engine import places
from hmt_memory.sessions import default_reader

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, torch.get_num_threads() // WORKERS)  # the cores are shared out among the workers
torch.set_num_threads(1)  # a pool of threads would not survive a fork
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # for the processes that tests start
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test another release of transformers than the one that is asked for."""
    wanted = os.environ.get("HMT_TRANSFORMERS", transformers.__version__)
    if wanted != transformers.__version__:
        raise pytest.UsageError(f"transformers {wanted} is to be tested, and {transformers.__version__} is imported")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave long tests out, unless they are asked for."""
    for item in items:
        if not LONG and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: runs where HMT_LONG_TESTS is set"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the collector from going through what was imported, again and again: some million objects."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        processes.begin()


@pytest.fixture(autouse=True)
def nothing_shared() -> None:
    """Weights and assistants that somebody still holds are no other test's: it may have put another model in their place."""
    loading._weights.clear()
    assistant._assistants.clear()


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Tiny models run fastest on one thread, many times so on a busy machine; the real one takes all of this worker's."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("real") else 1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> HMTModel:
    return tiny_model(tokenizer=tokenizer)


@pytest.fixture(scope="session")
def smollm2() -> HMTModel:
    """The real default model; the first use on a machine converts its weights."""
    return HMTModel.from_pretrained("smollm2-135m-instruct")


def _save_tiny_model(folder: Path, template: str | None, layers: int = 1) -> Path:
    byte_tokenizer(template).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=4096, eos_token_id=256, bos_token_id=257, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _save_trained(model: str, folder: Path) -> str:
    """Save a model's memory as an adapter, which counts as trained."""
    HMTModel.from_pretrained(model, config=HMTConfig(segment_length=48), dtype="float32", device="cpu").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model with a chat template."""
    return str(_save_tiny_model(tmp_path_factory.mktemp("chatty"), TEMPLATE))


@pytest.fixture(scope="session")
def layered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of one that has two layers."""
    return str(_save_tiny_model(tmp_path_factory.mktemp("layered"), TEMPLATE, layers=2))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model without one."""
    return str(_save_tiny_model(tmp_path_factory.mktemp("plain"), None))


@pytest.fixture(scope="session")
def trained(chatty: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model with a chat template and an adapter, so that it reads for itself."""
    return _save_trained(chatty, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def bundled(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder of a trained model that stands in for the bundled one, which reads for models whose memory is not trained."""
    folder = _save_trained(plain, tmp_path / "bundled")
    monkeypatch.setattr(default_reader, "DEFAULT_MODEL", folder)
    monkeypatch.setattr(places, "bundled_file", lambda name=None: Path(folder))
    return folder


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Any]:
    """A PostgreSQL server of the tests' own."""
    mine = tmp_path_factory.getbasetemp()
    server = postgres.start(mine if worker_id == "master" else mine.parent)
    yield server
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store that does not exist yet."""
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))
    url = postgres.new_store(postgres_server)
    yield url
    postgres.drop(url)


@pytest.fixture(params=["folder", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """The place of a store that does not exist yet, in each kind of database."""
    return tmp_path / "store" if request.param == "folder" else request.getfixturevalue("postgres_url")
