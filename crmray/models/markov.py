"""Markov chain over visits, mixed with latent tastes: what a visit holds follows the visits before it, or a taste.

A purchase of visit t comes with probability w_l from the visit l before it, where a product j of that visit, each
alike, leads to product i with probability S[j, i]; and with probability w_0 from the customer's tastes, of which taste
z buys i with probability T[z, i]. All of it is fitted by expectation maximisation (Dempster, Laird and Rubin 1977).
Sources: Raftery, "A model for high-order Markov chains" (1985), for the mixture over lags; Hofmann, "Probabilistic
latent semantic analysis" (UAI 1999), and Hofmann and Puzicha, "Latent class models for collaborative filtering" (IJCAI
1999), for the tastes; Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing personalized Markov chains for next-basket
recommendation" (WWW 2010), for joining both.
Shapes: B rows, I items, N history entries of all rows, Z tastes, L lags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors import numpy as safetensors

from crmray.evaluate import metrics
from crmray.models import histories, ranking
from crmray.models.histories import Catalogue, Histories
from crmray.models.neighbours import (
    TIE,
    arrays_of,
    between,
    check_not_negative,
    matrix_of,
    needs_history,
    reasons_by_share,
    strongest,
)
from crmray.models.tabular import check_choice, check_positive, file_of, to_json
from crmray.models.visit_chain import Chain, Mixture, groups, maximise, of_mixed_tastes, one_taste

MAX_PAIRS = 20_000_000
"""pairs that a fit reads; above it customers are sampled"""
MEMBERSHIPS = ("mixed", "single")
VIEWED = "viewed"
"""column of the rows: list<string> products that the customer looked at lately"""
NONE = np.empty(0, np.int64)
MAX_TOLD = 4_000
"""customers on whose newest visit memberships are compared"""
RATE_DAYS = 30.0
"""days that are added to a customer's time so far: one visit lately is no rate"""
NUM_FOLDING = 10
"""rounds that fit the tastes of one customer to known products"""
MIN_ON_SALE = 0.05
"""share of the purchases during which a product counts as on sale at least"""


@dataclass(frozen=True, kw_only=True)
class Markov:
    """The settings of the mixture."""

    NAME: ClassVar[str] = "markov"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"num_tastes": (16, 32), "num_lags": (1, 3)}

    num_tastes: int = 16
    """latent tastes"""
    membership: str = "auto"
    """mixed: a customer has a share in every taste; single: has one of them, of which the history makes more sure;
    auto: whichever, fitted without customers' newest visits, foretells these better"""
    num_lags: int = 2
    """visits back that a purchase may follow"""
    look_ahead_days: float = 20.0
    """days in which a visit after the next one may come, at the customer's own rate of visits; 0, and where rows have
    no date: the next visit alone"""
    discount: float = 0.5
    """taken off each expected count of a pair, so that rare pairs are trusted less"""
    shrink: float = 3.0
    """added to the count of what follows a product: the rest is left to the tastes"""
    taste_prior: float = 0.3
    """purchases by each taste, on average, that are added to a customer's own"""
    num_rounds: int = 30
    """rounds of expectation maximisation"""
    num_neighbours: int = 100
    """followers kept per product"""

    def __post_init__(self):
        check_choice("membership", self.membership, ("auto", *MEMBERSHIPS))
        check_positive(
            num_tastes=self.num_tastes, num_lags=self.num_lags, taste_prior=self.taste_prior,
            num_rounds=self.num_rounds, num_neighbours=self.num_neighbours,
        )  # fmt: skip
        check_not_negative(look_ahead_days=self.look_ahead_days, discount=self.discount, shrink=self.shrink)

    applies = staticmethod(needs_history)

    def fit(
        self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None
    ) -> FittedMarkov:
        """Expectation maximisation from random tastes."""
        has_dates = not train["as_of"].null_count
        train = histories.training(train)
        catalogue = Catalogue.of(train)
        bought = _sampled(histories.encode(train, catalogue), self.num_lags, np.random.default_rng(seed))
        point = self if has_dates else replace(self, look_ahead_days=0.0)
        earlier = bought.where(bought.visits_from_end() > 0)
        if self.membership == "auto" and not len(earlier.codes):  # nobody came twice: nothing to compare on
            point = replace(point, membership="mixed")
        elif self.membership == "auto":
            tried = [
                replace(point, membership=name)._fitted(catalogue, earlier, has_dates, seed) for name in MEMBERSHIPS
            ]
            best = max(tried, key=lambda model: _newest_visit(model, bought))
            point = replace(point, membership=best.membership)
        return point._fitted(catalogue, bought, has_dates, seed)

    def _fitted(self, catalogue: Catalogue, bought: Histories, has_dates: bool, seed: int) -> FittedMarkov:
        """The model with the membership of these settings, which is not auto."""
        rng = np.random.default_rng(seed)
        added, half = self.taste_prior * self.num_tastes, self.num_rounds // 2
        found = maximise(
            Chain.of(bought, self.num_lags), self._start(catalogue, rng),
            _on_sale(bought, len(catalogue)) if has_dates else np.ones(len(catalogue)),
            single_from=half if self.membership == "single" else self.num_rounds, num_rounds=self.num_rounds,
            discount=self.discount, shrink=self.shrink, added=added, rng=rng,
        )  # fmt: skip
        return FittedMarkov(
            catalogue=catalogue, votes=strongest(found.follow, self.num_neighbours),
            taste_ZI=np.ascontiguousarray(found.taste_ZI, np.float32),
            taste_added_Z=(added * found.prior_Z).astype(np.float32),
            lag_weights=tuple(float(weight) for weight in found.weights), look_ahead_days=self.look_ahead_days,
            membership=self.membership,
        )  # fmt: skip

    def _start(self, catalogue: Catalogue, rng: np.random.Generator) -> Mixture:
        """Random tastes around what everybody buys."""
        size, popularity_I = len(catalogue), catalogue.buyers / catalogue.buyers.sum()
        return Mixture(
            follow=sp.csr_matrix((size, size)),
            taste_ZI=0.5 * rng.dirichlet(np.ones(size), self.num_tastes) + 0.5 * popularity_I,
            prior_Z=np.full(self.num_tastes, 1.0 / self.num_tastes),
            weights=np.full(self.num_lags + 1, 1.0 / (self.num_lags + 1)),
        )

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedMarkov:
        """What `save` wrote. CorruptError when a file is missing."""
        catalogue, about = Catalogue.load(files), json.loads(file_of(files, "model.json"))
        arrays = safetensors.load(file_of(files, "markov.safetensors"))
        votes = matrix_of(arrays, (len(catalogue), len(catalogue)))
        return FittedMarkov(
            catalogue=catalogue, votes=votes, taste_ZI=arrays["tastes"], taste_added_Z=arrays["added"],
            lag_weights=tuple(about["lag_weights"]), look_ahead_days=about["look_ahead_days"],
            membership=about["membership"],
        )  # fmt: skip


def _sampled(bought: Histories, num_lags: int, rng: np.random.Generator) -> Histories:
    """All histories, or those of as many random customers as MAX_PAIRS allows."""
    _, sizes = np.unique(bought.visits(), return_counts=True)
    num_pairs = num_lags * float((sizes.astype(np.float64) ** 2).sum())
    if num_pairs <= MAX_PAIRS:
        return bought
    return bought.take(np.sort(rng.permutation(len(bought))[: max(1, int(len(bought) * MAX_PAIRS / num_pairs))]))


def _newest_visit(model: FittedMarkov, bought: Histories) -> float:
    """Mean NDCG@10 of what MAX_TOLD customers bought for the first time on their newest visit, given the others."""
    several = np.flatnonzero(np.bincount(bought.rows, bought.visits_from_end(), minlength=len(bought)) > 0)
    asked = bought.take(np.sort(np.random.default_rng(0).permutation(several)[:MAX_TOLD]))
    blocks = ranking.blocks(len(asked), len(model.catalogue))
    found = np.concatenate([np.empty(0), *(_told(model, asked.slice(block.start, block.stop)) for block in blocks)])
    return float(found.mean()) if len(found) else 0.0


def _told(model: FittedMarkov, part: Histories) -> np.ndarray:
    """NDCG@10 of each of these customers, of those who bought something for the first time on their newest visit."""
    newest = part.visits_from_end() == 0
    past = part.where(~newest)
    scores_BI = model.scores_of(past)
    scores_BI[past.rows, past.codes] = -np.inf
    is_new = newest & np.isfinite(scores_BI[part.rows, part.codes])
    rows = np.unique(part.rows[is_new])
    if not len(rows):
        return np.empty(0)
    truth = np.split(part.codes[is_new], np.flatnonzero(np.diff(part.rows[is_new])) + 1)
    ranked = ranking.top(scores_BI[rows], min(10, scores_BI.shape[1]))[0]
    return metrics.ranking_rows(ranked, [set(codes.tolist()) for codes in truth])["ndcg"]


def _on_sale(bought: Histories, num_items: int) -> np.ndarray:
    """(I,) share of all purchases made since each product's first: late products had less time to be bought."""
    first = np.zeros(num_items)
    np.maximum.at(first, bought.codes, bought.days_before)
    since = np.searchsorted(np.sort(bought.days_before), first, side="right") / max(1, len(bought.codes))
    return np.clip(since, MIN_ON_SALE, 1.0)


@dataclass(frozen=True, kw_only=True)
class FittedMarkov(ranking.Ranked):
    """The fitted mixture: scores are probabilities of the next purchase, and of those after it."""

    BECAUSE: ClassVar[str] = "often bought after {}"

    catalogue: Catalogue
    """the products"""
    votes: sp.csr_matrix
    """(I, I) float32 S: row: product bought, column: product that follows"""
    taste_ZI: np.ndarray
    """(Z, I) float32 T: what each taste buys"""
    taste_added_Z: np.ndarray
    """(Z,) float32 purchases by each taste that are added to a customer's own: its share times a number"""
    lag_weights: tuple[float, ...]
    """(L + 1,) shares of the tastes, the visit before, the one before it, …"""
    look_ahead_days: float
    """days in which a visit after the next one may come"""
    membership: str
    """mixed or single"""

    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32."""
        offsets, viewed, _ = self.catalogue.codes(histories.column_of(examples, VIEWED))
        rows = np.repeat(np.arange(examples.num_rows), np.diff(offsets))
        return self.scores_of(histories.encode(examples, self.catalogue), rows, viewed)

    def scores_of(self, bought: Histories, viewer_V: np.ndarray = NONE, viewed_V: np.ndarray = NONE) -> np.ndarray:
        """(B, I) float32 of histories in codes of the catalogue, and of what was viewed: row and code of each view."""
        theta_BZ = self._tastes(bought, viewer_V, viewed_V)
        liked_BI = theta_BZ @ self.taste_ZI
        num_lags = len(self.lag_weights) - 1
        visits = (self.lag_weights[lag] * self._visit(bought, lag) for lag in range(1, num_lags + 1))
        followed = sp.csr_matrix(sum(visits) @ self.votes)
        next_BI = self.lag_weights[0] * liked_BI + followed.toarray()
        if self.look_ahead_days:
            then_BI = self.lag_weights[0] * theta_BZ @ (self.taste_ZI @ self.votes) + (followed @ self.votes).toarray()
            then_BI *= self.lag_weights[1] / next_BI.sum(1, keepdims=True)
            next_BI = next_BI + self._again(bought)[:, None] * (self.lag_weights[0] * liked_BI + then_BI)
        return np.asarray(next_BI, np.float32) + np.float32(TIE**2) * self.catalogue.popularity

    def _again(self, bought: Histories) -> np.ndarray:
        """(B,) P(two visits or more in look_ahead_days | one or more), visits a Poisson process at the rate so far."""
        known, first = bought.lengths > 0, bought.offsets[:-1][bought.lengths > 0]
        num_visits, days = np.zeros(len(bought)), np.zeros(len(bought))
        num_visits[known], days[known] = bought.visits_from_end()[first] + 1, bought.days_before[first]
        expected = self.look_ahead_days * (num_visits + 0.5) / (days + RATE_DAYS)
        return 1.0 - expected * np.exp(-expected) / -np.expm1(-expected)

    def _visit(self, bought: Histories, lag: int) -> sp.csr_matrix:
        """(B, I) each product of the visit `lag` visits back (1: the newest) by its share of it."""
        chosen = bought.visits_from_end() == lag - 1
        rows, codes = bought.rows[chosen], bought.codes[chosen]
        size_B = np.bincount(rows, minlength=len(bought))
        return sp.csr_matrix((1.0 / size_B[rows], (rows, codes)), shape=(len(bought), len(self.catalogue)))

    def _tastes(self, bought: Histories, viewer_V: np.ndarray, viewed_V: np.ndarray) -> np.ndarray:
        """(B, Z) P(taste | history and views), the products of the tastes and of the chain as they are. A view comes
        from the tastes alone."""
        chain = Chain.of(bought, len(self.lag_weights) - 1)
        mixed_NL = chain.weighted(np.array(self.lag_weights))
        followed_N = np.zeros(len(bought.codes))
        for lag, entry in enumerate(chain.entries):
            values = np.asarray(self.votes[chain.parents[lag], bought.codes[entry]]).ravel() * chain.shares[lag]
            followed_N += np.bincount(entry, values * mixed_NL[entry, lag + 1], minlength=len(followed_N))
        rows = np.append(bought.rows, viewer_V)
        followed_N = np.append(followed_N, np.zeros(len(viewed_V)))
        prior_Z, by_row = self.taste_added_Z / self.taste_added_Z.sum(), groups(rows, len(bought))
        drawn_NZ = np.vstack([mixed_NL[:, :1] * self.taste_ZI.T[bought.codes], self.taste_ZI.T[viewed_V]])
        if self.membership == "single":
            return one_taste(by_row, drawn_NZ, followed_N, prior_Z)
        theta_BZ = np.tile(prior_Z, (len(bought), 1))
        for _ in range(NUM_FOLDING):
            theta_BZ = by_row @ of_mixed_tastes(theta_BZ[rows], drawn_NZ, followed_N)[0] + self.taste_added_Z
            theta_BZ /= theta_BZ.sum(1, keepdims=True)
        return theta_BZ

    def because(self, examples: pa.Table, products: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """For each row and each of its products: the products of the newest visit that lead to it, best first."""
        bought = self._visit(histories.encode(examples, self.catalogue), 1)
        return reasons_by_share(self.catalogue, bought, between(self.votes), products)

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, markov.safetensors."""
        arrays = {**arrays_of(self.votes), "tastes": self.taste_ZI, "added": self.taste_added_Z}
        about: dict[str, Any] = {name: getattr(self, name) for name in ("lag_weights", "look_ahead_days", "membership")}
        own = {"model.json": to_json(about), "markov.safetensors": safetensors.save(arrays)}
        return {**self.catalogue.save(), **own}
