"""Purchase histories as ragged arrays, the catalogue of products, and counts of what is bought together.

Rows in are examples of the recommendation task: `history` list<string> (product ids, oldest first),
`history_days_before` list<float32>, `exclude_owned` bool, and in training rows `entity_id`, `as_of`, `target`
list<string>. Entries of one row with the same days are one visit.
Shapes: I items, M history entries of all rows together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from safetensors import numpy as safetensors

from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.models.tabular import file_of, to_json

RECENT_DAYS = 30.0
"""what counts as bought recently"""
BLOCK_PAIRS = 20_000_000
"""entries of the visits' pasts held at once while counting: 240 MB"""
NEGLIGIBLE = 0.01
"""a weight below this share of the largest is left out of the counts"""


@dataclass(frozen=True, kw_only=True)
class Histories:
    """What each row has bought, as codes of a catalogue; products outside the catalogue are left out."""

    offsets: np.ndarray
    """(rows + 1,) int64; row i owns entries offsets[i]:offsets[i + 1], oldest first"""
    codes: np.ndarray
    """(M,) int32 positions in the catalogue"""
    days_before: np.ndarray
    """(M,) float32 days before the row's as_of, descending"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) number of entries."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """(M,) row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def visits(self) -> np.ndarray:
        """(M,) int64 number of each entry's visit, ascending over all rows, from 0."""
        new = np.ones(len(self.codes), bool)
        new[1:] = self.days_before[1:] != self.days_before[:-1]
        new[self.offsets[:-1][self.lengths > 0]] = True
        return np.cumsum(new) - 1

    def visits_from_end(self) -> np.ndarray:
        """(M,) int64 visits between each entry's and the newest of its row, which is 0."""
        visits = self.visits()
        if not len(visits):
            return visits
        newest = visits[np.maximum(self.offsets[1:] - 1, 0)]
        return np.repeat(newest, self.lengths) - visits

    def matrix(self, num_items: int, decay: float) -> sp.csr_matrix:
        """(rows, I) float32: each product weighs decay ** (visits after its newest entry); decay 0 keeps the newest
        visit only.

        What was bought again counts once, at its newest entry, and so do the visits: one that holds nothing else than
        what was bought again later is none. Sums of the decayed entries ranked worse on validation rows.
        """
        once = self.distinct()
        weights = np.power(np.float32(decay), once.visits_from_end(), dtype=np.float32)
        matrix = sp.csr_matrix((weights, once.codes, once.offsets), shape=(len(self), num_items))
        matrix.sort_indices()
        return matrix

    def distinct(self) -> Histories:
        """Each product once per row, at its newest entry."""
        keys = self.rows * (int(self.codes.max(initial=0)) + 1) + self.codes
        newest = np.sort(len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1])
        if len(newest) == len(keys):
            return self
        return self._kept(newest, np.bincount(self.rows[newest], minlength=len(self)))

    def take(self, rows: np.ndarray) -> Histories:
        """These rows, ascending."""
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        return self._kept(np.flatnonzero(chosen[self.rows]), self.lengths[rows])

    def where(self, entries: np.ndarray) -> Histories:
        """All rows, with the entries of a mask (M,)."""
        return self._kept(np.flatnonzero(entries), np.bincount(self.rows[entries], minlength=len(self)))

    def _kept(self, entries: np.ndarray, lengths: np.ndarray) -> Histories:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Histories(offsets=offsets, codes=self.codes[entries], days_before=self.days_before[entries])

    def slice(self, start: int, stop: int) -> Histories:
        """Rows start:stop."""
        first, last = self.offsets[start], self.offsets[stop]
        return Histories(
            offsets=self.offsets[start : stop + 1] - first,
            codes=self.codes[first:last],
            days_before=self.days_before[first:last],
        )


def column_of(examples: pa.Table, name: str) -> pa.ChunkedArray:
    """One column; SchemaError when it is missing."""
    if name not in examples.column_names:
        raise SchemaError(f"got no column {name!r}, expected the columns of the recommendation task's examples")
    return examples[name]


def newest_rows(train: pa.Table) -> np.ndarray:
    """Ascending positions of each customer's row with the latest as_of, of equal ones the last: it holds the others."""
    customers = column_of(train, "entity_id").combine_chunks().dictionary_encode().indices.to_numpy()
    as_of_us = pc.fill_null(column_of(train, "as_of").cast(pa.int64()), 0).to_numpy()
    order = np.lexsort((np.arange(len(customers)), as_of_us, customers))
    last = np.append(customers[order][1:] != customers[order][:-1], True)[: len(order)]
    return np.sort(order[last])


def next_items(train: pa.Table) -> pa.ChunkedArray:
    """`target` where rows have no date (leave-one-out: it is the next item of the sequence), else null.

    A dated target is not to be trained on: it may lie at or after the date of the test.
    """
    dated = pc.is_valid(column_of(train, "as_of"))
    return pc.if_else(dated, pa.scalar(None, train["target"].type), column_of(train, "target"))


def training(train: pa.Table) -> pa.Table:
    """One row per customer: its newest, with the next item appended to the history where it is known."""
    train = train.take(pa.array(newest_rows(train)))
    added_offsets, added = flatten(next_items(train))
    if not len(added):
        return train
    offsets, history = flatten(train["history"])
    _, days = flatten(train["history_days_before"])
    places = np.repeat(offsets[1:], np.diff(added_offsets))
    items = np.insert(history.to_numpy(zero_copy_only=False), places, added.to_numpy(zero_copy_only=False))
    days_before = np.insert(days.to_numpy(zero_copy_only=False), places, np.float32(-1.0))
    for name, values in (("history", pa.array(items, pa.string())), ("history_days_before", pa.array(days_before))):
        lists = pa.ListArray.from_arrays(pa.array(offsets + added_offsets, pa.int32()), values)
        train = train.set_column(train.schema.get_field_index(name), name, lists)
    return train


def flatten(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Offsets (rows + 1,) int64 and flat values of a list column; null lists count as empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pc.list_flatten(array)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The products that a model knows."""

    items: np.ndarray
    """(I,) object: product ids, the most bought first, ties by id"""
    buyers: np.ndarray
    """(I,) int64: customers who bought it"""
    popularity: np.ndarray
    """(I,) float32: recent buyers as a share of the most bought product's; see `Catalogue.of`"""

    @staticmethod
    def of(train: pa.Table, window_days: float | None = RECENT_DAYS, max_items: int | None = None) -> Catalogue:
        """The products of all histories (the `max_items` most bought ones).

        Popularity counts customers whose last purchase of the product is at most `window_days` before as_of; all of
        them where that is None, where rows have no date (leave-one-out), or where nothing was bought in the window.
        NotEnoughDataError when there are fewer than two products.
        """
        offsets, values = flatten(column_of(train, "history"))
        encoded = values.dictionary_encode()
        ids = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
        rows = np.repeat(np.arange(train.num_rows), np.diff(offsets))
        pairs = np.unique(rows * max(1, len(ids)) + encoded.indices.to_numpy(zero_copy_only=False))
        buyers = np.bincount(pairs % max(1, len(ids)), minlength=len(ids))
        if len(ids) < 2:
            raise NotEnoughDataError(
                f"got {len(ids)} different products in the purchases of {train.num_rows} customers, expected some: "
                "check that transactions.product_id is mapped and that products_matching fits the ids"
            )
        order = np.lexsort((ids.astype(str), -buyers))[:max_items]
        items, buyers = ids[order], buyers[order]
        known = Catalogue(items=items, buyers=buyers, popularity=_shares(buyers))
        if window_days is None or train["as_of"].null_count:
            return known
        bought = encode(train, known).distinct()
        recent = np.bincount(bought.codes[bought.days_before <= window_days], minlength=len(items))
        return replace(known, popularity=_shares(recent)) if recent.any() else known

    @staticmethod
    def named(items: Sequence[str]) -> Catalogue:
        """Products of which only the ids are known."""
        none = np.zeros(len(items))
        ids = np.array(items, dtype=object)
        return Catalogue(items=ids, buyers=none.astype(np.int64), popularity=none.astype(np.float32))

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def code_of(self) -> dict[str, int]:
        """Product id -> position in `items`."""
        return {item: code for code, item in enumerate(self.items.tolist())}

    def codes(self, column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a list<string> column: offsets (rows + 1,) and int32 codes of known products; mask of the values kept."""
        offsets, values = flatten(column)
        encoded = values.dictionary_encode()
        known = np.array([*(self.code_of.get(value, -1) for value in encoded.dictionary.to_pylist()), -1], np.int32)
        codes = known[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        kept = codes >= 0
        return np.concatenate([[0], np.cumsum(kept)])[offsets].astype(np.int64), codes[kept], kept

    def save(self) -> dict[str, bytes]:
        """items.json, catalogue.safetensors."""
        arrays = {"buyers": self.buyers, "popularity": self.popularity}
        return {"items.json": to_json(self.items.tolist()), "catalogue.safetensors": safetensors.save(arrays)}

    @staticmethod
    def load(files: Mapping[str, bytes]) -> Catalogue:
        """What `save` wrote. CorruptError when a file is missing."""
        arrays = safetensors.load(file_of(files, "catalogue.safetensors"))
        items = np.array(json.loads(file_of(files, "items.json")), dtype=object)
        return Catalogue(items=items, buyers=arrays["buyers"], popularity=arrays["popularity"])


def _shares(counts: np.ndarray) -> np.ndarray:
    return (counts / max(1, counts.max())).astype(np.float32)


def encode(examples: pa.Table, catalogue: Catalogue) -> Histories:
    """Histories of `examples` in codes of `catalogue`. DataError when the two list columns do not run alongside."""
    offsets, codes, kept = catalogue.codes(column_of(examples, "history"))
    _, days = flatten(column_of(examples, "history_days_before"))
    if len(days) != len(kept):
        raise DataError(
            f"columns 'history' and 'history_days_before' hold {len(kept)} and {len(days)} values, expected as many"
        )
    days_before = days.to_numpy(zero_copy_only=False).astype(np.float32)[kept]
    return Histories(offsets=offsets, codes=codes, days_before=days_before)


def cooccurrence(histories: Histories, num_items: int, closeness: float) -> sp.csr_matrix:
    """(I, I) symmetric float32: sum over customers of closeness ** |visits between their newest purchases of the two|.

    Visits as in `Histories.matrix`: what was bought again counts once. closeness 1 counts the customers who bought
    both. The diagonal is the number of buyers. With closeness below 1 the matrix stays positive semi-definite (an
    exponential kernel on the line), so that EASE can be solved on it.
    """
    if closeness == 1.0:
        bought = histories.matrix(num_items, 1.0)
        return (bought.T @ bought).tocsr()
    histories = histories.distinct()
    longest = int(np.ceil(np.log(NEGLIGIBLE) / np.log(closeness))) if closeness > 0 else 0
    total = sp.csr_matrix((num_items, num_items), dtype=np.float32)
    step = max(1, int(BLOCK_PAIRS / max(1.0, len(histories.codes) * (longest + 1) / max(1, len(histories)))))
    for start in range(0, len(histories), step):
        total = total + _kernel_counts(
            histories.slice(start, min(start + step, len(histories))), num_items, closeness, longest
        )
    return total


def _kernel_counts(part: Histories, num_items: int, closeness: float, longest: int) -> sp.csr_matrix:
    visits, from_end = part.visits(), part.visits_from_end()
    num_visits = int(visits[-1]) + 1 if len(visits) else 0
    shape = (num_visits, num_items)
    now = sp.csr_matrix((np.ones(len(visits), np.float32), (visits, part.codes)), shape=shape)
    rows, codes, weights = [], [], []
    for gap in range(1, longest + 1):
        reaches = from_end >= gap
        if not reaches.any():
            break
        rows.append(visits[reaches] + gap)
        codes.append(part.codes[reaches])
        weights.append(np.full(int(reaches.sum()), closeness**gap, np.float32))
    same_visit = (now.T @ now).tocsr()
    if not rows:
        return same_visit
    past = sp.csr_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(codes))), shape=shape)
    forward = (past.T @ now).tocsr()
    return same_visit + forward + forward.T
