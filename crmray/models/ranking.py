"""Rankings: the best items of each customer, and blends of models that rank.

Shape suffixes: B customers of a block, I items, K places of a ranking, C members of a blend.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.product_facts import Facts
from crmray.models import histories
from crmray.models.blend import check_weights, member_files, members_of
from crmray.models.histories import Catalogue
from crmray.models.rules import Rules
from crmray.models.tabular import file_of, to_json

BLOCK_CELLS = 16_000_000
"""scores held at once while ranking: 64 MB of float32"""
RANK_OFFSET = 20.0
"""places over which the weight of a rank falls to a half"""
DEPTH = 500
"""places of each member's ranking that a blend reads"""
MAX_MEMBERS = 4
WEIGHT_STEPS = 4
"""weights of a blend are multiples of 1 / WEIGHT_STEPS"""
BLEND_ROWS = 5_000
"""validation rows on which weights are compared"""


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Slices of rows whose scores fit BLOCK_CELLS."""
    size = max(1, min(4096, BLOCK_CELLS // max(1, num_items)))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def rank(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    *,
    top_k: int = 10,
    exclude: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The best `top_k` items of every row: {"products": (rows, K) object, "scores": (rows, K) float32}.

    scores: examples -> (B, I), higher is better. What a customer owns is left out where `exclude_owned` says so,
    `exclude` for everybody. Equal scores stand in the order of the catalogue. Where fewer than K items are left, the
    rest is None with score nan.
    """
    products = np.full((examples.num_rows, top_k), None, dtype=object)
    values = np.full((examples.num_rows, top_k), np.nan, dtype=np.float32)
    for block in blocks(examples.num_rows, len(catalogue)):
        part = examples.slice(block.start, block.stop - block.start)
        shown = rank_block(np.asarray(scores(part)), catalogue, part, top_k=top_k, exclude=exclude)
        products[block], values[block] = shown
    return {"products": products, "scores": values}


def rank_block(
    scores_BI: np.ndarray, catalogue: Catalogue, part: pa.Table, *, top_k: int = 10, exclude: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Products (B, K) object and scores (B, K) float32 of the rows whose scores are given; as `rank`."""
    allowed_BI = _allowed(scores_BI, catalogue, part, exclude)
    best_BK, values_BK = top(allowed_BI, min(top_k, len(catalogue)))
    shown_BK = np.isfinite(values_BK)
    products_BK = np.full((len(allowed_BI), top_k), None, dtype=object)
    scores_BK = np.full((len(allowed_BI), top_k), np.nan, np.float32)
    width = best_BK.shape[1]
    products_BK[:, :width] = np.where(shown_BK, catalogue.items[best_BK], None)
    scores_BK[:, :width] = np.where(shown_BK, values_BK, np.nan)
    return products_BK, scores_BK


def lists(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    top_k: int,
    rules: Rules,
    facts: Facts,
    hidden: Collection[str],
    *,
    pool: int,
) -> list[tuple[list[str], list[float]]]:
    """Products and scores that each row is shown under the rules, best first; shorter where fewer are left.

    Rules that reorder choose among the `pool` best products; for a row for which these are not enough, among all.
    """
    found: list[tuple[list[str], list[float]]] = [([], [])] * examples.num_rows
    short = np.arange(examples.num_rows)
    for depth in [min(pool, len(catalogue)), len(catalogue)] if rules.reorders else [top_k]:
        for block in blocks(len(short), depth):  # the whole rankings of all rows would not fit the memory
            part = examples.take(pa.array(short[block]))
            best = rank(scores, catalogue, part, top_k=depth, exclude=sorted(hidden))
            for row, names, values in zip(short[block], best["products"], best["scores"], strict=True):
                size = int(np.isfinite(values).sum())
                chosen = rules.choose(names[:size].tolist(), values[:size], top_k, facts)
                found[row] = names[chosen].tolist(), values[chosen].astype(float).tolist()
        short = np.array([row for row in short if len(found[row][0]) < top_k], np.int64)
    return found


def places(
    scores: Callable[[pa.Table], np.ndarray],
    catalogue: Catalogue,
    examples: pa.Table,
    product: str,
    *,
    exclude: Sequence[str],
) -> np.ndarray:
    """(rows,) int64 place of one product, from 1, among the products that each row may be shown; 0 where it may not be
    shown, or where the model does not know it."""
    found = np.zeros(examples.num_rows, np.int64)
    code = catalogue.code_of.get(product)
    if code is None:
        return found
    for block in blocks(examples.num_rows, len(catalogue)):
        part = examples.slice(block.start, block.stop - block.start)
        allowed_BI = _allowed(np.asarray(scores(part)), catalogue, part, exclude)
        own_B1 = allowed_BI[:, [code]]
        found[block] = np.where(np.isfinite(own_B1[:, 0]), 1 + (allowed_BI > own_B1).sum(1), 0)
    return found


def _allowed(scores_BI: np.ndarray, catalogue: Catalogue, part: pa.Table, exclude: Sequence[str]) -> np.ndarray:
    """(B, I) float32: a copy of the scores, -inf for what a row or nobody may be shown."""
    allowed_BI = np.array(scores_BI, dtype=np.float32)
    allowed_BI[owned(part, catalogue)] = -np.inf
    allowed_BI[:, [catalogue.code_of[product] for product in exclude if product in catalogue.code_of]] = -np.inf
    return allowed_BI


def owned(examples: pa.Table, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """Index arrays (rows, codes) of what may not be shown because the customer has it."""
    offsets, codes, _ = catalogue.codes(histories.column_of(examples, "history"))
    rows = np.repeat(np.arange(examples.num_rows), np.diff(offsets))
    asked = pc.fill_null(histories.column_of(examples, "exclude_owned"), True).to_numpy()[rows]
    return rows[asked], codes[asked]


def top(scores_BI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores (B, k) of the highest scores, best first; equal scores in order of code."""
    cut_B1 = np.partition(scores_BI, scores_BI.shape[1] - k, axis=1)[:, -k][:, None]
    best_BK = np.empty((len(scores_BI), k), np.int64)
    for row, scores_I in enumerate(scores_BI):
        candidates = np.flatnonzero(scores_I >= cut_B1[row])
        best_BK[row] = candidates[np.argsort(-scores_I[candidates], kind="stable")[:k]]
    return best_BK, np.take_along_axis(scores_BI, best_BK, axis=1)


class Recommender(Protocol):
    """What a fitted recommender offers."""

    @property
    def catalogue(self) -> Catalogue:
        """The products that it knows."""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32; higher is better, comparable within a row only."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `rank`."""

    def save(self) -> dict[str, bytes]:
        """File name -> content."""


class Ranked:
    """What all recommenders share: they rank by their scores."""

    def predict(self: Recommender, examples: pa.Table) -> dict[str, np.ndarray]:
        """The ten best products of each row; see `rank`."""
        return rank(self.scores, self.catalogue, examples)


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
class RankingBlend(Ranked):
    """Weighted sum of the reciprocal ranks that members give to a product. Members were fitted on the same rows.

    Source: Cormack, Clarke and Büttcher, "Reciprocal rank fusion" (SIGIR 2009). Unlike sums of scores it does not
    depend on how these are spread: few products stand out in a linear model's, all lie close in a network's.
    """

    NAME: ClassVar[str] = "blend"

    members: Mapping[str, Any]
    """fitted models by candidate name"""
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

    def with_members(self, members: Mapping[str, Any]) -> RankingBlend:
        """The same blend of the same candidates fitted again (on more rows)."""
        return replace(self, members={name: members[name] for name in self.members})

    def save(self) -> dict[str, bytes]:
        """blend.json, and each member's files under `<name>/`."""
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
