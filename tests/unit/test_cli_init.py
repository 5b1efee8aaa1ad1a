"""`crmray init` drafts org files."""

from __future__ import annotations

from pathlib import Path

import pytest

from crmray import cli, config
from crmray.commands import draft, look
from crmray.data.ingest import ingest
from crmray.data.plans import inline
from crmray.data.shard import shard
from crmray.org import OpenOrg
from crmray.storage import Lake


def test_init_drafts_an_org_file_for_a_sales_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "retail.csv").write_text(
        "Invoice;StockCode;Description;Quantity;InvoiceDate;Price;Customer ID;Country\n"
        "489434;85048;LIGHTS;12;13/12/2009 07:45;6,95;13085;United Kingdom\n"
        "489435;79323;CAF\xc9;-2;02/12/2009 07:46;2,10;13085;France\n",
        encoding="latin-1",
    )
    out = tmp_path / "org.yaml"
    assert cli.main(["init", str(tmp_path / "retail.csv"), "--out", str(out)]) == 0
    assert "guesses to look at" in capsys.readouterr().out
    org = config.load(out)
    assert org.source.kind == "files"
    ((source,),) = org.source.tables.values()
    assert source.columns == {
        "entity_id": "Customer ID",
        "occurred_at": "InvoiceDate",
        "order_id": "Invoice",
        "product_id": "StockCode",
        "num_units": "Quantity",
        "unit_price_amount": "Price",
    }
    assert (source.date_format, source.delimiter, source.encoding) == ("%d/%m/%Y %H:%M", ";", "latin-1")
    assert source.decimal == ","
    assert set(org.tasks) == {"churn", "segmentation", "recommendation"}
    assert "  # forecast: {}" in out.read_text()
    assert cli.main(["init", str(tmp_path / "retail.csv"), "--out", str(out)]) == 2


def test_init_takes_no_log_of_orders_for_a_table_of_customers(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("Customer;Köpdatum;Antal\n" + "".join(f"{i % 2};0{1 + i}.12.2009;3\n" for i in range(5)))
    guess = look.guess(str(path))
    assert (guess.table, guess.columns) == (None, {})
    assert guess.why.startswith("most values of 'Customer' repeat, so it is no table of customers")
    path.write_text("Kundennummer;Ort\n1;Ulm\n2;Ulm\n2;Bonn\n")  # one repeated by mistake is set aside later
    assert look.guess(str(path)).table == "customers"


def test_init_drafts_an_org_file_for_labelled_rows(tmp_path: Path) -> None:
    path = tmp_path / "churn.csv"
    path.write_text("Call Failure,Complains,Status,Churn\n8,0,1,0\n0,1,2,1\n")
    guess = look.guess(str(path))
    assert (guess.table, guess.label, guess.columns) == ("customers", "Churn", {"entity_id": "$row"})
    drafted = tmp_path / "org.yaml"
    drafted.write_text(draft.render("calls", [guess], tmp_path))
    org = config.load(drafted)
    assert org.source.kind == "files"
    assert set(org.source.tables) == {"customers", "outcomes"}
    assert org.source.tables["customers"][0].attributes == ["Call Failure", "Complains", "Status"]
    assert org.source.tables["outcomes"][0].values == {"name": "churn"}
    assert org.tasks == {"churn": {"label": "outcome:churn"}}


def test_init_sees_a_decimal_comma_in_an_attribute(tmp_path: Path) -> None:
    path = tmp_path / "customers.csv"
    path.write_text("customer;city;credit_limit\n1;Bonn;2500,50\n2;Kiel;900,00\n")
    guess = look.guess(str(path))
    assert (guess.table, guess.settings) == ("customers", {"delimiter": ";", "decimal": ","})
    path.write_text("customer;city;credit_limit;sizes\n1;Bonn;2500.50;1,2\n2;Kiel;900.00;3,4\n")
    assert look.guess(str(path)).settings == {"delimiter": ";"}  # a list is no number


@pytest.mark.parametrize(
    ("columns", "tasks"),
    [("customer,date,text,rating", {"sentiment"}), ("customer,date,text", set()), ("sku,name,price", set())],
)
def test_init_names_the_tasks_that_the_columns_can_carry(tmp_path: Path, columns: str, tasks: set[str]) -> None:
    path, drafted = tmp_path / "rows.csv", tmp_path / "org.yaml"
    path.write_text(f"{columns}\n" + ",".join("1" for _ in columns.split(",")) + "\n")
    drafted.write_text(draft.render("shop", [look.guess(str(path))], tmp_path))
    assert set(config.load(drafted).tasks) == tasks


def test_init_knows_a_shops_headers_and_leaves_out_who_somebody_is(tmp_path: Path) -> None:
    orders, customers = tmp_path / "orders.csv", tmp_path / "customers.csv"
    orders.write_text("OrderNo,CustomerNo,OrderDate,Article,Quantity\n1,7,2024-01-02,tea,1\n2,8,2024-01-03,cup,2\n")
    customers.write_text("Customer Number,E-Mail,Last Name,Plan\n7,a@example.org,Roe,gold\n8,b@example.org,Doe,free\n")
    bought, known = look.guess(str(orders)), look.guess(str(customers))
    assert (bought.columns["entity_id"], bought.columns["product_id"]) == ("CustomerNo", "Article")
    text_of = draft.render("shop", [bought, known], tmp_path)
    assert "attributes: [Plan]" in text_of
    assert "# personal, left out: E-Mail, Last Name" in text_of


@pytest.mark.parametrize(
    "header",
    [
        "Kundennummer;Bestelldatum;Bestellung;Artikel-Nr.;Menge;Stück-Preis;Betrag",
        "Kunde;Rechnungsdatum;Rechnung;Artikel;Stückzahl;Preis;Umsatz",
        "N° client;Date de commande;Commande;Produit;Quantité;Prix unitaire;Montant",
        "Cliente;Fecha;Pedido;Artículo;Cantidad;Precio;Importe",
    ],
)
def test_init_knows_german_french_and_spanish_headers(header: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{header}\n7;13.01.2024;A1;tea;2;1,50;3,00\n8;02.02.2024;A2;cup;1;4,00;4,00\n")
    guess = look.guess(str(path))
    canonical = ("entity_id", "occurred_at", "order_id", "product_id", "num_units", "unit_price_amount", "net_amount")
    assert (guess.table, guess.columns) == ("transactions", dict(zip(canonical, header.split(";"), strict=True)))
    assert guess.settings == {"delimiter": ";", "decimal": ",", "date_format": "%d.%m.%Y"}


def test_init_leaves_out_who_somebody_is_in_other_languages(tmp_path: Path) -> None:
    path = tmp_path / "kunden.csv"
    columns = "Kundennr,Vorname,Straße,Telefon,Prénom,Adresse,Nom,Correo,Teléfono,Nombre,Economy,Tarif"
    path.write_text(f"{columns}\n{','.join('abcdefghijkl')}\n")
    text_of = draft.render("shop", [look.guess(str(path))], tmp_path)
    assert "attributes: [Economy, Tarif]" in text_of


def test_init_marks_the_name_and_the_second_use_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "calls.csv"
    path.write_text("id;minutes;Churn\n1;8,5;0\n2;0,5;1\n")
    assert cli.main(["init", str(path), str(path), "--out", str(tmp_path / "org.yaml")]) == 0
    text_of = (tmp_path / "org.yaml").read_text()
    assert "name: calls  # GUESS by the first file\n" in text_of
    assert "outcomes:  # of the same file, on purpose: what is predicted is no attribute\n" in text_of
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    ((customers,), (outcomes,)) = (
        org.source.tables["customers"],
        org.source.tables["outcomes"],
    )  # named twice, read once
    assert (customers.decimal, outcomes.delimiter) == (",", ";")
    assert cli.main(["init", str(path), "--name", "mine"]) == 0
    assert "name: mine\n" in capsys.readouterr().out


def test_init_keeps_the_files_of_a_table_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("customer,plan,churned\n1,x,0\n2,y,1\n")
    (tmp_path / "b.csv").write_text("customer,city\n1,Ulm\n2,Bonn\n")
    guesses = [look.guess(str(tmp_path / name)) for name in ("a.csv", "b.csv")]
    (tmp_path / "org.yaml").write_text(draft.render("two", guesses, tmp_path))
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    assert {name: len(sources) for name, sources in org.source.tables.items()} == {"customers": 2, "outcomes": 1}


@pytest.mark.parametrize(
    ("content", "tasks", "told"),
    [
        ("customer,plan,converted\n1,x,no\n2,y,yes\n", {"custom.converted": {"outcome": {"given": "converted"}}}, ""),
        ("customer,plan,Gekündigt\n1,x,0\n2,y,1\n", {"churn": {"label": "outcome:churn"}}, ""),
        ("customer,converted\n1,0\n2,1\n", {}, "# converted is an outcome, but nothing else is known of the customers"),
        ("customer,plan,vip\n1,x,0\n2,y,1\n3,z,1\n", {},
         "# to predict vip:  custom.mine: {outcome: {attribute: vip, kind: yes_no}}"),
        ("customer,since\n1,2020-01-01\n", {}, "# none fits yet: churn, segmentation and value need purchases"),
        ("lead,created,converted date,source\n1,2020-01-01,,web\n", {"leads": {}}, ""),
    ],
)  # fmt: skip
def test_init_proposes_the_task_of_an_outcome_or_says_what_is_missing(
    content: str, tasks: dict, told: str, tmp_path: Path
) -> None:
    path, drafted = tmp_path / "rows.csv", tmp_path / "org.yaml"
    path.write_text(content)
    drafted.write_text(draft.render("shop", [look.guess(str(path))], tmp_path))
    assert OpenOrg.load(drafted).config.tasks == tasks
    assert told in drafted.read_text()
    assert ("none fits yet" in drafted.read_text()) == (not tasks)


@pytest.mark.parametrize(
    ("labels", "task"), [(["positive", "Negative"], "sentiment"), (["refund", "delivery", "other"], "intent")]
)
def test_init_reads_labelled_texts_of_nobody(labels: list[str], task: str, tmp_path: Path) -> None:
    path, drafted = tmp_path / "rows.csv", tmp_path / "org.yaml"
    path.write_text("text,label\n" + "".join(f"late again,{label}\n" for label in labels))
    drafted.write_text(draft.render("shop", [look.guess(str(path))], tmp_path))
    org = OpenOrg.load(drafted).config
    assert org.tasks == {task: {"label": "attribute:label", "by": "part"}}
    lake = Lake.of(org)
    ingest(org, lake)
    rows = shard(org, lake, inline)["interactions"].read_table(columns=["interaction_id", "text", "label"])
    assert sorted(map(tuple, (row.values() for row in rows.to_pylist()))) == [
        (str(number), "late again", label) for number, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("labels", "task"), [(["positive", "negative"], "sentiment"), (["refund", "delivery", "other"], "intent")]
)
def test_init_reads_labelled_texts_of_customers_at_a_date(labels: list[str], task: str, tmp_path: Path) -> None:
    path, drafted = tmp_path / "mails.csv", tmp_path / "org.yaml"
    path.write_text(
        "customer,date,text,rating,label\n"
        + "".join(f"c1,2024-01-0{n + 1},late,5,{one}\n" for n, one in enumerate(labels))
    )
    guess = look.guess(str(path))
    drafted.write_text(draft.render("shop", [guess], tmp_path))
    org = OpenOrg.load(drafted).config
    assert org.tasks[task] == {"label": "attribute:label"}  # they have dates to be split by
    assert "churn" not in org.tasks
    lake = Lake.of(org)
    ingest(org, lake)
    rows = (
        shard(org, lake, inline)["interactions"].read_table(columns=["entity_id", "occurred_at", "label"]).to_pylist()
    )
    assert [(row["entity_id"], row["occurred_at"].day, row["label"]) for row in rows] == [
        ("c1", number + 1, label) for number, label in enumerate(labels)
    ]


def test_init_takes_the_label_of_products_for_no_outcome_of_customers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("product_id,name,label\np1,Cup,new\np2,Jug,old\n")
    guess = look.guess(str(path))
    assert (guess.table, guess.label) == ("products", None)
    path.write_text("id,name,churn\n1,Ann,yes\n2,Bob,no\n")  # might be products, but for what came of them
    guess = look.guess(str(path))
    assert (guess.table, guess.label) == ("customers", "churn")


@pytest.mark.parametrize("name", ["123", "on"])
def test_init_writes_names_and_headers_that_yaml_would_take_for_something_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.csv"
    path.write_text('customer,date,"first\nname","size\tof\nshoe",plan\n1,2024-01-01,a,b,c\n')
    people = tmp_path / "people.csv"
    people.write_text('customer,"first\nname","shoe\nsize",plan\n1,a,41,c\n2,b,42,d\n')
    odd = tmp_path / "odd.csv"
    odd.write_text('alpha,"be\nta"\n1,2\n')
    assert cli.main(["init", *map(str, (path, people, odd)), "--out", str(tmp_path / "org.yaml")]) == 0
    org = config.load(tmp_path / "org.yaml")
    assert org.name == name
    assert org.source.kind == "files"
    assert org.source.tables["customers"][0].attributes == ["shoe\nsize", "plan"]
    assert "# personal, left out: first name\n" in (tmp_path / "org.yaml").read_text()


def test_init_takes_the_label_of_a_log_for_no_outcome_of_its_customers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("customer,date,amount,label\n" + "".join(f"{n % 2},2024-01-0{n + 1},5,{n % 2}\n" for n in range(6)))
    guess = look.guess(str(path))
    assert (guess.table, guess.label) == ("transactions", None)


def test_init_says_which_attributes_hold_dates_as_text(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(
        "customer;since;signup;seen;mostly;plan\n"
        + "".join(f"{n};{n}.01.2020;{n}.02.2021;2021-01-{n};2021-01-{n};x{n}\n" for n in range(10, 30))
        + "31;31.01.2020;31.01.2021;2021-01-31;never;x\n"
    )
    guess = look.guess(str(path))
    assert guess.settings == {"delimiter": ";", "date_format": "%d.%m.%Y"}  # of the column that is a canonical one
    assert guess.dates == {"signup": "%d.%m.%Y", "mostly": "ISO 8601"}  # `seen` becomes a time as it stands
    drafted = draft.render("t", [guess], tmp_path)
    assert "# dates as text (%d.%m.%Y), each a category of its own: signup; write them in ISO 8601" in drafted


def test_init_says_which_file_fits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("alpha,beta\n1,2\n")
    text_of = draft.render("odd", [look.guess(str(path))], tmp_path)
    assert f"# left out: {path}: no canonical table fits its columns alpha, beta" in text_of


def test_init_writes_nothing_when_no_file_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "odd.csv", tmp_path / "org.yaml"
    path.write_text("alpha,beta\n1,2\n")
    assert cli.main(["init", str(path), "--out", str(out)]) == 2
    assert f"nothing to draft from ({path}: no canonical table fits its columns alpha, beta)" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        ("Customer ID,Date\n", "org.yaml", "sales.csv: got a header and no rows, expected rows to guess from"),
        (
            "Customer ID,Date\n1,2020-01-01\n",
            "none/org.yaml",
            "org.yaml: got No such file or directory, expected a place",
        ),
    ],
)
def test_init_says_why_it_cannot(
    content: str, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sales.csv").write_text(content)
    assert cli.main(["init", str(tmp_path / "sales.csv"), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err


def test_init_says_what_it_leaves_out_and_reads_back_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sales.csv").write_text("customer,date,order,yes\n1,2020-01-01,7,a\n")
    (tmp_path / "odd.csv").write_text("alpha,beta\n1,2\n")
    (tmp_path / "people.csv").write_text("customer,No\n1,2\n")
    names = [str(tmp_path / name) for name in ("sales.csv", "odd.csv", "people.csv")]
    assert cli.main(["init", *names, "--out", str(tmp_path / "org.yaml")]) == 0
    assert f"left out {names[1]}: no canonical table fits its columns alpha, beta\n" in capsys.readouterr().out
    org = config.load(tmp_path / "org.yaml")
    assert org.source.kind == "files"
    assert org.source.tables["customers"][0].attributes == ["No"]  # a bool in YAML unless it is quoted
    assert set(org.tasks) == {"churn", "segmentation"}  # nothing is recommended without products


def test_one_date_that_cannot_be_does_not_turn_day_and_month(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    days = "".join(f"c{n};{n}.03.2024;5\n" for n in range(1, 29))
    path.write_text(f"customer;date;amount\n{days}c9;02.13.2024;5\n")
    assert look.guess(str(path)).settings["date_format"] == "%d.%m.%Y"
