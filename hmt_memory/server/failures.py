"""Errors as OpenAI's clients expect them: a status, and a body with message, type, param and code."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .. import errors

UNFORESEEN = "something failed that was not foreseen. The server's own output says more."
TOO_LONG = "the answer took too long. Ask for a shorter one."
CLOSED = 499  # as others name a call whose client went away
_log = logging.getLogger(__name__)
_STATUSES: dict[type[errors.HMTError], tuple[int, str]] = {
    errors.BudgetError: (400, "context_length_exceeded"),
    errors.InputError: (400, "invalid_request"),
    errors.ConfigError: (400, "invalid_request"),
    errors.SessionNotFoundError: (404, "session_not_found"),
    errors.ModelNotFoundError: (404, "model_not_found"),
    errors.SessionExistsError: (409, "session_exists"),
    errors.SessionBusyError: (409, "session_busy"),
    errors.ModelMismatchError: (409, "model_mismatch"),
    errors.AnswererError: (502, "answerer_failed"),
    errors.StoreFullError: (507, "store_full"),
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict",
    429: "rate_limit_error",
}
_RETRY_SECONDS = 1
# In the library's own words these name what else there is, and where it lies.
_UNSAID: dict[type[errors.HMTError], str] = {
    errors.SessionNotFoundError: "there is no session, corpus, document or message of that name or number here.",
    errors.AnswererError: "the model that answers is out of reach at the moment. The server's own output says more.",
    errors.StoreFullError: "the disk is full: nothing was stored. What was stored before is as it was.",
    errors.StoreError: "the store cannot be used at the moment. The server's own output says more.",
}


class NotFoundError(HTTPException):
    """An id under which there is nothing.

    Args:
        kind: of what is not there, such as "response".
        name: its id.
    """

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(404, f"there is no {kind} {name[:100]!r} here.")
        self.code = f"{kind}_not_found"


class NoStreamError(HTTPException):
    """A response whose events are not here.

    Args:
        name: its id.
    """

    code = "stream_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(
            410,
            f"there are no events of the response {name[:100]!r} here: it has ended, was not made with background=true, or is "
            "written by another server. Ask for it without stream.",
        )


def body_of(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error.

    Args:
        status: of the response.
        message: what is wrong, and what to do.
        code: a name for programs.
        param: the field that is wrong.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response_of(status: int, message: str, **about: str | None) -> JSONResponse:
    """Return the response of an error; of one that may pass, with the time after which to try again."""
    headers = {"Retry-After": str(_RETRY_SECONDS)} if status in (409, 429, 503) else {}
    return JSONResponse(body_of(status, message, **about), status, headers)


def status_of(error: errors.HMTError) -> tuple[int, str]:
    """Return the status of an error, and its name for programs."""
    known = next((found for kind, found in _STATUSES.items() if isinstance(error, kind)), None)
    return known or (500, type(error).__name__.removesuffix("Error").lower())


def _seen(error: errors.HMTError) -> tuple[int, str]:
    """Return the status and the name of an error; write what its caller cannot mend to the server's own output."""
    status, code = status_of(error)
    if status in (500, 502):
        _log.error("a call failed", exc_info=error)
    return status, code


def of_stream(error: Exception) -> dict[str, Any]:
    """Return the body of an error that comes when an answer has begun."""
    if isinstance(error, errors.HMTError):
        status, code = _seen(error)
        return body_of(status, message_of(error), code=code)
    if isinstance(error, TimeoutError):
        return body_of(504, TOO_LONG)
    _log.exception("an answer failed")
    return body_of(500, UNFORESEEN, code=type(error).__name__)


async def of_ours(request: Request, error: Exception) -> Response:
    """Answer a call that this package refused."""
    assert isinstance(error, errors.HMTError)
    status, code = _seen(error)
    return _page(request, status, message_of(error)) or response_of(status, message_of(error), code=code)


def _page(request: Request, status: int, message: str) -> Response | None:
    """Return the page of an error, where the application has one for this call."""
    made: Response | None = request.app.state.failure(request, status, message)
    return made


def message_of(error: errors.HMTError) -> str:
    """Return what a caller is told of an error: nothing of what is not its own."""
    return next((text for kind, text in _UNSAID.items() if isinstance(error, kind)), str(error))


async def of_others(_: Request, error: Exception) -> JSONResponse:
    """Answer a call that failed for a reason that nobody has foreseen."""
    return response_of(500, UNFORESEEN, code=type(error).__name__)


async def of_fields(_: Request, error: Exception) -> JSONResponse:
    """Answer a call whose body is not what it should be. What was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] in ("json_invalid", "model_attributes_type") and len(first["loc"]) <= 2:
        return response_of(
            400, "the body is no JSON object. Send one, as Content-Type: application/json.", code="invalid_request"
        )
    place = [str(part) for part in first["loc"] if part != "body"]
    message = first["msg"].removeprefix("Value error, ")
    param = ".".join(place) or None
    return response_of(400, f"{param}: {message}" if param else message, code="invalid_request", param=param)


async def of_http(request: Request, error: Exception) -> Response:
    """Answer a call that no route takes, or that a guard refused."""
    assert isinstance(error, HTTPException)
    said, code = str(error.detail), getattr(error, "code", None)
    made = _page(request, error.status_code, said) or response_of(error.status_code, said, code=code)
    made.headers.update(error.headers or {})
    return made
