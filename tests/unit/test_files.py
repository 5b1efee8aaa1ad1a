"""Reading source files: what comes out, and one clear error for each kind of damage."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmray.config import Org
from crmray.data import files
from crmray.data.ingest import ingest
from crmray.errors import DataError
from crmray.storage import Lake


def rows(source, columns):
    return pa.Table.from_batches(list(files.batches(source, columns))).to_pydict()


def test_csv_is_text_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_text('id,n,note\n007, 1.50 ,"two\nlines"\n8,,x\n')
    source = files.find(["a.csv"], tmp_path)
    assert rows(source, ["note", "id", "n"]) == {"note": ["two\nlines", "x"], "id": ["007", "8"], "n": [" 1.50 ", None]}


def test_globs_in_order_of_names_gzip_and_row_numbers(tmp_path):
    (tmp_path / "b2.csv").write_text("id\n3\n")
    (tmp_path / "b1.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n"))
    source = files.find(["b*.csv*"], tmp_path)
    assert rows(source, ["id", "$row"]) == {"id": ["1", "2", "3"], "$row": [0, 1, 2]}


def test_the_line_on_which_a_row_begins(tmp_path, monkeypatch):
    path = str(tmp_path / "a.csv.gz")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b'id;note\n1;x\n\n2;"two\n\nlines;"\n3;y\n'))
    source = files.find([path], tmp_path, delimiter=";")
    assert files.lines(source, path, {1, 2, 3}) == {1: 2, 2: 4, 3: 7}
    monkeypatch.setattr(files, "_ROWS_LOOKED_AT", 2)
    assert files.lines(source, path, {2, 3}) == {2: 4}


def test_delimiter_and_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes("id;name\n1;Müller\n".encode("latin-1"))
    source = files.find(["a.csv"], tmp_path, encoding="latin-1", delimiter=";")
    assert rows(source, ["name"]) == {"name": ["Müller"]}
    with pytest.raises(DataError, match=r"a.csv: got bytes that are not utf-8.*set `encoding:`"):
        rows(files.find(["a.csv"], tmp_path, delimiter=";"), ["name"])


def test_parquet_keeps_types_and_widens_between_files(tmp_path):
    pq.write_table(pa.table({"n": pa.array([1], pa.int32())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"n": [2.5]}), tmp_path / "2.parquet")
    source = files.find(["*.parquet"], tmp_path)
    assert files.schema(source).field("n").type == pa.float64()
    assert rows(source, ["n"]) == {"n": [1.0, 2.5]}


def test_a_value_that_does_not_fit_is_not_told(tmp_path):
    too_large = 2**60 + 1
    for name, values in (("a.parquet", [0.5]), ("b.parquet", [too_large])):
        pq.write_table(pa.table({"x": values}), tmp_path / name)
    source = files.Source(paths=(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")))
    with pytest.raises(DataError, match="column 'x' is int64 with a value that is no double") as told:
        list(files.batches(source, ["x"]))
    assert str(too_large) not in str(told.value)


def test_fingerprint_is_of_the_content_only(tmp_path):
    (tmp_path / "a.csv").write_text("id\n1\n")
    (tmp_path / "b.csv").write_text("id\n1\n")
    first, second = (files.fingerprint(files.find([name], tmp_path)) for name in ("a.csv", "b.csv"))
    assert first == second
    (tmp_path / "b.csv").write_text("id\n2\n")
    assert files.fingerprint(files.find(["b.csv"], tmp_path)) != first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "got no file at"),
        ("empty.csv", b"", "got an empty file"),
        ("blank.csv", b"\n\n", "got no header"),
        ("book.xlsx", b"PK\x03\x04", "got an Excel workbook, expected CSV or Parquet"),
        ("short.csv", b"id,n\n1,2\n3\n", r"short.csv: line 3: got 1 values, expected 2 as in the header, with delim"),
        ("long.csv", b'id,n\n\n1,"a\nb"\n2,5" pipe\n3,4,secret\n', r"line 6: got 3 values, expected 2 [^4]*$"),
        ("late.csv", b"id,n\r\n" + b"1,2\r\n" * 300_000 + b"3\r\n", "line 300002: got 1 values"),
        (
            "other.csv",
            b"Id,n\n1,2\n",
            r"column 'id' is not there, expected it once among \['Id', 'n'\]; did you mean 'Id'",
        ),
        ("twice.csv", b"id,id\n1,2\n", "column 'id' is twice"),
        ("cut.csv.gz", gzip.compress(b"id\n1234567\n")[:20], "truncated or damaged"),
        ("cut.parquet", b"PAR1 and then nothing", "not readable as Parquet, truncated or damaged"),
    ],
)
def test_one_clear_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows(files.find([name], tmp_path), ["id"])
    assert name in str(caught.value)


@pytest.mark.parametrize("content", [b"id,n\n1,2\n3,4,SECRET\n", b"id,n\n1,\xe9\n3,4,SECRET\n"])
def test_a_row_of_another_length_is_never_quoted_however_many_threads_read(tmp_path, content):
    """With several threads Arrow leaves the row's number out of its message, and what is not UTF-8 comes in between."""
    (tmp_path / "long.csv").write_bytes(content)
    before = pa.cpu_count()
    pa.set_cpu_count(2)
    try:
        with pytest.raises(DataError, match=r"line 3: got 3 values, expected 2|not utf-8") as caught:
            rows(files.find(["long.csv"], tmp_path), ["id"])
    finally:
        pa.set_cpu_count(before)
    assert "SECRET" not in str(caught.value)


def test_truncated_parquet(tmp_path):
    pq.write_table(pa.table({"id": ["1"] * 10_000}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"a.parquet: not readable as Parquet, truncated"):
        files.schema(files.find(["a.parquet"], tmp_path))


def org_of(tmp_path, **source):
    tables = {
        "transactions": {"files": ["orders.csv"], "columns": {"entity_id": "who", "occurred_at": "when"}, **source}
    }
    return Org(
        name="t",
        storage=str(tmp_path / "lake"),
        source={"kind": "files", "tables": tables},
        path=str(tmp_path / "o.yaml"),
    )


def test_ingest_takes_needed_columns_once(tmp_path):
    (tmp_path / "orders.csv").write_text("who,when,secret,kind\na,2024-01-01,x,sale\n")
    org = org_of(tmp_path, drop=[{"kind": "test"}])
    lake = Lake(org.root)
    run = ingest(org, lake)["transactions-0"]
    assert run.read_table("part-*.parquet").to_pydict() == {"kind": ["sale"], "when": ["2024-01-01"], "who": ["a"]}
    before = run.manifest()
    assert (before["rows"], before["text"]) == (1, True)
    assert ingest(org, lake)["transactions-0"].manifest() == before
    (tmp_path / "orders.csv").write_text("who,when,secret,kind\nb,2024-01-01,x,sale\n")
    assert ingest(org, lake)["transactions-0"].run_id != run.run_id


def test_ingest_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("crmray.data.ingest.PART_ROWS", 3)
    (tmp_path / "orders.csv").write_text("who,when\n" + "".join(f"c{n},2024-01-01\n" for n in range(7)))
    org = org_of(tmp_path)
    run = ingest(org, Lake(org.root))["transactions-0"]
    assert [run.read_table([part]).num_rows for part in run.files("*.parquet")] == [3, 3, 1]
    assert run.read_table()["who"].to_pylist() == [f"c{n}" for n in range(7)]


def test_ingest_refuses_a_header_without_rows(tmp_path):
    (tmp_path / "orders.csv").write_text("who,when\n")
    org = org_of(tmp_path)
    with pytest.raises(DataError, match="got a header and no rows"):
        ingest(org, Lake(org.root))
    assert not Lake(org.root).has("raw", "transactions-0")
