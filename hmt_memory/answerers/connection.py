"""The client of a server of OpenAI's API: its address, the models behind it, and its errors as ours. Knows no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from ..engine.places import OPENAI
from ..errors import AnswererError, HMTError, InputError, MissingDependencyError, ModelNotFoundError

_CONNECT_SECONDS = 10.0
_LONGEST = 300  # characters that a server says are repeated
KEY, OPENAI_KEY, OPENAI_URL = "HMT_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"  # environment variables


def split(address: str, model: str | None) -> tuple[str, str | None, str | None]:
    """Return the URL, the model's name and the key that an address stands for.

    A key goes to no other server than the one that it is for: `openai:` has its own.

    Args:
        address: `http://host:port/v1`, with `#name` behind it where several models are served; or `openai:name`.
        model: the name, if the address has none.
    """
    if address.startswith(OPENAI):
        url = os.environ.get(OPENAI_URL) or "https://api.openai.com/v1"
        return url, address.removeprefix(OPENAI) or model, os.environ.get(OPENAI_KEY)
    url, _, name = address.partition("#")
    return url.rstrip("/"), name or model, os.environ.get(KEY)


class Connection:
    """A server and one of its models.

    Args:
        address: as of `split`.
        model: the name of the model; None: the only one that it serves.
        api_key: None: that of the environment.
        timeout: the seconds after which a server that says nothing is given up.
        http_client: an `httpx.Client` to call it by; None: a new one.
    """

    def __init__(
        self, address: str, model: str | None = None, *, api_key: str | None, timeout: float, http_client: Any = None
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(f"a server needs {error.name}. Run: pip install 'hmt-memory[openai]'") from error
        self.url, self._model, key = split(address, model)
        self.client = openai.OpenAI(
            base_url=self.url,
            api_key=api_key or key or "none",
            timeout=openai.Timeout(timeout, connect=_CONNECT_SECONDS),
            http_client=http_client,
        )

    @property
    def name(self) -> str:
        """The model's name, or the address where none was given. Asks nobody."""
        return self._model or self.url

    @cached_property
    def model(self) -> str:
        """The model's name, which the server tells if nobody has.

        Raises:
            InputError: it serves several.
        """
        if self._model is not None:
            return self._model
        served = [str(card.id) for card in self.cards]
        if len(served) != 1:
            raise InputError(f"{self.url} serves {', '.join(served) or 'nothing'}. Name one of its models: {self.url}#NAME")
        return served[0]

    @cached_property
    def cards(self) -> list[Any]:
        """What the server tells of each of its models."""
        with self.errors():
            return list(self.client.models.list().data)

    @property
    def card(self) -> Any:
        """What the server tells of the model; None: nothing."""
        return next((card for card in self.cards if card.id == self.model), None)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        import openai

        try:
            yield
        except HMTError:
            raise
        except openai.APITimeoutError as error:
            raise AnswererError(
                f"{self.url} says nothing for too long. Look at its log, or give it a longer timeout."
            ) from error
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise AnswererError(f"{self.url} cannot be reached: {reason}. Start the server, or correct its address.") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise AnswererError(
                f"{self.url} lets nobody in: {_said(error)}. Set ${KEY}, or ${OPENAI_KEY} for openai:."
            ) from error
        except openai.NotFoundError as error:
            raise ModelNotFoundError(
                f"{self.url} has no model {self.name!r}: {_said(error)}. Name one that it serves."
            ) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise InputError(f"{self.url} refuses the call: {_said(error)}.") from error
        except Exception as error:  # of the client, or of what it reads by
            raise AnswererError(f"{self.url} breaks off: {_said(error)}. Ask again, or look at the server's log.") from error


def _said(error: Exception) -> str:
    """Return what a server says of an error, without a full stop."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(said or error).split())[:_LONGEST].rstrip(".") or type(error).__name__
