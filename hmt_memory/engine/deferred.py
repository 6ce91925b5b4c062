"""A backbone that OpenVINO runs from a conversion made before, without torch's weights in memory (extension).

Where a conversion is there, answering and reading need the embeddings of some tokens, the tokenizer and the engine; torch's
weights are four times as large as the engine's. So beside a conversion lies what else is known of its backbone, under a name
made from the files that it came from. The weights are loaded when something asks for them: training, saving, moving, looking
(`children` alone shows what is in memory).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BackboneError, HMTError, ModelNotFoundError
from ..files import replacing
from . import adapter, trust, weights
from .backbone import Backbone
from .fingerprint import tokenizer_digest
from .openvino import OpenVinoEngine, versions
from .places import cache_folder
from .traced import fields, head_scale, text_config

_VERSION = 2  # of what is kept


class Known(NamedTuple):
    """What is kept of a converted backbone."""

    embedding: str  # the name of its tensor
    cache_argument: str  # as `Backbone` has it
    digest: str | None  # as `Backbone.identity` has it
    end_ids: list[int]
    parameters: int
    config: dict[str, Any]  # all fields: importing the class that knows them takes seconds
    tokenizer: str  # its class


class DeferredBackbone(Backbone):
    """A backbone that OpenVINO runs, whose weights are loaded when something asks for them.

    Args:
        known: what is kept of it.
        engine: its conversion, compiled.
        embedding: [vocab, d] input embeddings.
        tokenizer: its tokenizer.
        name: by which it is recorded.
        merged: the LoRA adapter in its weights.
        load: returns the model with that adapter merged.
    """

    def __init__(
        self,
        known: Known,
        engine: OpenVinoEngine,
        embedding: Tensor,
        tokenizer: Any,
        *,
        name: str,
        merged: adapter.Merged | None,
        load: Callable[[], Any],
    ) -> None:
        nn.Module.__init__(self)
        self._known, self._load, self._loading = known, load, threading.RLock()
        self.name, self.tokenizer, self.config = name, tokenizer, SimpleNamespace(**known.config)
        self.merged, self.kept_digest = merged, known.digest
        module = nn.Embedding.from_pretrained(embedding)  # type: ignore[no-untyped-call]
        self._embedding = (module,)  # in a tuple, so that it is no part of the model
        self.cache_argument = known.cache_argument
        self.compiled, self._mark = False, object()
        self._head_scale, self.appends = head_scale(self.config), True
        self._engine = engine
        self._watch(())

    @property
    def loaded(self) -> bool:
        """Whether torch's weights are in memory."""
        return "_plain" in self.__dict__

    def load(self) -> None:
        """Load torch's weights, unless they are in memory.

        Raises:
            BackboneError: they have changed on disk.
            ModelNotFoundError: they are no longer there.
        """
        with self._loading:
            if self.loaded:
                return
            causal_lm = self._load().train(self.training)
            self.causal_lm, self.config = causal_lm, text_config(causal_lm)
            self.__dict__["_plain"] = (causal_lm,)
            self._watch(list(self.parameters()))

    def __getattr__(self, name: str) -> Any:
        """Load the weights for those who ask for the model by name."""
        if name in ("causal_lm", "_plain") and not self.loaded:
            self.load()
            return getattr(self, name)
        return super().__getattr__(name)

    def named_modules(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Load the weights, and yield all modules by name; so do `modules`, `parameters` and `buffers`."""
        self.load()
        yield from super().named_modules(*args, **options)

    def apply(self, fn: Callable[[nn.Module], None]) -> Any:
        """Load the weights, and call a function on all modules."""
        self.load()
        return super().apply(fn)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Load the weights, and return all of them."""
        self.load()
        return super().state_dict(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.load()
        super()._load_from_state_dict(*args, **options)

    def _apply(self, *args: Any, **options: Any) -> Any:  # moves and casts
        self.load()
        return super()._apply(*args, **options)  # type: ignore[no-untyped-call]

    @property
    def embedding(self) -> Any:
        """The input embedding module."""
        return super().embedding if self.loaded else self._embedding[0]

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token id that ends an answer."""
        return super().end_ids if self.loaded else frozenset(self._known.end_ids)

    @property
    def has_adapter(self) -> bool:
        """True if a PEFT adapter is around the backbone; one that is merged is not."""
        return self.loaded and super().has_adapter

    def adapter_parameters(self) -> list[tuple[str, Tensor]]:
        """Return the parameters of an adapter by name; none without one."""
        return super().adapter_parameters() if self.loaded or self.merged else []

    def _values(self) -> Iterable[Tensor]:
        return super()._values() if self.loaded else ()

    def _digest(self) -> str | None:
        return super()._digest() if self.loaded else self._known.digest


class Origin(NamedTuple):
    """The files that a converted backbone is made from."""

    folder: Path  # weights and tokenizer
    lora: Path | None  # the adapter that is merged into them
    bits: int  # of the conversion's weights
    key: str  # stands for all of it as it is

    @classmethod
    def of(cls, folder: Path, lora: Path | None, bits: int = 8) -> Origin | None:
        """Look at the files; None: they cannot be read, or nothing is converted here.

        Args:
            folder: of the backbone's weights.
            lora: folder of a LoRA adapter; None: there is none.
            bits: of a weight in the body after conversion: 8 or 4.
        """
        lora = None if lora is None else lora.resolve()
        try:
            return cls(folder, lora, bits, _key(folder, lora, bits))
        except (OSError, PackageNotFoundError):
            return None

    @property
    def unchanged(self) -> bool:
        """Whether the files are what they were.

        Raises:
            ModelNotFoundError: they are no longer there.
        """
        try:
            return _key(self.folder, self.lora, self.bits) == self.key
        except OSError as error:
            raise ModelNotFoundError(f"the model's files are no longer there: {error}. Put them back.") from error


def keep(backbone: Backbone, origin: Origin) -> None:
    """Keep beside a backbone's conversion what it takes to use it without its weights; nothing where that cannot be.

    Args:
        backbone: has its engine.
        origin: what it was loaded from, as that was before it was loaded.
    """
    module, folder = backbone.embedding, backbone.conversion
    name = next((name for name, value in backbone.causal_lm.named_parameters() if value is module.weight), "")
    if folder is None or type(module) is not nn.Embedding:
        return
    with contextlib.suppress(OSError, HMTError):
        if not _same(_tensor(origin.folder, name), module.weight):
            return
        known = Known(
            name,
            backbone.cache_argument,
            backbone.identity()["weights_digest"],
            sorted(backbone.end_ids),
            sum(map(torch.numel, backbone.parameters())),
            fields(backbone.config),
            _kind(backbone.tokenizer, origin.folder),
        )
        if origin.unchanged:
            with replacing(folder / f"{origin.key}.json") as file:
                file.write(json.dumps(known._asdict()).encode())


def _kind(tokenizer: Any, folder: Path) -> str:
    """Return the class that loads the same tokenizer, without a look at the model's configuration if that can be."""
    name = type(tokenizer).__name__
    try:
        with weights.quiet(), trust.nothing_asked():
            alike = tokenizer_digest(weights.load_tokenizer(folder, name)) == tokenizer_digest(tokenizer)
    except HMTError:  # transformers has no such class, or it does not load these files by itself
        return "AutoTokenizer"
    return name if alike else "AutoTokenizer"


def find(name: str, origin: Origin, *, within: Sequence[int]) -> DeferredBackbone | None:
    """Return a backbone as it was converted before; None: it was not, or what was kept cannot be used.

    Args:
        name: by which it is recorded.
        origin: what it is made from.
        within: how many weights it may have, at least and at most.
    """
    try:
        path = next(cache_folder().glob(f"openvino-*/{origin.key}.json"))
        known = Known(**json.loads(path.read_text(encoding="utf-8")))
        embedding = _tensor(origin.folder, known.embedding)
    except (StopIteration, OSError, ValueError, TypeError):
        return None
    if embedding is None or not within[0] <= known.parameters <= within[1]:
        return None

    def load() -> Any:
        if not origin.unchanged:
            raise BackboneError(f"the files of {name} have changed since it was loaded. Load it again.")
        causal_lm, _ = weights.load(str(origin.folder), dtype=torch.float32, device="cpu")
        causal_lm.requires_grad_(False)
        if origin.lora is not None:
            adapter.merge(causal_lm, origin.lora)
        return causal_lm

    try:
        engine = OpenVinoEngine(path.parent)
        merged = None if origin.lora is None else adapter.read(origin.lora)
        with weights.quiet(), trust.nothing_asked():
            tokenizer = weights.load_tokenizer(origin.folder, known.tokenizer)
    except (HMTError, OSError, ValueError, KeyError):  # loading all of it says what is wrong
        return None
    return DeferredBackbone(known, engine, embedding, tokenizer, name=name, merged=merged, load=load)


def _key(folder: Path, lora: Path | None, bits: int) -> str:
    """Make a name from what converts, the adapter, and all files of a model as far as they tell of a change."""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    listed = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in files]
    digest = hashlib.sha256(json.dumps([_VERSION, versions(), bits, listed]).encode())
    for path in () if lora is None else (lora / adapter.CONFIG_FILE, lora / adapter.WEIGHTS_FILE):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:24]


def _tensor(folder: Path, name: str) -> Tensor | None:
    """Map a tensor of a model's files into memory, in fp32; None: none has that name."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118  # it is no mapping
                tensor: Tensor = file.get_tensor(name).float()
                return tensor
    return None


def _same(stored: Tensor | None, used: Tensor) -> bool:
    return stored is not None and torch.equal(stored, used.float())
