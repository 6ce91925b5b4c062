"""The weights behind an assistant: loaded when they are first needed, and shared by all who ask for the same ones."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from ..config import DEFAULT_MODEL, HMTConfig
from ..engine import places
from ..errors import InputError
from ..sessions.default_reader import SAME, default_reader

if TYPE_CHECKING:
    from pathlib import Path

    from ..model import HMTModel


@dataclass(frozen=True)
class ModelSettings:
    """The settings that a model is loaded by, as for `HMTModel.from_pretrained`."""

    model: str = DEFAULT_MODEL
    adapter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    config: str | None = None  # sizes of an untrained model, as JSON
    vllm: str | None = None  # address of a vLLM server with the weights of `model`, which writes its answers
    reader: str | None = None  # reads and remembers, while `model` answers from notes; "same": `model` itself; None: as is best
    together: int = 0  # answers that share their steps


class Weights:
    """A model that is loaded when it is first needed, and the states that calls without a session have left."""

    def __init__(self, settings: ModelSettings, model: HMTModel | None = None) -> None:
        from .stateless import PrefixCache

        self.settings, self._model, self.given = settings, model, model is not None
        self.prefixes = PrefixCache()
        self._loading = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """True once the model is in memory."""
        return self._model is not None

    def check(self) -> None:
        """Refuse the path of no file or folder, before anything is loaded. Asks no network about a name that may be a hub id.

        Raises:
            ModelNotFoundError: nothing is there.
        """
        if not self.is_loaded:
            places.local(self.settings.model)

    @property
    def model(self) -> HMTModel:
        """The model, loaded when first asked for."""
        with self._loading:
            if self._model is None:
                from ..model import HMTModel

                chosen = self.settings
                config = None if chosen.config is None else HMTConfig.from_dict(json.loads(chosen.config))
                model = HMTModel.from_pretrained(
                    chosen.model, adapter=chosen.adapter, config=config, dtype=chosen.dtype, device=chosen.device
                )
                if chosen.together > 1:
                    model.batch_answers(chosen.together)
                self._model = model if chosen.vllm is None else _written_by(chosen.vllm, model)
            return self._model


def _written_by(address: str, model: HMTModel) -> HMTModel:
    from ..answerers import VLLMServer

    return model.with_writer(VLLMServer(address))


# Weights in use are shared; this mapping keeps none alive.
_weights: WeakValueDictionary[ModelSettings, Weights] = WeakValueDictionary()
_sharing = threading.Lock()


def shared_weights(settings: ModelSettings) -> Weights:
    """Return the weights of these settings: the same object for all callers, as long as one holds it."""
    settings = replace(settings, reader=None)
    with _sharing:
        weights = _weights.get(settings)
        if weights is None:
            weights = _weights[settings] = Weights(settings)
        return weights


class Loading(NamedTuple):
    """What an assistant loads when it is needed."""

    settings: ModelSettings
    model: Weights
    reader: Weights  # those of the model itself, unless another one reads
    by_default: bool  # whether the reader was chosen because nobody has named one


def loading(
    model: str | HMTModel,
    reader: str | HMTModel | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    config: str | None = None,
    vllm: str | None = None,
    together: int = 0,
) -> Loading:
    """Return the weights of a model and of its reader, not loaded yet.

    Args:
        model: a name, or a model; whoever has loaded one has chosen what it remembers by, so that it reads itself.
        reader: a name, a model, or "same"; None: `default_reader`.
        adapter: belongs to the model that reads.
        dtype: of both.
        device: of both.
        config: of an untrained model, as JSON.
        vllm: address of a vLLM server that writes the answers of `model`.
        together: answers that share their steps, as of `HMTModel.batch_answers`.

    Raises:
        InputError: `model` is the address of a server, and something is wanted of it that only a model here does; or it is a
            model, and `vllm` or `together` is given; or both are.
    """
    if together and (not isinstance(model, str) or places.is_address(model) or vllm is not None):
        raise InputError(
            "together= is about a model by name that writes here. Leave it out; of a model object, call batch_answers()."
        )
    if isinstance(model, str) and places.is_address(model):
        return _behind(model, reader, adapter, dtype, device, config, vllm)
    if vllm is not None and not isinstance(model, str):
        raise InputError("vllm= is about a model by name. Pass model.with_writer(VLLMServer(address)) instead.")
    named = reader if reader is None or isinstance(reader, str) else reader.backbone.name
    given = None if adapter is None else str(adapter)
    usual = default_reader(model, adapter, config) if reader is None and isinstance(model, str) else None
    other = None if reader == SAME else usual if reader is None else reader
    if isinstance(model, str):
        settings = ModelSettings(model, given, dtype, device, config, vllm, named, together)
        own = shared_weights(settings if other is None else replace(settings, adapter=None))
    else:
        settings = ModelSettings(model.backbone.name, reader=named)
        own = Weights(settings, model)
    if other is None:
        return Loading(settings, own, own, False)
    if isinstance(other, str):
        return Loading(settings, own, shared_weights(ModelSettings(other, given, dtype, device)), usual is not None)
    return Loading(settings, own, Weights(ModelSettings(other.backbone.name), other), False)


def _behind(
    address: str,
    reader: str | HMTModel | None,
    adapter: str | Path | None,
    dtype: str,
    device: str,
    config: str | None,
    vllm: str | None,
) -> Loading:
    """Return the weights of what reads for a model behind an address; there are no others."""
    if reader == SAME or vllm is not None:
        raise InputError(f"{address} only answers, from notes. Name a model that runs here, or leave out reader= and vllm=.")
    given = None if adapter is None else str(adapter)
    if reader is None or isinstance(reader, str):
        reading = shared_weights(ModelSettings(reader or DEFAULT_MODEL, given, dtype, device, config))
        named = reader
    else:
        reading, named = Weights(ModelSettings(reader.backbone.name), reader), reader.backbone.name
    settings = ModelSettings(address, given, dtype, device, config, reader=named)
    return Loading(settings, reading, reading, False)
