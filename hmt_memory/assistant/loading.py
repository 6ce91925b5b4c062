"""The weights behind an assistant: loaded when they are first needed, and shared by all who ask for the same ones."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ..config import DEFAULT_MODEL, HMTConfig

if TYPE_CHECKING:
    from ..model import HMTModel


@dataclass(frozen=True)
class ModelSettings:
    """The settings that a model is loaded by, as for `HMTModel.from_pretrained`."""

    model: str = DEFAULT_MODEL
    adapter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    config: str | None = None  # sizes of an untrained model, as JSON
    reader: str | None = None  # another model, which reads and remembers, while `model` answers from notes


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

    @property
    def model(self) -> HMTModel:
        """The model, loaded when first asked for."""
        with self._loading:
            if self._model is None:
                from ..model import HMTModel

                chosen = self.settings
                config = None if chosen.config is None else HMTConfig.from_dict(json.loads(chosen.config))
                self._model = HMTModel.from_pretrained(
                    chosen.model, adapter=chosen.adapter, config=config, dtype=chosen.dtype, device=chosen.device
                )
            return self._model


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
