"""The package: what is public, what importing costs, that the wheel works outside the repository, that docs run."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT
from tiny_gguf import write

import hmt_memory
import hmt_memory.assistant

FILES = {
    ".".join(path.relative_to(ROOT / "hmt_memory").with_suffix("").parts): path
    for path in sorted((ROOT / "hmt_memory").rglob("*.py"))
    if path.stem != "__init__"
}
MODULES = sorted(FILES)
SOURCES = [path for folder in ("hmt_memory", "integrations", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]
# The last runs another model, whose retrieval ours is compared with.
KNOW_HUGGING_FACE = [
    f"hmt_memory/{name}.py" for name in ("engine/backbone", "engine/traced", "engine/weights", "evaluate/evidence")
]


def test_the_public_names_are_these() -> None:
    assert set(hmt_memory.__all__) == {
        *("HMTConfig", "HMTError", "HMTModel", "HMTOutput", "HMTState"),
        *("Assistant", "Corpus", "Generation", "MemoryStore", "RecalledSegment", "Session", "ToolCall", "Usage"),
        *("Capability", "Decoding", "Tiers", "ViewConfig"),
    }
    for name in hmt_memory.__all__:
        assert getattr(hmt_memory, name).__doc__
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = hmt_memory.Nonsense


def test_the_lowest_versions_that_are_tested_are_those_that_are_admitted() -> None:
    admitted = (ROOT / "pyproject.toml").read_text()
    (lowest,) = re.findall(r'"transformers>=([\d.]+),', admitted)
    (tested,) = re.findall(r"^transformers==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE)
    assert tested.removesuffix(".0") == lowest
    assert f"'transformers>={lowest},<6'" in (ROOT / "hmt_memory/cli/doctor.py").read_text(), "what it advises"


def test_the_workflow_makes_all_that_a_clean_checkout_has_to_pass() -> None:
    texts = [(ROOT / name).read_text().replace("\\\n", " ") for name in (".ci/run", ".github/workflows/ci.yml")]
    asked, made = (
        {word for line in re.findall(r"^(?:\s+- run: )?make (.*)$", text, re.MULTILINE) for word in line.split()}
        for text in texts
    )
    targets = {word for word in asked if re.fullmatch(r"[a-z][a-z-]*", word)}
    assert {"lint", "docs", "test-all", "test-other", "test-lowest"} <= targets <= made


def test_importing_is_light() -> None:
    code = (
        "import sys, hmt_memory; from hmt_memory import HMTConfig, HMTError; HMTConfig();"
        "print([m for m in ('torch', 'transformers', 'faiss', 'triton', 'numpy', 'peft') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.slow
def test_the_engine_never_imports_a_framework_or_faiss() -> None:
    code = (
        "import sys; from hmt_memory import HMTModel; import hmt_memory.sessions.memory_store, hmt_memory.engine.checkpoint;"
        "print([m for m in ('faiss', 'triton', 'peft', 'langchain_core', 'llama_index') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("module", MODULES)
def test_only_the_store_knows_sqlite_and_faiss(module: str) -> None:
    imported = set()
    for node in parsed(FILES[module]).body:
        imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    assert module.startswith("store.") or not imported & {"sqlite3", "faiss"}
    assert "faiss" not in imported, "FAISS is imported when an index is made"


def test_no_file_is_long_and_no_class() -> None:
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                assert (node.end_lineno or 0) - node.lineno < 300, f"{path} {node.name}"


def test_what_has_three_parameters_says_what_each_is() -> None:
    """A protocol says it for what meets it. Commands and routes are called by nobody here, and their options say it."""
    apart = tuple(str(ROOT / "hmt_memory" / folder) + os.sep for folder in ("cli", "server"))
    trees = {path: parsed(path) for path in SOURCES if not str(path).startswith(apart)}
    protocols = {
        (method.name, *parameters(method))
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
        for method in public_functions(node)
        if "Args:" in (ast.get_docstring(method) or "")
    }
    wordless = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path, tree in trees.items()
        for function in public_functions(tree)
        if len(parameters(function)) >= 3 and (text := ast.get_docstring(function)) is not None and "Args:" not in text
        if (function.name, *parameters(function)) not in protocols
    ]
    assert len(protocols) > 10 and wordless == []


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def public_functions(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the public functions of a module or class, and the methods of its public classes."""
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from public_functions(part)
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and not part.name.startswith("_"):
            yield part


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's parameters, but for what a method is called on."""
    given = function.args
    several = [part for part in (given.vararg, given.kwarg) if part is not None]
    names = [part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs, *several)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


@pytest.mark.parametrize("folder", ["hmt_memory", "kernels/hmt_kernels"])
def test_only_the_backbone_and_the_weights_know_hugging_face(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        if path.relative_to(ROOT).as_posix() not in KNOW_HUGGING_FACE:
            text = path.read_text()
            for name in ("last_hidden_state", "past_key_values", "inputs_embeds", "lm_head", "AutoModel"):
                assert name not in text, f"{path.name} knows {name}"


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_examples_in_docstrings_run(module: str) -> None:
    name = "hmt_memory" if module == "__init__" else f"hmt_memory.{module}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_nothing_stands_above_the_llama_index_modules() -> None:
    """An `__init__.py` there would hide LlamaIndex itself."""
    folder = ROOT / "integrations" / "llama_index"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files == {"llms/hmt.py", "memory/hmt.py", "retrievers/hmt.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel installs, in a folder of its own."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    top = {path.name for path in wheel.iterdir()}
    information = f"hmt_memory-{hmt_memory.__version__}.dist-info"
    assert top == {"hmt_memory", "hmt_kernels", "langchain_hmt", "llama_index", "llama_index_hmt", information}
    assert {path.name for path in (wheel / "llama_index").rglob("*")} == {"llms", "memory", "retrievers", "hmt.py"}
    assert (wheel / "hmt_memory" / "py.typed").is_file()
    pages = Path("hmt_memory", "server", "pages")
    expected = {
        path.relative_to(ROOT) for path in (ROOT / pages).rglob("*.*") if path.suffix in (".html", ".css", ".js", ".svg")
    }
    assert len(expected) >= 12 and all((wheel / path).is_file() for path in expected)
    code = (
        f"import sys; sys.path[:] = [{str(wheel)!r}] + [p for p in sys.path if {str(ROOT)!r} + '/' not in p + '/' "
        "or 'site-packages' in p]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "from hmt_memory import HMTModel, HMTConfig; import hmt_memory, hmt_kernels, torch, transformers\n"
        "lm = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(vocab_size=50, hidden_size=16,"
        " num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64))\n"
        "model = HMTModel.wrap(lm, None, HMTConfig(segment_length=8, sensory_length=2))\n"
        "assert model.read(list(range(40))).segments == 5\n"
        "import langchain_hmt; assert langchain_hmt.HMTChatModel().model_name\n"
        "import llama_index.core, llama_index.llms.hmt as llms, llama_index.memory.hmt as m, llama_index.retrievers.hmt as r\n"
        "assert llms.HMTLLM().metadata and m.HMTMemory() and m.HMTMemoryBlock() and r.HMTRetriever('a')\n"
        "print(*(one.__file__ for one in (hmt_memory, hmt_kernels, langchain_hmt, llms, m, r)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all(path.startswith(str(wheel)) for path in ran.stdout.split())


@pytest.mark.slow
def test_a_plain_installation_converts_and_runs_a_gguf_file(tmp_path: Path) -> None:
    """As the bundled model is one; extras bring packages that transformers would miss without a word of ours."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in sorted(_installed("hmt-memory", set())):
        (site / entry.name).symlink_to(entry)
    code = (
        "import sys; from hmt_memory import HMTModel, HMTConfig\n"
        "model = HMTModel.from_pretrained(sys.argv[1], config=HMTConfig(segment_length=8, sensory_length=2))\n"
        "assert model.read('Some text, longer than nothing.').tokens == 29"
    )
    command = [sys.executable, "-S", "-c", code, str(write(tmp_path / "tiny.gguf"))]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (site, ROOT, ROOT / "kernels")))}
    settings = {"HMT_CACHE": str(tmp_path / "cache"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ran = subprocess.run(command, env=paths | settings, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def _installed(name: str, known: set[str]) -> set[Path]:
    """Return what a package without extras, and all that it needs, has put into the folder of packages."""
    known.add(canonicalize_name(name))
    package = metadata.distribution(name)
    entries = {Path(str(package.locate_file(file.parts[0]))) for file in package.files or ()}
    for needed in map(Requirement, package.requires or ()):
        wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if wanted and canonicalize_name(needed.name) not in known:
            entries |= _installed(needed.name, known)
    return {entry for entry in entries if entry.name != ".." and entry.exists()}


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("langchain_hmt", "langchain_hmt needs LangChain. Run: pip install 'hmt-memory[langchain]'"),
        *(
            (f"llama_index.{kind}.hmt", "llama_index.*.hmt needs LlamaIndex. Run: pip install 'hmt-memory[llama-index]'")
            for kind in ("llms", "memory", "retrievers")
        ),
    ],
)
def test_without_its_framework_a_class_says_what_to_install(module: str, hint: str, wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import hmt_memory; print('fine'); import {module}"
    ran = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "fine\n" and hint in ran.stderr


def test_every_name_that_the_integrations_may_use_is_there() -> None:
    assert hmt_memory.assistant.__all__ and all(
        getattr(hmt_memory.assistant, name) is not None for name in hmt_memory.assistant.__all__
    )
