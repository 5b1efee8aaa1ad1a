"""The rows of an examples run that each fit may see, within the memory budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.data import splits
from crmray.errors import NotEnoughDataError, PrivacyError
from crmray.privacy import Withheld
from crmray.storage import Lake, Run

GIB = 2**30
KEYS = ["entity_id", "as_of"]
"""of a row"""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training and validation rows; the test rows are not among them."""

    selection: pa.Table
    """training rows whose labels were known at the validation date"""
    validation: pa.Table
    """rows on which candidates are compared"""
    refit: pa.Table
    """training and validation rows whose labels were known at the test date"""
    share: float
    """of the customers that these are rows of, 0..1; below 1 where all of them exceed the memory budget"""

    @property
    def hash_train(self) -> pa.Table:
        """Rows of `refit` whose customers are in the training part of the split by customer."""
        return self.refit.filter(pc.equal(self.refit["part"], "train"))

    @property
    def refit_has_more(self) -> bool:
        """Whether a refit sees rows that the selection did not."""
        return self.refit.num_rows != self.selection.num_rows


def read(examples: Run, *, memory_gib: float, seed: int) -> Rows:
    """Rows for selection and refit. When they exceed the budget whole customers are sampled, which an event says.

    NotEnoughDataError when a side is empty.
    """
    dates = dates_of(examples)
    files = {part: examples.files(f"{part}/*.parquet") for part in ("train", "validation")}
    share = _share(examples, [*files["train"], *files["validation"]], memory_gib)
    train, validation = (_read(examples, names, share, seed) for names in files.values())
    selection = train.filter(pa.array(splits.selection(train["as_of"], dates)))
    for name, rows in (("training", selection), ("validation", validation)):
        if rows.num_rows == 0:
            raise NotEnoughDataError(f"{examples!r}: got 0 {name} rows, expected at least 1; bring more history")
    return Rows(selection=selection, validation=validation, refit=_refit(train, validation, dates), share=share)


def _refit(train: pa.Table, validation: pa.Table, dates: splits.Snapshots) -> pa.Table:
    """Both tables' rows before the test date; a validation date that is a training date too adds nothing."""
    if dates.has_time and dates.validation in dates.train:
        both = train
    else:
        both = pa.concat_tables([train, validation], promote_options="permissive")
    return both.filter(pa.array(splits.refit(both["as_of"], dates)))


def check_consent(examples: Run, lake: Lake) -> None:
    """PrivacyError when somebody may have withdrawn since the rows were made."""
    if examples.manifest().get("consent") != (Withheld.of(lake).run_id or None):
        raise PrivacyError(
            f"{examples!r} was made before the present wishes of persons were read; run the 'examples' job again"
        )


def dates_of(examples: Run) -> splits.Snapshots:
    """The dates of an examples run."""
    return splits.Snapshots.of(examples.manifest())


def of_shard(table: pa.Table, part: str, which: str, dates: splits.Snapshots) -> pa.Table:
    """The rows of one file of train/ or validation/ (`part`) that a fit on `which` rows may see."""
    if which == "selection":
        return table.filter(pa.array(splits.selection(table["as_of"], dates))) if part == "train" else table.slice(0, 0)
    if part == "validation" and dates.validation in dates.train:
        return table.slice(0, 0)
    table = table.filter(pa.array(splits.refit(table["as_of"], dates)))
    return table.filter(pc.equal(table["part"], "train")) if which == "hash" else table


def matched(own: pa.Table, theirs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that are of the same entity and date in both tables, in the order of the first."""
    numbered = (
        table.select(KEYS).append_column(place, pa.array(range(table.num_rows), pa.int64()))
        for table, place in ((own, "own"), (theirs, "theirs"))
    )
    places = next(numbered).join(next(numbered), KEYS, join_type="inner").sort_by("own")
    return own.take(places["own"]), theirs.take(places["theirs"])


def test(examples: Run) -> pa.Table:
    """The test rows: read once, for the report."""
    rows = examples.read_table("test/*.parquet")
    if rows.num_rows == 0:
        raise NotEnoughDataError(f"{examples!r}: got 0 test rows, expected at least 1; bring more history")
    return rows


def _share(examples: Run, names: list[str], memory_gib: float) -> float:
    """Share of the customers that fits in half of the budget (the other half is for what is made of them)."""
    if not names:
        raise NotEnoughDataError(f"{examples!r}: got no training files; run the 'examples' job again")
    first = examples.read_table([names[0]])
    num_rows = [examples.open_parquet(name).metadata.num_rows for name in names]
    bytes_all = first.nbytes / max(1, num_rows[0]) * sum(num_rows)
    share = min(1.0, memory_gib * GIB / 2 / max(1.0, bytes_all))
    if share < 1:
        log.warn("train.sampled", rows=sum(num_rows), share_of_customers=round(share, 4), memory_gib=memory_gib)
    return share


def _read(examples: Run, names: list[str], share: float, seed: int) -> pa.Table:
    if share >= 1:
        return examples.read_table(names)
    return pa.concat_tables([sample(examples.read_table([name]), share, seed) for name in names])


def sample(rows: pa.Table, share: float, seed: int) -> pa.Table:
    """Rows of a random share of the customers; a customer is drawn alike in every table."""
    codes = rows["entity_id"].combine_chunks().dictionary_encode()
    draws = np.array([np.random.default_rng([seed, *key.encode()]).random() for key in codes.dictionary.to_pylist()])
    chosen = np.flatnonzero(draws < share) if len(draws) else np.zeros(0, np.int64)
    return rows.filter(pc.is_in(codes.indices, value_set=pa.array(chosen, codes.indices.type)))
