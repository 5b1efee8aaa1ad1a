"""The world behind the demo org: a generative model of customers (demo_simulate draws from it, block by block).

Time runs in weeks w = 0, 1, … from the first Monday of the history; days d = 0..6 within a week, UTC. All random
counts are independent Poisson variables per day given the states, so a week cut anywhere has an exact likelihood
(demo_truth).

Hidden, for life
    v  value           0 occasional, 1 loyal                          P(v)       P_LOYAL
    s  price-sensitive 0 no, 1 yes                                    P(s | v)   P_SENSITIVE
    a  activity        0, 1, 2: multiplies purchases and visits       P(a)       P_ACTIVITY, ACTIVITY
    t  taste           0..4 over ten product categories               P(t | v,s) taste_prior
    The planted segment at a date is that of (v, s), or "lapsing" and v for a customer that has been leaving for
    LAPSING_WEEKS: see `segments`.
Hidden, weekly
    z  engagement      0 content, 1 drifting, 2 leaving               P(z_0)     P_START
       content → drifting   CONTENT_TO_DRIFTING + bad·BAD_CASE_PUSH[0] + rise·PRICE_RISE_PUSH[s]
       drifting → leaving   DRIFTING_TO_LEAVING + bad·BAD_CASE_PUSH[1];   drifting → content  DRIFTING_TO_CONTENT
       leaving → content    LEAVING_TO_CONTENT
       bad = a case with a negative tone in the week; rise = the customer's price level rose in the week.
Seen
    attributes    industry | v, size band | v, country, opt-in to mail (the last two say nothing about the rest)
    price rise    Monday, Bernoulli(P_PRICE_RISE) a week; raises the customer's prices by PRICE_RISE
    mail          Monday of every second week to those who opted in, arm treatment with P_TREATMENT, else control
                  opened ~ Bernoulli(P_OPEN[z, s]) and clicked ~ Bernoulli(P_CLICK[s]), both on the Monday
    orders        Poisson(PURCHASES[v] ACTIVITY[a] PURCHASES_BY_STATE[z] season(w) (1 + UPLIFT[s] treated)) a week
    lines         1 + Poisson(EXTRA_LINES[v]) an order; units 1 + Poisson(EXTRA_UNITS[v]) a line
    discounted    Bernoulli(P_DISCOUNT[s]) an order
    product       of a line: with FOLLOW from the successors of a product of the order before (uniform over its lines),
                  else from the taste: see demo_catalogue
    visits        Poisson(VISITS[s] ACTIVITY[a] VISITS_BY_STATE[z] season(w)) a week; P_VIEW of them view a product,
                  drawn from the taste
    cases         Poisson(CASES[kind, z] P_TONE[kind, z, tone]) a week for each kind (complaint, question) and tone
                  (negative, neutral, positive)
Days of orders and visits follow DAY_SHARES, of cases 1/7. Everything else in the raw objects is noise that depends on
nothing hidden, or on the hidden only through what is listed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property

import numpy as np

from crmray.data.demo_catalogue import NUM_TASTES, Catalogue
from crmray.errors import ConfigError

BLOCK = 5_000
"""customers simulated at once; each block has its own random stream"""
STREAMS = {
    "created": 1, "sales": 2, "service": 3, "opportunities": 4, "contacts": 5, "tasks": 6, "campaign_members": 7,
    "visits": 8, "leads": 9, "accounts": 10,
}  # fmt: skip
"""what is written of a block -> purpose of its random stream: see `World.rng`"""
SEGMENTS = (
    "occasional, full price",
    "occasional bargain hunters",
    "loyal, high value",
    "loyal bargain hunters",
    "lapsing, was occasional",
    "lapsing, was loyal",
)
LAPSING_WEEKS = 13
"""a customer that has been leaving for so many weeks counts as lapsing"""
ENGAGEMENT = ("content", "drifting", "leaving")

P_LOYAL = 0.45
P_SENSITIVE = np.array([0.45, 0.40])
P_ACTIVITY = np.array([0.3, 0.4, 0.3])
ACTIVITY = np.array([0.8, 1.0, 1.2])
P_START = np.array([0.92, 0.06, 0.02])
CONTENT_TO_DRIFTING, DRIFTING_TO_CONTENT, DRIFTING_TO_LEAVING, LEAVING_TO_CONTENT = 0.0075, 0.04, 0.06, 0.008
BAD_CASE_PUSH = np.array([0.35, 0.30])
PRICE_RISE_PUSH = np.array([0.01, 0.15])

INDUSTRIES = (
    "Retail",
    "Hospitality",
    "Manufacturing",
    "Healthcare",
    "Education",
    "Construction",
    "Finance",
    "Technology",
)
P_INDUSTRY = np.array([[0.2, 0.18, 0.12, 0.1, 0.12, 0.1, 0.09, 0.09], [0.1, 0.12, 0.16, 0.14, 0.08, 0.12, 0.13, 0.15]])
P_SIZE = np.array([[0.5, 0.3, 0.15, 0.05], [0.2, 0.3, 0.3, 0.2]])
SIZES = ((1, 10), (10, 50), (50, 250), (250, 2000))
COUNTRIES = ("Norland", "Sudmark", "Estovia", "Westria", "Midland")
P_COUNTRY = np.array([0.35, 0.25, 0.18, 0.12, 0.1])
P_OPT_IN = 0.75

P_PRICE_RISE, PRICE_RISE = 1 / 60, 0.02
DISCOUNT = (0.25, 0.35)
"""range of the discount of a discounted order, uniform"""
MAIL_EVERY, P_TREATMENT = 2, 0.8
P_OPEN = np.array([[0.40, 0.70], [0.18, 0.32], [0.04, 0.06]])
P_CLICK = np.array([0.12, 0.30])
UPLIFT = np.array([0.05, 0.25])
PURCHASES = np.array([0.13, 0.60])
PURCHASES_BY_STATE = np.array([1.0, 0.5, 0.05])
EXTRA_LINES, EXTRA_UNITS = np.array([0.3, 1.6]), np.array([0.2, 3.0])
P_DISCOUNT = np.array([0.03, 0.85])
VISITS = np.array([0.9, 2.4])
VISITS_BY_STATE = np.array([1.0, 0.5, 0.05])
P_VIEW = 0.6
KINDS, TONES = ("complaint", "question"), ("negative", "neutral", "positive")
CASES = np.array([[0.010, 0.022, 0.006], [0.020, 0.018, 0.005]])
P_TONE = np.array([[[0.45, 0.45, 0.10], [0.70, 0.25, 0.05], [0.80, 0.18, 0.02]],
                   [[0.04, 0.56, 0.40], [0.15, 0.65, 0.20], [0.25, 0.65, 0.10]]])  # fmt: skip
"""P(tone | kind, z)"""
CASE_RATES = (CASES[:, :, None] * P_TONE).transpose(0, 2, 1).reshape(6, 3)
"""(kind · tone, z): cases a week"""
DAY_SHARES = np.array([0.16, 0.17, 0.17, 0.17, 0.15, 0.11, 0.07])
"""Monday first"""
DAYS_BEFORE = np.concatenate([[0.0], np.cumsum(DAY_SHARES)])
"""share of a week's orders and visits before day d = 0..7"""
SEASON = 0.15
"""amplitude of the season"""


def season(week_start: date) -> float:
    """Seasonal factor of orders and visits in the week that starts on this day: peaks at the end of November."""
    day = (week_start - date(week_start.year, 1, 1)).days
    return 1 + SEASON * math.cos(2 * math.pi * (day - 330) / 365.25)


def segments(v: np.ndarray, s: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(N,) index into SEGMENTS after the weeks z (N, W)."""
    lately = z[:, -LAPSING_WEEKS:]
    lapsing = (lately.shape[1] == LAPSING_WEEKS) & (lately == 2).all(1)
    return np.where(lapsing, 4 + v, 2 * v + s)


def taste_prior() -> np.ndarray:
    """P(taste | 2 v + s), (4, tastes): each kind of customer leans to a taste of its own, none excludes one."""
    return np.full((4, NUM_TASTES), 0.6 / NUM_TASTES) + 0.4 * np.eye(4, NUM_TASTES)


def bad_case(cells: np.ndarray) -> np.ndarray:
    """Whether counts of cases (…, 6) hold one with a negative tone."""
    return (cells[..., 0] + cells[..., len(TONES)]) > 0


def transitions(s: np.ndarray, bad: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """(N, 3, 3) P(next z | z) of a week with or without a bad case and a price rise."""
    shape = np.broadcast_shapes(np.shape(s), np.shape(bad), np.shape(rise))
    result = np.zeros((*shape, 3, 3))
    result[..., 0, 1] = CONTENT_TO_DRIFTING + bad * BAD_CASE_PUSH[0] + rise * PRICE_RISE_PUSH[s]
    result[..., 1, 0] = DRIFTING_TO_CONTENT
    result[..., 1, 2] = DRIFTING_TO_LEAVING + bad * BAD_CASE_PUSH[1]
    result[..., 2, 0] = LEAVING_TO_CONTENT
    for state in range(3):
        result[..., state, state] = 1 - result[..., state, :].sum(-1)
    return result


@dataclass(frozen=True, kw_only=True)
class World:
    """What is common to all customers. Equal settings give equal blocks of them, whatever is run beside."""

    customers: int = 6_000
    """number of customers"""
    months: int = 36
    """months of history"""
    end: date = date(2026, 10, 1)
    """first day after the history"""
    seed: int = 0
    """of everything random"""

    def __post_init__(self) -> None:
        if self.customers < 1 or self.months < 1:
            raise ConfigError(
                f"demo org: got customers {self.customers} and months {self.months}, expected at least 1 of each"
            )

    @property
    def start(self) -> date:
        """First day of the history."""
        months = self.end.year * 12 + self.end.month - 1 - self.months
        return date(months // 12, months % 12 + 1, min(self.end.day, 28))

    @property
    def epoch(self) -> date:
        """First Monday of the history: day 0, and the first day with events."""
        return self.start + timedelta(days=-self.start.weekday() % 7)

    @property
    def num_days(self) -> int:
        """Days from the epoch to the end."""
        return (self.end - self.epoch).days

    @property
    def num_weeks(self) -> int:
        """Weeks that begin before the end; the last may be cut."""
        return -(-self.num_days // 7)

    @property
    def num_blocks(self) -> int:
        """Blocks of at most BLOCK customers."""
        return -(-self.customers // BLOCK)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Products, tastes and successors."""
        return Catalogue.make(self.seed, self.num_weeks)

    def seasons(self, num_weeks: int) -> np.ndarray:
        """Seasonal factors of the first weeks."""
        return np.array([season(self.epoch + timedelta(weeks=w)) for w in range(num_weeks)])

    def rng(self, block: int, purpose: int) -> np.random.Generator:
        """The random stream of a block: purpose 0 simulates, each of STREAMS writes raw objects of one kind."""
        return np.random.default_rng([self.seed, 20261001, purpose, block])


@dataclass(frozen=True, kw_only=True)
class Block:
    """Customers [first, first + N) and their events, sorted by customer and day.

    Days count from the epoch and may lie at or after the end of the history, because the last week is simulated whole:
    who reads them cuts them.
    """

    first: int
    """index of the first customer"""
    v: np.ndarray
    s: np.ndarray
    a: np.ndarray
    t: np.ndarray
    """(N,) hidden classes"""
    industry: np.ndarray
    size: np.ndarray
    country: np.ndarray
    opted_in: np.ndarray
    """(N,) attributes"""
    first_week: np.ndarray
    """(N,) first week with events"""
    z: np.ndarray
    """(N, W) int8 engagement"""
    rise: np.ndarray
    """(N, W) bool price rises"""
    arm: np.ndarray
    """(N, W) int8: -1 no mail, 0 control, 1 treatment"""
    opened: np.ndarray
    clicked: np.ndarray
    """(N, W) bool"""
    order_customer: np.ndarray
    order_day: np.ndarray
    discounted: np.ndarray
    """(O,) customer is an index into the block"""
    line_order: np.ndarray
    product: np.ndarray
    units: np.ndarray
    """(L,)"""
    pair_line: np.ndarray
    pair_parent: np.ndarray
    """all pairs (line, line of the customer's order before): what a line may follow"""
    visit_customer: np.ndarray
    visit_day: np.ndarray
    viewed: np.ndarray
    """(V,) viewed is a product or -1"""
    case_customer: np.ndarray
    case_day: np.ndarray
    case_cell: np.ndarray
    """(C,) cell = 3 kind + tone"""

    def __len__(self) -> int:
        return len(self.v)
