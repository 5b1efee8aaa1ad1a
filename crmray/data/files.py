"""Source files: found by path or glob, checked, and streamed as Arrow record batches in bounded memory.

CSV (also compressed: .gz, .bz2, .xz, .zst) comes out as text columns, exactly as it stands, an empty field as null;
types are checked later, with errors that name the column. Parquet keeps its types. The source column `$row` is in no
file: it is the number of the row, from 0, over all files in the order of their names.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from crmray.errors import DataError

ROW = "$row"
BATCH_ROWS = 64 * 1024
_BLOCK_BYTES = 8 << 20
_ROWS_LOOKED_AT = 500_000
_PARQUET = (".parquet", ".pq")
_EXCEL = (".xlsx", ".xls", ".xlsm")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Some files of one shape that are read as one table."""

    paths: tuple[str, ...]
    """paths or URLs, in the order in which they are read"""
    encoding: str = "utf-8"
    """of CSV files"""
    delimiter: str = ","
    """of CSV files"""

    @property
    def text(self) -> bool:
        """Whether all columns are text (CSV)."""
        return not _is_parquet(self.paths[0])


def find(patterns: Sequence[str], folder: str | Path, *, encoding: str = "utf-8", delimiter: str = ",") -> Source:
    """The files that match paths or globs (relative to `folder`, or URLs), sorted by name within each pattern.

    DataError when a pattern matches nothing, a file is empty, or CSV and Parquet are mixed.
    """
    paths: list[str] = []
    for pattern in patterns:
        place = pattern if "://" in pattern or Path(pattern).is_absolute() else str(Path(folder) / pattern)
        fs, inner = fsspec.core.url_to_fs(place)
        found = sorted(fs.glob(inner)) if any(mark in inner for mark in "*?[") else [inner] * fs.exists(inner)
        found = [path for path in found if fs.isfile(path)]
        if not found:
            raise DataError(f"file {pattern!r}: got no file at {place}, expected at least one; correct the path")
        scheme = f"{pattern.split('://')[0]}://" if "://" in pattern else ""
        for path in found:
            if path.lower().endswith(_EXCEL):
                raise DataError(f"file {path}: got an Excel workbook, expected CSV or Parquet; save its sheets as CSV")
            if path.lower().endswith(_ARCHIVES):
                raise DataError(f"file {path}: got an archive of files, expected CSV or Parquet; unpack it")
            if not fs.size(path):
                raise DataError(f"file {path}: got an empty file (0 bytes), expected a header and rows; remove it")
            if scheme + path not in paths:
                paths.append(scheme + path)
    kinds = {_is_parquet(path) for path in paths}
    if len(kinds) > 1:
        raise DataError(
            f"files {list(patterns)}: got CSV and Parquet mixed, expected one kind; make two sources of them"
        )
    return Source(paths=tuple(paths), encoding=encoding, delimiter=delimiter)


def fingerprint(source: Source) -> str:
    """SHA-256 (hex) over the content of the files in their order; their names and places do not count."""
    digest = hashlib.sha256()
    for path in source.paths:
        inner = hashlib.sha256()
        with open_file(path, compression=None) as file:
            while block := file.read(1 << 22):
                inner.update(block)
        digest.update(inner.digest())
    return digest.hexdigest()


def told(path: str, folder: str | Path) -> str:
    """A path as an org file in `folder` has it."""
    base = Path(folder).absolute()
    return str(Path(path).relative_to(base)) if Path(path).is_relative_to(base) else path


def schema(source: Source) -> pa.Schema:
    """Names and types of the columns of all files (names that a file has twice are left out).

    Text for CSV; for Parquet the common type over the files.

    DataError for files that cannot be read or whose types do not go together.
    """
    schemas = [_parquet_schema(path) if _is_parquet(path) else _csv_schema(source, path) for path in source.paths]
    single = [pa.schema([field for field in part if part.names.count(field.name) == 1]) for part in schemas]
    try:
        return pa.unify_schemas(single, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"files {source.paths[0]} …: columns differ in type between files: {error}") from None


def batches(
    source: Source, columns: Sequence[str], rows: int = BATCH_ROWS, *, counts: Counter[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of all files in order, with these columns (in this order), a batch at a time. counts: takes the number
    of rows that were read, by path.

    DataError names the file and the column that is not there, or why a file cannot be read.
    """
    wanted = [name for name in columns if name != ROW]
    target = schema(source)
    seen = 0
    for path in source.paths:
        stream = _parquet(path, wanted, rows) if _is_parquet(path) else _csv(source, path, wanted)
        for batch in stream:
            arrays = {name: _widen(path, name, batch[name], target.field(name).type) for name in wanted}
            if ROW in columns:
                arrays[ROW] = pa.array(range(seen, seen + batch.num_rows), pa.int64())
            seen += batch.num_rows
            if counts is not None:
                counts[path] += batch.num_rows
            yield pa.record_batch({name: arrays[name] for name in columns})


def _widen(path: str, name: str, values: pa.Array, type_: pa.DataType) -> pa.Array:
    try:
        return values if values.type == type_ else values.cast(type_)
    except pa.ArrowInvalid:  # whose message holds the value
        raise DataError(
            f"file {path}: column {name!r} is {values.type} with a value that is no {type_}, expected {type_} as in "
            "other files"
        ) from None


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(_PARQUET)


@contextmanager
def open_file(path: str, compression: str | None = "infer") -> Iterator[Any]:
    """Open for reading; what goes wrong while it is read becomes one DataError that names the file."""
    try:
        with fsspec.open(path, "rb", compression=compression) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"file {path}: got no such file, expected one; correct the path") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"file {path}: truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"file {path}: cannot be read ({error.strerror or error}); fetch it again") from None


# -- CSV -----------------------------------------------------------------------------------------------------------


def _csv_schema(source: Source, path: str) -> pa.Schema:
    with open_file(path) as file, _reader(source, path, file, None) as reader:
        names = reader.schema.names
    return pa.schema([pa.field(name, pa.string()) for name in names])


def _csv(source: Source, path: str, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    names = _csv_schema(source, path).names
    _require(path, wanted, names)
    with open_file(path) as file, _reader(source, path, file, wanted or names) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowInvalid, UnicodeDecodeError) as error:
                raise _csv_error(source, path, error) from None
            yield batch


def _reader(source: Source, path: str, file: Any, columns: Sequence[str] | None) -> pacsv.CSVStreamingReader:
    """A streaming reader of text columns; with `columns` None only its schema is meant to be read."""
    types = {name: pa.string() for name in columns} if columns else None
    try:
        return pacsv.open_csv(
            file,
            read_options=pacsv.ReadOptions(encoding=source.encoding, block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(columns) if columns else None,
                column_types=types,
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=True,
                check_utf8=columns is not None,
            ),
        )
    except LookupError:
        raise DataError(
            f"file {path}: got encoding {source.encoding!r}, expected a name such as utf-8 or latin-1"
        ) from None
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _csv_error(source, path, error) from None


def _csv_error(source: Source, path: str, error: Exception) -> DataError:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in text:
        return DataError(
            f"file {path}: got bytes that are not {source.encoding}, expected {source.encoding} text; "
            "set `encoding:` of this source, for example latin-1"
        )
    if "Empty CSV" in text:
        return DataError(f"file {path}: got no header, expected a line with the names of the columns")
    if ragged := re.search(r"Expected (\d+) columns, got (\d+)", text):  # then the row: somebody's data
        expected, got = map(int, ragged.groups())
        return DataError(
            f"file {path}: {_ragged(source, path, expected)}: got {got} values, expected {expected} as in the header, "
            f"with delimiter {source.delimiter!r}; correct the line, quote what holds a delimiter, or set `delimiter:`"
        )
    return DataError(f"file {path}: not readable as CSV with delimiter {source.delimiter!r}: {text}")


def _ragged(source: Source, path: str, expected: int) -> str:
    """The line of the first row of another length. Arrow tells a row's number only where it reads with one thread."""
    found = next((line for line, row in _csv_rows(source, path) if len(row) != expected), None)
    return f"line {found}" if found else "one line"


def lines(source: Source, path: str, rows: Collection[int]) -> dict[int, int]:
    """Row of a CSV file, from 1, -> the line on which it begins; without those beyond the first 500,000 rows, which are
    not looked for: their number has to do."""
    last = min(max(rows), _ROWS_LOOKED_AT)
    begins = enumerate(itertools.islice(_csv_rows(source, path), last + 1))  # the first is the header
    return {row: line for row, (line, _) in begins if row in rows}


def _csv_rows(source: Source, path: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which it begins, and the values, of the header and of each row; fewer where Python's reader cannot go
    on: what Arrow reads, it need not."""
    limit = csv.field_size_limit(_BLOCK_BYTES)
    try:
        with open_file(path) as file:
            reader = csv.reader(
                io.TextIOWrapper(file, source.encoding, errors="replace", newline=""), delimiter=source.delimiter
            )
            before = 0
            for row in reader:
                if row:
                    yield before + 1, row
                before = reader.line_num
    except csv.Error:
        return
    finally:
        csv.field_size_limit(limit)


# -- Parquet -------------------------------------------------------------------------------------------------------


def _parquet_error(path: str, error: Exception) -> DataError:
    text = " ".join(str(error).split())[:200]
    return DataError(f"file {path}: not readable as Parquet, truncated or damaged ({text}); fetch it again")


def _parquet_schema(path: str) -> pa.Schema:
    with open_file(path, compression=None) as file:
        try:
            return pq.ParquetFile(file).schema_arrow
        except (pa.ArrowInvalid, OSError) as error:
            raise _parquet_error(path, error) from None


def _parquet(path: str, wanted: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    with open_file(path, compression=None) as file:
        try:
            reader = pq.ParquetFile(file)
            _require(path, wanted, reader.schema_arrow.names)
            yield from reader.iter_batches(batch_size=rows, columns=list(wanted))
        except (pa.ArrowInvalid, OSError) as error:
            raise _parquet_error(path, error) from None


def _require(path: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """DataError for the first wanted column that the file lacks or has twice."""
    for name in wanted:
        if names.count(name) == 1:
            continue
        plain = {other.lower().strip(): other for other in names}
        near = difflib.get_close_matches(name.lower().strip(), plain, n=1)
        hint = f"; did you mean {plain[near[0]]!r}?" if near and name not in names else "; correct the mapping"
        got = "twice" if name in names else "not there"
        raise DataError(f"file {path}: column {name!r} is {got}, expected it once among {list(names)}{hint}")
