"""Pulling a Salesforce org: client CPU and memory beside a bare loop, and proof that what landed is what was there.

    python -m tests.benchmarks.pull                         100,000 customers of the demo org, 29 million rows
    python -m tests.benchmarks.pull --customers 6000        smaller
    python -m tests.benchmarks.pull --pseudonyms            with keyed pseudonyms and redaction of texts as well

The org is `crmray sandbox` in a process of its own. The bare loop asks for the same fields of the same objects with the
same page size, waits until the pages are rendered, and then downloads them one after the other and parses each to Arrow
with the same types: its CPU seconds are those of downloads and parsing alone. The pull's are those of the whole
`ingest`, from logging in to the manifests. Imports count for neither. Rows and checksums per object are computed by
DuckDB from the org's own file and from the lake's Parquet; free text is left out of them, since it lands redacted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import requests
import yaml

from tests.benchmarks.shard import with_peak_pss

CPU_BAR, PSS_BAR_MIB = 1.5, 600
MAX_LOAD_S = 1800.0
REDACTED = ("Subject", "Description", "TextBody", "OldValue", "NewValue")
"""free text, in which the lake has tokens for names and numbers: not part of the checksums"""


def main() -> int:
    """Print the table; 1 when a bar is missed or a row is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--pseudonyms", action="store_true")
    parser.add_argument("--part", choices=("bare", "pull"), help=argparse.SUPPRESS)
    parser.add_argument("--org", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(_bare(arguments.org) if arguments.part == "bare" else _pull(arguments.org)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="crmray-pull-"))
    try:
        return _compare(folder, arguments.customers, arguments.pseudonyms)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(folder: Path, customers: int, pseudonyms: bool) -> int:
    with _sandbox(folder, customers) as org_file:
        if pseudonyms:
            _add_keys(org_file)
        bare = _measured("bare", org_file)
        pull = _measured("pull", org_file)
    per_million = {name: one["cpu_s"] / one["rows"] * 1e6 for name, one in (("bare", bare), ("pull", pull))}
    ratio = per_million["pull"] / per_million["bare"]
    print("\n| | rows | seconds | CPU s per million rows | peak PSS, MiB |")
    print("|---|---|---|---|---|")
    for name, one in (("bare loop", bare), ("crmray ingest", pull)):
        cpu = per_million[name.split()[0] if name == "bare loop" else "pull"]
        print(f"| {name} | {one['rows']:,} | {one['seconds']:.0f} | {cpu:.2f} | {one['pss_mib']:.0f} |")
    print(f"\nratio {ratio:.2f} (bar {CPU_BAR}); {pull['calls']} API calls")
    equal = True if pseudonyms else _same(folder / "org.duckdb", folder / "lake")
    return int(not (equal and (pseudonyms or ratio <= CPU_BAR) and pull["pss_mib"] <= PSS_BAR_MIB))


# -- the org -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sandbox(folder: Path, customers: int) -> Iterator[Path]:
    """A filled sandbox org in a process of its own; its org file."""
    org_file, started = folder / "org.yaml", time.monotonic()
    code = "import sys; from crmray.cli import main; sys.exit(main())"
    _fill(folder / "org.duckdb", customers)
    words = ["sandbox", "--folder", str(folder), "--port", "0"]
    with open(folder / "sandbox.log", "wb") as log_file:
        process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log_file, stderr=subprocess.STDOUT)
    try:
        while not org_file.exists():
            if process.poll() is not None or time.monotonic() - started > MAX_LOAD_S:
                raise SystemExit((folder / "sandbox.log").read_text()[-2000:])
            time.sleep(0.5)
        print(f"sandbox org with {customers:,} customers after {time.monotonic() - started:.0f} s", flush=True)
        yield org_file
    finally:
        process.terminate()
        process.wait()


def _fill(path: Path, customers: int) -> None:
    """The demo org with nobody who withdrew consent: every row there is has to land."""
    from crmray.salesforce.sandbox.load import Shares, load_demo
    from crmray.salesforce.sandbox.store import Store

    with contextlib.closing(Store(path)) as store:
        load_demo(store, customers=customers, shares=Shares(opt_out=0, forget=0))


def _add_keys(org_file: Path) -> None:
    content = yaml.safe_load(org_file.read_text())
    content["privacy"] = {}
    for name in ("pseudonym_key", "vault_key"):
        (org_file.parent / name).write_text(secrets.token_hex(32))
        content["privacy"][name] = {"file": name}
    org_file.write_text(yaml.safe_dump(content))


# -- what is measured --------------------------------------------------------------------------------------------------


def _measured(part: str, org_file: Path) -> dict[str, Any]:
    """One part in a process of its own, with the peak of its PSS."""
    words = [sys.executable, "-m", "tests.benchmarks.pull", "--part", part, "--org", str(org_file)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, peak = with_peak_pss(process)
    told = output.splitlines()
    if process.returncode:
        raise SystemExit(f"{part}: " + "\n".join(told[-20:]))
    calls = [json.loads(line)["total"] for line in told if '"ingest.calls"' in line]
    return {**json.loads(told[-1]), "pss_mib": peak / 2**20, "calls": sum(calls)}


def _bare(org_file: str) -> dict[str, Any]:
    """Download the pages and parse them, as one would in a notebook."""
    from crmray import config
    from crmray.salesforce import bulk, catalogue, pages
    from crmray.salesforce.client import Client

    org = config.load(org_file)
    client = Client.connect(org.source, org.folder)  # type: ignore[arg-type]
    asked = []
    for plan in catalogue.read(client, org).objects.values():
        job_id = bulk.start_query(client, f"SELECT {', '.join(plan.fields)} FROM {plan.name}")
        bulk.wait(client, "query", job_id)
        urls, _ = bulk.page_urls(client, job_id, org.source.page_rows)  # type: ignore[union-attr]
        asked += [(plan, url) for url in urls]
    session = requests.Session()
    session.verify, session.trust_env = client.session.verify, False
    session.headers["Authorization"] = f"Bearer {client.simple.session_id}"
    rows, started, cpu = 0, time.monotonic(), time.process_time()
    for plan, url in asked:
        content = session.get(client.url + url, timeout=120).content
        types = {name: pages.type_of(type_) for name, type_ in plan.types.items()}
        types = {name: pa.timestamp("us") if plan.types[name] == "date" else type_ for name, type_ in types.items()}
        table = pacsv.read_csv(
            io.BytesIO(content),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types=types),
        )
        rows += table.num_rows
    return {"rows": rows, "cpu_s": time.process_time() - cpu, "seconds": time.monotonic() - started}


def _pull(org_file: str) -> dict[str, Any]:
    """The whole ingest."""
    from crmray import config, log
    from crmray.data import ingest  # noqa: F401  (org.ingest would import it within the measured time)
    from crmray.org import OpenOrg
    from crmray.salesforce import pull  # noqa: F401  (as would ingest)

    log.setup(json=True)
    org = OpenOrg(config.load(org_file))  # as jobs/ingest.py does
    started, cpu = time.monotonic(), time.process_time()
    runs = org.ingest()
    rows = sum(run.manifest()["rows"] for name, run in runs.items() if name != "consent")
    return {"rows": rows, "cpu_s": time.process_time() - cpu, "seconds": time.monotonic() - started}


# -- proof -------------------------------------------------------------------------------------------------------------


def _same(org: Path, lake: Path) -> bool:
    """Rows and checksum of every object in the org's own file and in the lake."""
    import duckdb

    from crmray.salesforce.sandbox.store import Store
    from crmray.storage import Lake

    right = True
    with contextlib.closing(Store(org)) as store:
        for name in Lake(lake).names("raw"):
            if name == "consent":
                continue
            run = Lake(lake).latest("raw", name)
            columns = [column for column in run.manifest()["columns"] if column not in REDACTED]
            files = [f"{run.path}/{part}" for part in run.files("*.parquet")]
            if not files:
                right = right and store.query(f"SELECT COUNT() FROM {name}").count == 0
                continue
            stream = store.stream(f"SELECT {', '.join(columns)} FROM {name}")
            there = _sums(duckdb.connect(), stream.batches, columns)
            landed = _sums(duckdb.connect(), files, columns)
            right = right and there == landed
            told = "equal" if there == landed else f"DIFFERS: {there} there, {landed} landed"
            print(f"{name}: {landed[0]:,} rows, checksum {told}")
    return right


def _sums(connection: Any, rows: Any, columns: list[str]) -> tuple[int, int]:
    """Number of rows and an order-free sum of their hashes. Times count in microseconds, numbers as doubles."""
    connection.execute("SET TimeZone = 'UTC'; SET memory_limit = '2GB'")
    source = "read_parquet(?)" if isinstance(rows, list) else "there"
    if not isinstance(rows, list):
        connection.register("there", rows)
    words = []
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}", [rows] if isinstance(rows, list) else None)
    for name, type_, *_ in described.fetchall():
        quoted = '"' + name + '"'
        if type_.startswith(("TIMESTAMP", "DATE")):
            words.append((name, f"epoch_us({quoted}::TIMESTAMPTZ)::VARCHAR"))
        elif type_ in ("BIGINT", "INTEGER", "DOUBLE") or type_.startswith("DECIMAL"):
            words.append((name, f"{quoted}::DOUBLE::VARCHAR"))
        else:
            words.append((name, f"nullif({quoted}::VARCHAR, '')"))
    ordered = [dict(words)[name] for name in columns]
    text = f"SELECT count(*), sum(hash({', '.join(ordered)})::HUGEINT) FROM {source}"
    count, total = connection.execute(text, [rows] if isinstance(rows, list) else None).fetchone()
    return count, int(total or 0)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    sys.exit(main())
