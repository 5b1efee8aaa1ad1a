"""What the figures are called and what they say, for people who do not know their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

SMALL = 1e-4
"""a figure nearer to 0 is told as that"""
MAX_ITEMS = 12
"""of a longer list only how many there are is told"""
Shown = Literal["number", "share", "count"]

FIGURES: dict[str, tuple[str, Shown, str]] = {
    "auc": ("ROC-AUC", "number", "how often a positive is ranked above a negative; 0.5 is chance, 1 is perfect"),
    "ap": ("average precision", "number", "mean precision over all recalls; chance is the base rate, 1 is perfect"),
    "logloss": ("log-loss", "number", "how far probabilities are from what came; lower is better, 0 is perfect"),
    "brier": ("Brier score", "number", "mean squared error of the probabilities; lower is better, 0 is perfect"),
    "ece": ("calibration error", "share", "how far probabilities are from the shares that came true, on average"),
    "accuracy": ("accuracy", "share", "right answers among all"),
    "precision": ("precision", "share", "right among those called positive"),
    "recall": ("recall", "share", "found among the positives"),
    "f1": ("F1", "number", "harmonic mean of precision and recall; 1 is perfect"),
    "macro_f1": ("macro F1", "number", "mean F1 of the classes, each counting the same"),
    "macro_precision": ("macro precision", "share", "mean precision of the classes"),
    "macro_recall": ("macro recall", "share", "mean recall of the classes"),
    "majority_share": ("largest class", "share", "accuracy of always saying the most frequent class"),
    "threshold": ("threshold", "number", "the probability from which on the answer is yes"),
    "base_rate": ("base rate", "share", "positives among all rows"),
    "rate": ("rate", "share", "positives among the rows"),
    "mean_probability": ("mean probability", "share", "that the model gives to the rows"),
    "rows": ("rows", "count", "rows that the figures rest on"),
    "spearman": ("Spearman correlation", "number", "agreement of the two orders; 0 is none, 1 is perfect"),
    "ngini": ("normalised Gini", "number", "how much of the best possible order is reached; 0 is chance, 1 is perfect"),
    "decile_lift": (
        "lift of the top tenth",
        "number",
        "mean of the highest-ranked tenth, as a multiple of the average",
    ),
    "rmse": (
        "root mean squared error",
        "number",
        "in the unit of what is predicted, ruled by the largest; lower is better",
    ),
    "mae": ("mean absolute error", "number", "in the unit of what is predicted; lower is better"),
    "bias": ("bias", "share", "predicted total against the true one: above 0 too much, below too little"),
    "mean_truth": ("mean", "number", "of what came"),
    "pinball": ("pinball loss", "number", "error of the quantiles in the unit of what is predicted; lower is better"),
    "wape": ("WAPE", "share", "sum of the absolute errors over the sum of what came; lower is better"),
    "mase": ("MASE", "number", "error against that of the naive forecast; below 1 is better than it"),
    "hr10": ("hit rate at 10", "share", "customers with at least one right item among ten"),
    "ndcg10": ("NDCG at 10", "number", "right items among ten, the upper places counting more; 1 is perfect"),
    "recall10": ("recall at 10", "share", "of the items that were bought, found among ten"),
    "mrr10": ("MRR at 10", "number", "mean of 1 / place of the first right item"),
    "cov10": ("coverage at 10", "share", "of the catalogue that is recommended to somebody"),
    "silhouette": (
        "silhouette",
        "number",
        "how much closer a customer is to its own segment than to the next; up to 1",
    ),
    "stability": ("stability", "number", "agreement of segments fitted on other samples; 1 is the same"),
    "stable_silhouette": ("stable silhouette", "number", "silhouette, less where the segments are not stable"),
    "skill": ("skill", "number", "ROC-AUC of a yes or no, Spearman correlation of a number, macro F1 of classes"),
    "wql": ("weighted quantile loss", "number", "error of the quantiles over what came; lower is better"),
    "coverage_80": (
        "coverage of the 80\u202f% interval",
        "share",
        "of what came, within the interval; 80\u202f% is right",
    ),
    "share_of_customers": ("share of customers", "share", ""),
    "share_of_sales": ("share of sales", "share", ""),
    "qini": ("Qini", "number", "gain over treating at random; 0 is none"),
    "average_effect": ("average effect", "share", "yes among those who got the offer, less that among the others"),
    "rate_control": ("rate without the offer", "share", "yes among those who did not get it"),
    "ece_control": ("calibration error without the offer", "share", "of the probabilities of those who did not get it"),
    "share_treated": ("share with the offer", "share", ""),
    "treated": ("rate with the offer", "share", ""),
    "control": ("rate without the offer", "share", ""),
    "uplift": ("observed uplift", "share", ""),
    "observed_uplift": ("observed uplift", "share", ""),
    "mean_uplift": ("expected uplift", "share", ""),
    "ranking": ("ranking", "number", "mean of Spearman correlation and normalised Gini of spend; 1 is perfect"),
    "retention": ("retention", "share", "of customers from one horizon to the next, for lifetime value"),
    "lift": ("lift", "number", "as a multiple of the average"),
    "calinski_harabasz": (
        "Calinski-Harabasz index",
        "number",
        "spread between segments over that within; more is better",
    ),
    "later_amount_p_value": (
        "p-value of later spend",
        "number",
        "chance of such differences if segments said nothing of it",
    ),
    "num_segments": ("segments", "count", "that were found"),
    "num_items": ("products", "count", "that can be recommended"),
    "targets_unknown": ("unknown targets", "share", "of what was bought, products that are new since training"),
    "backtest_origins": (
        "backtests",
        "count",
        "dates from which candidates were compared and the margins of the intervals measured",
    ),
    "share": ("share", "share", ""),
    "share_with_suggested_answer": ("share with a suggested answer", "share", ""),
    "log_odds_z": ("log-odds z", "number", "how much more often than among the satisfied; above 2 is no chance"),
}
"""name -> what it is called, how it is written, what it says"""
BY_PART = ("wql", "wape", "mase")
"""figures that are given for parts of the rows too, under names such as wape_category"""
TABLES = {
    "agreement": "beside the champions of other tasks, on the same customers",
    "anomalies": "rows that are unlike all others",
    "answered": "how often it is sure enough to answer, and right then",
    "aspects": "what the dissatisfied speak of; scores from -1 (negative) to 1",
    "bands": "what came among those who were given each band",
    "by_level": "all series of a level",
    "deciles": "the rows in ten equal parts, the highest-ranked first",
    "differences": "standardised differences of the arms' means; above 0.1 is much",
    "drift": "later rows against those of training: rate of yes; stability index (psi) of features, above 0.25 much",
    "from_to": "share of each segment that is in which one a horizon later",
    "later_amount_mean": "mean spend after the date, by segment",
    "leave_alone": "those whom the offer is expected to put off",
    "psi": "population stability index of features; from 0.25 on the model should be looked at",
    "randomisation": "whether the arm can be told from the features: a ROC-AUC near 0.5 is chance",
    "steps": "the model alone, with conformal margins, and moved so that it adds up: the last are the answers",
    "top_tenth": "the tenth of the rows with the highest probability",
    "totals": "what came and what was expected, over all rows",
}
"""name of a table of figures -> what it shows"""


def name_of(figure: str) -> str:
    """What a figure is called; of one for a part, such as wape_category, with the part's name."""
    base = _base(figure)
    if not base:
        return figure.replace("_", " ")
    part = figure.removeprefix(base).replace("_", " ").strip()
    return f"{FIGURES[base][0]}, {part}" if part else FIGURES[base][0]


def meaning_of(figure: str) -> str:
    """What it says, in plain words; empty for one that is not known here."""
    return FIGURES[_base(figure)][2] if _base(figure) else ""


def _base(figure: str) -> str:
    """The known figure that this is, or is for a part; empty for none."""
    return figure if figure in FIGURES else next((name for name in BY_PART if figure.startswith(f"{name}_")), "")


def text_of(value: Any, figure: str = "") -> str:
    """A figure as people read it: 12,345; 0.8534; 41.2 %; < 0.0001; an empty text for None."""
    shown = FIGURES[_base(figure)][1] if _base(figure) else "number"
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if shown == "share":
        return f"{100 * value:.1f}\u202f%"  # a space at which no line breaks
    if 0 < abs(value) < SMALL:
        return f"< {SMALL:.4f}" if value > 0 else f"> {-SMALL:.4f}"
    if isinstance(value, int) or shown == "count" or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"  # + 0.0: no sign before 0


def setting_of(value: Any) -> str:
    """A setting or a fact in one line, as it was given: small numbers whole, `none` for None and what is empty."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {setting_of(one)}" for name, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        shown = [f"({setting_of(one)})" if isinstance(one, Mapping) else setting_of(one) for one in value]
        return f"{len(value)} values" if len(value) > MAX_ITEMS else ", ".join(shown) or "none"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:g}"
    return "none" if value is None else text_of(value)


def intervals_of(test: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Figure -> its interval, from `intervals` or from fields such as auc_interval."""
    apart = {name.removesuffix("_interval"): ends for name, ends in test.items() if name.endswith("_interval")}
    return {**apart, **(test.get("intervals") or {})}


def is_figure(value: Any) -> bool:
    """Whether a value is a number to show."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
