"""The model that a command names, and the checks before it is loaded: it exists, and it made the memories it is wanted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DEFAULT_MODEL
from ..engine import outline, places
from ..engine.fingerprint import fingerprint
from ..errors import InputError
from ..sessions.default_reader import SAME, default_reader, reads_itself
from ..sessions.made_by import mismatch, rebuild_command
from ..store.open import default_store, shown
from . import models

if TYPE_CHECKING:
    from ..engine.fingerprint import Fingerprint
    from ..engine.outline import Sources
    from ..engine.state import HMTState
    from ..model import HMTModel
    from ..sessions.collection import Collection
    from .terminal import Screen


@dataclass(frozen=True)
class ModelChoice:
    """A model as the command line names it."""

    name: str
    adapter: Path | None = None
    dtype: str = "auto"
    device: str = "auto"
    store: str | None = None  # the place of the store that it is wanted for

    def load(self, screen: Screen, *readings: Collection) -> HMTModel:
        """Load the model for the sessions and corpora that it is to read on in.

        Raises:
            ModelNotFoundError: no model has that name.
            ModelMismatchError: another model made one of the memories; if the files show it, this is raised before loading.
        """
        places.check(self.name)
        chosen = outline.sources(self.name, self.adapter)
        made = [(reading, by) for reading in readings if (by := reading.made_by()) is not None]
        for reading, by in made:
            self._foresee(reading, by, chosen, screen)
        model = models.load_model(self.name, screen, adapter=self.adapter, dtype=self.dtype, device=self.device)
        for reading, by in made:
            if fingerprint(model).digest != by.digest:
                raise self._mismatch(reading, by, str(fingerprint(model)))
        return model

    def _foresee(self, reading: Collection, by: Fingerprint, chosen: Sources, screen: Screen) -> None:
        difference = outline.difference(chosen, by.parts)
        if difference is not None:
            raise self._mismatch(reading, by, f"{self.name} ({difference})")
        if chosen.name != by.parts["backbone"]["name"]:
            screen.note(f"{reading.name!r} was made by {by.parts['backbone']['name']}: is {self.name} the same? Loading tells.")

    def _mismatch(self, reading: Collection, by: Fingerprint, other: str) -> Exception:
        options = {"model": self.name} | ({"adapter": str(self.adapter)} if self.adapter else {})
        if self.store not in (None, shown(default_store())):
            options["store"] = self.store
        command = rebuild_command(reading.kind, reading.name, **options)
        return mismatch(reading.kind, reading.name, f"was made by {by}, not by {other}", command)


def reader_of(model: str, adapter: Path | None, reader: str | None, screen: Screen, *readings: Collection) -> str:
    """Return the name of the model that reads, which is the one that answers unless another one is named or better.

    Args:
        model: the model that answers.
        adapter: of the one that reads.
        reader: as the command line names it: None if it does not, "same" for the model itself.
        screen: told if the bundled model reads without having been named.
        *readings: the sessions and corpora that it reads on in; what the model itself has read, it goes on reading.

    Raises:
        ModelNotFoundError: nothing has the name of the model that answers.
    """
    if reader is not None:
        if reader == SAME and places.is_address(model):
            raise InputError(f"{model} only answers. Name another --reader, or leave it out.")
        return model if reader == SAME else reader
    if places.is_address(model):
        return DEFAULT_MODEL
    usual = default_reader(model, adapter)
    if usual is None or reads_itself(model, [by for reading in readings if (by := reading.made_by()) is not None]):
        return model
    places.check(model)
    screen.note(f"{model} has no trained memory: {usual} reads for it. With --reader {SAME} it reads itself.")
    return usual


def answering(
    model: str, loaded: HMTModel, screen: Screen, *, reads: bool, vllm: str | None, dtype: str, device: str
) -> tuple[HMTModel, dict[str, Any]]:
    """Return the model that reads, as it answers, and the options of calls by which another one answers.

    Args:
        model: the name of the model that answers.
        loaded: the model that reads.
        screen: where the status goes.
        reads: whether they are the same.
        vllm: address of a vLLM server that writes the answers.
        dtype: of the model that answers.
        device: of it.

    Raises:
        InputError: the model is behind an address, and `vllm` is given.
    """
    from ..answerers import ChatServer, VLLMServer

    if places.is_address(model):
        if vllm is not None:
            raise InputError(f"--vllm needs the weights of --model, and {model} is an address. Leave one of them out.")
        server = ChatServer(model)
        server.reach()  # before anything is stored for a conversation that cannot begin
        return loaded, {"answerer": server}
    writer = None if vllm is None else VLLMServer(vllm)
    if reads:
        return loaded.with_writer(writer), {}
    other = load_model(model, screen, dtype=dtype, device=device)
    return loaded, {"answerer": other.with_writer(writer)}


def load_model(name: str, screen: Screen, **options: Any) -> HMTModel:
    """Call `HMTModel.from_pretrained` under a short status; say so when weights are converted first.

    Args:
        name: a bundled name, hub id, model folder or .gguf file.
        screen: where the status goes.
        **options: of `HMTModel.from_pretrained`.
    """
    with screen.unechoed(), screen.notes.status(f"loading {name}"):
        from ..model import HMTModel

        if _converts_first(name):
            screen.note(f"The first start of {name} converts its weights once, in about a minute.")
        return HMTModel.from_pretrained(name, **options)


def _converts_first(name: str) -> bool:
    path = places.bundled_file(name) if name.lower() in places.BUNDLED else Path(name).expanduser()
    return path.suffix.lower() == ".gguf" and path.is_file() and not places.converted_folder(path).is_dir()


def note_if_untrained(model: HMTModel, screen: Screen, state: HMTState | None = None) -> None:
    """Say what answers rest on while the memory parameters are untrained.

    Args:
        model: the model that answers.
        screen: where the note goes.
        state: the stream that it has read; None: a session or corpus.
    """
    if model.is_trained:
        return
    if state is None:
        rests_on = f"the last {model.view.recent_tokens or 0:,} tokens and passages recalled by their words"
    else:
        visible = visible_tokens(model, state)
        whole = state.tokens == visible
        rests_on = "the text itself, which the view holds whole" if whole else f"the last {visible:,} tokens"
    screen.note(f"The memory parameters are untrained: the memorisation prompt carries little yet; answers rest on {rests_on}.")


def visible_tokens(model: HMTModel, state: HMTState) -> int:
    """Count the tokens of a stream that stand verbatim in a view of it: the recent ones and the open segment."""
    return min(len(state.recent_ids), model.view.recent_tokens or 0) + len(state.open_ids)
