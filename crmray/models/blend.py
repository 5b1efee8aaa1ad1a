"""A weighted average of fitted models' scores, as one more contender."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray.errors import CorruptError
from crmray.models.tabular import file_of, to_json

NUM_REFERENCE = 1024


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Average of members' predictions. On the rank scale a score is its place among the reference rows, so that a row's
    answer does not depend on the rows beside it."""

    NAME: ClassVar[str] = "blend"

    members: Mapping[str, Any]
    """Fitted models by candidate name."""
    weights: Mapping[str, float]
    """Share of each member; above 0, in total 1."""
    scale: Literal["probability", "rank"] = "probability"
    """What is averaged: the scores, or their places among the reference scores (0..1)."""
    reference: Mapping[str, Sequence[float]] | None = None
    """Rank scale: ascending quantiles of each member's scores on reference rows."""
    rounds: int | None = None
    """Its members have theirs."""

    def __post_init__(self):
        if set(self.members) != set(self.weights) or not self.members:
            raise ValueError(
                f"got members {sorted(self.members)} and weights for {sorted(self.weights)}, expected one each"
            )
        if min(self.weights.values()) <= 0 or abs(sum(self.weights.values()) - 1.0) > 1e-9:
            raise ValueError(f"got weights {dict(self.weights)}, expected numbers above 0 that sum to 1")
        if self.scale not in ("probability", "rank") or (self.scale == "rank") != (self.reference is not None):
            raise ValueError(f"got scale={self.scale!r}, expected 'probability', or 'rank' with a reference")

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each, as its members give them."""
        total: dict[str, np.ndarray] = {}
        for name, member in self.members.items():
            for key, score in member.predict(examples).items():
                if self.reference is not None:
                    score = _places(score, self.reference[name])
                total[key] = total.get(key, np.zeros(examples.num_rows)) + self.weights[name] * score
        return total

    def check(self, examples: pa.Table) -> None:
        """Each member's check."""
        for member in self.members.values():
            member.check(examples)

    def with_members(self, members: Mapping[str, Any]) -> Blend:
        """The same blend of the same candidates fitted again (on more rows)."""
        return replace(self, members={name: members[name] for name in self.members})

    def save(self) -> dict[str, bytes]:
        """Files of the model: blend.json, and each member's under `<name>/`."""
        reference = self.reference and {name: list(values) for name, values in self.reference.items()}
        fields = {"members": list(self.members), "weights": dict(self.weights), "scale": self.scale}
        files = {"blend.json": to_json({**fields, "reference": reference})}
        for name, member in self.members.items():
            files |= {f"{name}/{path}": content for path, content in member.save().items()}
        return files

    @staticmethod
    def load(files: Mapping[str, bytes], candidates: Mapping[str, Any]) -> Blend:
        """The blend that `save` wrote; `candidates`: classes by name. CorruptError for a member they lack."""
        state = json.loads(file_of(files, "blend.json"))
        members = {}
        for name in state["members"]:
            if name not in candidates:
                raise CorruptError(f"blend.json: got member {name!r}, expected one of {sorted(candidates)}")
            start = f"{name}/"
            own = {path.removeprefix(start): content for path, content in files.items() if path.startswith(start)}
            members[name] = candidates[name].load(own)
        reference = state["reference"] and {name: tuple(values) for name, values in state["reference"].items()}
        return Blend(members=members, weights=state["weights"], scale=state["scale"], reference=reference)


def _places(scores: np.ndarray, reference: Sequence[float]) -> np.ndarray:
    """Place of each score among ascending reference scores, 0..1; between two of them by interpolation."""
    knots, first, counts = np.unique(np.asarray(reference), return_index=True, return_counts=True)
    middle = (first + (counts - 1) / 2 + 0.5) / len(reference)
    return np.interp(scores, knots, middle)


def best_blend(
    models: Mapping[str, Any],
    validation: pa.Table,
    metric: Callable[[np.ndarray], float],
    *,
    mode: Literal["max", "min"] = "max",
    scale: Literal["probability", "rank"] = "probability",
    most: int = 3,
) -> Blend | None:
    """The plain average of the best two (or three, … `most`) models, if validation prefers it to the best single one.

    `models` holds the best of each family by name; `metric` maps scores (N,) of the validation rows to the selection
    figure. Weights stay equal: weights fitted on the same rows that chose the models gain nothing out of sample.
    """
    sign = 1.0 if mode == "max" else -1.0
    scores = {name: model.predict(validation)["score"] for name, model in models.items()}
    figures = {name: sign * metric(score) for name, score in scores.items()}
    ranked = sorted(figures, key=lambda name: (-figures[name], name))
    best = figures[ranked[0]] if ranked else 0.0
    found: Blend | None = None
    for size in range(2, min(most, len(ranked)) + 1):
        names = ranked[:size]
        reference = {n: _reference(scores[n]) for n in names} if scale == "rank" else None
        parts = [_places(scores[n], reference[n]) if reference else scores[n] for n in names]
        figure = sign * metric(np.mean(parts, axis=0))
        if figure > best:
            best = figure
            found = Blend(
                members={name: models[name] for name in names},
                weights=dict.fromkeys(names, 1.0 / size),
                scale=scale,
                reference=reference,
            )
    return found


def _reference(scores: np.ndarray) -> tuple[float, ...]:
    """At most NUM_REFERENCE ascending quantiles."""
    if len(scores) <= NUM_REFERENCE:
        return tuple(np.sort(scores).tolist())
    return tuple(np.quantile(scores, (np.arange(NUM_REFERENCE) + 0.5) / NUM_REFERENCE).tolist())
