"""What models that put a text into a class share: their texts and labels, a rule of thumb, and a blend.

A model answers as `labels.by_class` says. Rows of examples carry the text in `text` and the class in `label` (string).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.errors import NotEnoughDataError, SchemaError
from crmray.models.blend import Members, Metric, average, best_average
from crmray.models.labels import LABEL, by_class
from crmray.models.tabular import file_of, needs, to_json

TEXT, EMBEDDING = "text", "text_embedding"
MIN_CLASS_ROWS = 5
"""training rows without which a class is not learned"""
MAX_CLASSES = 200
"""most frequent classes that are learned"""
needs_text = needs(TEXT)
"""`applies` of all models of texts"""


def texts_of(examples: pa.Table) -> list[str]:
    """The texts; SchemaError without them."""
    if TEXT not in examples.column_names:
        raise SchemaError(f"column {TEXT!r} is missing; expected what was written, as in training")
    return [text or "" for text in examples[TEXT].to_pylist()]


def learnable(train: pa.Table) -> tuple[pa.Table, list[str], np.ndarray]:
    """The rows of classes that can be learned, these classes (sorted), and the class of each row (N,) int64.

    Classes with too few rows, and the rarest where there are very many, are left out with a word about it.
    NotEnoughDataError when fewer than two are left.
    """
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(train[LABEL]).to_pylist()}
    common = sorted((name for name in counts if name is not None), key=lambda name: (-counts[name], name))
    kept = sorted(name for name in common[:MAX_CLASSES] if counts[name] >= MIN_CLASS_ROWS)
    if len(kept) < 2:
        told = ", ".join(f"{name} in {counts[name]} rows" for name in common[:5]) or "none"
        raise NotEnoughDataError(
            f"column {LABEL!r}: got {len(common)} classes ({told}), expected at least 2 with {MIN_CLASS_ROWS} rows or"
            " more; bring more labelled texts or another label"
        )
    code = pc.index_in(train[LABEL], value_set=pa.array(kept)).combine_chunks()
    if code.null_count:
        left_out = {"classes": len(common) - len(kept), "rows": code.null_count}
        log.event("train.rare_classes", **left_out)
        train, code = train.filter(pc.is_valid(code)), code.drop_null()
    return train, kept, code.to_numpy().astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Majority:
    """The rule of thumb: every text is of the most frequent class."""

    NAME: ClassVar[str] = "majority"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {}

    applies = staticmethod(needs_text)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> MajorityModel:
        """Count the classes; validation, seed and rounds change nothing. NotEnoughDataError as of `learnable`."""
        _, classes, code = learnable(train)
        share = np.bincount(code, minlength=len(classes)) / len(code)
        return MajorityModel(shares=dict(zip(classes, share.tolist(), strict=True)))

    @staticmethod
    def load(files: Mapping[str, bytes]) -> MajorityModel:
        """The model that `save` wrote."""
        return MajorityModel(shares=json.loads(file_of(files, "majority.json")))


@dataclass(frozen=True, kw_only=True)
class MajorityModel:
    """Shares of the classes."""

    shares: dict[str, float]
    """class -> share of the training rows"""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """The same shares for every row."""
        texts_of(examples.slice(0, 1))
        return by_class(list(self.shares), np.tile(list(self.shares.values()), (examples.num_rows, 1)))

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"majority.json": to_json(self.shares)}


@dataclass(frozen=True, kw_only=True)
class ClassBlend(Members):
    """The plain average of the class probabilities of several models."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Means over the members; a class that a member does not know has probability 0 there."""
        return average([member.predict(examples) for member in self.members.values()])


def best_blend(models: Mapping[str, Any], examples: pa.Table, metric: Metric) -> ClassBlend | None:
    """The average of the best two or three models, if the metric of these rows prefers it to the best single one's.

    models: the best of each family by name.
    """
    names = best_average(models, examples, metric)
    return ClassBlend(members={name: models[name] for name in names}) if names else None
