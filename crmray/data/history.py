"""Rows as they were at a date, from their latest values and the history of their fields.

A CRM keeps the latest value of a field; its history (table `changes`) says when it was written and what stood there
before. The value just before a date is the old value of the first change at or after it, or the latest value where
there is no such change. It is known when

    the row was last modified before the date: then it is valid as it stands; or
    the field's history covers the date, and the changes on both sides of it fit together: what the one before wrote is
    what the one after found. Where they do not, the field was written while its tracking was off.

History covers a field from its first recorded change on: tracking cannot be seen to have been on before. Salesforce
keeps field history for 18 to 24 months, and none of the values of long texts: those rows hold neither value.

Shapes: N rows, C changes of one field. All is numpy and Arrow over whole columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data import parse
from crmray.data.asof_rows import micros_of
from crmray.data.splits import micros

NEVER = np.iinfo(np.int64).max
"""a time that does not come, in microseconds"""
LARGEST_TIE = 6
"""changes of one field of one row at the same moment that are put in order by their values"""
CLOSE = 1e-4
"""relative difference of numbers that are the same: history writes them rounded"""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of a canonical table, and how its history names it."""

    column: str
    """canonical column or attribute"""
    object: str
    """`object` in the changes table"""
    field: str
    """`field` there"""

    @property
    def name(self) -> str:
        """`Object.Field`, as the org file writes it."""
        return f"{self.object}.{self.field}"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes of one field, for the rows of one table: sorted by row, oldest first."""

    code: np.ndarray
    """(C,) int64 index of the row"""
    time_us: np.ndarray
    """(C,) int64 microseconds since 1970 UTC"""
    old: pa.Array
    """(C,) value before, in the column's type; null: there was none, or it was not kept"""
    new: pa.Array
    """(C,) value after"""
    kept: np.ndarray
    """(C,) bool: whether the history kept the values"""
    n: int
    """number of rows N"""

    def __len__(self) -> int:
        return len(self.code)

    @cached_property
    def starts(self) -> np.ndarray:
        """(N + 1,) where the changes of each row begin."""
        return np.searchsorted(self.code, np.arange(self.n + 1))

    def next_at(self, as_of_us: int) -> np.ndarray:
        """(N,) index of each row's first change at or after the date; the end of its changes where there is none."""
        late = np.concatenate([[0], np.cumsum(self.time_us < as_of_us)])
        return self.starts[:-1] + late[self.starts[1:]] - late[self.starts[:-1]]

    def breaks_us(self, latest: pa.Array) -> np.ndarray:
        """Times up to which something was written untracked: of the change that does not fit the one before, NEVER
        where the latest value does not fit the last change."""
        if not len(self):
            return self.time_us
        follows = np.append(self.code[1:] == self.code[:-1], False)
        after = self.old.take(pa.array(np.minimum(np.arange(len(self)) + 1, len(self) - 1)))
        found = _choose(follows, after, latest.take(pa.array(self.code)))
        kept_next = np.where(follows, np.append(self.kept[1:], True), True)
        broken = ~_same(self.new, found) & self.kept & kept_next
        return np.where(follows, np.append(self.time_us[1:], NEVER), NEVER)[broken]


def changes_of(changes: pa.Table, field: Field, rows: pa.Table, *, key: str = "entity_id") -> Changes:
    """The changes of a field for the rows of a table, whose column `key` is the changes' entity_id.

    The values take the column's type; a value that is not legible as such counts as not kept.
    """
    same = pc.and_(pc.equal(changes["object"], field.object), pc.equal(changes["field"], field.field))
    found = changes.filter(pc.fill_null(same, False))
    code = pc.index_in(found["entity_id"], value_set=rows[key].combine_chunks()).fill_null(-1).to_numpy()
    found, code = found.filter(pa.array(code >= 0)), code[code >= 0].astype(np.int64)
    type_ = rows.schema.field(field.column).type
    (old, old_legible), (new, new_legible) = (_typed(found[name], type_) for name in ("old_value", "new_value"))
    # A change from nothing to nothing is none: the values of long texts are not kept.
    kept = old_legible & new_legible & ~(_nulls(old) & _nulls(new))
    time_us = micros_of(found["occurred_at"])
    order = _in_order(code, time_us, old, new, rows[field.column].combine_chunks())
    at = pa.array(order)
    return Changes(
        code=code[order], time_us=time_us[order], old=old.take(at), new=new.take(at), kept=kept[order], n=rows.num_rows
    )


def values(
    rows: pa.Table, field: Field, changes: Changes, as_of: datetime, *, covered_from_us: int = NEVER
) -> tuple[pa.Array, np.ndarray]:
    """(N,) values just before the date, null where not known, and (N,) bool: whether they are known.

    rows: with the column, and `modified_at` where the source has it. covered_from_us: since when the field's history is
    there; NEVER: it has none. A row created at or after the date has no value, and is known to have none.
    """
    as_of_us = micros(as_of)
    latest = rows[field.column].combine_chunks()
    before = unborn(rows, as_of_us)
    stands = standing(rows, as_of_us) & ~before
    after_at = changes.next_at(as_of_us)
    has_after, has_before = after_at < changes.starts[1:], after_at > changes.starts[:-1]
    last = max(len(changes) - 1, 0)
    after_index, before_index = np.minimum(after_at, last), np.clip(after_at - 1, 0, last)
    if len(changes):
        found = _choose(has_after, changes.old.take(pa.array(after_index)), latest)
        kept = np.where(has_after, changes.kept[after_index], True)
        compared = has_before & changes.kept[before_index]
        fits = ~compared | _same(changes.new.take(pa.array(before_index)), found)
    else:
        found, kept, fits = latest, np.ones(rows.num_rows, bool), np.ones(rows.num_rows, bool)
    tracked = kept & fits & (as_of_us >= covered_from_us)
    result = _choose(stands, latest, found)
    known = stands | tracked | before
    return pc.if_else(pa.array(known & ~before), result, pa.scalar(None, result.type)), known


def standing(rows: pa.Table, as_of_us: int) -> np.ndarray:
    """(N,) bool: last modified before the date, so that the row is valid as it stands; False where that is missing."""
    if "modified_at" not in rows.column_names:
        return np.zeros(rows.num_rows, bool)
    return micros_of(rows["modified_at"]) < as_of_us


def unborn(rows: pa.Table, as_of_us: int) -> np.ndarray:
    """(N,) bool: created at or after the date; False where that is missing."""
    if "created_at" not in rows.column_names:
        return np.zeros(rows.num_rows, bool)
    created_us = micros_of(rows["created_at"])
    return (created_us >= as_of_us) & (created_us != NEVER)


def until_closed(interactions: pa.Table, as_of: datetime) -> pa.Table:
    """The rows without the ratings of cases that were not closed before the date: a case is rated when it is closed."""
    if not {"rating", "closed_at"} <= set(interactions.column_names):
        return interactions
    hidden = pc.invert(pc.fill_null(pc.less(interactions["closed_at"], pa.scalar(as_of, schema.TIME)), False))
    if "channel" in interactions.column_names:
        hidden = pc.and_(hidden, pc.fill_null(pc.equal(interactions["channel"], "case"), False))
    at = interactions.schema.get_field_index("rating")
    return interactions.set_column(at, "rating", pc.if_else(hidden, None, interactions["rating"]))


# -- values ----------------------------------------------------------------------------------------------------------


def _typed(text: pa.ChunkedArray, type_: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """History's text in a column's type, and where it is legible; nothing is legible too."""
    if pa.types.is_string(type_):
        found = parse.text(text)
    elif pa.types.is_boolean(type_):
        found = parse.booleans(text).values
    elif pa.types.is_timestamp(type_):
        found = parse.times(text).values
    else:
        found = parse.numbers(text).values.cast(type_, safe=False)
    legible = np.asarray(pc.or_(pc.is_valid(found), pc.is_null(parse.text(text))))
    return found.combine_chunks(), legible.astype(bool)


def _nulls(array: pa.Array) -> np.ndarray:
    return pc.is_null(array).to_numpy(zero_copy_only=False)


def _choose(mask: np.ndarray, one: pa.Array, other: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(mask), one, other)


def _same(one: pa.Array, other: pa.Array) -> np.ndarray:
    """Whether two columns hold the same, row by row; numbers within CLOSE, nothing is like nothing."""
    if pa.types.is_floating(one.type) or pa.types.is_integer(one.type):
        first, second = (part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for part in (one, other))
        return np.isclose(first, second, rtol=CLOSE, atol=1e-9, equal_nan=True)
    equal = pc.fill_null(pc.equal(one, other), False).to_numpy(zero_copy_only=False)
    return equal | (_nulls(one) & _nulls(other))


def _in_order(code: np.ndarray, time_us: np.ndarray, old: pa.Array, new: pa.Array, latest: pa.Array) -> np.ndarray:
    """(C,) order by row and time; changes of the same moment so that each finds what the one before it wrote."""
    order = np.lexsort((time_us, code))
    tied = (np.diff(code[order]) == 0) & (np.diff(time_us[order]) == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], tied, [False]]).astype(int)))
    for first, last in edges.reshape(-1, 2)[::-1]:  # few: saves of one record within a second
        group, row = order[first : last + 1], int(code[order[first]])
        follows = last + 1 < len(order) and code[order[last + 1]] == row
        then = old[int(order[last + 1])] if follows else latest[row]
        order[first : last + 1] = _chain(group, old.take(pa.array(group)), new.take(pa.array(group)), then.as_py())
    return order


def _chain(group: np.ndarray, old: pa.Array, new: pa.Array, then: object) -> np.ndarray:
    """Changes of one moment in the order in which they fit together, best so that `then` is what the last one wrote; as
    they came where they do not fit."""
    if len(group) > LARGEST_TIE:
        return group
    olds, news = old.to_pylist(), new.to_pylist()
    fitting = [
        chain
        for chain in itertools.permutations(range(len(group)))
        if all(olds[second] == news[first] for first, second in itertools.pairwise(chain))
    ]
    best = [chain for chain in fitting if news[chain[-1]] == then]
    return group[list((best or fitting)[0])] if fitting else group
