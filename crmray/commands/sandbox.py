"""`crmray sandbox`: a local Salesforce org."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import queue
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from crmray import config, disk
from crmray.config import DemoSource
from crmray.errors import ConfigError, StorageError
from crmray.salesforce.sandbox.fault_settings import Settings, documented

if TYPE_CHECKING:
    from crmray.salesforce.sandbox.server import Sandbox

FOLDER = "sandbox"
PORT = 8443
END = DemoSource.model_fields["end"].default
NEEDED = ("duckdb", "starlette", "uvicorn", "httptools")
"""what the extra `sandbox` installs"""

DESCRIPTION = (
    "A local Salesforce org that simple-salesforce, curl and crmray talk to unchanged: HTTPS on 127.0.0.1 with its own "
    "certificate authority; the JWT bearer, client credentials and username-password flows; REST (describe, SOQL, "
    "rows, collections, composite), Bulk API 2.0 (query, ingest) and deploys of metadata. Records, keys and "
    "certificates lie in --folder "
    "and stay there. Ctrl-C ends it. Not there: child subqueries, TYPEOF and functions of fields in SOQL, SOSL search, "
    "composite batch and tree, Bulk API 1.0, SOAP, Tooling, Apex. The faults below can be changed while it runs: "
    "POST /sandbox/faults takes a JSON object of them (names with _), GET tells them and how often each has struck, "
    "DELETE ends them; HTTP Basic with client id and secret."
)
EXAMPLES = (
    "examples: crmray sandbox    crmray sandbox --demo --customers 2000 --port 8499    "
    "crmray sandbox --error-503-every 7 --drop-connection-every 50    "
    "curl --cacert sandbox/ca.pem -u $(cat sandbox/client_id):$(cat sandbox/client_secret) "
    "-d '{\"slow_page_s\": 2}' https://127.0.0.1:8443/sandbox/faults"
)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sandbox", help="a local Salesforce org, over TLS", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--folder", default=FOLDER, help=f"records, keys, certificates; default: {FOLDER}")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    parser.add_argument("--demo", action="store_true", help="fill a new org with made-up customers")
    parser.add_argument("--customers", type=int, default=6000, help="of the demo; default: 6000")
    parser.add_argument("--months", type=int, default=36, help="of history of the demo; default: 36")
    parser.add_argument("--end", default=END, help=f"first day after the demo's history; default: {END}")
    parser.add_argument("--seed", type=int, default=0, help="of the demo, and of what the faults strike; default: 0")
    faults = parser.add_argument_group("faults", "what goes wrong; default: nothing")
    for name, doc in documented().items():
        if name == "seed":
            continue
        default = getattr(Settings(), name)
        kind = _fraction_or_ids if name == "lock_rows" else type(default)
        faults.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=doc, metavar="X")
    parser.set_defaults(call=command)


def _fraction_or_ids(text: str) -> float | tuple[str, ...]:
    """`0.03`, or ids with commas between them."""
    try:
        return float(text)
    except ValueError:
        return tuple(text.split(","))


def command(arguments: argparse.Namespace) -> int:
    """Run a sandbox org until Ctrl-C."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the sandbox needs {', '.join(missing)}, not installed; pip install 'crmray[sandbox]'")
    from crmray.salesforce.sandbox.server import Sandbox, listen
    from crmray.salesforce.sandbox.store import Store

    listen("127.0.0.1", arguments.port).close()  # refuses a busy port before a folder is made and an org filled
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    faults = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    if arguments.demo:
        fill(folder / "org.duckdb", arguments.customers, arguments.months, arguments.end, arguments.seed)
    with (
        contextlib.closing(Store(folder / "org.duckdb")) as store,
        Sandbox(store, port=arguments.port, folder=folder) as sandbox,
    ):
        sandbox.faults.set(**faults)
        sandbox.org_file(folder / "org.yaml")
        print(how_to_connect(sandbox), flush=True)
        return 128 + _next_signal()


def _next_signal() -> int:
    """Wait until somebody ends this process; the number of the signal. No exception, so that the store is closed."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: came.put(number))
    return came.get()


def fill(path: Path, customers: int, months: int, end: str, seed: int) -> None:
    """Make an org with the demo in it, which appears whole or not at all; one that is there stays as it is."""
    import duckdb

    from crmray.salesforce.sandbox.load import load_demo
    from crmray.salesforce.sandbox.store import Store

    if path.exists():
        with contextlib.closing(Store(path)) as store:
            there = store.query("SELECT COUNT() FROM Account", all_rows=True).count
        print(f"{path} is there already, with {there:,} accounts, and stays as it is; remove it to begin anew")
        return
    advice = "nothing half-loaded is kept, free some space and start again"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".demo-") as folder:
        draft = Path(folder) / path.name
        try:
            with contextlib.closing(Store(draft)) as store:
                load_demo(store, customers=customers, months=months, end=end, seed=seed)
        except ValidationError as error:
            raise ConfigError(f"the demo: {config.explain(error)}") from None
        except (duckdb.OperationalError, duckdb.FatalException) as error:
            raise StorageError(f"the demo: {str(error).splitlines()[0]}; {advice}") from None
        if len(list(Path(folder).iterdir())) > 1:  # closing says nothing when what was logged cannot be taken over
            raise StorageError(f"the demo: {draft.name} could not be written whole; {advice}")
        try:
            os.link(draft, path)  # unlike a rename it fails if another sandbox was faster
        except OSError as error:
            raise disk.error_of(str(path), error) from None


def how_to_connect(sandbox: Sandbox) -> str:
    """What a person has to know to use it."""
    folder = sandbox.folder
    return f"""sandbox org   {sandbox.url}   (Ctrl-C ends it)
user          {sandbox.username}; client id, client secret, password and keys are in {folder}
org file      {folder / "org.yaml"}   (crmray check {folder / "org.yaml"})

simple-salesforce:
  import requests, simple_salesforce
  from pathlib import Path
  folder, session = Path("{folder}"), requests.Session()
  session.verify, session.trust_env = "{sandbox.ca_file}", False
  form = {{"grant_type": "client_credentials"}}
  basic = (folder / "client_id").read_text().strip(), (folder / "client_secret").read_text().strip()
  token = session.post("{sandbox.url}/services/oauth2/token", form, auth=basic).json()["access_token"]
  sf = simple_salesforce.Salesforce(instance_url="{sandbox.url}", session_id=token, session=session, version="64.0")
  sf.query("SELECT Id, Name FROM Account LIMIT 5")

curl:
  curl --cacert {sandbox.ca_file} -d grant_type=client_credentials \\
    -u "$(cat {folder}/client_id):$(cat {folder}/client_secret)" {sandbox.url}/services/oauth2/token
"""
