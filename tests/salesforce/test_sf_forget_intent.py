"""`crmray forget` and suggested answers: no bundle holds what was written to somebody who was erased."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import privacy_org as people
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_sf_forget import everything

from crmray import config, forget, schema
from crmray.bundle import Bundle, load_bundle, write_bundle
from crmray.data.ingest import ingest
from crmray.errors import NoChampionError
from crmray.models.text_tfidf import TfidfLogistic
from crmray.privacy import Pseudonyms
from crmray.registry import Ledger
from crmray.storage import Lake, Run
from crmray.tasks import intent

NOW = datetime(2026, 2, 1, tzinfo=timezone.utc)
ORG = """
name: files
storage: lake
source:
  kind: files
  tables:
    customers: {files: [customers.csv], columns: {entity_id: id}}
    interactions:
      files: [notes.csv]
      columns: {entity_id: customer, occurred_at: at, text: note, interaction_id: id, direction: way, reason: reason}
privacy: KEYS
tasks: {intent: {}}
"""
BOTH_KEYS = "{pseudonym_key: {file: pseudonym.key}, vault_key: {file: vault.key}}"
VAULT_KEY = "{vault_key: {file: vault.key}}"
INQUIRIES = {"Delivery": "where is my parcel", "Invoice": "the bill is wrong"}


def interactions(raw: pa.Table) -> pa.Table:
    """The canonical table of what was pulled."""
    names = {"customer": "entity_id", "at": "occurred_at", "note": "text", "id": "interaction_id", "way": "direction"}
    rows = raw.rename_columns({**names, "reason": "reason"})
    at = pc.strptime(rows["occurred_at"].cast(pa.string()), format="%Y-%m-%d", unit="us").cast(schema.TIME)
    rows = rows.set_column(rows.schema.get_field_index("occurred_at"), "occurred_at", at)
    return rows.sort_by([("entity_id", "ascending"), ("occurred_at", "ascending")])


def trained(lake: Lake, table: pa.Table, mark: str) -> Run:
    """Examples, a published bundle and what it says of every inquiry, as the stations leave them; the bundle's run."""
    settings = intent.Settings()
    rows = intent.examples({"interactions": table}, NOW, settings, labels=True)
    examples, run, told = (
        lake.run(kind, "intent", f"{mark}{number:015d}")
        for number, kind in enumerate(("examples", "bundles", "predictions"))
    )
    examples.write_table("train/shard-00000.parquet", rows)
    examples.commit(rows={"train": rows.num_rows}, inputs={})
    model = TfidfLogistic(C=4.0, min_rows=1).fit(rows, None, seed=0)
    decision = {**intent.finalize(model, rows, rows, settings), "least_confidence": 0.0}
    write_bundle(
        run, intent, candidate="tfidf_logistic", model=model, settings=settings, decision=decision, examples=rows,
        card="", data={"run_id": examples.run_id},
    )  # fmt: skip
    run.commit()
    ledger = Ledger(lake, "intent")
    ledger.append(len(ledger.refresh()), version=run.run_id, previous=None, action="promote", why="test")
    said = load_bundle(run).predict(rows)
    told.write_table("part-00000.parquet", said.append_column("customer_id", rows["customer_id"]))
    told.commit(rows=said.num_rows, version=run.run_id, inputs={"examples": examples.run_id})
    return run


def suggestions(bundle: Bundle) -> list[str | None]:
    """What it answers to each kind of inquiry."""
    texts = list(INQUIRIES.values())
    nothing = pa.nulls(len(texts), pa.string())
    rows = pa.table(
        {"entity_id": texts, "as_of": pa.nulls(len(texts), schema.TIME), "part": nothing, "customer_id": nothing,
         "text": texts, "text_answer": nothing, "text_answer_id": nothing}
    )  # fmt: skip
    return bundle.predict(rows)["suggested_answer"].to_pylist()


@pytest.mark.parametrize("keys", [BOTH_KEYS, VAULT_KEY])
def test_no_answer_to_somebody_who_was_erased_is_suggested_again(tmp_path: Path, keys: str) -> None:
    people.org(tmp_path)
    (tmp_path / "org.yaml").write_text(ORG.replace("KEYS", keys))
    (tmp_path / "customers.csv").write_text("id\n" + "".join(f"C-{k}\n" for k in range(12)))
    lines = ["customer,at,id,way,reason,note"]
    for k in range(12):
        reason, asked = list(INQUIRIES.items())[k % 2]
        lines += [f"C-{k},2026-01-05,I-{k},inbound,{reason},{asked} number {k}"]
        lines += [f"C-{k},2026-01-06,A-{k},outbound,,the answer to case {k}"] if k < 4 else []
    (tmp_path / "notes.csv").write_text("\n".join(lines) + "\n")
    org = config.load(tmp_path / "org.yaml")
    lake = Lake.of(org)
    run = trained(lake, interactions(ingest(org, lake)["interactions-0"].read_table()), "a")
    before = suggestions(load_bundle(run))
    assert all(one and one.startswith("The answer to case") for one in before)

    receipt = forget.forget(org, lake, ["C-0", "C-1"])
    assert receipt.manifest()["retired"] == [f"intent/{run.run_id}"]
    with pytest.raises(NoChampionError):
        Ledger(lake, "intent").champion()
    made = Pseudonyms.of_org(org)
    gone = [made.one(f"C-{k}") if made else f"C-{k}'" for k in (0, 1)]
    gone += ["answer to case 0", "answer to case 1", "parcel number 0", "wrong number 1'", "I-0", "A-0"]
    text = everything(lake)
    assert [one for one in gone if one in text] == []
    assert "answer to case 2" in text
    assert not lake.has("predictions", "intent")

    again = trained(lake, interactions(lake.latest("raw", "interactions-0").read_table()), "b")
    assert suggestions(load_bundle(again)) == ["The answer to case 2", "The answer to case 3"]
