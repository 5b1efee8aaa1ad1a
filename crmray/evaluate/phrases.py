"""Features in words that people read: of visit_num_365d "144 visits in the last 365 days, typically 45".

The name of a feature (crmray/data/asof*.py) says what it is about, how that is measured, over how many days, and in
which unit: mail_open_num_90d, contact_case_recency_days, spend_net_365d_amount, trend_orders_30d. Every other column is
an attribute and is told by the org's own name for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from crmray.data.asof_contacts import CHANNELS
from crmray.models.lifecycle import DORMANT, SPEND

Noun = str | tuple[str, str]
"""words for an amount; one and many of what can be counted"""
_ORDER = ("order", "orders")
ABOUT: dict[str, Noun] = {
    "": "purchase", "frequency": _ORDER, "frequency_orders": _ORDER, "orders": _ORDER,
    "season_orders": ("order in this season a year ago", "orders in this season a year ago"),
    "tenure": "time as a customer", "tenure_purchase": "time since the first purchase",
    "gap": "time between purchases", "spend": "spend", "spend_gross": "gross spend", "spend_net": "net spend",
    "season_spend": "spend in this season a year ago",
    "basket_lines": "number of lines of an order", "basket_units": "number of units of an order",
    "basket_amount": "amount of an order", "basket_channel": "channel of an order",
    "return": "return", "return_orders": ("return", "returns"), "price": "price",
    "product": ("product bought", "products bought"), "product_categories": ("product category", "product categories"),
    "product_repeat_share": "repeated purchases", "product_category_share": "purchases in the main category",
    "product_category_top": "main product category",
    "visit": ("visit", "visits"), "visits": ("visit", "visits"),
    "mail_send": ("mail sent", "mails sent"), "mail_open": ("mail opened", "mails opened"),
    "mail_click": ("mail clicked", "mails clicked"),
    "contact": ("contact", "contacts"), "contacts": ("contact", "contacts"),
    **{f"contact_{channel}": (channel, f"{channel}s") for channel in CHANNELS}, "contact_email": ("e-mail", "e-mails"),
    "contact_inbound": ("inbound contact", "inbound contacts"), "contact_urgent": ("urgent contact", "urgent contacts"),
    "contact_open": ("open case", "open cases"), "contact_days_to_close": "number of days until a case is closed",
    "contact_text": "length of a text", "rating": ("rating", "ratings"),
    "exposure": ("campaign received", "campaigns received"),
    "change": ("change to the record", "changes to the record"),
    "sentiment": "sentiment of a text", "sentiment_num": ("text with a sentiment", "texts with a sentiment"),
    "sentiment_recency": "text with a sentiment", "sentiment_trend": ("negative text", "negative texts"),
    "sentiment_negative": ("negative text", "negative texts"),
    "subscription_active": ("active subscription", "active subscriptions"),
    "subscription_ended": ("ended subscription", "ended subscriptions"),
    "subscription_ever": ("subscription so far", "subscriptions so far"),
    "subscription_oldest_active": "age of the oldest active subscription",
    "subscription_newest_active": "age of the newest active subscription",
    "subscription_first": "time since the first subscription",
    "subscription_monthly": "monthly amount of subscriptions", "lead_age": "age of the lead",
    "sold": "sales amount", "sold_amount": "sales amount", "sold_lines": ("sale", "sales"),
    "sold_units": ("unit sold", "units sold"), "sold_first": "time since the first sale",
}  # fmt: skip
"""what a feature is about, with the measure where the words differ by it"""
OF_ONE = {"mean": "average ", "std": "spread of the ", "last": "latest ", "min": "lowest "}
MEASURES = {
    "": "", **dict.fromkeys(("num", "all", "per", "rate", "share", "top", "trend", "recency"), ""),
    "decayed": "recent ", **OF_ONE,
}  # fmt: skip
"""how it is measured -> words before what is measured"""
UNITS = {"": "", "amount": "", "days": "day", "months": "month", "s": "second", "chars": "character"}
NEAR_ZERO = 1e-3
"""a number nearer to 0 is told as that"""
_DAYS = re.compile(r"(\d+)d")
_OWNER = re.compile(r"^(customer|lead|product)_")
_DATE = re.compile(r"(__c|_at|_date|Date)$")  # before _days: the name of a date; a number's own __c would stand last


@dataclass(frozen=True, kw_only=True)
class Words:
    """How the values of a column are told: label, value, unit, window."""

    label: str = ""
    """what the value is; empty where it counts its unit"""
    unit: Noun = ""
    """what stands after a number; % for a fraction"""
    below: Noun = ""
    """a number below zero, {} for it without its sign; empty: told like any other"""
    window: str = ""
    """over which days"""
    is_log2: bool = False
    """whether the value is the log2 of what is told"""

    def told(self, value: Any, typical: Any, mark: str) -> str:
        """The value beside the typical one, whose unit is told only if it is another. mark: after a label."""
        number = _is_number(value)
        if isinstance(value, bool) and _is_number(typical):
            typical = typical > 0.5  # the median of a bool is stored as a number
        label = self.label or ("" if number else _forms(self.unit)[1])
        shown = " ".join(filter(None, (label and label + mark, self._shown(value), self.window)))
        brief = number and not (self.below and _is_number(typical) and (value < 0) != (typical < 0))
        return f"{shown}, typically {self._shown(typical, brief=brief)}"

    def _shown(self, value: Any, *, brief: bool = False) -> str:
        if not _is_number(value):
            return _plain(value)
        if self.unit == "%":
            return f"{100 * value:.3g} %"
        unit = _forms(self.unit)
        value = 2.0**value if self.is_log2 else round(value) if unit[0].startswith("day") else value
        is_below = bool(self.below) and value < 0
        text = _plain(-value if is_below else value)
        if brief:
            return text
        is_many = text != "1"
        return _forms(self.below)[is_many].format(text) if is_below else f"{text} {unit[is_many]}".rstrip()


IRREGULAR = {
    "frequency_orders": Words(label="order frequency"),  # of segments, whose settings say of which days
    SPEND: Words(label="spend per 30 active days"),
    DORMANT: Words(label="probability of being dormant", unit="%"),
    "is_young": Words(label="less history than looked back on"),
    "frequency_purchase_days": Words(label="number of days with a purchase"),
    "gap_last_per_mean": Words(label="latest time between purchases", unit="times the usual"),
    "gap_recency_per_mean": Words(label="time since the last purchase", unit="times the usual gap"),
    "gap_recency_excess": Words(
        label="time since the last purchase",
        unit="times (spread + 7 days) over the usual gap",
        below="{} times (spread + 7 days) under the usual gap",
    ),
    "basket_last_per_mean": Words(label="amount of the latest order", unit="times the usual"),
    "price_discount_mean": Words(label="average discount", unit="%"),
    "price_discount_last": Words(label="latest discount", unit="%"),
    "return_share_of_units": Words(label="units returned", unit="%"),
    "return_share_of_spend": Words(label="spend returned", unit="%"),
    "subscription_amount_change": Words(label="amount of the newest subscription", unit="times that of the oldest"),
}
"""features whose words their parts do not make"""


def told(column: str, value: Any, typical: Any, *, mark: str = "") -> str:
    """Such as "3 orders in the last 90 days, typically 1", "industry Retail, typically Food". mark: after a label."""
    return words_of(column).told(value, typical, mark)


@cache
def words_of(column: str) -> Words:
    """What the name of a column says."""
    if column in IRREGULAR:
        return IRREGULAR[column]
    parts = column.split("_")
    unit = parts[-1] if parts[-1] in UNITS else ""
    measure = next((part for part in parts if part in MEASURES), "")
    days = next((found[1] for part in parts if (found := _DAYS.fullmatch(part))), "")
    about = "_".join(part for part in parts if part not in (unit, *MEASURES) and not _DAYS.fullmatch(part))
    noun = ABOUT.get(f"{about}_{measure}", ABOUT.get(about))
    return _attribute(column) if noun is None else _feature(noun, measure, days, unit)


def is_attribute(column: str) -> bool:
    """Whether a column is told by the org's own name for it."""
    return words_of(column) == _attribute(column)


def _feature(noun: Noun, measure: str, days: str, unit: str) -> Words:
    """What the parts of a name say together; days: of its window."""
    one, many = _forms(noun)
    window = {"all": "in all", "per": f"per {days} days", "decayed": f"(half-life {days} days)"}.get(
        measure, f"in the last {days} days" if days else ""
    )
    if measure == "recency":
        return Words(label=f"last {one}", unit=("day ago", "days ago"))
    if measure == "trend":
        return Words(label=many, unit="times the earlier pace", window=window, is_log2=True)
    if measure in ("rate", "share"):
        return Words(label=many, unit="%", window=window)
    if isinstance(noun, tuple) and not unit and not MEASURES[measure]:
        return Words(unit=noun, window=window)
    label = MEASURES[measure] + (one if measure in OF_ONE else many)
    return Words(label=label, unit=(UNITS[unit], UNITS[unit] and f"{UNITS[unit]}s"), window=window)


def _attribute(column: str) -> Words:
    """The org's own name; of a date (_days, where the name tells a date from a number of days) how long ago it was."""
    name = _OWNER.sub("", column)
    field = name.removesuffix("_days")
    if field == name:
        return Words(label=_spaced(name.removesuffix("__c").removesuffix("_amount")))
    label = _spaced(field.removesuffix("__c").removesuffix("_at"))
    if _DATE.search(field):
        return Words(label=label, unit=("day ago", "days ago"), below=("in {} day", "in {} days"))
    return Words(label=label, unit=("day", "days"))


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _forms(noun: Noun) -> tuple[str, str]:
    return (noun, noun) if isinstance(noun, str) else noun


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # not NaN


def _plain(value: Any) -> str:
    if value is None or value != value:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if 0 < abs(value) < NEAR_ZERO:
            return "near 0"
        return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
    return str(value)
