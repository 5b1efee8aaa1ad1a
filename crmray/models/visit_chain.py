"""What a purchase may follow, and the fit of the mixture of a Markov chain and tastes: see `markov`.

Shapes: B rows, I items, N history entries of all rows, Z tastes, L lags, P pairs of an entry and a product that it may
follow, K distinct pairs of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from crmray.models.histories import Histories

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What each history entry may follow."""

    bought: Histories
    """the entries"""
    entries: Sequence[np.ndarray]
    """of each lag: (P,) the entry that follows"""
    parents: Sequence[np.ndarray]
    """of each lag: (P,) code of the product that it may follow"""
    shares: Sequence[np.ndarray]
    """of each lag: (P,) 1 / size of the visit that it may follow"""
    present_NL: np.ndarray = field(repr=False)
    """(N, L + 1) float64: 1 for the tastes and for each lag that the row reaches back to"""

    @staticmethod
    def of(bought: Histories, num_lags: int) -> Chain:
        """All pairs of the last num_lags visits before each entry's."""
        visits, rows = bought.visits(), bought.rows
        size = np.bincount(visits) if len(visits) else np.zeros(0, np.int64)
        start = np.cumsum(size) - size
        present_NL = np.ones((len(visits), num_lags + 1))
        entries, parents, shares = [], [], []
        for lag in range(1, num_lags + 1):
            before = np.maximum(visits - lag, 0)
            reached = (visits >= lag) & (rows[start[before]] == rows) if len(visits) else np.zeros(0, bool)
            present_NL[:, lag] = reached
            follower = np.flatnonzero(reached)
            width = size[before[follower]]
            entry = np.repeat(follower, width)
            place = np.arange(len(entry)) - np.repeat(np.cumsum(width) - width, width)
            entries.append(entry)
            parents.append(bought.codes[start[before[entry]] + place])
            shares.append(1.0 / np.repeat(width, width))
        return Chain(bought=bought, entries=entries, parents=parents, shares=shares, present_NL=present_NL)

    def keys(self, lag: int, num_items: int) -> np.ndarray:
        """(P,) int64: parent * num_items + item of each pair."""
        return self.parents[lag].astype(np.int64) * num_items + self.bought.codes[self.entries[lag]]

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """(N, L + 1) `weights` (L + 1,) of what each entry has, in total 1."""
        found = self.present_NL * weights
        return found / found.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is fitted."""

    follow: sp.csr_matrix
    """(I, I) P(product | product of a visit before); rows sum to 1 at most"""
    taste_ZI: np.ndarray
    """(Z, I) P(product | taste)"""
    prior_Z: np.ndarray
    """(Z,) share of each taste"""
    weights: np.ndarray
    """(L + 1,) share of the tastes, of the visit before, of the one before it, …"""


def maximise(
    chain: Chain, start: Mixture, on_sale_I: np.ndarray, *, single_from: int, num_rounds: int, discount: float,
    shrink: float, added: float, rng: np.random.Generator,
) -> Mixture:  # fmt: skip
    """Expectation maximisation from `start`, whose `follow` is not read.

    single_from: round from which a customer has one taste; before it and below it a share in each. on_sale_I: share of
    the purchases during which a product was on sale. discount, shrink: taken off each count of a pair, and added to the
    counts of what follows a product. added: purchases by each taste that are added to a customer's.
    """
    bought, size, lags = chain.bought, len(on_sale_I), range(len(chain.entries))
    keys_K, where = np.unique(np.concatenate([chain.keys(lag, size) for lag in lags]), return_inverse=True)
    pair_of = np.split(where, np.cumsum([len(entry) for entry in chain.entries])[:-1])
    parent_K, item_K = keys_K // size, keys_K % size
    late_K = np.minimum(1.0, on_sale_I[item_K] / on_sale_I[parent_K])
    follow_K = np.bincount(where, np.concatenate(chain.shares), minlength=len(keys_K)).astype(np.float64)
    follow_K /= np.bincount(parent_K, follow_K, minlength=size)[parent_K]
    taste_ZI, prior_Z, weights = start.taste_ZI, start.prior_Z, start.weights
    by_row, by_item = groups(bought.rows, len(bought)), groups(bought.codes, size)
    theta_BZ = rng.dirichlet(np.ones(len(prior_Z)), len(bought))
    for number in range(num_rounds):
        mixed_NL = chain.weighted(weights)
        by_pair = [mixed_NL[chain.entries[lag], lag + 1] * chain.shares[lag] * follow_K[pair_of[lag]] for lag in lags]
        by_lag = [np.bincount(chain.entries[lag], by_pair[lag], minlength=len(bought.codes)) for lag in lags]
        drawn_NZ = mixed_NL[:, :1] * taste_ZI.T[bought.codes]
        followed_N = np.sum(by_lag, axis=0)
        if number >= single_from:
            theta_BZ = one_taste(by_row, drawn_NZ, followed_N, prior_Z)
            by_taste_NZ, inverse_N = _of_one_taste(theta_BZ[bought.rows], drawn_NZ, followed_N)
            prior_Z = theta_BZ.mean(0)
        else:
            by_taste_NZ, inverse_N = of_mixed_tastes(theta_BZ[bought.rows], drawn_NZ, followed_N)
            theta_BZ = by_row @ by_taste_NZ
            prior_Z = theta_BZ.sum(0) / theta_BZ.sum()
            theta_BZ += added * prior_Z
            theta_BZ /= theta_BZ.sum(1, keepdims=True)
        weights = np.array([by_taste_NZ.sum(), *((part * inverse_N).sum() for part in by_lag)]) / len(inverse_N)
        follow_K = np.zeros(len(keys_K))
        for lag in lags:
            follow_K += np.bincount(pair_of[lag], by_pair[lag] * inverse_N[chain.entries[lag]], minlength=len(keys_K))
        follow_K = np.maximum(follow_K - discount, 0.0) / late_K
        follow_K /= (np.bincount(parent_K, follow_K, minlength=size) + shrink + TINY)[parent_K]
        taste_ZI = (by_item @ by_taste_NZ).T / on_sale_I + TINY
        taste_ZI /= taste_ZI.sum(1, keepdims=True)
    kept = follow_K > 0
    follow = sp.csr_matrix((follow_K[kept], (parent_K[kept], item_K[kept])), shape=(size, size))
    return Mixture(follow=follow, taste_ZI=taste_ZI, prior_Z=prior_Z, weights=weights)


def groups(group_N: np.ndarray, size: int) -> sp.csr_matrix:
    """(size, N) matrix that sums the entries of each group."""
    return sp.csr_matrix((np.ones(len(group_N)), (group_N, np.arange(len(group_N)))), shape=(size, len(group_N)))


def of_mixed_tastes(
    theta_NZ: np.ndarray, drawn_NZ: np.ndarray, followed_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """P(taste z brought the entry) (N, Z), and by what P(it followed) has to be multiplied (N,).

    theta: P(taste) of the entry's customer; drawn: P(entry, from the tastes | taste); followed: P(entry, from a visit
    before).
    """
    by_taste_NZ = theta_NZ * drawn_NZ
    inverse_N = 1.0 / (by_taste_NZ.sum(1) + followed_N + TINY)
    return by_taste_NZ * inverse_N[:, None], inverse_N


def _of_one_taste(theta_NZ: np.ndarray, drawn_NZ: np.ndarray, followed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `of_mixed_tastes`, where a customer has one taste."""
    share_NZ = theta_NZ / (drawn_NZ + followed_N[:, None] + TINY)
    return share_NZ * drawn_NZ, share_NZ.sum(1)


def one_taste(by_row: sp.csr_matrix, drawn_NZ: np.ndarray, followed_N: np.ndarray, prior_Z: np.ndarray) -> np.ndarray:
    """(B, Z) P(the customer's one taste | all entries); by_row: (B, N) as of `groups`."""
    logs_BZ = by_row @ np.log(drawn_NZ + followed_N[:, None] + TINY) + np.log(prior_Z + TINY)
    theta_BZ = np.exp(logs_BZ - logs_BZ.max(1, keepdims=True))
    return theta_BZ / theta_BZ.sum(1, keepdims=True)
