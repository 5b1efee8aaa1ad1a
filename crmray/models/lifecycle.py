"""Whether a customer is still there: a hidden Markov model of the weekly pace of purchases and visits.

Each customer has a pace of its own, one of G; each week it is active, fading or dormant, and keeps to a share of that
pace; counts are Poisson. Fitted by expectation-maximisation over all customers (Rabiner 1989), with the spread of paces
as a discrete distribution (Laird 1978). Three states as in Netzer, Lattin & Srinivasan 2008, "A hidden Markov model of
customer relationship dynamics".

Shape suffixes: N customers, W weeks (oldest first), G paces, S states (the most active first, the dormant one last).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data.sequences import EVENT_KINDS, MAX_EVENTS
from crmray.errors import SchemaError

EVENT_LISTS = pa.schema([("event_kind", pa.list_(pa.int16())), ("event_days_before", pa.list_(pa.float32()))])
ACTS = ("purchase", "visit")
"""what customers do of their own accord; what is sent to them, and the service they ask for, follow other rhythms"""
SPEND, DORMANT = "spend_amount_per_active_30d", "dormant_probability"
"""columns that `with_traits` gives"""
BASKET = "basket_amount_mean"
REPLACED = ("frequency_orders", BASKET)
"""columns that SPEND stands for: how often, whether active or not, and how much at a time"""
WEEK_DAYS, NUM_WEEKS = 7, 104
NUM_PACES, FIRST_LEVELS, FIRST_MOVE = 6, (1.0, 0.5, 0.1), 0.02
"""paces, and where the fit begins: states and how often they change"""
DORMANT_LEVEL = 0.5
"""share of its pace above which a customer in the last state is not dormant"""
NUM_PASSES = 25
FIT_ROWS = 2_000
"""customers that are fitted on, and that are looked at together"""


class _Memory:
    """The newest results in this process, by what they were made of: the same sample comes in every trial of a search,
    the same shards in every pass of each. Safe for threads."""

    def __init__(self, most: int) -> None:
        """most: results kept."""
        self._most, self._lock = most, Lock()
        self._found: OrderedDict[bytes, Any] = OrderedDict()

    def of(self, lists: pa.Table, about: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave for lists of the same content and the same `about` (anything of JSON), or gives now."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, lists.schema) as stream:
            stream.write_table(lists.combine_chunks())
        key = hashlib.blake2b(sink.getvalue(), key=hashlib.blake2b(json.dumps(about).encode()).digest()).digest()
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        value = make()
        with self._lock:
            self._found[key] = value
            if len(self._found) > self._most:
                self._found.popitem(last=False)
        return value


_FITS, _TRAITS = _Memory(8), _Memory(2_000)
"""lifecycles, and what they tell of FIT_ROWS customers: 16 bytes each, 64 MB in all"""


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """Fitted states and paces, and what they tell of customers."""

    pace_G: np.ndarray
    """acts a week of an active customer"""
    share_G: np.ndarray
    """share of customers of each pace"""
    level_S: np.ndarray
    """share of its pace that a customer keeps to in each state, 1 first"""
    move_SS: np.ndarray
    """probability of next week's state given this week's"""
    start_S: np.ndarray
    """probabilities of the first state"""
    dormant_weeks: int
    """weeks in a row without being active or fading from which on a customer counts as dormant"""
    prior: tuple[float, float]
    """gamma distribution of orders per active week over customers: shape, and rate in weeks"""
    some_dormant: bool = True
    """whether anybody of the sample was more likely dormant than not; where nobody was, probabilities are noise"""

    @classmethod
    def fit(cls, examples: pa.Table, *, dormant_weeks: int, seed: int) -> Lifecycle:
        """By expectation-maximisation on the events of a sample."""
        drawn = np.random.default_rng(seed).permutation(examples.num_rows)[:FIT_ROWS]
        lists = _lists(examples, "").take(pa.array(np.sort(drawn)))
        return _FITS.of(lists, dormant_weeks, lambda: cls._fit(lists, dormant_weeks))

    @classmethod
    def _fit(cls, lists: pa.Table, dormant_weeks: int) -> Lifecycle:
        acts_NW, orders_N, there_NW = weekly(lists)
        there_NW &= ~np.isnan(acts_NW)  # weeks of which nothing is known teach nothing
        acts_NW = np.nan_to_num(acts_NW)
        mean_N = acts_NW.sum(1) / there_NW.sum(1)
        states = len(FIRST_LEVELS)
        model = cls(
            pace_G=np.quantile(mean_N, np.linspace(0.1, 0.9, NUM_PACES)) + 1 / NUM_WEEKS,
            share_G=np.full(NUM_PACES, 1 / NUM_PACES), level_S=np.array(FIRST_LEVELS),
            move_SS=FIRST_MOVE + (1 - FIRST_MOVE * states) * np.eye(states), start_S=np.full(states, 1 / states),
            dormant_weeks=dormant_weeks, prior=(1.0, 1.0),
        )  # fmt: skip
        for _ in range(NUM_PASSES):
            model = model._maximised(acts_NW, there_NW)
        weeks_N, dormant_N = model._seen(acts_NW, there_NW)
        some = bool(model.level_S[-1] <= DORMANT_LEVEL and dormant_N.max() > 0.5)
        return replace(model, prior=_prior(orders_N, weeks_N), some_dormant=some)

    def with_traits(self, examples: pa.Table, prefixes: Sequence[str]) -> pa.Table:
        """The rows with two more columns per prefix (null for who has no event list there): SPEND, expected orders per
        30 days of activity times BASKET, in place of REPLACED, and DORMANT, P(dormant in all of dormant_weeks).
        SchemaError for a missing column."""
        about = self.to_json()
        for prefix in prefixes:
            lists = _lists(examples, prefix)
            chunks = [lists.slice(i, FIT_ROWS) for i in range(0, max(1, lists.num_rows), FIT_ROWS)]
            parts = [_TRAITS.of(chunk, about, partial(self._traits, chunk)) for chunk in chunks]
            frequency_N, dormant_N = np.concatenate(parts, axis=1)
            if prefix + BASKET not in examples.column_names:
                raise SchemaError(f"column {prefix + BASKET!r} is missing; expected the mean amount of an order")
            basket_N = pc.cast(examples[prefix + BASKET], pa.float64()).to_numpy()
            unknown = pc.is_null(lists["event_kind"]).to_numpy()
            replaced = [prefix + name for name in REPLACED]
            examples = examples.select([name for name in examples.column_names if name not in replaced])
            for name, values in ((SPEND, frequency_N * basket_N), (DORMANT, dormant_N)):
                examples = examples.append_column(prefix + name, pa.array(values, mask=unknown))
        return examples

    def _traits(self, lists: pa.Table) -> np.ndarray:
        """(2, N): expected orders per 30 days of activity, and the probability of being dormant, to 2 digits. 0 for all
        where nobody was dormant: standardising would make much of the noise."""
        acts_NW, orders_N, there_NW = weekly(lists)
        weeks_N, dormant_N = self._seen(acts_NW, there_NW)
        shape, rate_weeks = self.prior
        frequency_N = 30 / WEEK_DAYS * (orders_N + shape) / (weeks_N + rate_weeks)
        return np.stack([frequency_N, self.some_dormant * np.round(dormant_N, 2)])

    def _seen(self, acts_NW: np.ndarray, there_NW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected weeks of activity (N,), a fading one counted by its level, of those whose acts are known, and
        probability of being dormant (N,)."""
        forward, weight_NG = self._forward(acts_NW, there_NW)
        weeks_N, known_NW = np.zeros(len(acts_NW)), there_NW & ~np.isnan(acts_NW)
        for week, state_NGS, _ in self._backward(forward):
            weeks_N += known_NW[:, week] * ((state_NGS @ self.level_S) * weight_NG).sum(1)
        dormant_NG = forward[-1][:, :, -1]
        for week in range(acts_NW.shape[1] - 1, acts_NW.shape[1] - self.dormant_weeks, -1):
            before_NGS = forward[week - 1]
            kept_NG = before_NGS[:, :, -1] * self.move_SS[-1, -1] / (before_NGS @ self.move_SS[:, -1])
            dormant_NG = dormant_NG * kept_NG * there_NW[:, week - 1, None]
        return weeks_N, (dormant_NG * weight_NG).sum(1)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Lifecycle:
        """From what `to_json` gave."""
        arrays = {key: np.array(values[key]) for key in ("pace_G", "share_G", "level_S", "move_SS", "start_S")}
        weeks, some = values["dormant_weeks"], values["some_dormant"]
        return cls(**arrays, dormant_weeks=weeks, prior=tuple(values["prior"]), some_dormant=some)

    def _maximised(self, acts_NW: np.ndarray, there_NW: np.ndarray) -> Lifecycle:
        """One pass: expected counts and weeks of every pace and state, and the parameters that they make likeliest."""
        forward, weight_NG = self._forward(acts_NW, there_NW)
        states = len(self.level_S)
        acts_GS, weeks_GS = np.full((2, len(self.pace_G), states), 1e-9)
        # a trace of everything, so that no probability becomes 0
        moves_SS, starts_S, shares_G = np.full((states, states), 0.1), np.full(states, 0.1), weight_NG.sum(0) + 0.1
        for week, state_NGS, pair_NGSS in self._backward(forward):
            now_NGS = state_NGS * (weight_NG * there_NW[:, week, None])[:, :, None]
            acts_GS += (now_NGS * acts_NW[:, week, None, None]).sum(0)
            weeks_GS += now_NGS.sum(0)
            before_N = there_NW[:, week - 1] if week else np.zeros(len(there_NW), bool)
            starts_S += now_NGS[~before_N].sum((0, 1))
            moves_SS += (pair_NGSS * (weight_NG * before_N[:, None])[:, :, None, None]).sum((0, 1))
        level_S = acts_GS.sum(0) / (weeks_GS * self.pace_G[:, None]).sum(0)
        order = np.argsort(-level_S, kind="stable")
        level_S = level_S[order] / level_S.max()
        pace_G = acts_GS.sum(1) / (weeks_GS[:, order] * level_S).sum(1)
        moves_SS = moves_SS[order][:, order]
        return Lifecycle(
            pace_G=pace_G, share_G=shares_G / shares_G.sum(), level_S=level_S,
            move_SS=moves_SS / moves_SS.sum(1, keepdims=True), start_S=starts_S[order] / starts_S.sum(),
            dormant_weeks=self.dormant_weeks, prior=self.prior,
        )  # fmt: skip

    def _forward(self, acts_NW: np.ndarray, there_NW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(W, N, G, S) probabilities of the state given the pace and all weeks up to this one; (N, G) of the pace."""
        num_customers, num_weeks = acts_NW.shape
        rate_GS = self.pace_G[:, None] * self.level_S
        log_GS = np.log(rate_GS)
        first_NGS = np.broadcast_to(self.start_S, (num_customers, *rate_GS.shape))
        forward, ahead_NGS = np.empty((num_weeks, *first_NGS.shape)), first_NGS
        logs_NG = np.tile(np.log(self.share_G), (num_customers, 1))
        for week in range(num_weeks):
            log_NGS = np.nan_to_num(acts_NW[:, week, None, None] * log_GS - rate_GS)  # unknown acts say nothing
            peak_NG1 = log_NGS.max(2, keepdims=True)
            seen_NGS = ahead_NGS * np.exp(log_NGS - peak_NG1)
            total_NG1 = seen_NGS.sum(2, keepdims=True)
            there_N11 = there_NW[:, week, None, None]
            forward[week] = np.where(there_N11, seen_NGS / total_NG1, first_NGS)
            ahead_NGS = np.where(there_N11, forward[week] @ self.move_SS, first_NGS)
            logs_NG += np.where(there_N11, np.log(total_NG1) + peak_NG1, 0.0)[:, :, 0]
        weight_NG = np.exp(logs_NG - logs_NG.max(1, keepdims=True))
        return forward, weight_NG / weight_NG.sum(1, keepdims=True)

    def _backward(self, forward: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Weeks from the last, with P(state | pace, all weeks) and P(state before, state | pace, all weeks)."""
        state_NGS = forward[-1]
        for week in range(len(forward) - 1, 0, -1):
            ahead_NGS = forward[week - 1] @ self.move_SS
            ratio_NGS = state_NGS / np.maximum(ahead_NGS, 1e-300)
            pair_NGSS = forward[week - 1][..., None] * self.move_SS * ratio_NGS[:, :, None, :]
            yield week, state_NGS, pair_NGSS
            state_NGS = pair_NGSS.sum(3)
        yield 0, state_NGS, np.zeros((*state_NGS.shape, state_NGS.shape[2]))


def _prior(orders_N: np.ndarray, weeks_N: np.ndarray) -> tuple[float, float]:
    """Shape and rate of the gamma distribution of paces by the moments of a negative binomial (Ehrenberg 1959)."""
    mean = max(float(orders_N.sum() / weeks_N.sum()), 1e-9)
    spread = (orders_N - mean * weeks_N) ** 2 - mean * weeks_N
    variance = max(float(spread.sum() / (weeks_N**2).sum()), 1e-6 * mean**2)
    return mean**2 / variance, mean / variance


def _lists(examples: pa.Table, prefix: str) -> pa.Table:
    """The event lists; a column that is empty in all rows has no lists. SchemaError for a missing column."""
    names = [prefix + name for name in EVENT_LISTS.names]
    missing = [name for name in names if name not in examples.column_names]
    if missing:
        raise SchemaError(f"column {missing[0]!r} is missing; expected it as a sequence of events")
    return examples.select(names).rename_columns(EVENT_LISTS.names).cast(EVENT_LISTS)


def weekly(examples: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the event lists of the last NUM_WEEKS weeks: ACTS a week (N, W), purchases (N,), and bool (N, W) whether the
    customer was there yet. It is from the first whole week after its first listed event on, and in the last week; what
    came earlier brought it in, and is not counted (as in Fader, Hardie & Lee 2005). Of a full list earlier events were
    cut off: that customer was there all the time, and its acts before the list are unknown (NaN)."""
    lists = examples.combine_chunks()
    length_N = pc.fill_null(pc.list_value_length(lists["event_kind"]), 0).to_numpy()
    kind_E, days_E = (pc.list_flatten(lists[name]).to_numpy() for name in EVENT_LISTS.names)
    row_E = np.repeat(np.arange(len(length_N)), length_N)
    back_E = np.floor(days_E / WEEK_DAYS).astype(np.int64)
    first_N = np.zeros(len(length_N))
    np.maximum.at(first_N, row_E, days_E)
    there_NW = np.arange(NUM_WEEKS, 0, -1) * WEEK_DAYS <= np.maximum(first_N, WEEK_DAYS)[:, None]
    counts = []
    for kinds in (ACTS, ("purchase",)):
        counted = np.isin(kind_E, [EVENT_KINDS.index(kind) for kind in kinds]) & (back_E < NUM_WEEKS)
        place = row_E[counted] * NUM_WEEKS + NUM_WEEKS - 1 - back_E[counted]
        counts.append(np.bincount(place, minlength=there_NW.size).reshape(there_NW.shape) * there_NW)
    full_N1 = (length_N >= MAX_EVENTS)[:, None]
    return np.where(full_N1 & ~there_NW, np.nan, counts[0]), counts[1].sum(1), there_NW | full_N1
