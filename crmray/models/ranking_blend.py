"""A blend of models that rank: by the places that they give to a product, not by their scores.

Shape suffixes: B customers of a block, I items, K places of a ranking.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from crmray.models.blend import Members, check_weights, member_files, members_of
from crmray.models.histories import Catalogue
from crmray.models.ranking import Ranked, blocks, owned, rank_block, top
from crmray.models.tabular import file_of, to_json

RANK_OFFSET = 20.0
"""places over which the weight of a rank falls to a half"""
DEPTH = 500
"""places of each member's ranking that a blend reads"""
MAX_MEMBERS = 4
WEIGHT_STEPS = 4
"""weights of a blend are multiples of 1 / WEIGHT_STEPS"""
BLEND_ROWS = 5_000
"""validation rows on which weights are compared"""


def reciprocal_ranks(scores_BI: np.ndarray) -> np.ndarray:
    """(B, I) float32: RANK_OFFSET / (RANK_OFFSET + places before it) for the DEPTH best items of each row, else 0.

    Items with score -inf get 0. Equal scores stand in order of code.
    """
    depth = min(DEPTH, scores_BI.shape[1])
    best_BK, values_BK = top(scores_BI, depth)
    shares_K = (RANK_OFFSET / (RANK_OFFSET + np.arange(depth))).astype(np.float32)
    result = np.zeros(scores_BI.shape, np.float32)
    np.put_along_axis(result, best_BK, np.where(np.isfinite(values_BK), shares_K, np.float32(0.0)), axis=1)
    return result


@dataclass(frozen=True, kw_only=True)
class RankingBlend(Ranked, Members):
    """Weighted sum of the reciprocal ranks that members give to a product. Members were fitted on the same rows.

    Source: Cormack, Clarke and Büttcher, "Reciprocal rank fusion" (SIGIR 2009). Unlike sums of scores it does not
    depend on how these are spread: few products stand out in a linear model's, all lie close in a network's.
    """

    weights: Mapping[str, float]
    """share of each member; above 0, in total 1"""

    def __post_init__(self):
        check_weights(self.members, self.weights)

    @cached_property
    def joined(self) -> Joined:
        """The members over one catalogue."""
        return Joined.of(self.members)

    @property
    def catalogue(self) -> Catalogue:
        """The largest catalogue among the members'."""
        return self.joined.catalogue

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32."""
        parts = self.joined.scores(examples)
        return _weighted([self.weights[name] for name in parts], list(parts.values()))

    def save(self) -> dict[str, bytes]:
        """blend.json with the weights, which name the members; each member's files under `<name>/`."""
        return {"blend.json": to_json({"weights": dict(self.weights)}), **member_files(self.members)}

    @staticmethod
    def load(files: Mapping[str, bytes], candidates: Mapping[str, Any]) -> RankingBlend:
        """What `save` wrote; `candidates`: classes by name. CorruptError for a member they lack."""
        weights = json.loads(file_of(files, "blend.json"))["weights"]
        return RankingBlend(members=members_of(files, weights, candidates), weights=weights)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Models over one catalogue, the largest: some leave out rare products."""

    members: Mapping[str, Any]
    """fitted models by candidate name"""
    catalogue: Catalogue
    """the largest one"""
    places: Mapping[str, np.ndarray]
    """of the members with another catalogue: positions of their products in `catalogue`"""

    @staticmethod
    def of(members: Mapping[str, Any]) -> Joined:
        """Compare the catalogues, once."""
        largest = max((member.catalogue for member in members.values()), key=len)
        others = {
            name: m.catalogue for name, m in members.items() if not np.array_equal(m.catalogue.items, largest.items)
        }
        places = {name: np.array([largest.code_of[item] for item in own.items]) for name, own in others.items()}
        return Joined(members=members, catalogue=largest, places=places)

    def scores(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Reciprocal ranks (B, I) that each member gives to what may be shown."""
        found, hidden = {}, owned(examples, self.catalogue)
        for name, member in self.members.items():
            scores_BI = np.array(member.scores(examples), np.float32)
            if name in self.places:
                wide_BI = np.full((len(scores_BI), len(self.catalogue)), -np.inf, np.float32)
                wide_BI[:, self.places[name]] = scores_BI
                scores_BI = wide_BI
            scores_BI[hidden] = -np.inf
            found[name] = reciprocal_ranks(scores_BI)
        return found


def _weighted(weights: Sequence[float], scores: Sequence[np.ndarray]) -> np.ndarray:
    total_BI = np.zeros_like(scores[0])
    for weight, scores_BI in zip(weights, scores, strict=True):
        if weight:
            total_BI += np.float32(weight) * scores_BI
    return total_BI


def best_blend(
    models: Mapping[str, Any], figures: Mapping[str, float], rows: pa.Table, metric: Callable[[np.ndarray], np.ndarray]
) -> RankingBlend | None:
    """The best weighted sum of the MAX_MEMBERS best models, None if one alone is as good.

    figures: of each model, more is better. metric: products (B, K) of all `rows` -> (B,) figure of each row. Weights
    are coarse (quarters), so that little is fitted to the rows.
    """
    names = sorted(models, key=lambda name: (-figures[name], name))[:MAX_MEMBERS]
    joined = Joined.of({name: models[name] for name in names})
    points = [
        point for point in itertools.product(range(WEIGHT_STEPS + 1), repeat=len(names)) if sum(point) == WEIGHT_STEPS
    ]
    shown: dict[tuple[int, ...], list[np.ndarray]] = {point: [] for point in points}
    for block in blocks(rows.num_rows, len(joined.catalogue) * len(names)):
        part = rows.slice(block.start, block.stop - block.start)
        scores = list(joined.scores(part).values())
        for point in points:
            total = _weighted([w / WEIGHT_STEPS for w in point], scores)
            shown[point].append(rank_block(total, joined.catalogue, part)[0])
    reached = {point: float(np.mean(metric(np.concatenate(parts)))) for point, parts in shown.items()}
    best = max(points, key=lambda point: (reached[point], max(point)))
    if max(best) == WEIGHT_STEPS:
        return None
    weights = {name: w / WEIGHT_STEPS for name, w in zip(names, best, strict=True) if w}
    return RankingBlend(members={name: models[name] for name in weights}, weights=weights)
