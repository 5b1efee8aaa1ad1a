"""What a task on texts is asked: known interactions by id, or texts that are not in the data."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, field_validator

from crmray.data import asof_texts, text
from crmray.tasks.contract import EntityRequest, NoReasons

MAX_TEXTS, MAX_TEXT_CHARS = 100, 1_000_000


class TextRequest(EntityRequest):
    """Body of a POST: exactly one of `id`, `ids` (of interactions) and `texts`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["Where is my parcel?"]}]})
    SUBJECTS: ClassVar[tuple[str, ...]] = ("id", "ids", "texts")

    customer: None = Field(None, exclude=True, description="not used: what is written is all that counts here")
    recent_events: None = Field(None, exclude=True, description="not used: what is written is all that counts here")
    explain: NoReasons = False
    texts: list[Annotated[str, Field(max_length=MAX_TEXT_CHARS)]] | None = Field(
        None, min_length=1, max_length=MAX_TEXTS, description=f"up to {MAX_TEXTS} texts, each up to 1 MB"
    )

    @field_validator("texts")
    @classmethod
    def _something_said(cls, value: list[str] | None) -> list[str] | None:
        for number, one in enumerate(value or ()):
            if not text.clean_one(one):
                raise ValueError(f"text {number}: got no letter or digit, expected something that was written")
        return value

    @property
    def described(self) -> dict[str, list[dict[str, Any]]] | None:
        """The texts as interactions of this moment."""
        return None if self.texts is None else asof_texts.inline(self.texts, datetime.now(timezone.utc))

    @property
    def num_described(self) -> int:
        """One example a text."""
        return len(self.texts or ())
