"""Why a score is what it is: the feature groups whose removal moves it most, for any model.

Removing a group sets its columns to the training reference: the median of a number, the most frequent category, and for
sequences the sequence of one typical training row. The effect of a group on a row is score - score without the group:
positive effects raise the score. Effects of groups that act together do not add up to the score.

A reason shows one value of its group beside the typical one: that which makes most of the group's effect when the rest
of the group is typical. So a value is not told for an effect that it works against: of a customer who visited often in
a year, but not lately, it is the last weeks that are shown. Where no value makes enough of it alone, that is said.

Shapes: N rows, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.errors import SchemaError
from crmray.evaluate import phrases
from crmray.models.columns import feature_columns, numbers_of, texts_of

Predict = Callable[[pa.Table], np.ndarray]
"""Examples (N rows) -> score float64 (N,)."""

ROWS_PER_CALL = 4096  # small requests put several groups into one call of the model
LEAST_EFFECT = 0.005  # of a probability: smaller effects are no reason
LEAST_SHARE = 0.1  # of a group's effect: a value that alone makes less is not shown for it
SHARE_DIGITS = 9  # to which shares are compared
MAX_TRIED = 4  # values of a group that are tried for a row, the most unusual ones
MAX_TYPICAL_ROWS = 20_000
SEQUENCE = "the order and timing of all that happened: purchases, visits, mails, contacts"
"""words for the lists of events, of which no single value can be told"""


def groups_of(
    schema: pa.Schema, groups: Mapping[str, Sequence[str]], labels: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The given groups (words -> columns) less what the table lacks, then each other feature as a group of its own.

    List columns in no group together become SEQUENCE.
    """
    present = {words: tuple(c for c in columns if c in schema.names) for words, columns in groups.items()}
    result = {words: columns for words, columns in present.items() if columns}
    taken = {column for columns in result.values() for column in columns}
    numeric, categorical = feature_columns(schema, labels)
    result |= {_words(c): (c,) for c in (*numeric, *categorical) if c not in taken}
    sequences = tuple(f.name for f in schema if pa.types.is_list(f.type) and f.name not in taken)
    return {**result, SEQUENCE: sequences} if sequences else result


def basis(train: pa.Table, starts: Mapping[str, Sequence[str]], labels: Collection[str] = ()) -> dict[str, Any]:
    """What a decision keeps for `explain`, as JSON: {"groups": words -> columns, "reference": as `reference`}.

    starts: words -> beginnings of the names of the group's columns.
    """
    named = {words: tuple(n for n in train.column_names if n.startswith(tuple(begin)))
             for words, begin in starts.items()}  # fmt: skip
    groups = groups_of(train.schema, named, labels)
    return {
        "groups": {words: list(columns) for words, columns in groups.items()},
        "reference": reference(train, groups),
    }


def _words(column: str) -> str:
    return column.replace("_", " ").strip()


def reference(train: pa.Table, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Typical training value of every grouped column, as JSON: {"values": {column: value}, "spread": {column: float},
    "flags": [column]}.

    `spread` is the standard deviation of a number (0 for other columns); `flags` are attributes of the org that are 0
    or 1 in every row, which are told as no and yes. Of many rows a regular sample is looked at. SchemaError for a
    group's column that the table lacks.
    """
    if train.num_rows > MAX_TYPICAL_ROWS:
        train = train.take(pa.array(np.linspace(0, train.num_rows - 1, MAX_TYPICAL_ROWS).astype(np.int64)))
    values: dict[str, Any] = {}
    spread: dict[str, float] = {}
    flags: list[str] = []
    for words, columns in groups.items():
        missing = [c for c in columns if c not in train.column_names]
        if missing:
            raise SchemaError(f"reasons, group {words!r}: column {missing[0]!r} is missing; use groups_of(schema, …)")
        sequences = [c for c in columns if _is_list(train.schema.field(c).type)]
        row = _typical_row(train, sequences) if sequences else 0
        for column in columns:
            spread[column] = 0.0
            if column in sequences:
                values[column] = train[column][row].as_py()
            elif column in feature_columns(train.select([column]).schema)[0]:
                numbers = numbers_of(train, column)
                known = numbers[~np.isnan(numbers)]
                values[column] = float(np.median(known)) if len(known) else None
                spread[column] = float(known.std()) if len(known) else 0.0
                if set(np.unique(known)) == {0.0, 1.0} and phrases.is_attribute(column):
                    flags.append(column)
            else:
                values[column] = _most_frequent(texts_of(train, column))
    return json.loads(json.dumps({"values": values, "spread": spread, "flags": flags}))


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _most_frequent(texts: pa.Array) -> str | None:
    counts = pc.value_counts(texts).to_pylist()
    return min(counts, key=lambda c: (-c["counts"], c["values"] or ""))["values"] if counts else None


def _typical_row(train: pa.Table, sequences: Sequence[str]) -> int:
    """The row of median length; among several, the one whose means of numbers are closest to the median of theirs."""
    lengths = pc.fill_null(pc.list_value_length(train[sequences[0]]), 0).to_numpy()
    median = np.sort(lengths)[(len(lengths) - 1) // 2]
    rows = np.flatnonzero(lengths == median)
    distance = np.zeros(len(rows))
    for name in sequences:
        column = train[name].combine_chunks().take(pa.array(rows))
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if median == 0 or not pa.types.is_floating(column.type.value_type):
            continue
        numbers = np.nan_to_num(column.flatten().to_numpy(zero_copy_only=False).astype(np.float64))
        owner = pc.list_parent_indices(column).to_numpy()
        means = np.bincount(owner, numbers, len(rows)) / np.maximum(np.bincount(owner, minlength=len(rows)), 1)
        middle = np.median(means)
        distance += np.abs(means - middle) / (np.median(np.abs(means - middle)) or 1.0)
    return int(rows[distance.argmin()])


def effects(
    predict: Predict,
    examples: pa.Table,
    scores: np.ndarray,
    reference: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
) -> np.ndarray:
    """score - score with the group at its reference: float64 (N, G), groups in their order.

    scores: (N,) of the examples. One call of the model per group; several groups share a call where the rows are few.
    """
    num_rows, names = examples.num_rows, list(groups)
    out = np.zeros((num_rows, len(names)))
    if not num_rows or not names:
        return out
    per_call = max(1, ROWS_PER_CALL // num_rows)
    for start in range(0, len(names), per_call):
        block = names[start : start + per_call]
        without = [_removed(examples, groups[name], reference["values"]) for name in block]
        moved = np.asarray(predict(pa.concat_tables(without).combine_chunks()), dtype=np.float64)
        out[:, start : start + len(block)] = scores[:, None] - moved.reshape(len(block), num_rows).T
    return out


def _removed(examples: pa.Table, columns: Sequence[str], values: Mapping[str, Any]) -> pa.Table:
    for name in columns:
        index = examples.schema.get_field_index(name)
        if index < 0:
            raise SchemaError(f"column {name!r} is missing; expected it as in training, to give reasons")
        field = examples.schema.field(index)
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        value = values[name]
        if isinstance(value, float) and not pa.types.is_floating(plain):
            value = pa.scalar(round(value)).cast(plain, safe=False) if not pa.types.is_null(plain) else None
        constant = pa.array([value.as_py() if isinstance(value, pa.Scalar) else value], type=plain)
        repeated = constant.take(pa.array(np.zeros(examples.num_rows, dtype=np.int64)))
        repeated = repeated.cast(field.type) if pa.types.is_dictionary(field.type) else repeated
        examples = examples.set_column(index, field, repeated)
    return examples


def explain(
    predict: Predict,
    examples: pa.Table,
    reference: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    top: int = 3,
) -> list[list[str]]:
    """For each row up to `top` reasons in words, strongest first.

    "how often they buy: 1 order in the last 90 days, typically 3 (+0.18)": the group, the value in it that makes most
    of this beside the typical one (crmray.evaluate.phrases), and what the group adds to the score. Effects below
    LEAST_EFFECT are left out.
    """
    if not examples.num_rows:
        return []
    scores = np.asarray(predict(examples), dtype=np.float64)
    matrix = effects(predict, examples, scores, reference, groups)
    order = np.argsort(-np.abs(matrix), axis=1, kind="stable")[:, :top]
    names = list(groups)
    strongest = [(i, j) for i in range(examples.num_rows) for j in order[i] if abs(matrix[i, j]) >= LEAST_EFFECT]
    shown = _shown(predict, examples, scores, reference, [(i, groups[names[j]], matrix[i, j]) for i, j in strongest])
    said: list[list[str]] = [[] for _ in range(examples.num_rows)]
    for (i, j), column in zip(strongest, shown, strict=True):
        words = names[j]
        if column is None and not any(isinstance(reference["values"][name], list) for name in groups[words]):
            words += ": several values together"
        said[i].append(_sentence(words, matrix[i, j], examples, i, reference, column))
    return said


def _shown(
    predict: Predict,
    examples: pa.Table,
    scores: np.ndarray,
    reference: Mapping[str, Any],
    told: Sequence[tuple[int, Sequence[str], float]],
) -> list[str | None]:
    """Of each (row, columns of a group, its effect) the column to show: the only one, or that which alone makes most of
    the effect, at least LEAST_SHARE of it; None for sequences and where there is none."""
    plain = {column for column, value in reference["values"].items() if not isinstance(value, list)}
    found = [columns[0] if len(columns) == 1 and columns[0] in plain else None for _, columns, _ in told]
    group_of = {column: columns for _, columns, _ in told if len(columns) > 1 for column in columns if column in plain}
    away = _distances(examples, group_of, reference)
    tried: dict[str, list[int]] = {}
    for number, (row, columns, _) in enumerate(told):
        unusual = [column for column in columns if column in group_of and away[column][row]]
        for column in sorted(unusual, key=lambda name: -away[name][row])[:MAX_TRIED]:
            tried.setdefault(column, []).append(number)
    rows = {column: [told[number][0] for number in numbers] for column, numbers in tried.items()}
    alone = _alone(predict, examples, reference, rows, group_of)
    best: dict[int, tuple[float, float, str]] = {}
    for column, numbers in tried.items():
        for number, score in zip(numbers, alone[column], strict=True):
            row, _, effect = told[number]
            share = 1 - (scores[row] - score) / effect  # score alone less that without the group, over the effect
            # Of equal ones the most unusual, whatever the rows beside this one; the last digits hang on these.
            mark = (round(share, SHARE_DIGITS), away[column][row], column)
            if share >= LEAST_SHARE and mark > best.get(number, (0.0, 0.0, "")):
                best[number], found[number] = mark, column
    return found


def _alone(
    predict: Predict,
    examples: pa.Table,
    reference: Mapping[str, Any],
    rows: Mapping[str, list[int]],
    group_of: Mapping[str, Sequence[str]],
) -> dict[str, np.ndarray]:
    """Column -> score of each of its rows with the rest of its group at the reference."""
    out, without = {}, {}
    for block in _blocks(rows):
        parts = []
        for name in block:
            group = tuple(group_of[name])
            if group not in without:
                without[group] = _removed(examples, group, reference["values"])
            index, at = examples.schema.get_field_index(name), pa.array(rows[name])
            own = examples[name].take(at)
            parts.append(without[group].take(at).set_column(index, examples.schema.field(index), own))
        scores = np.asarray(predict(pa.concat_tables(parts).combine_chunks()), dtype=np.float64)
        for name in block:
            out[name], scores = scores[: len(rows[name])], scores[len(rows[name]) :]
    return out


def _blocks(rows: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """The names in their order, in parts of about ROWS_PER_CALL rows."""
    block: list[str] = []
    for name in rows:
        block.append(name)
        if sum(len(rows[one]) for one in block) >= ROWS_PER_CALL:
            yield block
            block = []
    if block:
        yield block


def _distances(examples: pa.Table, columns: Collection[str], reference: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """How far each value (N,) is from the typical one, in spreads; 1 for another text and for what is not known."""
    found = {}
    for column in columns:
        typical, spread = reference["values"][column], reference["spread"][column]
        if isinstance(typical, (int, float)):
            away = np.abs(numbers_of(examples, column) - typical)
            found[column] = np.nan_to_num(away / spread if spread else np.sign(away), nan=1.0)
        elif typical is None:
            found[column] = np.asarray(pc.is_valid(examples[column]), dtype=np.float64)
        else:
            same = pc.fill_null(pc.equal(texts_of(examples, column), typical), False)
            found[column] = 1.0 - np.asarray(same, dtype=np.float64)
    return found


def _sentence(
    words: str, effect: float, examples: pa.Table, row: int, reference: Mapping[str, Any], column: str | None
) -> str:
    """The group's words, the value to show, and the signed effect."""
    if column is None:
        return f"{words} ({effect:+.2f})"
    alone = _words(column) == words  # the group is named by its column
    value, typical = examples[column][row].as_py(), reference["values"][column]
    if column in reference.get("flags", ()) and value in (0, 1, None):  # a bundle of before has no flags
        value, typical = None if value is None else bool(value), typical > 0.5
    said = phrases.told(column, value, typical, mark=":" if alone else "")
    return f"{said if alone or words in said else f'{words}: {said}'} ({effect:+.2f})"
