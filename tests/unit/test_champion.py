"""A replica's watch, without Ray: what a store raises leaves the old version in place."""

import asyncio
import dataclasses

import pyarrow as pa
import pytest
import toy_task as toy
from starlette.testclient import TestClient

from crmray import log, registry
from crmray.privacy import consent
from crmray.storage import Lake
from serve import app, champion, options
from serve.errors import Refused
from serve.http import task_app
from serve.known import Known

SECRET = "c00007"


@pytest.fixture
def told(monkeypatch):
    told = []
    monkeypatch.setattr(log, "event", lambda name, *, level=20, **fields: told.append((name, fields)))
    return told


def test_an_error_of_the_store_leaves_the_old_version(tmp_path, monkeypatch, told):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 20)
    for version, bias in (("a" * 16, 2.5), ("b" * 16, 2.6)):
        toy.write_bundle(lake, version, bias=bias, weight=-1.0)
        registry.publish(lake, toy.module(), force="test")
        if version[0] == "a":
            replica = champion.Champion(lake, toy.module())
            assert replica.poll()

    def fails(*_):
        raise OSError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(champion, "load_bundle", fails)
        told.clear()
        assert not replica.poll()
        assert not replica.poll()
    assert told == [("serve.load_failed", {"task": "toy", "kind": "OSError"})]
    assert replica.status() == {**replica.status(), "version": "a" * 16, "problem": "OSError"}
    assert replica.poll()
    assert replica.status() == {**replica.status(), "version": "b" * 16, "problem": ""}


def test_a_withdrawal_does_not_wait_for_a_version_that_cannot_be_loaded(tmp_path, monkeypatch, told):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 20)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    replica = champion.Champion(lake, toy.module())
    assert replica.poll()
    toy.write_bundle(lake, "b" * 16, bias=2.6, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    run = lake.run("raw", "consent", "c" * 16)
    run.write_table("part-00000.parquet", pa.table([[SECRET], [True], [False], [[]]], schema=consent.SCHEMA))
    run.commit()

    def fails(*_):
        raise OSError

    monkeypatch.setattr(champion, "load_bundle", fails)
    assert not replica.poll()
    assert replica.current().bundle.version == "a" * 16
    assert replica.current().withheld.profiling == {SECRET}


def test_what_is_quoted_of_those_who_withdrew_goes_with_their_consent(tmp_path, monkeypatch, told):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 20)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    monkeypatch.setattr(toy.module(), "without", lambda decision, gone: {**decision, "gone": set(gone)}, raising=False)
    replica = champion.Champion(lake, toy.module())
    assert replica.poll()
    assert "gone" not in replica.current().bundle.decision
    run = lake.run("raw", "consent", "c" * 16)
    run.write_table("part-00000.parquet", pa.table([[SECRET], [True], [False], [[]]], schema=consent.SCHEMA))
    run.commit()
    replica.poll()
    assert replica.current().bundle.decision["gone"] == {SECRET}
    started_later = champion.Champion(lake, toy.module())
    assert started_later.poll()
    assert started_later.current().bundle.decision["gone"] == {SECRET}
    run = lake.run("raw", "consent", "d" * 16)
    run.write_table("part-00000.parquet", consent.SCHEMA.empty_table())
    run.commit()
    replica.poll()
    assert "gone" not in replica.current().bundle.decision


@pytest.mark.parametrize("route", ["/v1/toy", ""])
def test_what_is_logged_of_our_own_mistake_holds_no_id(told, route):
    class Wrong:
        async def answer(self, request):
            raise LookupError(request.id)

    app_ = task_app(toy.module(), Wrong(), options=options.TaskOptions(task="toy"), keys=None)
    answer = TestClient(app_, root_path=route).get(f"{route}/{SECRET}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert SECRET not in str(told)
    ((name, fields),) = told
    assert (name, fields["kind"], fields["route"]) == ("serve.internal_error", "LookupError", route)


def test_the_watch_outlives_any_exception(told):
    class Keys:
        refreshed = 0

        def refresh(self):
            self.refreshed += 1
            return 1

    def fails():
        raise LookupError(SECRET)

    async def watched():
        watch = asyncio.create_task(app._watch(0.01, fails, keys))
        while keys.refreshed < 3:
            assert not watch.done()
            await asyncio.sleep(0.01)
        watch.cancel()

    keys = Keys()
    asyncio.run(asyncio.wait_for(watched(), 10))
    assert told == [("serve.watch_failed", {"kind": "LookupError"})]


def test_the_demo_org_is_not_served_silently(monkeypatch, tmp_path, told):
    monkeypatch.delenv("CRMRAY_ORG", raising=False)
    assert options.RootOptions().load_org().name == "demo"
    assert [name for name, _ in told] == ["serve.demo_org"]
    told.clear()
    options.RootOptions(org=toy.write_org(tmp_path)).load_org()
    assert told == []


def test_an_unknown_series_or_product_is_told_one_like_it_but_nobodys_name(tmp_path):
    def like(sent, rows):
        return Known(run=Lake(tmp_path).run("examples", "x", "0" * 16), manifest={}, rows=rows, _ids=[]).like(sent)

    levels = {"total": ["total"], "product": ["P0042", "P0043"], "owner": ["Ann Lee"], "customer,product": ["C1,P0042"]}
    named = [(name, level) for level, values in levels.items() for name in values]
    ids = [name if level == "total" else f"{level}:{name}" for name, level in named]
    series = pa.table({"entity_id": ids, "level": [level for _, level in named]})
    told = "; series are named `level:value` or `total`, levels here are customer,product, owner, product, total"
    assert like("product:P042", series) == f"; did you mean 'product:P0042'?{told}"
    assert like("P0043", series) == f"; did you mean 'product:P0043'?{told}"
    for other in ("owner:Ann Le", "Ann Lee", "customer,product:C1,P0043", "weather"):
        assert like(other, series) == told
    many = pa.table({"entity_id": [f"item-{number:05d}" for number in range(5_000)]})
    assert like("item-0490", many).startswith("; did you mean 'item-049")
    assert like("weather", many) == ""


def test_the_names_of_series_are_gathered_once_without_the_other_columns(tmp_path):
    table, read = pa.table({"entity_id": ["product:P0042", "total"], "level": ["product", "total"]}), []

    class Rows:
        column_names = ("entity_id", "level", "history")

        def __getitem__(self, name):
            read.append(name)
            return table[name]

    known = Known(run=Lake(tmp_path).run("examples", "x", "0" * 16), manifest={}, rows=Rows(), _ids=[])
    told = known.like("product:P042")
    assert told.startswith("; did you mean 'product:P0042'?")
    assert set(read) == {"entity_id", "level"}
    read.clear()
    assert known.like("product:P042") == told
    assert read == []


def test_products_that_are_not_listed_are_found_without_the_whole_table(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 20)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    products = pa.table({"product_id": pa.chunked_array([["p1"], ["p2", "p3"]]).dictionary_encode()})
    monkeypatch.setattr(Known, "shared_tables", lambda known: {"products": products})
    replica = champion.Champion(lake, toy.module())
    assert replica.poll(), replica.problem
    served = dataclasses.replace(replica.current(), shared={})
    rows = [{"product_id": one, "campaign_id": "c1"} for one in ("p9", "p2", "p8", "p9", None)]
    assert served.not_listed({"transactions": rows, "engagement": [{"kind": "visit"}]}) == ["p8", "p9"]


def test_what_spans_customers_cannot_be_described_or_continued_by_rows(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    toy.write_examples(lake, 20)
    toy.write_bundle(lake, "a" * 16, bias=2.5, weight=-1.0)
    registry.publish(lake, toy.module(), force="test")
    replica = champion.Champion(lake, toy.module())
    assert replica.poll()
    monkeypatch.setattr(toy.module(), "gather", lambda tables, settings: {}, raising=False)
    for field, ask in (
        ("recent_events", lambda served: served.updated(SECRET, {})),
        ("customer", lambda served: served.described({}, "customer")),
    ):
        with pytest.raises(Refused, match=f"{field}: got rows, .*expected an id alone") as refused:
            ask(replica.current())
        assert (refused.value.status, refused.value.field) == (422, field)
