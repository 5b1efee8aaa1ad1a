"""Forecasts that add up: the expected sales of a series and of its parts, brought together by least squares.

MinT in its zero-constraint form (Wickramasuriya, Athanasopoulos, Hyndman 2019; Di Fonzo & Girolimetto 2023) with a
diagonal covariance: every forecast gives way in proportion to its own variance, taken from the width of its interval.
Only sums that held in the past are asked for: a level that is cut to its largest series adds up to nothing.

Shapes: N series, H weeks, Q quantiles, A sums.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.models.forecast_panel import Panel

SHARES = np.array([5 / 24, 1 / 6, 1 / 4, 1 / 6, 5 / 24])
"""weights of the quantiles 0.1, 0.25, 0.5, 0.75, 0.9 in the mean of a distribution with straight lines between them,
the outer ones drawn on"""
CHECKED_WEEKS = 26
"""newest weeks in which a sum has to hold"""
CLOSE = 1e-6
"""of a sum, relative"""
ROUNDS = 20
"""times that forecasts below 0 are set to 0 and the others brought together again"""


def expected(quantiles_NHQ: np.ndarray) -> np.ndarray:
    """(N, H) mean of the distribution that the quantiles describe."""
    return quantiles_NHQ @ SHARES


def sums(rows: pa.Table) -> np.ndarray:
    """(A, N) 1 for a series, -1 for each of its parts: one row for each level that wholly makes up a series."""
    panel, names = Panel.of(rows), rows["entity_id"].combine_chunks()
    parents = rows["parents"].combine_chunks()
    child = pc.list_parent_indices(parents).to_numpy()
    parent = pc.index_in(parents.flatten(), value_set=names).fill_null(-1).to_numpy()
    sold_NL = np.nan_to_num(panel.values[:, -CHECKED_WEEKS:])
    level = np.array(panel.level, dtype=object)
    found = []
    for place in np.unique(parent[parent >= 0]):
        parts = child[parent == place]
        for name in sorted(set(level[parts])):
            own = parts[level[parts] == name]
            gap = np.abs(sold_NL[own].sum(0) - sold_NL[place]).max()
            if gap <= CLOSE * max(1.0, np.abs(sold_NL[place]).max()):
                row = np.zeros(len(panel))
                row[place], row[own] = 1.0, -1.0
                found.append(row)
    return np.stack(found) if found else np.zeros((0, len(panel)))


def adjustments(rows: pa.Table, quantiles_NHQ: np.ndarray) -> np.ndarray:
    """(N, H) what is to be added to the expected sales of these series, all together, so that they add up.

    Expected sales that are not below 0 stay so.
    """
    sums_AN, point_NH = sums(rows), expected(quantiles_NHQ)
    if not len(sums_AN):
        return np.zeros_like(point_NH)
    variance_NH = (quantiles_NHQ[:, :, -1] - quantiles_NHQ[:, :, 0]) ** 2
    result = np.empty_like(point_NH)
    for week in range(point_NH.shape[1]):
        result[:, week] = _together(sums_AN, point_NH[:, week], variance_NH[:, week]) - point_NH[:, week]
    return result


def _together(sums_AN: np.ndarray, point_N: np.ndarray, variance_N: np.ndarray) -> np.ndarray:
    """(N,) the nearest points that add up, by the variances; a point without variance stays where it is."""
    free_N, fixed_N = variance_N.copy(), point_N.copy()
    for _ in range(ROUNDS):
        weighted_NA = free_N[:, None] * sums_AN.T
        solved_A = np.linalg.lstsq(sums_AN @ weighted_NA, sums_AN @ fixed_N, rcond=1e-10)[0]
        found_N = fixed_N - weighted_NA @ solved_A
        below_N = (found_N < 0) & (point_N >= 0) & (free_N > 0)
        if not below_N.any():
            break
        fixed_N[below_N], free_N[below_N] = 0.0, 0.0
    return found_N
