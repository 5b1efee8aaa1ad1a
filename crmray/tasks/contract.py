"""What a task and a candidate give. Nothing outside a task's own file knows the task's name.

    task (a module)            crmray/tasks/<name>.py, listed in crmray.tasks.TASKS
      └ candidates (classes)   a frozen dataclass of hyper-parameters; fit(...) -> Fitted
           └ Fitted            what predicts, and goes into a bundle as bytes

Shapes: an examples table has one row per entity and as_of; keys schema.KEYS, LABELS, list columns (sequences);
every other column is a feature, numeric or categorical by its Arrow type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_IDS = 1_000
REASONS = (
    "what moves the score most, strongest first: a group of features, a value of it beside the typical one, and what "
    "the group adds to the score; null unless `explain` is true"
)
"""description of the field in which a Response gives reasons"""


def _none_to_give(asked: bool) -> bool:
    if asked:
        raise ValueError("got true, expected false: no reasons are given here")
    return asked


NoReasons = Annotated[
    bool,
    AfterValidator(_none_to_give),
    Field(description="true is refused: no reasons are given here", exclude=True, json_schema_extra={"const": False}),
]
"""`explain` of a Request whose Response has no reasons"""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Canonical tables and columns that a task reads."""

    required: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """table -> columns without which the task cannot run"""
    useful: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """table -> columns that make it better; what is required is taken out"""

    def __post_init__(self) -> None:
        rest = {
            name: tuple(column for column in columns if column not in self.required.get(name, ()))
            for name, columns in self.useful.items()
        }
        left = {name: columns for name, columns in rest.items() if columns or name not in self.required}
        object.__setattr__(self, "useful", left)


class Fitted(Protocol):
    """A fitted model: predicts, and is saved as named byte strings (never pickle).

    Optional beside these: rounds: int | None, the boosting rounds or epochs that early stopping chose; pictures() ->
    {file name: SVG}, drawn into the bundle by the report; newest_share: float, of the training rows that it was fitted
    on, where these are not all.
    """

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the same length and order as the rows."""

    def save(self) -> dict[str, bytes]:
        """File name -> content; `load` of the candidate's class takes it back with the same bits."""


class Candidate(Protocol):
    """Hyper-parameters of one model family; an instance is one point of the grid."""

    NAME: ClassVar[str]
    KIND: ClassVar[Literal["memory", "torch", "shards"]]
    """how it is fitted; what is fitted by torch is a neural network, and says in ARCHITECTURE of which kind: recurrent,
    convolutional, Transformer, …"""
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]]
    """field -> values that a grid search tries"""

    @classmethod
    def applies(cls, columns: Sequence[str]) -> str | None:
        """None if the family can be fitted on examples with these columns, else the reason why not."""

    @staticmethod
    def load(files: Mapping[str, bytes]) -> Fitted:
        """The fitted model from what `save` gave; CorruptError for a file that is missing or no such model."""


class Task(Protocol):
    """A module of crmray.tasks. Optional beside these:

    backtests(validation) -> rows                 other rows than these, on which families and the blend are compared
    blend(models, rows) -> Fitted | None          a contender made of the best of each family; BLEND is its class
    dates(settings, span) -> Snapshots            other dates than those of crmray.data.splits
    fixed(settings) -> dict                       hyper-parameters that the org file sets, as `candidate.field`
    files(decision, figures) -> dict[str, bytes]  further files of the bundle
    shipped(model, decision, validation) -> dict  the decision for the refitted model, which has seen these rows too
    AGREES                                        other task -> function that holds the answers against the other's:
                                                  see crmray.train.agreement
    AFTER: tuple[str, ...]                        tasks whose predictions its examples read, where there are any
    gather(tables, settings) -> dict              for rows that span customers: one shard's part of what is read,
    combine(parts, settings) -> dict              and all parts together; `examples` then sees what it gave, once
    without(decision, people) -> dict             the decision but for what it quotes of people who withdrew consent
    together(model, decision, rows) -> Table      the `now` rows with what follows from all of them at once
    named(name) -> Task                           one of several tasks that an org file defines, `<NAME>.<name>`
    """

    NAME: str
    """name in the org file, in the lake and in `jobs/*.py`"""
    ROUTE: str
    """path of the endpoint"""
    ENTITY: str
    """what one row is about: customer, lead, interaction, product, series; entity_id is its id"""
    FEATURES_VERSION: str
    """raised when the meaning of a column of the examples changes"""
    LABELS: tuple[str, ...]
    """label columns of the examples; null in the `now` rows"""
    METRIC: str
    """figure on validation by which the champion is chosen"""
    MODE: Literal["max", "min"]
    """whether more or less of it is better"""
    CANDIDATES: Mapping[str, type[Candidate]]
    """the models that compete"""
    Settings: type[BaseModel]
    """section of the org file"""
    Request: type[EntityRequest]
    Response: type[BaseModel]

    def needs(self, settings: Any) -> Needs:
        """Tables and columns under these settings."""

    def examples(
        self, tables: Mapping[str, pa.Table], as_of: datetime | None, settings: Any, *, labels: bool
    ) -> pa.Table:
        """As-of rows of one shard. Pure. Reads rows strictly before `as_of`; labels read [as_of, as_of + horizon)."""

    def score(self, examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Figures of a candidate's raw predictions, METRIC among them."""

    def finalize(self, model: Fitted, train: pa.Table, validation: pa.Table, settings: Any) -> dict[str, Any]:
        """The decision (JSON): calibration, thresholds, reference values for reasons; fitted on validation."""

    def predict(
        self, model: Fitted, decision: Mapping[str, Any], examples: pa.Table, *, explain: bool = False, **options: Any
    ) -> pa.Table:
        """The columns of predictions/, entity_id first; same length and order as the examples."""

    def evaluate(self, model: Fitted, decision: Mapping[str, Any], test: pa.Table, settings: Any) -> dict[str, Any]:
        """The figures for the report, as JSON."""


ORDER = {"occurred_at": "2025-06-01T09:30:00Z", "net_amount": 25.0}
"""a row as a request may have it, for the document: columns are those that the org file maps"""


class EntityRequest(BaseModel):
    """Body of a POST: exactly one of SUBJECTS; `recent_events` may go with `id`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"id": "C00042", "explain": True}]})
    SUBJECTS: ClassVar[tuple[str, ...]] = ("id", "ids", "customer")
    """fields that say whom or what the answer is about; all but the ids describe it"""

    id: str | None = Field(None, max_length=255, description="one known id, as the org writes it")
    ids: list[str] | None = Field(None, min_length=1, max_length=MAX_IDS, description=f"up to {MAX_IDS} known ids")
    customer: dict[str, list[dict[str, Any]]] | None = Field(
        None,
        description="someone not in the data: canonical table -> rows, without entity_id",
        examples=[{"customers": [{"country": "UK"}], "transactions": [ORDER]}],
    )
    recent_events: dict[str, list[dict[str, Any]]] | None = Field(
        None,
        description="with `id`: rows of canonical tables that are newer than the data",
        examples=[{"transactions": [ORDER]}],
    )
    explain: bool = Field(
        False,
        description="give reasons: what a group of features adds to the score, with the value that makes most of it",
    )

    @model_validator(mode="after")
    def _one_subject(self) -> EntityRequest:
        given = [name for name in self.SUBJECTS if getattr(self, name) is not None]
        one = f"expected exactly one of {', '.join(self.SUBJECTS)}"
        if not given:
            raise ValueError(f"got none, {one}")
        if len(given) > 1:
            raise ValueError(f"{given[-1]}: got {given[0]} as well, {one}")
        if self.recent_events is not None and self.id is None:
            raise ValueError("recent_events: got no id with them, expected one id")
        return self

    @property
    def described(self) -> dict[str, list[dict[str, Any]]] | None:
        """Canonical table -> rows of what is not in the data; None where the request is about known ids."""
        return self.customer

    @property
    def num_described(self) -> int:
        """How many examples follow from `described`, in the order of their entity_id."""
        return 1

    def options(self) -> dict[str, Any]:
        """What the task's `predict` takes beside the rows: the fields that a task's Request adds."""
        return self.model_dump(exclude={*EntityRequest.model_fields, *self.SUBJECTS})
