"""As-of features of what is no purchase: visits, mail, contacts, exposures, changes, subscriptions, attributes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.data import asof_sentiment
from crmray.data.asof_rows import Rows, View, micros_of, ratio, trend

CHANNELS = ("case", "email", "call", "chat", "review", "task")
URGENT = ("high", "urgent", "critical")
SHORT_DAYS, LONG_DAYS = (7, 30, 90, 365), (30, 90, 365)
MONTH_DAYS = 365.25 / 12


def engagement(view: View, table: pa.Table) -> dict:
    """Visits, and what became of the mail that was sent."""
    rows = view.rows(table, "occurred_at", ("kind", "seconds"))
    code, names = rows.codes("kind")
    of_kind = {name: code == i for i, name in enumerate(names.to_pylist())}
    none = np.zeros(len(code), bool)
    visits = rows.where(of_kind.get("visit", none))
    counts = visits.sums(SHORT_DAYS)
    columns = {f"visit_num_{days}d": counts[:, i] for i, days in enumerate(SHORT_DAYS)}
    columns["visit_recency_days"] = visits.last(visits.days)
    columns["visit_decayed_30d"] = visits.totals(np.exp2(-visits.days / 30.0))
    columns["trend_visits_30d"] = trend(counts[:, 1], (counts[:, 2] - counts[:, 1]) / 2)
    if rows.has("seconds"):
        seconds = rows.number("seconds")[of_kind.get("visit", none)]
        columns["visit_mean_s"] = visits.means(seconds)
        columns["visit_90d_s"] = visits.sums((90,), np.nan_to_num(seconds))[:, 0]
    mail = {kind: rows.where(of_kind.get(kind, none)) for kind in ("send", "open", "click")}
    sums = {kind: part.sums(LONG_DAYS) for kind, part in mail.items()}
    for kind in mail:
        columns |= {f"mail_{kind}_num_{days}d": sums[kind][:, i] for i, days in enumerate(LONG_DAYS)}
    for i, days in enumerate(LONG_DAYS):
        columns[f"mail_open_rate_{days}d"] = ratio(sums["open"][:, i], sums["send"][:, i])
    columns["mail_click_rate_365d"] = ratio(sums["click"][:, 2], sums["open"][:, 2])
    columns["mail_open_recency_days"] = mail["open"].last(mail["open"].days)
    columns["trend_mail_open_90d"] = trend(sums["open"][:, 1], (sums["open"][:, 2] - sums["open"][:, 1]) / 3)
    return columns


def interactions(view: View, table: pa.Table) -> dict:
    """Cases, e-mails, calls, chats, reviews and tasks; ratings; the length of what was written."""
    names = ("channel", "direction", "subject", "text", "rating", "priority", "closed_at", asof_sentiment.SCORE)
    rows = view.rows(table, "occurred_at", names)
    counts = rows.sums(LONG_DAYS)
    columns = {f"contact_num_{days}d": counts[:, i] for i, days in enumerate(LONG_DAYS)}
    columns["contact_recency_days"] = rows.last(rows.days)
    columns["contact_decayed_30d"] = rows.totals(np.exp2(-rows.days / 30.0))
    columns["trend_contacts_90d"] = trend(counts[:, 1], (counts[:, 2] - counts[:, 1]) / 3)
    if rows.has("channel"):
        for channel in CHANNELS:
            part = rows.where(_equals(rows, "channel", (channel,)))
            sums = part.sums(LONG_DAYS)
            columns |= {f"contact_{channel}_num_{days}d": sums[:, i] for i, days in enumerate(LONG_DAYS)}
            columns[f"contact_{channel}_recency_days"] = part.last(part.days)
    if rows.has("direction"):
        columns["contact_inbound_num_90d"] = rows.where(_equals(rows, "direction", ("inbound",))).sums((90,))[:, 0]
    if rows.has("priority"):
        columns["contact_urgent_num_365d"] = rows.where(_equals(rows, "priority", URGENT)).sums((365,))[:, 0]
    if rows.has("closed_at"):
        columns |= _cases(view, rows)
    if rows.has("rating"):
        columns |= _ratings(rows)
    if rows.has("text"):
        length = pc.utf8_length(rows.table["text"]).cast(pa.float64()).to_numpy()
        columns["contact_text_mean_chars"] = rows.means(length)
    if rows.has(asof_sentiment.SCORE):
        columns |= asof_sentiment.features(rows)
    return columns


def _equals(rows: Rows, column: str, values: tuple[str, ...]) -> np.ndarray:
    return pc.is_in(pc.utf8_lower(rows.table[column]), value_set=pa.array(values)).to_numpy()


def _cases(view: View, rows: Rows) -> dict:
    """Open at as_of: opened and not yet closed, even if it was closed later."""
    closed_days = view.days_before(rows.table["closed_at"])
    case = _equals(rows, "channel", ("case",)) if rows.has("channel") else np.ones(len(rows.code), bool)
    still_open = case & np.isnan(closed_days)
    return {
        "contact_open_num": rows.totals(still_open.astype(np.float64)),
        "contact_days_to_close_mean": rows.means(np.where(case, rows.days - closed_days, np.nan)),
    }


def _ratings(rows: Rows) -> dict:
    rating = rows.number("rating")
    rated = ~np.isnan(rating)
    part = rows.where(rated)
    recent = part.days <= 90
    return {
        "rating_num_365d": part.sums((365,))[:, 0],
        "rating_mean": part.means(rating[rated]),
        "rating_mean_90d": part.where(recent).means(rating[rated][recent]),
        "rating_last": part.last(rating[rated]),
        "rating_min": -_largest(part, -rating[rated]),
        "rating_recency_days": part.last(part.days),
    }


def _largest(rows: Rows, values: np.ndarray) -> np.ndarray:
    """(N,) largest value of each customer, NaN where there is none."""
    result = np.full(rows.n, -np.inf)
    np.maximum.at(result, rows.code, values)
    return np.where(np.isinf(result), np.nan, result)


def counted(view: View, table: pa.Table, prefix: str) -> dict:
    """How many rows lately, and how long ago the last one: for exposures and changes."""
    rows = view.rows(table, "occurred_at")
    counts = rows.sums((90, 365))
    return {
        f"{prefix}_num_90d": counts[:, 0],
        f"{prefix}_num_365d": counts[:, 1],
        f"{prefix}_recency_days": rows.last(rows.days),
    }


def _running(view: View, rows: Rows) -> np.ndarray:
    return micros_of(rows.table["ended_at"]) >= view.as_of_us if rows.has("ended_at") else np.ones(len(rows.code), bool)


def subscriptions(view: View, table: pa.Table) -> dict:
    """Running and ended subscriptions, as known at as_of."""
    rows = view.rows(table, "started_at", ("ended_at", "plan", "monthly_amount"))
    running = _running(view, rows)
    now = rows.where(running)
    columns = {
        "subscription_num_active": now.totals(),
        "subscription_num_ended": rows.totals((~running).astype(np.float64)),
        "subscription_num_ever": rows.totals(),
        "subscription_oldest_active_months": now.first(now.days) / MONTH_DAYS,
        "subscription_newest_active_months": now.last(now.days) / MONTH_DAYS,
        "subscription_first_months": rows.first(rows.days) / MONTH_DAYS,
    }
    if rows.has("ended_at"):
        ended = rows.where(~running)
        # the most recent end, not the end of the most recent start
        days = view.days_before(rows.table["ended_at"])[~running]
        columns["subscription_ended_recency_days"] = -_largest(ended, -days)
    if rows.has("monthly_amount"):
        amount = np.nan_to_num(rows.number("monthly_amount"))
        columns["subscription_monthly_amount"] = rows.totals(amount * running)
        first = now.first(amount[running])
        columns["subscription_amount_change"] = ratio(now.last(amount[running]), first)
    if rows.has("plan"):
        code, names = rows.codes("plan")
        last = np.nan_to_num(now.last(code[running].astype(np.float64)), nan=-1).astype(int)
        columns["subscription_plan"] = pa.array(np.array([*names.to_pylist(), None], object)[last], pa.string())
    return columns


def attributes(entities: pa.Array, customers: pa.Table, as_of_us: int | None) -> dict:
    """Columns of the customers table: numbers and booleans as numbers, strings as they are, times as days before as_of.

    Without as_of times are left out: there is nothing to count from. When a row was last modified is left out always:
    it lies after past dates where it tells anything.
    """
    at = pc.index_in(entities, value_set=customers["entity_id"].combine_chunks())
    columns: dict = {}
    for name in customers.column_names:
        if name in ("entity_id", "modified_at"):
            continue
        values = customers[name].combine_chunks().take(at)
        if pa.types.is_timestamp(values.type):
            if as_of_us is None:
                continue
            days = (as_of_us - micros_of(pa.chunked_array([values]))) / (24 * 3600e6)
            label = "tenure_days" if name == "created_at" else f"customer_{name}_days"
            columns[label] = np.where(pc.is_valid(values).to_numpy(zero_copy_only=False) & (days > 0), days, np.nan)
        elif pa.types.is_string(values.type):
            columns[f"customer_{name}"] = values
        else:
            columns[f"customer_{name}"] = values.cast(pa.float64())  # a number of the org's own: no rounding to float32
    return columns
