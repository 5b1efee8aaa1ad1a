"""What every section of the org file is made of: a base that refuses unknown keys, secrets that stand elsewhere, and an
error in words.
"""

from __future__ import annotations

import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from crmray.errors import ConfigError, did_you_mean


class Part(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        """Pydantic refuses unknown keys as well, but does not say which there are."""
        unknown = sorted(map(str, set(values) - set(cls.model_fields))) if isinstance(values, dict) else []
        if unknown:
            known = [name for name, field in cls.model_fields.items() if not field.exclude]
            hint = did_you_mean(unknown[0], known)
            got = ", ".join(dict.fromkeys(_key(name, values.get(name)) for name in unknown))
            message = f"got {got}, expected only {', '.join(known)}{hint}"
            raise PydanticCustomError("unknown_key", "{message}", {"message": message})
        return values


class Secret(Part):
    """Where a secret stands. The org file never holds one."""

    env: Annotated[str, Field(pattern="^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """name of an environment variable"""
    file: Annotated[str, Field(pattern=r"^[^\x00-\x1f]*$")] = ""
    """path of a file, relative to the org file"""

    @model_validator(mode="after")
    def _one_place(self) -> Secret:
        if bool(self.env) == bool(self.file):
            raise ValueError("got both or neither of `env` and `file`, expected exactly one of them")
        return self

    def read(self, folder: Path) -> str:
        """The secret, without white space around it; ConfigError that names the place and never the value."""
        if self.env:
            value = os.environ.get(self.env, "").strip()
            if not value:
                raise ConfigError(f"{self._place()}: not set or empty, expected a secret; set it")
            return value
        path, place = folder / Path(self.file).expanduser(), self._place()
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"{place}: got {reason}, expected a readable text file") from None
        if not value:
            raise ConfigError(f"{place}: is empty, expected a secret")
        return value

    def _place(self) -> str:
        """For errors. What does not look like the name of a place is not told: it may be the secret itself."""
        kind, name = ("environment variable", self.env) if self.env else ("secret file", self.file)
        pattern = r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+" if self.env else r".*/.*|[a-z]+([_.-][a-z]+)+"
        return f"{kind} {name}" if re.fullmatch(pattern, name) else f"{kind} (of {len(name)} characters)"

    def read_key(self, folder: Path, num_bytes: int = 32, *, longer: bool = False) -> bytes:
        """The secret as bytes from hex; ConfigError when it is not hex or not of `num_bytes` (or more)."""
        text, place = self.read(folder), self._place()
        try:
            key = bytes.fromhex(text)
        except ValueError:
            raise ConfigError(f"{place}: got text that is not hex, expected {2 * num_bytes} hex digits") from None
        if len(key) != num_bytes and not (longer and len(key) > num_bytes):
            more = " or more" if longer else ""
            raise ConfigError(
                f"{place}: got {len(key)} bytes, expected {num_bytes}{more}; `openssl rand -hex 32` makes some"
            )
        return key


SECRETS = {
    "client_id", "client_secret", "password", "private_key", "pseudonym_key", "vault_key", "previous_vault_keys",
    "lake_key",
}  # fmt: skip
"""keys of the org file whose values are of Secret"""

_PRIVATE = {"login", "privacy"}
"""sections in which they stand: no value of these is told, for a secret may have slipped behind the next key"""

_WHAT = {
    dict: "a section", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
    date: "a date", datetime: "a time", type(None): "nothing",
}  # fmt: skip


def what(got: Any) -> str:
    """What kind of value it is: `a list`, `a text`."""
    return _WHAT.get(type(got), type(got).__name__)


def shown(got: Any) -> str:
    """A plain value as an error tells it. Of anything else, and of a text that names a secret, what it is."""
    plain = isinstance(got, int | float | None) or (isinstance(got, str) and not any(name in got for name in SECRETS))
    return f"{got!r:.80}" if plain else what(got)


def explain(error: ValidationError) -> str:
    """A pydantic error in one line: key, value received (no secret, nor what may be one), value expected."""
    return "; ".join(_told(item) for item in error.errors(include_url=False))


def _told(item: Any) -> str:
    place, got, kind, told = _place(item), item["input"], item["type"], item["msg"]
    key = ".".join(map(str, place)) + ": " if place else ""
    if SECRETS & set(place) and kind not in ("missing", "value_error"):
        return f"{key}got a value, expected {{env: NAME}} or {{file: PATH}}; take the secret out of the file"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        hint = "; write `{}` behind it for the defaults" if got is None else ""
        return f"{key}got {what(got)}, expected settings{hint}"
    if kind in ("value_error", "unknown_key", "missing"):  # our own say what was got
        return key + told.removeprefix("Value error, ")
    return f"{key}got {what(got) if _PRIVATE & set(place) else shown(got)}, {told}"


def _key(name: str, value: Any) -> str:
    """An unknown key as an error tells it: not one that may be a value (`{client_secret=…}`, `{client_secret, …}`)."""
    return repr(name) if value is not None and re.fullmatch(r"[\w.-]{1,40}", name) else "an unknown key"


def _place(item: Any) -> tuple[Any, ...]:
    """The keys on the way to what is wrong, as the file has them: pydantic puts the kind of a source after `source`."""
    place = item["loc"]
    return (place[0], *place[2:]) if place[:1] == ("source",) else place
