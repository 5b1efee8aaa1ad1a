"""What a client is told when it is refused: a status, a stable code, a sentence, and the field where there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from crmray.errors import did_you_mean


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


_EXPECTED: dict[str, str] = {
    "missing": "a value",
    "none_required": "nothing",
    "string_type": "text",
    "string_too_long": "at most {max_length} characters",
    "list_type": "a list",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    **dict.fromkeys(("dict_type", "model_type"), "an object"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}
"""pydantic's name of a fault -> what was expected instead"""
_KINDS = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", type(None): "null"}


def kind_of(value: Any) -> str:
    """What kind of JSON value it is. Never the value, which may say something of a person."""
    return str(value).lower() if isinstance(value, bool) else _KINDS.get(type(value), "another kind of value")


def invalid(error: ValidationError, model: type[BaseModel]) -> Refused:
    """The first fault of a request as 422: the field, what kind of value was got, what is expected there."""
    fault = error.errors(include_url=False)[0]
    kind, told = fault["type"], fault["msg"]
    path = ".".join(str(step) for step in fault["loc"]) or None
    if kind == "json_invalid":
        message = f"the body is not valid JSON: {told.removeprefix('Invalid JSON: ')}"
        return Refused(422, "malformed_json", message)
    if kind == "value_error":  # our own say what was got
        message = told.removeprefix("Value error, ")
        if not path:  # of fields that do not go together
            return Refused(422, "invalid_field", message, field=named_in(message))
    elif kind == "extra_forbidden":
        known = [name for name, field in model.model_fields.items() if not field.exclude]
        hint = did_you_mean(str(fault["loc"][-1]), known)
        message = f"got an unknown field, expected only {', '.join(known)}{hint}"
    else:
        limits = {name: f"{at:g}" if isinstance(at, float) else at for name, at in fault.get("ctx", {}).items()}
        expected = _EXPECTED.get(kind, "what /docs says").format(**limits)
        about = model.model_fields[str(fault["loc"][0])].description if path else None
        got = "nothing" if kind == "missing" else kind_of(fault["input"])
        message = f"got {got}, expected {expected}" + (f" ({about})" if about else "")
    return Refused(422, "invalid_field", f"{path or 'the body'}: {message}", field=path)


def named_in(message: str) -> str | None:
    """The field with which a message begins, as in "ids: got …"."""
    found = re.match(r"([a-z_]+): ", message)
    return found[1] if found else None
