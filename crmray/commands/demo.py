"""`crmray demo`: the whole product on a generated organisation, from a local Salesforce org and back into it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from crmray import config
from crmray.commands import head as head_commands
from crmray.commands import lake as lake_commands
from crmray.commands import serving
from crmray.commands.run import run
from crmray.commands.text import cut
from crmray.config import DemoSource, Org, SalesforceSource
from crmray.dashboard import Dashboard
from crmray.errors import ClusterError, SalesforceError
from crmray.head import home, local_head, process_started

SANDBOX_TIMEOUT_S = 900.0
"""for filling the sandbox org; a million customers take longer and are filled with `crmray sandbox` beforehand"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo",
        help="up, run on the demo org, one request per endpoint, scores written back, down",
        description="Show the whole product on a generated organisation: a Salesforce org on this machine, pulled, "
        "modelled, served and written back to, on a Ray head of its own or that of `crmray up`.",
        epilog="example: crmray demo --keep",
    )
    demo.add_argument("--org", metavar="ORG.yaml", default=str(config.DEMO_ORG), help="another org file")
    demo.add_argument(
        "--keep", action="store_true", help="leave the head, the endpoints, the Salesforce org and the demo org's lake"
    )
    demo.set_defaults(call=command)


def command(arguments: argparse.Namespace) -> int:
    """The whole product once, timed; ends what it started, whatever happens."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `finally` and the contexts below have to run
    asked = config.load(arguments.org)
    # A lake that an earlier demo left on purpose (--keep) stays.
    is_demo, is_there = asked.path == str(config.DEMO_ORG), Path(asked.root).exists()
    made_here = is_demo and not is_there
    if is_demo and is_there:
        print(f"goes on with what an earlier demo left in {asked.root}; remove that folder to begin anew")
    ours = local_head() is None
    head = head_commands.start() if ours else local_head()
    if head is None:
        raise ClusterError("the local head ended while the demo began; try again")
    try:
        print(f"up: {head.dashboard} after {time.monotonic() - started:.1f} s", flush=True)
        dashboard = Dashboard()
        serving.check_org(dashboard, asked)  # before an org is filled
        with _salesforce(asked, keep=arguments.keep, remove=ours and made_here) as org:
            if org is not asked:
                print(f"Salesforce org: {_url(org)} after {time.monotonic() - started:.1f} s", flush=True)
            code = run(dashboard, org, tasks=None, tune=False, port=head_commands.free_port(serving.PORT))
            for task in org.tasks:
                if lake_commands.champion_row(org, task):
                    print("\n" + serving.show_request(dashboard, org, task))
            if isinstance(org.source, SalesforceSource):
                print("\n" + _read_back(org))
            print(f"\n{time.monotonic() - started:.0f} s in all")
            if arguments.keep:
                print(_next_steps(dashboard, head.token_path, org))
            return code
    finally:
        if ours and not arguments.keep:
            head_commands.stop(head)
            if made_here:
                shutil.rmtree(asked.root, ignore_errors=True)
                print(f"ended the head and removed {asked.root}; `crmray demo --keep` leaves all of it to look around")
            else:
                print(f"ended the head; the results stay in {asked.root}")
            head_commands.tell_what_stays()


# ------------------------------------------------------------------------------------------------ the Salesforce org


@contextlib.contextmanager
def _salesforce(asked: Org, *, keep: bool, remove: bool) -> Iterator[Org]:
    """The same organisation as a Salesforce org on this machine; an org with a source of its own is left as it is.

    remove: whether its folder goes in the end, if it was made here. It holds the keys of the lake and goes with it.
    """
    if not isinstance(asked.source, DemoSource):
        yield asked
        return
    folder = Path(f"{asked.root}-sandbox")
    new = not folder.exists()
    process = _start_sandbox(folder, asked.source, asked.seed)
    try:
        org = _as_salesforce(asked, folder)
        _deploy_fields(org)
        yield org
    finally:
        if keep:
            _record(process)
        else:
            _end(process)
            if new and remove:
                shutil.rmtree(folder, ignore_errors=True)


def _start_sandbox(folder: Path, source: DemoSource, seed: int) -> psutil.Popen:
    """`crmray sandbox` as a process of its own; returns once it answers."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told, org_file = folder / "sandbox.log", folder / "org.yaml"
    org_file.unlink(missing_ok=True)
    words = ["--folder", str(folder), "--port", "0", "--demo", "--seed", str(seed), "--end", source.end]
    words += ["--customers", str(source.customers), "--months", str(source.months)]
    with open(told, "wb") as log_file:
        process = psutil.Popen(
            [sys.executable, "-c", "import sys; from crmray.cli import main; sys.exit(main())", "sandbox", *words],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + SANDBOX_TIMEOUT_S
    try:
        while not org_file.exists():  # written when the server listens
            if process.poll() is not None or time.monotonic() > deadline:
                said = told.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise SalesforceError(f"the sandbox org did not start: {' | '.join(said[-3:]) or 'no output'}")
            time.sleep(0.1)
    except BaseException:
        _end(process)
        raise
    return process


def _as_salesforce(asked: Org, folder: Path) -> Org:
    """The org file of the sandbox with the demo's tasks, keys for pseudonyms and vault, and a write-back of every task.

    What the generator knows goes into the lake, under the pseudonyms, for the report to measure against.
    """
    from crmray.data import demo
    from crmray.privacy import Pseudonyms
    from crmray.storage import Lake

    assert isinstance(asked.source, DemoSource)
    content = asked.model_dump(mode="json", exclude_unset=True, exclude={"source", "path"})
    content |= {
        "storage": asked.root,
        "source": yaml.safe_load((folder / "org.yaml").read_text(encoding="utf-8"))["source"],
        "privacy": {name: {"file": str(_key(folder / name))} for name in ("pseudonym_key", "vault_key")},
        "writeback": {task: {} for task in asked.tasks},
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    org = config.load(path)
    demo.write_truth(Lake.of(org), asked.source, asked.seed, Pseudonyms.of_org(org))
    return org


def _key(path: Path) -> Path:
    """A file with a key of 32 bytes in hex, mode 0600; made when there is none."""
    with (
        contextlib.suppress(FileExistsError),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
    ):
        file.write(secrets.token_hex(32))
    return path


def _deploy_fields(org: Org) -> None:
    """Make the fields that the write-back needs, as an administrator would with the metadata of `crmray fields`."""
    from crmray.org import OpenOrg
    from crmray.salesforce.client import Client
    from crmray.salesforce.metadata_api import deploy

    assert isinstance(org.source, SalesforceSource)
    with Client.connect(org.source, org.folder) as client:
        deploy(client, OpenOrg(org).fields())


def _read_back(org: Org) -> str:
    """What stands in the Salesforce org now: per task the number of records with a prediction, and one of them."""
    from crmray.org import OpenOrg
    from crmray.salesforce.client import Client

    assert isinstance(org.source, SalesforceSource)
    lines = ["read again from the Salesforce org:"]
    with Client.connect(org.source, org.folder) as client:
        for task in org.writeback:
            aim = OpenOrg(org).aim(task)
            names = [target.name for target in aim.targets]
            first = next(name for name in names if name.endswith("Version__c"))
            count = client.count(aim.object, f"{first} != null")
            rows = client.query(f"SELECT {', '.join(names)} FROM {aim.object} WHERE {first} != null LIMIT 1")
            sample = json.dumps(next(rows, {}), ensure_ascii=False)
            lines.append(f"  {task}: {count:,} {aim.object} records; {cut(sample, 400)}")
    return "\n".join(lines)


def _url(org: Org) -> str:
    assert isinstance(org.source, SalesforceSource)
    return org.source.login.url


# ----------------------------------------------------------------------------------------------- what --keep leaves


def _record(process: psutil.Popen) -> None:
    """Note the sandbox that stays, for `crmray down`."""
    state = {"pid": process.pid, "started": process_started(process.pid)}
    (home() / "sandbox.json").write_text(json.dumps(state), encoding="utf-8")


def end_kept_sandbox() -> bool:
    """End the sandbox org that `crmray demo --keep` left; whether there was one."""
    path = home() / "sandbox.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    path.unlink()
    if state["started"] is None or process_started(state["pid"]) != state["started"]:
        return False
    _end(psutil.Process(state["pid"]))
    return True


def _end(process: psutil.Process | psutil.Popen) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(timeout=15)
        except psutil.TimeoutExpired:
            process.kill()


def _next_steps(dashboard: Dashboard, token_path: str, org: Org) -> str:
    crmray = Path(sys.executable).with_name("crmray")
    lines = [
        "",
        "what to open next:",
        f"  {dashboard.address}    the Ray dashboard: jobs, trials, Serve (token: cat {token_path})",
        f"  {serving.base_url(dashboard)}/docs    the endpoints",
    ]
    if isinstance(org.source, SalesforceSource):
        lines += [
            f"  {_url(org)}    the Salesforce org (how to log in: cat {org.folder}/sandbox.log)",
            f"  {crmray} describe {org.path}    what is read of it, and at what cost",
        ]
    lines += [
        f"  {crmray} compare {next(iter(org.tasks))} --org {org.path}",
        f"  {crmray} down    ends it all",
    ]
    return "\n".join(lines)
