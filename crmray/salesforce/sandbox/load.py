"""The demo org loaded into a sandbox org, with what a real one has and the demo org lacks: personal data and consent.

Names, mail addresses, phone numbers and streets are made up, drawn from lists by a seeded stream; addresses end in
.example, numbers begin with +999, a country code that nobody has. Each contact has an Individual, and a few have opted
out of something; some sign their cases and mails with name and number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crmray import log
from crmray.config import DemoSource
from crmray.data import demo, demo_sales
from crmray.data import demo_world as dw
from crmray.data.demo_simulate import simulate
from crmray.data.demo_text import pick
from crmray.data.demo_world import World
from crmray.salesforce import ids
from crmray.salesforce.sandbox.store import Store

FIRST_NAMES = (
    "Anna", "Bela", "Carla", "Dario", "Elena", "Farid", "Greta", "Henrik", "Ines", "Jonas", "Katarina", "Luca", "Maja",
    "Nils", "Olga", "Pavel", "Quentin", "Rosa", "Stefan", "Tamara", "Ursula", "Viktor", "Wanda", "Xenia", "Yusuf",
    "Zora", "Amelie", "Boris", "Celine", "David", "Emil", "Frida", "Gustav", "Hanna", "Igor", "Jelena", "Karl", "Lena",
    "Marek", "Nora", "Oskar", "Petra", "Ralf", "Sofia", "Tomas", "Ulrike", "Vera", "Walter",
)  # fmt: skip
LAST_START = (
    "Ander", "Berg", "Carls", "Dorn", "Ehren", "Falken", "Grün", "Hoch", "Immen", "Jäger", "Kirsch", "Linden", "Mühl",
    "Nord", "Oster", "Palm", "Quell", "Rosen", "Stein", "Tannen", "Uhl", "Vogel", "Wald", "Ziegel",
)  # fmt: skip
LAST_END = (
    "baum",
    "berger",
    "dahl",
    "feld",
    "gaard",
    "hagen",
    "inger",
    "kamp",
    "lund",
    "mann",
    "rup",
    "stad",
    "strom",
    "wick",
)
STREETS = (
    "Harbour Road",
    "Mill Lane",
    "Station Street",
    "Church Hill",
    "Garden Avenue",
    "Market Square",
    "North Quay",
    "Old Bridge",
)
CITIES = ("Altburg", "Brixhaven", "Corvale", "Dunmere", "Elmstad", "Fairholm", "Granby", "Hollin")
HOSTS = ("post.example", "mail.example", "inbox.example", "office.example")
TRANSLITERATED = (("ü", "ue"), ("ä", "ae"))
PURPOSE = "Marketing"
CONSENT_FLAGS = (
    "HasOptedOutProcessing",
    "HasOptedOutProfiling",
    "HasOptedOutTracking",
    "HasOptedOutSolicit",
    "ShouldForget",
)
PURPOSES = {"account": 21, "contact": 22, "lead": 23, "consent": 24, "signature": 25}
"""numbers of the random streams of a block, apart from the demo org's own"""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How many people have said what; fractions 0..1."""

    email_opt_out: float = 0.05
    """contacts and leads with HasOptedOutOfEmail"""
    opt_out: float = 0.02
    """individuals with each of the HasOptedOut… flags, drawn apart"""
    forget: float = 0.003
    """individuals with ShouldForget"""
    consent: float = 0.15
    """individuals with a ContactPointTypeConsent for e-mail, one in five of them OptOut"""
    signed: float = 0.25
    """cases and incoming mails signed with name and phone number"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected a fraction of 0 to 1")


DEFAULT_SHARES = Shares()


def load_demo(
    store: Store,
    *,
    customers: int = 6_000,
    months: int = 36,
    end: str = "2026-10-01",
    seed: int = 0,
    shares: Shares = DEFAULT_SHARES,
) -> dict[str, int]:
    """Load the demo org block by block, in bounded memory; object -> rows. Equal settings give equal rows.

    Raises ConfigError for an end that is no date; ValueError if the store has products, which are loaded first.
    """
    if store.query("SELECT COUNT() FROM Product2", all_rows=True).count:
        raise ValueError("got a store with products, expected a new one: the demo org's ids would come twice")
    scene = demo.world(DemoSource(kind="demo", customers=customers, months=months, end=end), seed)
    rows = store.load({name: [make(scene)] for name, make in demo.SMALL.items()})
    rows |= store.load({"DataUsePurpose": [_purpose(scene)]})
    with log.progress("sandbox.load", total=scene.customers, unit="customers") as bar:
        for index in range(scene.num_blocks):
            added = store.load({name: [table] for name, table in _block(scene, index, shares).items()})
            rows |= {name: rows.get(name, 0) + count for name, count in added.items()}
            bar.advance(min(dw.BLOCK, scene.customers - index * dw.BLOCK))
    return rows


def _block(scene: World, index: int, shares: Shares) -> dict[str, pa.Table]:
    """The rows of one block in every object, personal data added."""
    block = simulate(scene, index)
    made = demo.tables(scene, block, index)
    rng = {name: scene.rng(index, number) for name, number in PURPOSES.items()}
    made["Account"] = _addresses(made["Account"], rng["account"])
    leads, contacts = (demo_sales.serials(block, made[name].num_rows) for name in ("Lead", "Contact"))
    made["Lead"] = _people(made["Lead"], leads, rng["lead"], shares)
    contact = _people(made["Contact"], contacts, rng["contact"], shares)
    made["Contact"] = contact.append_column("IndividualId", ids.make("0PK", contacts))
    made["Individual"], made["ContactPointTypeConsent"] = _consent(made["Contact"], contacts, rng["consent"], shares)
    made["Case"], made["EmailMessage"] = _sign(made["Case"], made["EmailMessage"], contact, rng["signature"], shares)
    return made


def _joined(*parts: pa.Array | str, by: str = "") -> pa.Array:
    return pc.binary_join_element_wise(*parts, by)


def _digits(rng: np.random.Generator, count: int, width: int) -> pa.Array:
    """Numbers of so many digits, as text."""
    return pc.utf8_lpad(pc.cast(pa.array(rng.integers(0, 10**width, count)), pa.string()), width, "0")


def _phones(rng: np.random.Generator, count: int) -> pa.Array:
    return _joined("+999", _digits(rng, count, 2), _digits(rng, count, 3), _digits(rng, count, 4), by=" ")


def _with(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """The table with columns added or replaced."""
    for name, values in columns.items():
        place = table.column_names.index(name) if name in table.column_names else table.num_columns
        table = (
            table.set_column(place, name, values) if place < table.num_columns else table.append_column(name, values)
        )
    return table


def _addresses(account: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Account with phone and billing address."""
    count = account.num_rows
    number = pc.cast(pa.array(rng.integers(1, 200, count)), pa.string())
    return _with(
        account,
        {
            "Phone": _phones(rng, count),
            "BillingStreet": _joined(pick(rng, STREETS, count), number, by=" "),
            "BillingCity": pick(rng, CITIES, count),
            "BillingPostalCode": _digits(rng, count, 5),
        },
    )


def _people(table: pa.Table, serial: np.ndarray, rng: np.random.Generator, shares: Shares) -> pa.Table:
    """Contact or Lead with name, mail and phones; the mail has the row's serial number, so none comes twice."""
    count = table.num_rows
    first, last = (
        pick(rng, FIRST_NAMES, count),
        _joined(pick(rng, LAST_START, count), pick(rng, LAST_END, count)),
    )
    plain = pc.utf8_lower(_joined(first, last, by="."))
    for mark, letters in TRANSLITERATED:
        plain = pc.replace_substring(plain, mark, letters)
    number = pc.cast(pa.array(serial), pa.string())
    return _with(
        table,
        {
            "FirstName": first,
            "LastName": last,
            "Email": _joined(_joined(plain, number, by="."), pick(rng, HOSTS, count), by="@"),
            "Phone": _phones(rng, count),
            "MobilePhone": pc.if_else(pa.array(rng.random(count) < 0.6), _phones(rng, count), None),
            "HasOptedOutOfEmail": pa.array(rng.random(count) < shares.email_opt_out),
        },
    )


def _consent(
    contact: pa.Table, serial: np.ndarray, rng: np.random.Generator, shares: Shares
) -> tuple[pa.Table, pa.Table]:
    """Individual for each contact, and ContactPointTypeConsent for some."""
    count = contact.num_rows
    share = {name: shares.forget if name == "ShouldForget" else shares.opt_out for name in CONSENT_FLAGS}
    system = {name: contact[name] for name in ("CreatedDate", "SystemModstamp", "IsDeleted")}
    individual = pa.table(
        {
            "Id": contact["IndividualId"],
            "FirstName": contact["FirstName"],
            "LastName": contact["LastName"],
            **{name: pa.array(rng.random(count) < share[name]) for name in CONSENT_FLAGS},
            **system,
        }
    )
    asked = np.flatnonzero(rng.random(count) < shares.consent)
    at = pa.array(asked)
    status = pa.array(["OptIn", "OptOut"]).take(pa.array((rng.random(len(asked)) < 0.2).astype(int)))
    consent = pa.table(
        {
            "Id": ids.make("0ZX", serial[asked]),
            "Name": _joined("Consent ", pc.cast(pa.array(serial[asked]), pa.string())),
            "PartyId": contact["IndividualId"].take(at),
            "DataUsePurposeId": pa.array([ids.make("0ZW", np.array([1]))[0].as_py()] * len(asked), pa.string()),
            "ContactPointType": pa.array(["Email"] * len(asked), pa.string()),
            "PrivacyConsentStatus": status,
            "EffectiveFrom": contact["CreatedDate"].take(at),
            **{name: values.take(at) for name, values in system.items()},
        }
    )
    return individual, consent


def _purpose(scene: World) -> pa.Table:
    moment = demo_sales.moments(scene, np.array([0.0]))
    return pa.table({"Id": ids.make("0ZW", np.array([1])), "Name": [PURPOSE], "CanDataSubjectOptOut": [True],
                     "CreatedDate": moment, "SystemModstamp": moment, "IsDeleted": [False]})  # fmt: skip


def _sign(
    case: pa.Table, email: pa.Table, contact: pa.Table, rng: np.random.Generator, shares: Shares
) -> tuple[pa.Table, pa.Table]:
    """Cases and incoming mails, some of them signed by the contact; mails with their sender or receiver."""
    writer = pc.index_in(case["ContactId"], contact["Id"].combine_chunks())
    name = _joined(contact["FirstName"].combine_chunks(), contact["LastName"].combine_chunks(), by=" ")
    signature = _joined("\n", name, ", ", contact["Phone"].combine_chunks())
    own = pc.if_else(pa.array(rng.random(case.num_rows) < shares.signed), signature.take(writer.combine_chunks()), "")
    case = _with(case, {"Description": _joined(case["Description"].combine_chunks(), own)})
    parent = pc.index_in(email["ParentId"], case["Id"].combine_chunks())
    sender = writer.take(parent).combine_chunks()
    incoming = email["Incoming"].combine_chunks()
    signs = pc.and_(incoming, pa.array(rng.random(email.num_rows) < shares.signed))
    text = _joined(email["TextBody"].combine_chunks(), pc.if_else(signs, signature.take(sender), ""))
    address = contact["Email"].combine_chunks().take(sender)
    added = {
        "TextBody": text,
        "FromAddress": pc.if_else(incoming, address, "service@demo.example"),
        "ToAddress": pc.if_else(incoming, "service@demo.example", address),
    }
    return case, _with(email, added)
