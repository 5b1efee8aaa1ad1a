"""Write-back against the sandbox org: what is written and what is not, receipts, undo, Tasks, members, privacy."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from writing import ACCOUNTS, BAND, REASONS, SCORE, World, receipt, scores

from crmray.errors import ConfigError, NotFoundError, SalesforceError
from crmray.privacy import Pseudonyms, Vault, consent
from crmray.salesforce.sandbox.metadata import Field
from crmray.storage import Lake


def test_scores_arrive_at_the_right_records_and_only_changes_are_written(world: World) -> None:
    org = world.org()
    world.predict({**scores(world), "0015e00000XXXXXAAA": 0.9})
    seen = org.writeback("churn", dry_run=True)
    assert seen["counts"] == {"predictions": 201, "withheld": 0, "not_found": 1, "unchanged": 0, "changed": 200}
    assert len(seen["samples"]) == 5
    assert not any(id_ in json.dumps(seen, default=str) for id_ in world.ids)
    assert set(world.held(SCORE).values()) == {(None,)}

    first = org.writeback("churn")
    assert {id_: row[0] for id_, row in world.held(SCORE).items()} == scores(world)
    assert world.held(BAND, REASONS, "Crmray_Churn_Will_Churn__c", "Crmray_Churn_Run__c")[world.ids[150]] == (
        "high", "fewer orders; more complaints", True, "p1",
    )  # fmt: skip
    assert first.manifest()["counts"]["fields"] == {"written": 200}
    assert org.writeback("churn").run_id == first.run_id, "nothing changed, so there is no new receipt"

    later = dict.fromkeys(world.ids, 0.0) | scores(world)
    later[world.ids[3]] = 0.7
    world.predict(later, "p2")
    second = org.writeback("churn")
    (row,) = receipt(second)
    assert (row["entity_id"], row["before." + SCORE], row["after." + SCORE]) == (world.ids[3], "0.015", "0.7")


def test_a_small_move_is_not_written_for_that_alone(world: World) -> None:
    org = world.org(min_change=0.1, fields={"probability": SCORE, "version": "Crmray_Churn_Version__c"})
    world.predict(dict.fromkeys(world.ids, 0.2))
    org.writeback("churn")
    world.predict(dict.fromkeys(world.ids, 0.2) | {world.ids[0]: 0.29, world.ids[1]: 0.3}, "p2")
    assert [row["entity_id"] for row in receipt(org.writeback("churn"))] == [world.ids[1]]


def test_what_the_fields_must_be_is_told_before_anything_is_sent(world: World) -> None:
    world.predict(scores(world))
    with pytest.raises(SalesforceError, match=f"{SCORE} is missing.*{BAND} is missing.*crmray fields"):
        world.org(deployed=False).writeback("churn")
    with pytest.raises(SalesforceError, match="NumberOfEmployees is of type int, expected double"):
        world.org(fields={"probability": "NumberOfEmployees"}).writeback("churn")
    with pytest.raises(SalesforceError, match="CreatedDate cannot be updated"):
        world.org(fields={"as_of": "CreatedDate"}).writeback("churn")
    with pytest.raises(SalesforceError, match="AccountNumber holds .* characters, expected 300"):
        long = pa.table({"entity_id": [world.ids[0]], "reasons": [["x" * 300]]})
        run = Lake(str(world.folder / "lake")).run("predictions", "churn", "long")
        run.write_table("part-00000.parquet", long)
        run.commit(task="churn")
        world.org(fields={"reasons": "AccountNumber"}).writeback("churn")
    with pytest.raises(ConfigError, match="got columns \\['chance'\\]"):
        world.org(fields={"chance": SCORE}, deployed=False).writeback("churn")
    assert set(world.held("AccountNumber").values()) == {(None,)}


def test_three_in_a_hundred_fail_and_the_receipt_is_exact(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    world.server.faults.set(fail_rows=0.03, lock_rows=0.1, lock_times=2)
    run = org.writeback("churn")
    held, rows = world.held(SCORE), receipt(run)
    assert {row["entity_id"] for row in rows} == set(world.ids)
    failed = {row["entity_id"] for row in rows if row["state"] == "failed"}
    assert 1 <= len(failed) <= 15
    for row in rows:
        wrote = held[row["entity_id"]][0] is not None
        assert wrote == (row["state"] == "written"), "a locked row is tried again, a refused one is not written"
        assert (row["code"] == "FIELD_CUSTOM_VALIDATION_EXCEPTION") == (row["state"] == "failed")
    assert run.manifest()["counts"]["fields"]["codes"] == {"FIELD_CUSTOM_VALIDATION_EXCEPTION": len(failed)}

    world.server.faults.clear()
    again = org.writeback("churn")
    assert {row["entity_id"] for row in receipt(again)} == failed
    assert {id_: row[0] for id_, row in world.held(SCORE).items()} == scores(world)


def test_undo_restores_what_still_is_ours(world: World) -> None:
    org = world.org(fields={"probability": SCORE, "band": BAND})
    world.server.store.update("Account", [{"Id": world.ids[0], SCORE: 0.5}, {"Id": world.ids[1], BAND: "watch"}])
    before = world.held(SCORE, BAND)
    world.predict(scores(world, plus=0.001))
    run = org.writeback("churn")
    assert all(new != old for new, old in zip(world.held(SCORE, BAND).values(), before.values(), strict=True))

    world.server.store.update("Account", [{"Id": world.ids[2], BAND: "by hand"}])
    undone = org.writeback("churn", undo=run.run_id)
    assert world.held(SCORE, BAND) == {**before, world.ids[2]: (None, "by hand")}
    counts = undone.manifest()["counts"]
    assert (counts["to_restore"], counts["changed_since"], counts["fields"]) == (200, 1, {"written": 200})

    with pytest.raises(ConfigError, match="receipt of an undo"):
        org.writeback("churn", undo=undone.run_id)
    with pytest.raises(NotFoundError, match=run.run_id):
        org.writeback("churn", undo="0" * 16)
    org.writeback("churn")  # and written again
    assert world.held(SCORE)[world.ids[7]] == (0.036,)


def test_those_who_withdrew_are_not_written(world: World) -> None:
    org = world.org()
    world.predict(scores(world))
    run = org.lake.run("raw", consent.NAME, "c1")
    rows = [{"entity_id": world.ids[5], "processing": True, "profiling": False, "channels": []}]
    run.write_table("part-00000.parquet", pa.Table.from_pylist(rows, schema=consent.SCHEMA))
    run.commit()
    assert org.writeback("churn").manifest()["counts"]["withheld"] == 1
    assert [id_ for id_, row in world.held(SCORE).items() if row[0] is None] == [world.ids[5]]

    rows = org.lake.latest("predictions", "churn").read_table("part-*.parquet")
    wrote = pa.array([world.ids[5] if id_ == world.ids[6] else id_ for id_ in rows["entity_id"].to_pylist()])
    later = org.lake.run("predictions", "churn", "p2")
    later.write_table("part-00000.parquet", rows.append_column("customer_id", wrote))
    later.commit(task="churn", rows=rows.num_rows)
    assert org.writeback("churn", dry_run=True)["counts"]["withheld"] == 2  # what is about the customer goes with it


def test_pseudonyms_go_back_to_their_records_and_no_id_stays(world: World) -> None:
    (world.folder / "key").write_text("ab" * 32)
    key = {"file": str(world.folder / "key")}
    org = world.org(
        privacy={"pseudonym_key": key, "vault_key": key}, tasks={"when": {"band": "high"}, "subject": "Call"}
    )
    pseudonyms, vault = Pseudonyms.of_org(org.config), Vault.open(org.config, org.lake)
    assert pseudonyms is not None
    pseudonyms.mark(org.lake)
    shown = pseudonyms.of(world.ids)
    vault.add(shown, pa.array(world.ids))
    vault.save()
    world.predict(dict(zip(shown.to_pylist(), scores(world).values(), strict=True)))
    run = org.writeback("churn")
    assert {id_: row[0] for id_, row in world.held(SCORE).items()} == scores(world)
    for name in run.files():
        kept = str(run.read_table(name).to_pylist()) if name.endswith("parquet") else run.read_bytes(name).decode()
        assert not any(id_ in kept for id_ in world.ids), name
    assert {row["entity_id"] for row in receipt(run)} == set(shown.to_pylist())
    org.writeback("churn", undo=run.run_id)
    assert set(world.held(SCORE).values()) == {(None,)}


def test_records_are_found_by_an_external_id(world: World) -> None:
    world.server.store.add_field("Account", Field(name="Number__c", type="string", external_id=True))
    world.server.store.update("Account", [{"Id": id_, "Number__c": f"C{i}"} for i, id_ in enumerate(world.ids[:10])])
    org = world.org(key="Number__c")
    world.predict({f"C{i}": 0.25 for i in range(12)})
    counts = org.writeback("churn").manifest()["counts"]
    assert (counts["not_found"], counts["fields"]) == (2, {"written": 10})
    assert world.server.store.query("SELECT COUNT() FROM Account").count == ACCOUNTS, "none is made"
    with pytest.raises(ConfigError, match="an ordinary field"):
        world.org(key="AccountNumber").writeback("churn")
    world.server.store.update("Account", [{"Id": id_, "Number__c": "C1"} for id_ in world.ids[10:12]])
    world.predict({f"C{i}": 0.75 for i in range(12)}, "p2")
    with pytest.raises(SalesforceError, match="Number__c: got 2 records with the key of another one"):
        world.org(key="Number__c").writeback("churn")


def test_a_task_for_each_chosen_record_and_none_twice(world: World) -> None:
    org = world.org(tasks={"when": {"band": "high", "probability": {"ge": 0.95}}, "subject": "Call before they go"})
    world.predict(scores(world))
    run = org.writeback("churn")
    tasks = world.server.store.query(
        "SELECT WhatId, Subject, Description, OwnerId, IsClosed FROM Task"
    ).table.to_pylist()
    assert {row["WhatId"] for row in tasks} == set(world.ids[190:])
    assert {row["Subject"] for row in tasks} == {"Call before they go"}
    assert {row["OwnerId"] for row in tasks} == {world.server.store.user_id}
    assert run.manifest()["counts"]["tasks"] == {"written": 10}
    world.predict(scores(world), "p2")  # still open, so there is no second one
    org.writeback("churn")
    assert world.server.store.query("SELECT COUNT() FROM Task").count == 10


def test_a_campaign_gets_the_contacts_of_chosen_accounts(world: World) -> None:
    store = world.server.store
    (campaign,) = store.insert("Campaign", [{"Name": "Stay"}])
    contacts = [
        {"LastName": f"Person {i}", "AccountId": id_, "HasOptedOutOfEmail": i % 2 == 1}
        for id_ in world.ids[198:]
        for i in range(4)
    ]
    made = [row.id for row in store.insert("Contact", contacts)]
    store.insert("CampaignMember", [{"CampaignId": campaign.id, "ContactId": made[0]}])
    org = world.org(campaign={"campaign_id": campaign.id, "when": {"probability": {"ge": 0.99}}})
    world.predict(scores(world))
    run = org.writeback("churn")
    assert run.manifest()["counts"]["members"] == {"written": 3}
    members = store.query(f"SELECT ContactId FROM CampaignMember WHERE CampaignId = '{campaign.id}'").table
    assert sorted(members["ContactId"].to_pylist()) == sorted(made[::2]), "those who take mail, once each"
    assert org.writeback("churn").run_id == run.run_id
