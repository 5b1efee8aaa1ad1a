"""Decisions, answers and figures for a label of any kind: yes or no, a number, or one of several classes.

The label stands in column `label`: int8 of 0 and 1, float64, or text. Predictions are those of a Fitted: {"score":
(N,)}, of classes {"p:<class>": (N,)}. `skill` is the figure by which each kind is judged: the AUC for yes and no,
Spearman's rank correlation for numbers (0 where all predictions are equal), macro-F1 for classes. N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.evaluate import amounts, calibration, decide, judge, metrics, reasons
from crmray.models.blend import Blend, best_blend
from crmray.models.columns import numbers_of, texts_of
from crmray.models.labels import CLASS_SCORE, LABEL, Kind, class_scores, labels_of

SKILL = "skill"
INTERVAL = (0.1, 0.9)
"""quantiles of the errors on validation that make the interval of a number"""
GROUP_ROWS, MOST_GROUPS = 100, 10
"""validation rows of a group of alike predictions, at least, and groups at most"""
ANSWER = {
    "answer": pa.string(), "probability": pa.float64(), "band": pa.string(), "number": pa.float64(),
    "number_low": pa.float64(), "number_high": pa.float64(),
}  # fmt: skip
"""columns of an answer; those that a kind does not have are null"""


def kind_of(rows: pa.Table) -> Kind:
    """Kind of the label, by its type."""
    type_ = rows.schema.field(LABEL).type
    return "class" if pa.types.is_string(type_) else "number" if pa.types.is_floating(type_) else "yes_no"


def score(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """skill, and metrics.binary, amounts.amount or metrics.classes of a candidate's predictions."""
    kind = kind_of(examples)
    if kind == "yes_no":
        figures = metrics.binary(labels_of(examples), predictions["score"])
        return {SKILL: figures["auc"], **figures}
    if kind == "number":
        figures = amounts.amount(numbers_of(examples, LABEL), predictions["score"])
        return {SKILL: figures["spearman"], **figures}
    figures = class_figures(examples, predictions)
    return {SKILL: figures["macro_f1"], **figures}


def class_figures(examples: pa.Table, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """metrics.classes of a candidate's predictions of classes."""
    place, probability_NK, _ = coded(examples, predictions)
    return metrics.classes(place, probability_NK)


def coded(rows: pa.Table, predictions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Place of each row's class (N,), probabilities (N, K), names (K,). A class that training did not have comes last,
    with the probability 0."""
    names, probability_NK = class_scores(predictions)
    truth = texts_of(rows, LABEL)
    new = sorted(set(pc.unique(truth.drop_null()).to_pylist()) - set(names))
    place = pc.index_in(truth, value_set=pa.array([*names, *new])).to_numpy(zero_copy_only=False)
    padded = np.concatenate([probability_NK, np.zeros((len(place), len(new)))], axis=1)
    return place.astype(np.int64), padded, [*names, *new]


def blend(models: Mapping[str, Any], validation: pa.Table) -> Blend | None:
    """The average of the best few families, where validation prefers its skill to the best single one's."""
    return best_blend(models, validation, lambda told: score(validation, told)[SKILL])


def decision(model: Any, train: pa.Table, validation: pa.Table, threshold: decide.How) -> dict[str, Any]:
    """kind, and from validation rows what decide.fit says of yes or no, or the errors of a number."""
    kind = kind_of(validation)
    if kind == "yes_no":
        return {"kind": kind, **decide.fit(model, train, validation, threshold)}
    if kind == "number":
        predicted = model.predict(validation)["score"]
        return {"kind": kind, "interval": _interval(numbers_of(validation, LABEL), predicted)}
    return {"kind": kind}


def shipped(model: Any, decided: Mapping[str, Any], validation: pa.Table) -> dict[str, Any]:
    """The decision for the model that was fitted again with the validation rows."""
    return decide.shipped(model, decided, validation) if decided["kind"] == "yes_no" else dict(decided)


def _interval(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """What is added to a prediction for the ends of its interval: quantiles of the errors of rows predicted alike.

    Groups by prediction (Mondrian conformal prediction, Vovk et al. 2005), since large amounts err by more than small
    ones: cuts (G - 1,) between G groups, low (G,), high (G,). No lower end lies below the `least` number seen.
    """
    num_groups = int(np.clip(len(predicted) // GROUP_ROWS, 1, MOST_GROUPS))
    cuts = np.unique(np.quantile(predicted, np.arange(1, num_groups) / num_groups))
    place = np.searchsorted(cuts, predicted, side="left")
    errors = [truth[place == group] - predicted[place == group] for group in range(len(cuts) + 1)]
    ends = [np.quantile(of_group if len(of_group) else truth - predicted, INTERVAL) for of_group in errors]
    low, high = np.array(ends).T.tolist()
    return {"cuts": cuts.tolist(), "low": low, "high": high, "least": float(truth.min())}


def answers(
    model: Any, decided: Mapping[str, Any], examples: pa.Table, *, threshold: float | None = None
) -> dict[str, pa.Array]:
    """Columns of ANSWER. decided: of `decision`; threshold: of yes and no, instead of the decided one."""
    said = model.predict(examples)
    columns: dict[str, Any] = {}
    if decided["kind"] == "yes_no":
        probability = calibration.apply(decided["calibration"], said["score"])
        yes = probability >= (decided["threshold"] if threshold is None else threshold)
        columns = {"answer": np.where(yes, "yes", "no"), "probability": probability}
        columns["band"] = calibration.bands(probability, decided["bands"])
    elif decided["kind"] == "number":
        about = decided["interval"]
        place = np.searchsorted(about["cuts"], said["score"], side="left")
        number = said["score"]
        low, high = (number + np.asarray(about[end])[place] for end in ("low", "high"))
        # The mean of a skewed amount may lie beyond its quantiles: the interval is widened to hold it.
        low, high = np.minimum(np.maximum(low, about["least"]), number), np.maximum(high, number)
        columns = {"number": number, "number_low": low, "number_high": high}
    else:
        names, probability_NK = class_scores(said)
        best = pa.array(names, pa.string()).take(pa.array(probability_NK.argmax(1)))
        columns = {"answer": best, "probability": probability_NK.max(1)}
    rows = examples.num_rows
    return {name: pa.array(columns[name], type_) if name in columns else pa.nulls(rows, type_)
            for name, type_ in ANSWER.items()}  # fmt: skip


def explain(model: Any, decided: Mapping[str, Any], examples: pa.Table, said: pa.Array, *, top: int) -> list[list[str]]:
    """Up to `top` reasons a row: why the probability of yes, the number, or the probability of the class said is so.

    decided: of `decision`, with groups and reference of `reasons`; said: the answers (N,).
    """
    about = decided["reference"], decided["groups"], top

    if decided["kind"] == "yes_no":
        return reasons.explain(lambda rows: decide.probabilities(model, decided, rows), examples, *about)
    if decided["kind"] == "number":
        return reasons.explain(lambda rows: model.predict(rows)["score"], examples, *about)
    told: list[list[str]] = [[] for _ in range(examples.num_rows)]
    for name in pc.unique(said).to_pylist():
        key = f"{CLASS_SCORE}{name}"
        places = np.flatnonzero(pc.equal(said, name).to_numpy(zero_copy_only=False))
        rows = examples.take(pa.array(places))
        of_class = reasons.explain(lambda r, key=key: model.predict(r)[key], rows, *about)  # type: ignore[misc]
        for place, reason in zip(places.tolist(), of_class, strict=True):
            told[place] = reason
    return told


def judged(model: Any, decided: Mapping[str, Any], test: pa.Table, columns: Mapping[str, pa.Array]) -> dict[str, Any]:
    """skill and the figures of judge.binary, judge.amount (with the coverage of the interval) or judge.classes.

    columns: of `answers`.
    """
    if decided["kind"] == "yes_no":
        probability, groups = columns["probability"].to_numpy(), judge.segments(test, (LABEL,))
        figures = judge.binary(labels_of(test), probability, decided["threshold"], groups=groups)
        return {SKILL: figures["auc"], **figures}
    if decided["kind"] == "number":
        truth = numbers_of(test, LABEL)
        low, high = columns["number_low"].to_numpy(), columns["number_high"].to_numpy()
        figures = judge.amount(truth, columns["number"].to_numpy())
        coverage = {f"{INTERVAL[1] - INTERVAL[0]:g}": float(((truth >= low) & (truth <= high)).mean())}
        return {SKILL: figures["spearman"], **figures, "coverage": coverage}
    place, probability_NK, names = coded(test, model.predict(test))
    figures = judge.classes(place, probability_NK, names)
    return {SKILL: figures["macro_f1"], **figures}
