"""Pseudonyms, redaction, consent and the vault, by values worked out by hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import pickle
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import privacy_org as people
import pyarrow as pa
import pytest
import toy_task as toy
from privacy_org import ANNA, BEN, CARL, DORA, EVA

from crmray import config, registry
from crmray.errors import CorruptError, PrivacyError
from crmray.privacy import Guard, Pseudonyms, Vault, Withheld, consent, redact
from crmray.privacy.forgotten import Tombstones
from crmray.privacy.people import READS, Wishes
from crmray.storage import Lake
from crmray.tasks import churn
from crmray.train import fit
from serve.champion import Champion


def settled(folder: Path, lake: Lake | None = None, individuals: pa.Table | None = None, **privacy: Any) -> Guard:
    """A guard that has learned the small org."""
    org = people.org(folder, **privacy)
    guard = Guard.open(org, lake or Lake.of(org), people.describe)
    for name, rows in {**people.PEOPLE, "Individual": individuals or people.individuals()}.items():
        guard.learn(name, rows)
    guard.settle()
    return guard


# -- pseudonyms --------------------------------------------------------------------------------------------------------


def test_a_pseudonym_is_the_hmac_of_the_18_character_id_in_base32() -> None:
    made = Pseudonyms(bytes.fromhex(people.KEY))
    digest = hmac.new(bytes.fromhex(people.KEY), ANNA.encode(), hashlib.sha256).digest()
    expected = "p" + base64.b32encode(digest).decode().lower()[:26]
    assert made.of([ANNA, ANNA[:15], None, ANNA]).to_pylist() == [expected, expected, None, expected]
    assert made.one(ANNA[:15]) == expected
    assert Pseudonyms(b"x" * 32).one(ANNA) != expected


def test_a_key_is_in_no_repr_and_does_not_travel() -> None:
    made = Pseudonyms(bytes.fromhex(people.KEY))
    assert people.KEY not in repr(made)
    assert "1111" not in repr(made)
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(made)


def test_a_lake_takes_pseudonyms_of_one_key_and_no_plain_ids(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    lake = Lake.of(org)
    Guard.open(org, lake, people.describe)
    (tmp_path / "pseudonym.key").write_text("44" * 32)
    with pytest.raises(PrivacyError, match="not the key that the pseudonyms"):
        Guard.open(org, lake, people.describe)
    with pytest.raises(PrivacyError, match=r"no privacy\.pseudonym_key"):
        Guard.open(people.org(tmp_path, pseudonym_key=None), lake, people.describe)


# -- free text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to anna.smith+x@acme.co.uk, please", "write to [EMAIL], please"),
        ("call +49 (0)30 123 45 67 now", "call [PHONE] now"),
        ("+1 (415) 555-2671", "[PHONE]"),
        ("call (555) 123-4567.", "call [PHONE]."),
        ("tel 555-123-4567, or 555.123.4567", "tel [PHONE], or [PHONE]"),
        ("mobil 0151 23456789 oder 030/1234567", "mobil [PHONE] oder [PHONE]"),
        ("phone: 5551234567", "phone: [PHONE]"),
        ("my card 4111 1111 1111 1111!", "my card [CARD]!"),
        ("from DE89 3704 0044 0532 0130 00", "from [ACCOUNT]"),
        ("GB29NWBK60161331926819", "[ACCOUNT]"),
        ("order 4711-2233-9911 of 2026-10-01 at 12:30:45", None),
        ("1,234,567.00 EUR, 1.234.567,50 €", None),
        ("order ORD-2024-00123, ref 0301234567, SKU 555-123-4567", None),
        ("4111 1111 1111 1112 fails Luhn; DE88 3704 0044 0532 0130 00 fails mod 97", None),
        ("01.10.2026, 1 200 500 units", None),
        ("3 pieces @ 12.50 EUR, sizes 38 40 42 44 46", None),
        ("a.b(AT)acme(dot)de, c [at] acme.de", "[EMAIL], [EMAIL]"),
        ("pay to DE89 3704 0044 0532 0130 00 and tell me", "pay to [ACCOUNT] and tell me"),
        ("order AB12 GB29NWBK60161331926819 now", "order AB12 [ACCOUNT] now"),
        ("card 4111 1111 1111 1111 12/29 123", "card [CARD] 12/29 123"),
        ("12 4111 1111 1111 1111 123", "12 [CARD] 123"),
        ("Tel.030 1234567,+49 170 1234567", "Tel.[PHONE],[PHONE]"),
        ("+49\u00a0170\u00a01234567, 555\u2013123\u20134567", "[PHONE], [PHONE]"),
        ("06.12.34.56.78", "[PHONE]"),
        ("tel 123456", "tel [PHONE]"),
    ],
)
def test_what_is_redacted_and_what_is_not(text: str, expected: str | None) -> None:
    assert redact.column(pa.array([text, None])).to_pylist() == [expected or text, None]


def test_a_long_run_of_letters_costs_no_square_of_its_length() -> None:
    started = time.thread_time()  # not that of other work beside it
    assert redact.patterns("QUJD" * 10_000 + " a@b.de") == "QUJD" * 10_000 + " [EMAIL]"
    assert time.thread_time() - started < 2


def test_names_are_whole_words_without_regard_to_case_and_accents() -> None:
    words = redact.words_of(["Müller & Söhne GmbH", "José", "Li"])
    assert words == {"muller", "mueller", "sohne", "soehne", "jose"}
    assert redact.names("JOSÉ Muller called; Mueller's mullered", words) == "[NAME] called; [NAME]'s mullered"
    assert redact.names("Müllers Grüße von José.", words) == "[NAME] Grüße von [NAME]."


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_rows_on_their_way_into_the_lake(tmp_path: Path) -> None:
    guard = settled(tmp_path)
    plan = guard.plan("Case", ["Id", "AccountId", "Subject", "Description", "SuppliedEmail", "CaseNumber", "Status"])
    assert plan.read == ("Id", "AccountId", "Subject", "Description", "CaseNumber", "Status", "ContactId")
    assert plan.dropped == ("SuppliedEmail",)
    assert plan.texts == ("Subject", "Description")
    rows = pa.table(
        {
            "Id": ["500A", "500B"],
            "AccountId": [ANNA, BEN],
            "Subject": ["Carlotta asks", "carlotta asks"],
            "Description": ["Hi, QUIXOTIC here, a@b.de, FEATHERSTONE", None],
            "CaseNumber": ["00001026", "00001027"],
            "Status": ["New", "New"],
            "ContactId": pa.array([None, DORA]),
        }
    )
    made = Pseudonyms(bytes.fromhex(people.KEY))
    assert guard.apply(rows, plan).to_pydict() == {
        "Id": ["500A", "500B"],
        "AccountId": [made.one(ANNA), made.one(BEN)],
        "Subject": ["[NAME] asks", "carlotta asks"],  # she belongs to the other account
        "Description": ["Hi, [NAME] here, [EMAIL], [NAME]", None],
        "CaseNumber": ["00001026", "00001027"],
        "Status": ["New", "New"],
        "ContactId": [None, made.one(DORA)],
    }


def test_relationship_paths_and_types_decide(tmp_path: Path) -> None:
    guard = settled(tmp_path, identifiers={"Account.Phone": "keep", "Contact.Title": "drop"})
    mails = guard.plan("EmailMessage", ["Id", "Parent.AccountId", "TextBody", "FromAddress", "Parent.Account.Name"])
    assert mails.pseudonyms == ("Parent.AccountId", "Parent.ContactId")
    assert mails.dropped == ("FromAddress", "Parent.Account.Name")
    account = guard.plan("Account", ["Id", "Name", "Phone", "BillingStreet", "Industry", "ParentId", "OwnerId"])
    assert account.read == ("Id", "Phone", "Industry", "ParentId", "OwnerId")
    assert account.pseudonyms == ("Id", "ParentId")
    assert account.about == ("Id",)
    assert guard.plan("Contact", ["Title"]).dropped == ("Title",)
    assert guard.plan("Product2", ["Id", "Name"]).texts == ()


def test_history_values_follow_their_field(tmp_path: Path) -> None:
    guard = settled(tmp_path)
    plan = guard.plan("AccountHistory", ["AccountId", "Field", "OldValue", "NewValue"])
    rows = pa.table(
        {
            "AccountId": [ANNA] * 6,
            "Field": ["Industry", "Phone", "Parent", "Parent", "Owner", "TextName"],
            "OldValue": ["Energy", "030 1234567", ANNA, "Quixotic Widgets GmbH", "Some Agent", "Carlotta KG"],
            "NewValue": ["Retail", None, BEN, "Zephyr", "Other Agent", "Formerly Ltd"],
        }
    )
    found, made = guard.apply(rows, plan), Pseudonyms(bytes.fromhex(people.KEY))
    assert found["OldValue"].to_pylist() == ["Energy", None, made.one(ANNA), None, None, None]
    assert found["NewValue"].to_pylist() == ["Retail", None, made.one(BEN), None, None, None]


def test_a_name_learned_later_goes_from_rows_that_lie_in_the_lake(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    lake = Lake.of(org)
    first = settled(tmp_path, lake)
    plan = first.plan("Case", ["Id", "AccountId", "Description"])
    rows = pa.table(
        {"Id": ["500A"], "AccountId": [BEN], "Description": ["Ask Rosalind, or Zephyr"], "ContactId": [EVA]}
    )
    there = first.apply(rows, plan)
    assert there["Description"].to_pylist() == ["Ask Rosalind, or [NAME]"]
    first.finish()
    second = Guard.open(org, lake, people.describe)
    assert second.remembers
    second.learn("Contact", pa.table({"Id": ["0035e000000000DAAQ"], "AccountId": [BEN], "FirstName": ["Rosalind"]}))
    second.settle()
    assert second.renew(there, plan)["Description"].to_pylist() == ["Ask [NAME], or [NAME]"]
    assert second.apply(rows, plan)["Description"].to_pylist() == ["Ask [NAME], or [NAME]"]


# -- consent -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "accounts"), [("any", {BEN}), ("all", set())])
def test_a_withdrawal_binds_the_account_by_the_rule(tmp_path: Path, rule: str, accounts: set[str]) -> None:
    asked = people.individuals(HasOptedOutProcessing=[False, True, False])
    guard = settled(tmp_path, individuals=asked, consent={"account": rule})
    plan = guard.plan("Case", ["Id", "AccountId"])
    rows = pa.table({"Id": ["A", "B", "C"], "AccountId": [ANNA, BEN, BEN], "ContactId": [CARL, DORA, EVA]})
    left = guard.apply(rows, plan)
    assert left["Id"].to_pylist() == (["A"] if rule == "any" else ["A", "C"])
    made, org = Pseudonyms(bytes.fromhex(people.KEY)), people.org(tmp_path)
    found = Withheld.from_run(guard.finish())
    bound = accounts | ({DORA, EVA} if accounts else {DORA})
    assert {made.one(one) for one in bound} <= found.processing <= found.profiling
    assert made.one(ANNA) not in found.profiling
    assert found.channels == {"email": frozenset({made.one(ANNA), made.one(CARL)})} if rule == "any" else True
    assert Withheld.of(Lake.of(org)) == found


def test_who_was_erased_comes_back_neither_into_the_vault_nor_into_consent(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    lake, made = Lake.of(org), Pseudonyms(bytes.fromhex(people.KEY))
    Tombstones.open(org, lake).add([made.one(DORA)])
    guard = settled(tmp_path, lake, people.individuals(HasOptedOutProcessing=[False, True, False]))
    assert made.one(DORA) not in Withheld.from_run(guard.finish()).profiling
    assert made.one(BEN) in Withheld.of(lake).profiling
    assert Vault.open(org, lake).ids_of([made.one(DORA), made.one(BEN)]).to_pylist() == [None, BEN]


def test_profiling_and_contact_points(tmp_path: Path) -> None:
    org = people.org(tmp_path, consent={"account": "all", "purpose": "Marketing"})
    guard = Guard.open(org, Lake.of(org), people.describe)
    for name, rows in people.PEOPLE.items():
        guard.learn(name, rows)
    guard.learn("Individual", people.individuals(HasOptedOutProfiling=[False, True, True]))
    future = datetime(2999, 1, 1, tzinfo=timezone.utc).isoformat()
    points = {
        "Id": ["1", "2", "3", "4"],
        "PartyId": ["0PK5e000000000AAAQ", "0PK5e000000000AAAQ", "0PK5e000000000BAAQ", "0PK5e000000000CAAQ"],
        "ContactPointType": ["Phone", "MailingAddress", "Phone", "Phone"],
        "PrivacyConsentStatus": ["OptOut", "OptOut", "OptOut", "OptIn"],
        "DataUsePurpose.Name": ["Marketing", "Billing", "Marketing", "Marketing"],
        "EffectiveFrom": [None, None, future, None],
    }
    guard.learn("ContactPointTypeConsent", pa.table(points))
    guard.settle()
    found, made = Withheld.from_run(guard.finish()), Pseudonyms(bytes.fromhex(people.KEY))
    assert found.profiling == {made.one(one) for one in (BEN, DORA, EVA, *("0PK5e000000000BAAQ", "0PK5e000000000CAAQ"))}
    assert not found.processing
    assert found.channels["phone"] >= {made.one(ANNA), made.one(CARL)}
    assert made.one(BEN) not in found.channels["phone"]
    assert "mail" not in found.channels


def test_a_withdrawal_taken_back_is_told(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    lake = Lake.of(org)
    settled(tmp_path, lake, people.individuals(ShouldForget=[True, False, False])).finish()
    again = Guard.open(org, lake, people.describe)
    again.learn("Individual", people.individuals())
    again.settle()
    assert again.must_reread


def test_what_is_read_first_is_what_the_org_has(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    reads = Guard.open(org, Lake.of(org), people.describe).reads(["Account", "Contact", "Case"])
    assert reads["Account"] == ["Id", "Name"]
    assert set(reads["Contact"]) < set(READS["Contact"])
    assert "Case" not in reads


# -- the vault ---------------------------------------------------------------------------------------------------------


def test_the_vault_gives_ids_back_and_shows_none(tmp_path: Path) -> None:
    settled(tmp_path)
    org = people.org(tmp_path)
    lake, made = Lake.of(org), Pseudonyms(bytes.fromhex(people.KEY))
    asked = [made.one(BEN), "p" + "a" * 26, None, made.one(ANNA)]
    assert Vault.open(org, lake).ids_of(asked).to_pylist() == [BEN, None, None, ANNA]
    content = [lake.read(path) for path in lake.list("vault/**/*.bin")]
    assert content
    assert not any(ANNA.encode() in data or b"Featherstone" in data for data in content)


def test_a_wrong_key_and_a_changed_file_are_told(tmp_path: Path) -> None:
    settled(tmp_path)
    org = people.org(tmp_path)
    lake = Lake.of(org)
    path = lake.list("vault/**/*.bin")[0]
    data = lake.read(path)
    lake.write(path, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptError, match="was changed"):
        Vault.open(org, lake)
    lake.write(path, data)
    (tmp_path / "vault.key").write_text("55" * 32)
    with pytest.raises(PrivacyError, match="another key"):
        Vault.open(org, lake)


def test_rotation_writes_everything_with_the_new_key(tmp_path: Path) -> None:
    settled(tmp_path)
    (tmp_path / "old.key").write_text(people.VAULT)
    org = people.org(tmp_path, previous_vault_keys=[{"file": "old.key"}])
    (tmp_path / "vault.key").write_text("66" * 32)
    lake, made = Lake.of(org), Pseudonyms(bytes.fromhex(people.KEY))
    vault = Vault.open(org, lake)
    assert vault.ids_of([made.one(ANNA)]).to_pylist() == [ANNA]
    assert vault.rotate() == len(vault.names())
    assert vault.rotate() == 0
    alone = org.model_copy(update={"privacy": org.privacy.model_copy(update={"previous_vault_keys": []})})
    assert Vault.open(alone, lake).ids_of([made.one(ANNA)]).to_pylist() == [ANNA]


# -- the lake ----------------------------------------------------------------------------------------------------------


def test_parquet_of_a_lake_is_encrypted_for_whoever_knows_the_root_alone(tmp_path: Path) -> None:
    org = people.org(tmp_path, lake_key={"file": "lake.key"})
    run = Lake.of(org).run("raw", "Account", "0" * 16)
    run.write_table("part-00000.parquet", pa.table({"Name": ["Featherstone"] * 9}))
    run.commit(rows=9)
    content = (tmp_path / "lake/raw/Account" / run.run_id / "part-00000.parquet").read_bytes()
    assert content[:4] == content[-4:] == b"PARE"
    assert b"Featherstone" not in content
    worker = pickle.loads(pickle.dumps(Lake(org.root)))
    assert people.LAKE.encode() not in pickle.dumps(worker)
    found = worker.latest("raw", "Account")
    assert found.read_table(columns=["Name"]).num_rows == 9
    assert found.open_parquet("part-00000.parquet").metadata.num_rows == 9
    with pytest.raises(PrivacyError, match="not encrypted"):
        Lake.of(people.org(tmp_path, lake_key={"file": "lake.key"}).model_copy(update={"storage": _plain(tmp_path)}))
    (tmp_path / "lake.key").write_text("77" * 32)
    with pytest.raises(PrivacyError, match="not the one of its files"):
        Lake(org.root).latest("raw", "Account").read_table()
    (tmp_path / "lake.key").unlink()
    with pytest.raises(PrivacyError, match="lake_key: secret file"):
        Lake(org.root).latest("raw", "Account").read_table()


def _plain(folder: Path) -> str:
    """A lake that began without a key."""
    Lake(folder / "plain").run("raw", "Account", "0" * 16).commit(rows=0)
    return "plain"


def test_an_endpoint_without_the_key_says_why_it_is_not_ready(tmp_path: Path) -> None:
    org = people.org(tmp_path)
    lake = Lake.of(org)
    made = Pseudonyms.of_org(org)
    assert made is not None
    made.mark(lake)
    toy.write_examples(lake, 20)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    replica = Champion(lake, toy.module(), people.org(tmp_path, pseudonym_key=None))
    assert not replica.poll()
    assert "privacy.pseudonym_key" in replica.status()["problem"]
    assert Champion(lake, toy.module(), org).poll()


def test_rows_older_than_the_wishes_of_persons_are_not_trained_on(tmp_path: Path) -> None:
    org = config.Org.model_validate({"name": "a", "storage": str(tmp_path), "source": {"kind": "demo"}, "tasks": {}})
    lake = Lake.of(org)
    rows = lake.run("examples", "churn", "e1")
    rows.commit(features_version=churn.FEATURES_VERSION, consent=None)
    wishes = Wishes(channels={}, processing=frozenset({"0015e0000000000AAA"}))
    consent.write(lake, wishes, None, Tombstones.open(org, lake))
    with pytest.raises(PrivacyError, match=r"examples/churn/e1.* run the 'examples' job again"):
        fit.fit(org, lake, cast(Any, churn), churn.Settings(), grid=False)
