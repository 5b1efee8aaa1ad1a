"""What is known of the products, carried by the recommendation's rows in the metadata of their schema.

The rows are of customers, and what is told of a product is the same for all of them: it is stored once per file, as an
Arrow table, and stays with the rows wherever they go. So a product that went out of stock is left out as soon as the
rows are made again, without a new fit. Rows of several dates may stand in one file, so the file tells of all products,
and `Facts.of` of those that were launched before the newest row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import schema
from crmray.data.asof_rows import DAY_US
from crmray.data.splits import micros
from crmray.errors import SchemaError

KEY = b"products"
AVAILABLE = "available"
"""column of the facts: whether the product can be sold; null where that is not known"""
COLUMNS = ("product_id", "name", "category", "brand", "price_amount", "launched_at")


def attach(
    rows: pa.Table,
    products: pa.Table | None,
    *,
    matching: str | None = None,
    stock_column: str | None,
    is_now: bool,
) -> pa.Table:
    """The rows with the facts of the products.

    matching: regular expression of the ids; other products are not told of, so that nothing can show them.
    stock_column: of the products, yes or no, or a number above 0 of what is in stock. is_now: the rows are of the
    present; what can be sold today says something about the future of any other date, so it is left out there.
    """
    if products is None:
        products = pa.table({"product_id": pa.array([], pa.string())})
    found = products.select([name for name in COLUMNS if name in products.column_names])
    if is_now:
        found = found.append_column(AVAILABLE, _available(products, stock_column))
    if matching:
        found = found.filter(pc.match_substring_regex(found["product_id"], matching))
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, found.schema, options=options) as writer:
        writer.write_table(found.combine_chunks())
    return rows.replace_schema_metadata({KEY: sink.getvalue().to_pybytes()})


def _available(products: pa.Table, stock_column: str | None) -> pa.Array:
    """(P,) bool: active, and in stock; what is not known does not speak against it."""
    answer = np.ones(products.num_rows, bool)
    if "active" in products.column_names:
        answer &= pc.fill_null(products["active"], True).to_numpy()
    if stock_column is not None:
        if stock_column not in products.column_names:
            raise SchemaError(
                f"stock_column: got {stock_column!r}, expected a column of the products: {products.column_names}"
            )
        stock = products[stock_column]
        if not (pa.types.is_boolean(stock.type) or pa.types.is_integer(stock.type) or pa.types.is_floating(stock.type)):
            raise SchemaError(f"products.{stock_column}: got {stock.type}, expected yes or no, or a number")
        answer &= pc.fill_null(pc.greater(stock.cast(pa.float64()), 0.0), True).to_numpy()
    return pa.array(answer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Products and what is told of them."""

    table: pa.Table
    """product_id, and those of name, category, brand, price_amount, launched_at, available that the org has"""

    @staticmethod
    def of(rows: pa.Table) -> Facts:
        """The facts that `attach` put there, of the products launched before the newest as_of of the rows; all where
        rows have no date. SchemaError when the rows have none."""
        found = (rows.schema.metadata or {}).get(KEY)
        if found is None:
            raise SchemaError("got rows without the products' facts, expected examples of the recommendation task")
        return _read(found, pc.max(rows["as_of"]).as_py() if "as_of" in rows.column_names else None)

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Product id -> row of the table."""
        return {product: place for place, product in enumerate(self.table["product_id"].to_pylist())}

    @cached_property
    def names(self) -> dict[str, str]:
        """Product id -> name, where there is one."""
        return {product: name for product, name in zip(*self._pairs("name"), strict=True) if name}

    @cached_property
    def categories(self) -> dict[str, str]:
        """Product id -> category, where there is one."""
        return {product: str(value) for product, value in zip(*self._pairs("category"), strict=True) if value}

    @cached_property
    def unavailable(self) -> list[str]:
        """Ids of the products that cannot be sold now."""
        return [product for product, able in zip(*self._pairs(AVAILABLE), strict=True) if able is False]

    @cached_property
    def texts(self) -> list[str]:
        """Names of the columns that say what a product is."""
        return [
            name
            for name in self.table.column_names
            if name != "product_id" and pa.types.is_string(self.table.schema.field(name).type)
        ]

    def launched_within(self, as_of: datetime, days: float) -> np.ndarray:
        """Rows of the products launched in the `days` before as_of, the latest first; none without launch dates."""
        if "launched_at" not in self.table.column_names:
            return np.empty(0, np.int64)
        launched = self.table["launched_at"].cast(pa.int64()).fill_null(np.iinfo(np.int64).min // 2).to_numpy()
        age_us = micros(as_of) - launched
        new = np.flatnonzero((age_us > 0) & (age_us <= days * DAY_US))
        return new[np.argsort(age_us[new], kind="stable")]

    def _pairs(self, column: str) -> tuple[list[str], list[Any]]:
        ids = self.table["product_id"].to_pylist()
        return (ids, self.table[column].to_pylist()) if column in self.table.column_names else ([], [])


@lru_cache(maxsize=8)
def _read(found: bytes, as_of: datetime | None) -> Facts:
    table = pa.ipc.open_stream(pa.py_buffer(found)).read_all()
    if as_of is not None and "launched_at" in table.column_names:
        known = pc.less(table["launched_at"], pa.scalar(as_of, schema.TIME))
        table = table.filter(pc.fill_null(known, True)).combine_chunks()
    return Facts(table=table)
