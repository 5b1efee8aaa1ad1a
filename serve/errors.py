"""What a client is told when it is refused: a status, a stable code, a sentence, and the field where there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="stable: programs may branch on it")
    message: str = Field(description="for people")
    field: str | None = Field(None, description="path of the field in the body that is wrong")


class ErrorAnswer(BaseModel):
    """Body of every answer that is not 200."""

    error: ErrorDetail


class Refused(Exception):
    """Ends a request with an error answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.field, self.headers = (
            status,
            code,
            message,
            field,
            dict(headers or {}),
        )

    def body(self) -> bytes:
        """The JSON document."""
        return to_json({"error": {"code": self.code, "message": self.message, "field": self.field}})


DOCUMENTED: dict[int, str] = {
    401: "the bearer key is missing or unknown (unauthorized)",
    403: "the customer withdrew the consent to be profiled (consent_withdrawn)",
    404: "the id is not in the current data, or outside the task's population (unknown_<entity>)",
    413: "the body is too large (body_too_large)",
    422: "the body is not what the schema says; `field` names the place, of malformed JSON the message "
    "does (malformed_json, invalid_field)",
    429: "too many requests at once (overloaded); Retry-After says when to come again",
    503: "no version is published yet (no_champion)",
    504: "the answer took too long (timeout)",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in DOCUMENTED.items()
}


def invalid(error: ValidationError) -> Refused:
    """The first fault of a body as 422."""
    fault = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(step) for step in fault["loc"]) or None
    if fault["type"] == "json_invalid":
        return Refused(
            422, "malformed_json", f"the body is not valid JSON: {fault['msg'].removeprefix('Invalid JSON: ')}"
        )
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] not in ("missing", "value_error"):
        message += f" (got {_short(fault['input'])})"
    if not path and (named := named_in(message)):  # of fields that do not go together
        return Refused(422, "invalid_field", message, field=named)
    return Refused(422, "invalid_field", f"{path}: {message}" if path else message, field=path)


def named_in(message: str) -> str | None:
    """The field with which a message begins, as in "ids: got …"."""
    found = re.match(r"([a-z_]+): ", message)
    return found[1] if found else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
