"""The search for personal data: an org full of recognisable people goes through the whole flow, and nothing of them is
found in any file, log line or HTTP answer."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import privacy_org as people
import pulling
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from starlette.testclient import TestClient

from crmray import log, tasks
from crmray.org import OpenOrg
from crmray.privacy import Pseudonyms, Withheld
from crmray.salesforce.sandbox.deploy import deploy
from crmray.salesforce.sandbox.server import Sandbox
from crmray.storage import Lake, Run
from serve.answers import Answers
from serve.champion import Champion
from serve.http import task_app
from serve.options import TaskOptions

TASK = "segmentation"
QUOTED = {
    "Case": "Hello, {first} {last} of {account} here; reach me at {mail} or {phone}. Card 4111 1111 1111 1111.",
    "EmailMessage": "Dear team, {last} (IBAN DE89 3704 0044 0532 0130 00) asks. {FIRST}, {mail}, tel. {phone}",
}
ODD = ("4111 1111", "DE89 3704")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """All that crmray logs in this process."""
    logger, sink = logging.getLogger("crmray"), io.StringIO()
    log.setup(json=True)
    handler = logging.StreamHandler(sink)
    handler.setFormatter(logger.handlers[0].formatter)
    logger.addHandler(handler)
    yield sink
    logger.handlers = []
    logger.propagate = True


def quote_people(sandbox: Sandbox) -> str:
    """Let customers quote their names, addresses and numbers in their cases and mails; what must not be found (RE2)."""
    store = sandbox.store
    short = store.query("SELECT Id, FirstName FROM Contact").table.to_pylist()
    # Ciphertext is searched too: four letters in any case stand somewhere in megabytes of random bytes by chance.
    store.update("Contact", [{"Id": one["Id"], "FirstName": f"{one['FirstName']}quill"} for one in short])
    person = store.query("SELECT Id, AccountId, FirstName, LastName, Email, Phone FROM Contact").table.to_pylist()
    store.update(
        "Account", [{"Id": one["AccountId"], "Name": f"Quoxwerk {i}xylophon Zephyrine"} for i, one in enumerate(person)]
    )
    names = dict(zip(*(store.query("SELECT Id, Name FROM Account").table.columns), strict=True))
    names = {key.as_py(): value.as_py() for key, value in names.items()}
    by_id = {one["Id"]: one for one in person}
    for name, text, path in (("Case", "Description", "ContactId"), ("EmailMessage", "TextBody", "Parent.ContactId")):
        rows = store.query(f"SELECT Id, {path}, {text} FROM {name}").table.to_pylist()
        changed = []
        for row in rows:
            who = by_id.get(row[path])
            if who is not None:
                said = QUOTED[name].format(
                    first=who["FirstName"], FIRST=who["FirstName"].upper(), last=who["LastName"], mail=who["Email"],
                    phone=who["Phone"], account=names[who["AccountId"]],
                )  # fmt: skip
                changed.append({"Id": row["Id"], text: f"{row[text] or ''}\n{said}"})
        assert len(changed) > 50
        for start in range(0, len(changed), 200):
            store.update(name, changed[start : start + 200])
    values = {one[field] for one in person for field in ("Email", "Phone", "FirstName", "LastName", "Id", "AccountId")}
    values |= {value[:15] for value in values if len(value) == 18 and value.startswith("00")}
    values |= {part for name in names.values() if name.startswith("Quox") for part in name.split()}
    lead = store.query("SELECT Id, LastName, Email, Phone FROM Lead").table.to_pylist()
    values |= {value for one in lead for value in one.values()}
    rows = store.query("SELECT BillingStreet, Phone FROM Account").table.to_pylist()
    values |= {value for one in rows for value in one.values()} | set(ODD)
    words = sorted({value.lstrip("+") for value in values if value})
    wanted = rf"(?i)\b(?:{'|'.join(map(re.escape, words))})\b"
    for text in store.query("SELECT Description FROM Case WHERE ContactId != null").table["Description"]:
        assert pc.match_substring_regex(text, wanted).as_py()
    return wanted


def decoded(lake: Lake, logs: Path) -> Iterator[tuple[str, str]]:
    """Every file of the lake and of Ray's logs as text: Parquet and Arrow by their values, archives unpacked."""
    base = Path(lake.base)
    for path in sorted(one for one in base.rglob("*") if one.is_file()):
        rel = path.relative_to(base)
        if path.suffix in (".parquet", ".rejected"):
            kind, name, mark, *rest = rel.parts
            yield str(rel), str(Run(lake, kind, name, mark).open_parquet("/".join(rest)).read().to_pydict())
        elif path.suffix == ".arrow":
            yield str(rel), str(pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_pydict())
        text = path.read_bytes().decode("utf-8", "replace")
        yield f"{rel} (bytes)", text.replace("Bitstream Vera", "") if path.suffix == ".svg" else text  # a font's name
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                for name in packed.namelist():
                    yield f"{rel}/{name}", packed.read(name).decode("utf-8", "replace")
    for path in logs.rglob("*"):
        if path.is_file() and path.suffix in (".log", ".out", ".err", ".txt", ".json"):
            yield str(path), path.read_text(errors="replace")


def test_nothing_of_anybody_is_found_anywhere(
    sandbox: Sandbox, tmp_path: Path, ray_folder: Path, lines: io.StringIO
) -> None:
    wanted = quote_people(sandbox)
    people.org(tmp_path)
    path = pulling.org_file(sandbox, tmp_path, without=[*pulling.WITHOUT, "Contract", "Asset"])
    content = yaml.safe_load(path.read_text())
    keys = {f"{name}_key": {"file": f"{name}.key"} for name in ("pseudonym", "vault", "lake")}
    path.write_text(yaml.safe_dump({**content, "privacy": keys, "shards": 2, "tasks": {TASK: {}}}))
    org = OpenOrg.load(path)
    org.ingest()
    org.shard()
    org.examples(TASK)
    org.train(TASK, candidates=["rfm_rules"])
    org.publish(TASK, force="test")
    predictions = org.score(TASK)
    deploy(sandbox.store, org.fields())
    receipt = org.writeback(TASK)
    assert receipt.manifest()["counts"]["fields"]["written"] == predictions.manifest()["rows"] > 50
    answers = asked(org, sandbox)

    assert "[NAME]" in str(org.lake.latest("raw", "Case").read_table().to_pydict())
    looked = 0
    for where, text in [*decoded(org.lake, ray_folder), ("events", lines.getvalue()), ("answers", answers)]:
        looked += 1
        if pc.match_substring_regex(pa.scalar(text), wanted).as_py():
            found = re.search(wanted, text)
            pytest.fail(f"{where}: …{text[max(0, found.start() - 60) : found.end() + 20]!r}" if found else where)
    assert looked > 50


def asked(org: OpenOrg, sandbox: Sandbox) -> str:
    """What the endpoint answers for accounts by their own ids, without these."""
    ids = sandbox.store.query("SELECT Id FROM Account").table["Id"].to_pylist()
    task = tasks.task(TASK)
    champion = Champion(org.lake, task, org.config)
    assert champion.poll()
    options = TaskOptions(org=org.config.path, task=TASK, require_key=False)
    made, withheld = Pseudonyms.of_org(org.config), Withheld.of(org.lake)
    assert made is not None
    gone = [one for one in ids if made.one(one) in withheld.profiling]
    known = [one for one in ids if champion.current().known.find(made.one(one)) is not None]
    assert gone
    assert not set(gone) & set(known)
    with TestClient(task_app(task, Answers(champion, max_batch_rows=256), options=options, keys=None)) as client:
        one = client.post("/", json={"id": known[0][:15], "explain": True})
        assert one.status_code == 200
        assert one.json()["predictions"][0]["entity_id"] == known[0][:15]
        refused = client.post("/", json={"id": gone[0]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "consent_withdrawn")
        many = client.post("/", json={"ids": [known[1], gone[0], "001000000000000AAA"]})
        assert [row["entity_id"] for row in many.json()["predictions"]] == [known[1]]
        assert many.json()["withheld"] == [gone[0]]
        assert many.json()["unknown"] == ["001000000000000AAA"]
        text = one.text + refused.text + many.text
    for sent in (known[0][:15], known[1], gone[0]):  # the client is told what it sent
        text = text.replace(f'"{sent}"', "")
    return text
