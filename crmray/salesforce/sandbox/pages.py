"""Results of a Bulk query as CSV on disk: written once, batch by batch, and cut into pages of any size.

    rows.csv        every row, without header; every value in double quotes, null as ""
    ends.i64        where each row ends in rows.csv, 8 bytes each
    A-N.csv.gz      a page: header and N rows from row A on, made when first asked for (pages of the usual size at once)

Rows are put together as whole columns (pyarrow), not one by one.
"""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray.salesforce.sandbox.results import Stream

GZIP_LEVEL = 1


def encode(batch: pa.RecordBatch, delimiter: str, line_ending: str) -> tuple[pa.Buffer, np.ndarray]:
    """CSV lines of a batch: their bytes, and (N,) int64 where each line ends."""
    columns = [_cells(column) for column in batch.columns]
    between = pa.scalar(f'"{delimiter}"', pa.large_string())
    inner = pc.binary_join_element_wise(*columns, between) if len(columns) > 1 else columns[0]
    quote, end = pa.scalar('"', pa.large_string()), pa.scalar(f'"{line_ending}', pa.large_string())
    lines = pc.binary_join_element_wise(quote, inner, end, pa.scalar("", pa.large_string()))
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return data.slice(int(ends[0]), int(ends[-1] - ends[0])), ends[1:] - ends[0]


def _cells(column: pa.Array) -> pa.Array:
    """Values as Bulk API text, quotes doubled, null as empty text; large_string."""
    type_ = column.type
    if pa.types.is_timestamp(type_):
        text = column.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.string())
        text = pc.binary_replace_slice(text, start=10, stop=11, replacement="T")
    elif pa.types.is_floating(type_):
        text = column.cast(pa.string())
        is_whole = pc.invert(pc.match_substring_regex(text, "[.eEn]"))
        text = pc.if_else(is_whole, pc.binary_join_element_wise(text, ".0", ""), text)
    else:
        text = column.cast(pa.string())
        if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_dictionary(type_):
            text = pc.replace_substring(text, '"', '""')
    return pc.fill_null(text, "").cast(pa.large_string())


def header(columns: Sequence[str], delimiter: str, line_ending: str) -> bytes:
    """The first line of every page."""
    return (delimiter.join(f'"{name}"' for name in columns) + line_ending).encode()


class Pages:
    """The rows of one job in a folder of its own."""

    def __init__(self, folder: Path, columns: Sequence[str], *, delimiter: str, line_ending: str):
        self.folder, self.delimiter, self.line_ending = folder, delimiter, line_ending
        self.num_rows = 0
        self._header = header(columns, delimiter, line_ending)
        self._lock = threading.Lock()
        folder.mkdir(parents=True)

    def write(self, stream: Stream, *, advance: Callable[[int], bool]) -> None:
        """Write all rows; `advance` takes the number of rows of each batch and says whether to go on."""
        size = 0
        with open(self.folder / "rows.csv", "wb") as rows, open(self.folder / "ends.i64", "wb") as ends:
            for batch in stream.batches:
                if not batch.num_rows:
                    continue
                data, batch_ends = encode(batch, self.delimiter, self.line_ending)
                rows.write(data)
                ends.write((batch_ends + size).astype("<i8").tobytes())
                size += len(data)
                self.num_rows += batch.num_rows
                if not advance(batch.num_rows):
                    return

    def page(self, start: int, num_rows: int) -> bytes:
        """A page, gzip-compressed, header first; fewer rows at the end."""
        path = self.folder / f"{start}-{num_rows}.csv.gz"
        with self._lock:
            if not path.exists():
                made = path.with_suffix(".tmp")
                made.write_bytes(gzip.compress(self.plain(start, num_rows), GZIP_LEVEL, mtime=0))
                os.replace(made, path)
        return path.read_bytes()

    def plain(self, start: int, num_rows: int) -> bytes:
        """A page, not compressed."""
        stop = min(start + num_rows, self.num_rows)
        if start >= stop:
            return self._header
        first, last = self._end(start), self._end(stop)
        with open(self.folder / "rows.csv", "rb") as rows:
            rows.seek(first)
            return self._header + rows.read(last - first)

    def _end(self, row: int) -> int:
        """Byte at which the first `row` rows end."""
        if row == 0:
            return 0
        with open(self.folder / "ends.i64", "rb") as ends:
            ends.seek(8 * (row - 1))
            return int.from_bytes(ends.read(8), "little")

    def remove(self) -> None:
        """Delete the files."""
        with self._lock:
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()
