"""vLLM itself, in this process and as a server: `make test-vllm` installs it apart and runs this."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from measuring import same
from tiny import SMALL, VOCAB, byte_tokenizer, random_ids, randomize

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.answerers import ChatServer, VLLMEngine, VLLMServer
from hmt_memory.engine.writing import Writer
from hmt_memory.errors import AnswererError, BackboneError, InputError

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it apart")
pytestmark = [pytest.mark.enable_socket, pytest.mark.filterwarnings("default")]
_STARTS = 900  # seconds
_OPTIONS = {"dtype": "float32", "max_model_len": 256}


def _causal_lm(seed: int) -> Any:
    """Heads as wide as vLLM computes them on a CPU."""
    import transformers as hf

    torch.manual_seed(seed)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = hf.LlamaConfig(vocab_size=VOCAB, hidden_size=128, intermediate_size=96, pad_token_id=0, **heads)
    model = hf.LlamaForCausalLM(config).eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=0.15)
    return model


@pytest.fixture(scope="module")
def model() -> HMTModel:
    """A backbone with a LoRA adapter beside it, and random memory parameters."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(_causal_lm(0), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return randomize(HMTModel.wrap(adapted, byte_tokenizer(), SMALL)).eval()


@pytest.fixture(scope="module")
def folder(model: HMTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("vllm") / "merged"
    model.save_merged(written)
    return written


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    with VLLMEngine(folder, enforce_eager=True, **_OPTIONS) as started:
        yield started


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["--model", str(folder), "--served-model-name", "merged", "--host", "127.0.0.1", "--port", str(port)]
    given += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--enable-prompt-embeds"]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *given], env=environment)
    url, direct = f"http://127.0.0.1:{port}", urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(_STARTS):
            assert server.poll() is None, "it has ended"
            try:
                direct.open(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _answers_alike(model: HMTModel, writer: Writer) -> None:
    """Greedy answers over several views, with memory, are those of the backbone, and so is what is remembered of them."""
    elsewhere = model.with_writer(writer)
    for seed in range(3):
        state = model.read(random_ids(75 + seed, seed=seed))
        asked: dict[str, Any] = {"state": state, "max_new_tokens": 40, "min_new_tokens": 40, "logprobs": 3}
        own, answer = (each.generate(random_ids(6, seed=seed), **asked).finish() for each in (model, elsewhere))
        assert answer.ids == own.ids and answer.text == own.text and same(answer.state, own.state)
        pairs = zip(answer.chances, own.chances, strict=True)
        assert all(abs(one.chosen.logprob - other.chosen.logprob) < 1e-3 for one, other in pairs)
    ended = model.generate(random_ids(5), max_new_tokens=30).finish()
    assert elsewhere.generate(random_ids(5), max_new_tokens=30).finish().ids == ended.ids
    sampled = [elsewhere.generate(random_ids(5), max_new_tokens=20, temperature=1.0, seed=4).finish().ids for _ in range(2)]
    assert sampled[0] == sampled[1]
    left = elsewhere.generate(random_ids(5), max_new_tokens=30, min_new_tokens=30)
    next(left)
    del left


def test_an_engine_answers_as_the_backbone_does(model: HMTModel, engine: VLLMEngine) -> None:
    assert engine.width == 128
    _answers_alike(model, engine)


def test_answers_at_the_same_time_do_not_see_each_other(model: HMTModel, engine: VLLMEngine) -> None:
    elsewhere, answers = model.with_writer(engine), {}

    def answer(seed: int) -> None:
        answers[seed] = elsewhere.generate(random_ids(9, seed=seed), max_new_tokens=12, min_new_tokens=12).finish().ids

    threads = [Thread(target=answer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        own = model.generate(random_ids(9, seed=seed), max_new_tokens=12, min_new_tokens=12).finish()
        assert answers[seed] == own.ids


def test_an_engine_with_other_weights_is_refused(model: HMTModel, engine: VLLMEngine) -> None:
    other = HMTModel.wrap(_causal_lm(5), byte_tokenizer(), SMALL).eval()
    with pytest.raises(BackboneError, match="something else"):
        other.with_writer(engine)
    with model.backbone.without_adapter(), pytest.raises(BackboneError, match="something else"):
        model.with_writer(engine)


def test_an_engine_that_does_not_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(AnswererError, match="does not start"):
        VLLMEngine(tmp_path / "nothing")


def test_a_server_answers_as_the_backbone_does(model: HMTModel, address: str, tmp_path: Path) -> None:
    _answers_alike(model, VLLMServer(address))
    with MemoryStore(tmp_path / "store") as store:
        said = []
        for name, each in (("own", model), ("elsewhere", model.with_writer(VLLMServer(address)))):
            session = store.session(name, each)
            session.add([{"role": "user", "content": "The secret word is zanzibar. " * 3}])
            said.append(session.reply({"role": "user", "content": "Which?"}, max_new_tokens=20).finish().text)
    assert said[0] == said[1]


def test_a_server_answers_from_notes(model: HMTModel, address: str, tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "store") as store:
        session = store.session("notes", model)
        reply = session.reply(
            {"role": "user", "content": "Hi."}, answerer=ChatServer(address), max_new_tokens=5, temperature=0.0
        )
        assert reply.finish().finish_reason in ("length", "stop") and reply.usage.completion_tokens <= 5
        with pytest.raises(InputError, match="refuses"):
            session.reply({"role": "user", "content": "Hi. " * 200}, answerer=ChatServer(address)).finish()
