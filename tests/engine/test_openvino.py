"""The engine for CPUs: it computes what torch computes, whatever the family, and steps aside where it must not count."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_worker import convert_together
from processes import SERVER, start
from tiny import SMALL, byte_tokenizer, else_long, random_ids, tiny_causal_lm, tiny_model

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.engine import checkpoint, graphs
from hmt_memory.engine import openvino as engine
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.engine.view_cache import ViewCache, read_whole
from hmt_memory.errors import BackboneError, ConfigError, MissingDependencyError

pytest.importorskip("openvino")
FAMILIES = [  # those with keys and values
    *("llama", "qwen2", "qwen3", "smollm3", "mistral", "gemma3", "gpt2", "opt-projected"),
    *("gpt-neox", "phi3", "gemma2", "cohere", "granite"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def backbone(family: str = "llama") -> Backbone:
    return tiny_model(family).backbone


@torch.no_grad()
@pytest.mark.parametrize("family", else_long(FAMILIES, *FAMILIES[:8]))
def test_every_family_computes_what_torch_computes(family: str) -> None:
    """Windows that slide included, which are 12 positions wide here."""
    plain = backbone(family)
    given = plain.embed(random_ids(60)[None])
    hidden = plain.body(given)
    logits = plain.head(hidden)
    plain.use_openvino()
    assert plain.engine == "openvino"
    assert apart(plain.body(given), hidden) < 1e-3 and apart(plain.head(hidden), logits) < 0.02
    first, kept = plain.extend(given[:, :30])
    middle, kept = plain.extend(given[:, 30:31], kept)
    last, _ = plain.extend(given[:, 31:], kept)
    assert apart(torch.cat([first, middle, last], dim=1), hidden) < 2e-3


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # whose products have their weights one way and the other
def test_four_bit_weights_compute_nearly_the_same(family: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(graphs, "_LEAST_WEIGHTS", 1)
    plain, eight = backbone(family), backbone(family)
    given = plain.embed(random_ids(60)[None])
    hidden = plain.body(given)
    plain.use_openvino(4)
    eight.use_openvino()
    assert (plain.engine, eight.engine) == ("openvino-4bit", "openvino")
    assert apart(eight.body(given), hidden) < apart(plain.body(given), hidden) < 0.45  # cosines of 0.9
    assert (plain.version[1], eight.version[1]) == ("openvino-4bit", "openvino")  # type: ignore[index]
    sizes = [sum(file.stat().st_size for file in folder.glob("body.bin")) for folder in (plain.conversion, eight.conversion)]
    assert sizes[0] < sizes[1]
    plain.use_openvino()
    assert plain.engine == "openvino" and apart(plain.body(given), eight.body(given)) < 1e-6
    with pytest.raises(BackboneError, match="8 or 4"):
        plain.use_openvino(5)
    assert plain.engine == "torch" and apart(plain.body(given), hidden) < 1e-6


@pytest.mark.parametrize("inner", [0, 1])
def test_four_bit_weights_are_within_half_a_step(inner: int) -> None:
    """Of the range of their group; and those on a grid of sixteen steps, as many GGUF files have them, are exact."""
    openvino = graphs.library()

    def rebuilt(weights: np.ndarray) -> np.ndarray:
        graph = openvino.Model([graphs._smaller(weights, inner)], [], "weights")
        return np.array(openvino.Core().compile_model(graph, "CPU")([])[0])

    chance = np.random.default_rng(0)
    weights = chance.standard_normal((64, 96)).astype(np.float32)
    groups = np.moveaxis(weights, inner, 1).reshape(-1, 32)
    off = np.moveaxis(rebuilt(weights) - weights, inner, 1).reshape(-1, 32)
    assert (np.abs(off) <= (groups.max(1, keepdims=True) - groups.min(1, keepdims=True)) / 30 * 1.001 + 1e-6).all()
    grid = chance.integers(0, 16, groups.shape)
    grid[:, :2] = 0, 15
    shape = np.moveaxis(weights, inner, 1).shape
    exact = np.moveaxis((0.3 * grid - 1.7).reshape(shape), 1, inner).astype(np.float32)
    assert np.allclose(rebuilt(exact), exact, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_what_has_no_keys_and_values_is_refused(family: str) -> None:
    with pytest.raises(BackboneError, match="keys and values"):
        backbone(family).use_openvino()


@torch.no_grad()
def test_a_copy_goes_on_by_itself_and_one_row_becomes_several() -> None:
    plain = backbone()
    given = plain.embed(torch.stack([random_ids(20), random_ids(20, seed=1)]))
    given[1, :12] = given[0, :12]
    expected = plain.body(given)
    plain.use_openvino()
    _, kept = plain.extend(given[:1, :12])
    copied = copy.deepcopy(kept)
    _, kept = plain.extend(given[:1, 5:9], kept)  # the first goes elsewhere
    both, _ = plain.extend(given[:, 12:], plain.repeat(copied, 2))
    assert apart(both, expected[:, 12:]) < 2e-3


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_view_goes_on_from_what_was_kept_of_another(family: str) -> None:
    plain, views = backbone(family), ViewCache()
    embed = plain.embed(random_ids(90))
    expected, *_ = read_whole(plain, embed[:40], embed[60:])
    plain.use_openvino()
    views.prefill(plain, embed[:60], embed[60:], "alice")
    assert views.bytes > embed[:60].nbytes
    for _ in range(2):
        hidden, *_ = views.prefill(plain, embed[:40], embed[60:], "alice")  # leaves it after 40
        assert apart(hidden, expected) < 2e-3


@torch.no_grad()
def test_requests_are_used_again_and_hold_nothing_of_before() -> None:
    plain = backbone()
    rows = [plain.embed(random_ids(count, seed=count)[None]) for count in (9, 30, 4)]
    expected = [plain.body(row) for row in rows]
    plain.use_openvino()
    for _ in range(2):
        for row, hidden in zip(rows, expected, strict=True):
            assert apart(plain.body(row), hidden) < 1e-3
    assert plain._engine is not None and len(plain._engine._idle) == 1


def test_torch_computes_where_something_learns_and_once_weights_have_changed() -> None:
    plain = backbone()
    plain.use_openvino()
    given = plain.embed(random_ids(8)[None]).detach().requires_grad_()
    plain.body(given).sum().backward()
    assert given.grad is not None
    with torch.no_grad():
        before = plain.body(given)
        for value in plain.parameters():
            value.mul_(1.5)
        after = plain.body(given)
        plain._engine = None
        assert apart(before, after) > 0.1 and torch.equal(after, plain.body(given))


@pytest.mark.slow
def test_a_conversion_is_made_once_and_again_where_it_is_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone().use_openvino()
    (folder,) = cache.iterdir()
    made = []
    graph = engine.body_graph
    monkeypatch.setattr(engine, "body_graph", lambda *args: made.append(1) or graph(*args))
    backbone().use_openvino()
    assert not made
    (folder / "body.xml").write_text("<net")
    backbone().use_openvino()
    assert made and [path.name for path in cache.iterdir()] == [folder.name]
    backbone("mistral").use_openvino()  # the same weights, with a window
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
@torch.no_grad()
def test_two_processes_that_convert_at_once_leave_one_conversion(cache: Path, tmp_path: Path) -> None:
    """Whoever comes second uses what the first has written."""
    everybody = SERVER.Barrier(2)
    files = [str(tmp_path / f"{number}.pt") for number in range(2)]
    both = [start(convert_together, everybody, str(cache), file) for file in files]
    [process.join(120) for process in both]
    assert [process.exitcode for process in both] == [0, 0]
    plain = backbone()
    expected = plain.body(plain.embed(random_ids(30)[None]))
    first, second = (torch.load(file) for file in files)
    assert torch.equal(first, second) and apart(first, expected) < 1e-3
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["openvino"], "nothing else is left"


def test_remains_of_conversions_that_were_killed_are_removed(cache: Path) -> None:
    killed, others = cache / ".converting-killed", cache / ".converting-others"
    for folder in (killed, others):
        folder.mkdir(parents=True)
        (folder / "body.bin").write_bytes(b"half")
    os.utime(killed, (0, 0))
    backbone().use_openvino()
    assert not killed.exists() and (others / "body.bin").exists()


@pytest.mark.slow
def test_conversions_that_nobody_has_used_for_long_are_removed(cache: Path) -> None:
    backbone().use_openvino()
    (old,) = cache.iterdir()
    os.utime(old, (0, 0))
    backbone().use_openvino()
    backbone("qwen2").use_openvino()
    assert old.is_dir() and len(list(cache.iterdir())) == 2, "it was used"
    os.utime(old, (0, 0))
    backbone("gpt2").use_openvino()
    assert not old.exists() and len(list(cache.iterdir())) == 2


def test_a_place_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(BackboneError, match="Point HMT_CACHE"):
        backbone().use_openvino()


@pytest.mark.slow
def test_nothing_is_reported_to_anybody(cache: Path) -> None:
    """OpenVINO counts who imports it, unless it is told otherwise."""
    code = (
        "import openvino_telemetry; made = []; openvino_telemetry.Telemetry.__new__ = lambda *a, **k: made.append(1);"
        "from tiny import tiny_model; tiny_model().backbone.use_openvino(); assert not made"
    )
    support = Path(__file__).parents[1] / "support"
    done = subprocess.run([sys.executable, "-c", code], cwd=support, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-600:]


def test_the_comparison_lays_out_weights_as_writing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """For eight positions and more they are laid out once more, in memory that not everybody needs."""
    passes, extend = [], engine.OpenVinoEngine.extend

    def counted(
        self: engine.OpenVinoEngine, embeddings: torch.Tensor, kept: engine.Kept | None
    ) -> tuple[torch.Tensor, engine.Kept]:
        passes.append((embeddings.shape[0] * embeddings.shape[1], kept is None))
        return extend(self, embeddings, kept)

    monkeypatch.setattr(engine.OpenVinoEngine, "extend", counted)
    backbone().use_openvino()
    assert sum(positions for positions, _ in passes) == 24 and max(positions for positions, _ in passes) <= 4
    assert [begins for _, begins in passes] == [True] + [False] * 5


def test_what_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_small", lambda weights, inner: graphs.ops().constant(weights[::-1].copy()))
    with pytest.raises(BackboneError, match="something else than torch"):
        wide = Backbone(tiny_causal_lm("llama"), None)
        monkeypatch.setattr(graphs, "_LEAST_WEIGHTS", 1)
        wide.use_openvino()


@pytest.mark.slow
def test_loading_chooses_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)

    def loaded(**options: str) -> str:
        return HMTModel.from_pretrained(folder, config=SMALL, **options).backbone.engine  # type: ignore[arg-type]

    monkeypatch.setenv("HMT_DTYPE", "float32")
    assert loaded() == "torch", "it is too small to win anything"
    monkeypatch.setattr(checkpoint, "CONVERTED", (1, 10**9))
    assert loaded() == "openvino" and loaded(dtype="float32") == "torch" and loaded(engine="torch") == "torch"
    assert loaded(dtype="float32", engine="openvino") == "openvino"
    assert [loaded(engine="openvino-4bit"), loaded(engine="openvino-4bit"), loaded()] == ["openvino-4bit"] * 2 + ["openvino"]
    monkeypatch.setenv("HMT_ENGINE", "torch")
    assert loaded() == "torch" and loaded(engine="openvino") == "openvino"
    with pytest.raises(ConfigError, match="engine='fast' is not one of auto, torch, openvino"):
        loaded(engine="fast")
    with pytest.raises(BackboneError, match="in fp32 on a CPU"):
        loaded(dtype="bfloat16", engine="openvino")
    monkeypatch.delenv("HMT_ENGINE")
    monkeypatch.setattr(engine, "available", lambda: False)
    assert loaded() == "torch"
    with pytest.raises(MissingDependencyError, match="pip install"):
        loaded(engine="openvino")


@pytest.mark.slow
def test_a_session_goes_on_by_either_engine(tmp_path: Path) -> None:
    """Which engine computes is no part of who reads: what one has read, the other recalls and reads on."""
    folder = tmp_path / "model"
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    digests = set()
    for number, kind in enumerate(("torch", "openvino", "torch")):
        reader = HMTModel.from_pretrained(folder, config=SMALL, dtype="float32", engine=kind)
        assert reader.backbone.engine == kind
        digests.add(fingerprint(reader).digest)
        with MemoryStore(tmp_path / "store") as store:
            session = store.session("alice", reader)  # of another reader it would be refused
            recalled = session.recall("the door code", top_k=100)
            assert {message.id for passage in recalled for message in passage.messages} == set(range(1, number + 1))
            session.add({"role": "user", "content": f"Read by {kind}: the door code is {number}. " * 3})
            assert not store.verify().problems
    assert len(digests) == 1
