"""A weighted average of fitted models' predictions, as one more contender, and what blends of every kind share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from crmray.errors import CorruptError
from crmray.models.tabular import file_of, to_json

Metric = Callable[[Mapping[str, np.ndarray]], float]
"""predictions -> selection figure, more is better"""


@dataclass(frozen=True, kw_only=True)
class Members:
    """What blends of every kind share: the models that they are made of, and how they are kept."""

    NAME: ClassVar[str] = "blend"

    members: Mapping[str, Any]
    """Fitted models by candidate name."""

    def with_members(self, members: Mapping[str, Any]) -> Self:
        """The same blend of the same candidates fitted again (on more rows)."""
        return replace(self, members={name: members[name] for name in self.members})

    def save(self) -> dict[str, bytes]:
        """Files of the model: blend.json with all fields but the members, of which their names; each member's files
        under `<name>/`."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "members"}
        return {"blend.json": to_json({"members": list(self.members), **own}), **member_files(self.members)}

    @classmethod
    def load(cls, files: Mapping[str, bytes], candidates: Mapping[str, Any]) -> Self:
        """The blend that `save` wrote; `candidates`: classes by name. CorruptError for a member they lack."""
        own = json.loads(file_of(files, "blend.json"))
        return cls(members=members_of(files, own.pop("members"), candidates), **own)


@dataclass(frozen=True, kw_only=True)
class Blend(Members):
    """Weighted average of the members' predictions."""

    weights: Mapping[str, float]
    """Share of each member; above 0, in total 1."""

    def __post_init__(self):
        check_weights(self.members, self.weights)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each, as its members give them."""
        total: dict[str, np.ndarray] = {}
        for name, member in self.members.items():
            for key, score in member.predict(examples).items():
                total[key] = total.get(key, np.zeros(examples.num_rows)) + self.weights[name] * score
        return total


def best_blend(models: Mapping[str, Any], validation: pa.Table, metric: Metric) -> Blend | None:
    """The plain average of the best two or three models, if validation prefers it to the best single one.

    `models` holds the best of each family by name; metric: of predictions on the validation rows.
    """
    names = best_average(models, validation, metric)
    if not names:
        return None
    return Blend(members={name: models[name] for name in names}, weights=dict.fromkeys(names, 1.0 / len(names)))


# -- what blends of every kind share -----------------------------------------------------------------------------------


def best_average(models: Mapping[str, Any], rows: pa.Table, metric: Metric) -> list[str]:
    """As `best_together`, of the averages of what the models predict for these rows."""
    told = {name: model.predict(rows) for name, model in models.items()}
    figures = {name: metric(made) for name, made in told.items()}
    return best_together(figures, lambda names: metric(average([told[name] for name in names])))


def average(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Means of predictions by name, sorted; what one of them lacks (a class that it does not know) counts as 0."""
    names = sorted({name for part in parts for name in part})
    zero = np.zeros(len(next(iter(parts[0].values()))))
    return {name: np.mean([part.get(name, zero) for part in parts], axis=0) for name in names}


def best_together(figures: Mapping[str, float], together: Callable[[list[str]], float], most: int = 3) -> list[str]:
    """Names of the best two (or three, … `most`) models, if the figure of their average is above the best single one's;
    else none.

    figures: of each model, more is better; together: of the plain average of these. Weights stay equal: weights fitted
    on the same rows that chose the models gain nothing out of sample.
    """
    ranked = sorted(figures, key=lambda name: (-figures[name], name))
    best, found = figures[ranked[0]] if ranked else 0.0, []
    for size in range(2, min(most, len(ranked)) + 1):
        figure = together(ranked[:size])
        if figure > best:
            best, found = figure, ranked[:size]
    return found


def check_weights(members: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """ValueError unless there is one weight for each member, above 0, in total 1."""
    if set(members) != set(weights) or not members:
        raise ValueError(f"got members {sorted(members)} and weights for {sorted(weights)}, expected one each")
    if min(weights.values()) <= 0 or abs(sum(weights.values()) - 1.0) > 1e-9:
        raise ValueError(f"got weights {dict(weights)}, expected numbers above 0 that sum to 1")


def member_files(members: Mapping[str, Any]) -> dict[str, bytes]:
    """Each member's files under `<name>/`."""
    return {f"{name}/{path}": content for name, member in members.items() for path, content in member.save().items()}


def members_of(files: Mapping[str, bytes], names: Iterable[str], candidates: Mapping[str, Any]) -> dict[str, Any]:
    """The members of these names from what `member_files` gave; `candidates`: classes by name. CorruptError for a
    member they lack."""
    members = {}
    for name in names:
        if name not in candidates:
            raise CorruptError(f"blend.json: got member {name!r}, expected one of {sorted(candidates)}")
        start = f"{name}/"
        own = {path.removeprefix(start): content for path, content in files.items() if path.startswith(start)}
        members[name] = candidates[name].load(own)
    return members
