"""Whether the model is there: loaded in a thread as the server starts, or with the first call that needs it. Knows no route."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ..errors import HMTError

if TYPE_CHECKING:
    from ..assistant import Assistant

_LATER = "the model is loaded with the first answer"
_LOADING = "the model is being loaded"
_FAILED = "the model could not be loaded"
_OUTPUT = "The server's own output says more."
_log = logging.getLogger(__name__)


class Readiness:
    """The models of an assistant, before they are loaded and after.

    Args:
        assistant: whose they are.
    """

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self.loading: threading.Thread | None = None  # the one that loads, or has
        self._failure: Exception | None = None

    @property
    def is_loading(self) -> bool:
        """True while the thread that loads is at work."""
        return self.loading is not None and self.loading.is_alive()

    def begin(self) -> None:
        """Load the models in a thread. Nobody waits for it when the server is stopped."""
        self._failure = None
        self.loading = threading.Thread(target=self._load, name="hmt-loading", daemon=True)
        self.loading.start()

    def missing(self, *, reason: bool) -> str | None:
        """Return why a call would have to wait for the models; None: they are loaded.

        Args:
            reason: whether what loading failed of is told, which may name folders.
        """
        if self._assistant.is_ready:
            return None
        if self._failure is not None:
            told = isinstance(self._failure, HMTError) and reason
            return f"{_FAILED}: {self._failure}" if told else f"{_FAILED}. {_OUTPUT}"
        return _LOADING if self.is_loading else _LATER

    def _load(self) -> None:
        try:
            self._assistant.load()
        except Exception as error:
            self._failure = error
            if isinstance(error, HMTError):  # whose words are about the model
                _log.error("%s, the first answer tries again: %s", _FAILED, error)
            else:
                _log.error("%s, the first answer tries again", _FAILED, exc_info=error)
