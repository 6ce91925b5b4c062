"""Errors of `hmt_memory` as LangChain's own: each is both, so that code which catches either goes on working."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as langchain

from hmt_memory import errors as hmt

# Older releases of langchain-core have no errors of their own for models.
_BASE = langchain.LangChainException
_OVERFLOW, _INVALID, _UNKNOWN, _TIMEOUT = (
    getattr(langchain, name, _BASE)
    for name in ("ContextOverflowError", "ModelInvalidRequestError", "ModelNotFoundError", "ModelTimeoutError")
)


class HMTContextOverflowError(hmt.BudgetError, _OVERFLOW):  # type: ignore[misc,valid-type]
    """What is pinned or noted is larger than its budget. A conversation itself never overflows."""


class HMTInvalidRequestError(hmt.InputError, _INVALID):  # type: ignore[misc,valid-type]
    """A call asks for something that cannot be answered."""


class HMTModelNotFoundError(hmt.ModelNotFoundError, _UNKNOWN):  # type: ignore[misc,valid-type]
    """A name under which there are no weights."""


class HMTSessionBusyError(hmt.SessionBusyError, _TIMEOUT):  # type: ignore[misc,valid-type]
    """Another process is writing the session; the same call may succeed later."""

    is_retryable = True


class HMTConfigError(hmt.ConfigError, _INVALID):  # type: ignore[misc,valid-type]
    """Fields of an object ask for sizes that the model does not have room for."""


_SAME = {
    hmt.ConfigError: HMTConfigError,
    hmt.BudgetError: HMTContextOverflowError,
    hmt.InputError: HMTInvalidRequestError,
    hmt.ModelNotFoundError: HMTModelNotFoundError,
    hmt.SessionBusyError: HMTSessionBusyError,
}


@contextmanager
def as_langchain() -> Iterator[None]:
    """Raise errors of `hmt_memory` inside as LangChain's."""
    try:
        yield
    except hmt.HMTError as error:
        same = _SAME.get(type(error))
        if same is None:
            raise
        raise same(str(error)) from error
