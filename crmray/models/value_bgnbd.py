"""BG/NBD with Gamma-Gamma: purchases and spend from recency, frequency, age and order value, by maximum likelihood.

BG/NBD (Fader, Hardie and Lee, "Counting your customers the easy way", Marketing Science 2005): a customer buys as a
Poisson process of rate lambda ~ Gamma(r, alpha) and leaves for good after any purchase with probability p ~ Beta(a, b).
Gamma-Gamma (Fader and Hardie, "The Gamma-Gamma model of monetary value", 2013): the values of a customer's purchases
are Gamma(p, nu) with nu ~ Gamma(q, gamma), independent of the rate. A purchase is a day with a purchase.

Symbols: x repeat purchases, t_x age in weeks at the last purchase, T age in weeks; (N,) each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import NotEnoughDataError, TrainingError
from crmray.models.columns import numbers_of
from crmray.models.tabular import check_positive, file_of, needs, to_json
from crmray.models.value_targets import targets_of

COLUMNS = (
    "frequency_purchase_days", "recency_days", "tenure_purchase_days", "basket_amount_mean", "frequency_orders_all",
)  # fmt: skip
DAYS_PER_WEEK = 7.0
LARGEST_LOG = 12.0  # parameters lie within exp(-12) .. exp(12)
LEAST_AGE_WEEKS = 1.0 / 7.0


@dataclass(frozen=True, kw_only=True)
class BGNBD:
    """BG/NBD for the number of purchases, Gamma-Gamma for their value, scaled from gross to net spend."""

    NAME: ClassVar[str] = "bgnbd_gammagamma"
    KIND: ClassVar[str] = "memory"
    GRID: ClassVar[dict[str, tuple]] = {"penalty": (0.0, 0.01)}

    horizon_days: int = 90
    """Length of the label window; the task sets it to its own."""
    penalty: float = 0.0
    """Of the squared logarithms of the parameters, beside the mean log-likelihood."""

    def __post_init__(self):
        check_positive(horizon_days=self.horizon_days)
        if self.penalty < 0:
            raise ValueError(f"got penalty={self.penalty!r}, expected 0 or more")

    applies = staticmethod(needs(*COLUMNS))

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> BGNBDModel:
        """Fit on the newest date of the training rows, each customer once; validation, seed and rounds change nothing.

        The model looks only back, so the labels serve for one number: what of the gross spend stays after returns.
        """
        targets = targets_of(train)
        rows = _newest(train)
        x, t_x, age = _history(rows)
        value = numbers_of(rows, "basket_amount_mean") * _orders_per_day(rows)
        valued = np.isfinite(value) & (value > 0)
        if not valued.any() or not (x > 0).any():
            raise NotEnoughDataError(
                f"bgnbd_gammagamma: got {int(valued.sum())} customers with an order value and {int((x > 0).sum())} "
                "with a repeat purchase, expected some of each; bring more history"
            )
        unit = float(np.median(value[valued]))
        rate = minimise(lambda log: bgnbd_loss(np.exp(log), x, t_x, age), 4, self.penalty)
        money = minimise(lambda log: gammagamma_loss(np.exp(log), x[valued] + 1, value[valued] / unit), 3, self.penalty)
        model = BGNBDModel(
            weeks=self.horizon_days / DAYS_PER_WEEK, r=rate[0], alpha=rate[1], a=rate[2], b=rate[3], p=money[0],
            q=money[1], gamma=money[2] * unit, net_share=1.0,
        )  # fmt: skip
        gross = float(model.predict(train)["spend"].sum())
        share = float(targets.spend.sum()) / gross if gross > 0 else 1.0
        return replace(model, net_share=share)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> BGNBDModel:
        """The model that `save` wrote."""
        return BGNBDModel(**json.loads(file_of(files, "bgnbd.json")))


def _newest(train: pa.Table) -> pa.Table:
    if "as_of" not in train.column_names or train["as_of"].null_count == train.num_rows:
        return train
    return train.filter(pc.equal(train["as_of"], pc.max(train["as_of"])))


def _history(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, t_x, T; a customer without a purchase counts as one who has just begun."""
    days, recency, tenure = (np.nan_to_num(numbers_of(rows, name)) for name in COLUMNS[:3])
    x = np.maximum(days - 1, 0.0)
    age = np.maximum(tenure / DAYS_PER_WEEK, LEAST_AGE_WEEKS)
    t_x = np.where(x > 0, np.clip((tenure - recency) / DAYS_PER_WEEK, 0.0, age), 0.0)
    return x, t_x, age


def _orders_per_day(rows: pa.Table) -> np.ndarray:
    """(N,) orders per day with a purchase, 1 where there is none."""
    orders, days = numbers_of(rows, "frequency_orders_all"), numbers_of(rows, "frequency_purchase_days")
    return np.nan_to_num(np.divide(orders, days, out=np.ones(len(days)), where=days > 0), nan=1.0)


def bgnbd_loss(parameters: np.ndarray, x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> float:
    """Mean negative log-likelihood, equation (6) of the paper."""
    from scipy.special import betaln, gammaln

    r, alpha, a, b = parameters
    common = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
    alive = betaln(a, b + x) - betaln(a, b) - (r + x) * np.log(alpha + age)
    repeat = np.maximum(x, 1.0)
    gone = betaln(a + 1, b + repeat - 1) - betaln(a, b) - (r + x) * np.log(alpha + t_x)
    return float(-(common + np.where(x > 0, np.logaddexp(alive, gone), alive)).mean())


def gammagamma_loss(parameters: np.ndarray, x: np.ndarray, mean: np.ndarray) -> float:
    """Mean negative log-likelihood of mean values of x purchases, equation (1a) of the note."""
    from scipy.special import betaln

    p, q, gamma = parameters
    px = p * x
    found = -betaln(px, q) + q * np.log(gamma) + (px - 1) * np.log(mean) + px * np.log(x)
    return float(-(found - (px + q) * np.log(gamma + x * mean)).mean())


def minimise(loss: Callable[[np.ndarray], float], size: int, penalty: float) -> np.ndarray:
    """Parameters above 0 with the least loss; their logarithms are searched."""
    from scipy.optimize import minimize

    bounds = [(-LARGEST_LOG, LARGEST_LOG)] * size
    best = min(
        (minimize(lambda log: loss(log) + penalty * float(log @ log), start, method="L-BFGS-B", bounds=bounds)
         for start in (np.zeros(size), np.ones(size))),
        key=lambda result: result.fun,
    )  # fmt: skip
    if not np.isfinite(best.fun):
        raise TrainingError(f"bgnbd_gammagamma: got log-likelihood {-best.fun}, expected a finite number")
    return np.exp(best.x)


@dataclass(frozen=True, kw_only=True)
class BGNBDModel:
    """Fitted parameters, in weeks and currency."""

    weeks: float
    """Length of the horizon."""
    r: float
    """Shape of the purchase rates."""
    alpha: float
    """Their scale, in weeks."""
    a: float
    """Of the chance to leave after a purchase."""
    b: float
    """Of the chance to leave after a purchase."""
    p: float
    """Shape of a customer's purchase values."""
    q: float
    """Shape of the scale of values over customers."""
    gamma: float
    """Scale of values over customers, in currency."""
    net_share: float
    """Net spend that came / gross spend expected, on training rows."""

    def alive(self, x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> np.ndarray:
        """(N,) P(not yet left): Fader, Hardie and Lee, "Computing P(alive)" (2008); 1 for one-time buyers always."""
        odds = self.a / (self.b + np.maximum(x, 1.0) - 1.0)
        log_ratio = (self.r + x) * (np.log(self.alpha + age) - np.log(self.alpha + t_x))
        return np.where(x > 0, 1.0 / (1.0 + odds * np.exp(np.minimum(log_ratio, 700.0))), 1.0)

    def purchase_days(self, x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> np.ndarray:
        """(N,) expected number of purchases in the horizon: equation (10) of the paper.

        After Euler's transformation of 2F1 (DLMF 15.8.1): as it stands in the paper, a vanishing power times an
        infinite series is no number for those who bought hundreds of times.
        """
        from scipy.special import hyp2f1

        r, alpha, b, t = self.r, self.alpha, self.b, self.weeks
        a = self.a if abs(self.a - 1.0) > 1e-6 else 1.0 + 1e-6  # the formula has a removable gap at 1
        shape, place = (alpha + age) / (alpha + age + t), t / (alpha + age + t)
        series = 1.0 - shape ** (a - 1.0) * hyp2f1(a + b - 1.0 - r, a - 1.0, a + b + x - 1.0, place)
        expected = (a + b + x - 1.0) / (a - 1.0) * series * self.alive(x, t_x, age)
        return np.maximum(expected, 0.0)

    def purchase_value(self, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """(N,) expected value of a purchase, given the mean of x of them: equation (5) of Fader and Hardie (2013)."""
        return self.p * (self.gamma + x * mean) / (self.p * x + max(self.q, 1.0 + 1e-3) - 1.0)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """OUTPUTS."""
        x, t_x, age = _history(examples)
        days = self.purchase_days(x, t_x, age)
        p = self.alive(x, t_x, age) * -np.expm1(
            (self.r + x) * (np.log(self.alpha + age) - np.log(self.alpha + age + self.weeks))
        )
        per_day = _orders_per_day(examples)
        mean = numbers_of(examples, "basket_amount_mean") * per_day
        known = np.isfinite(mean) & (mean > 0)
        value = self.purchase_value(np.where(known, x + 1.0, 0.0), np.where(known, mean, 0.0))
        return {"p_purchase": p, "purchases": days * per_day, "spend": days * value * self.net_share}

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        return {"bgnbd.json": to_json(asdict(self))}
