"""The description of the routes at /openapi.json: what FastAPI makes of them, with this server's errors and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REFUSED = {
    "description": "What is wrong, and what to do. 409, 429 and 503 may pass: `Retry-After` says when to try again.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_TOKEN = {"type": "http", "scheme": "bearer", "description": "`hmt serve --token NAME` makes one."}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_STREAM = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"description": "An answer, whole or in chunks.", "content": _STREAM}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": _BYTES}}}
TAKES_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": _BYTES}}}


def shows(example: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a body that has an example in the description."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def describe(app: FastAPI) -> None:
    """Let an application describe itself so."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _changed(made())
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _changed(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a description with the errors that are sent here, instead of FastAPI's own."""
    parts = whole["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    parts["schemas"]["Error"] = _ERROR
    parts["securitySchemes"] = {"token": _TOKEN}
    whole["security"] = [{"token": []}, {}]  # where there are tokens, one is needed
    for methods in whole["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _REFUSED
    return whole
