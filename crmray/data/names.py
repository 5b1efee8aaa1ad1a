"""Which columns the tables of an org have by its org file, so that a wrong name is told before any job runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crmray import schema
from crmray.config import DemoSource, Org, SalesforceSource
from crmray.errors import did_you_mean
from crmray.salesforce import mapping


@dataclass(frozen=True, kw_only=True)
class Names:
    """What can be named in a section about an org's data."""

    columns: Mapping[str, tuple[str, ...]]
    """canonical table -> its columns, and the attributes that the org file names"""
    called: Mapping[str, Mapping[str, str]]
    """canonical table -> column of the source -> what it is called in the table"""
    has_more: frozenset[str]
    """tables with `attributes: "*"`, which may have columns beside these"""

    @classmethod
    def of(cls, org: Org) -> Names:
        """By the org file alone; of a Salesforce org, as if it had all of the standard mapping."""
        if isinstance(org.source, SalesforceSource):
            tables = mapping.wanted(org.source)
        else:
            tables = mapping.STANDARD if isinstance(org.source, DemoSource) else org.source.tables
        columns, called = {}, {}
        for name, spec in schema.TABLES.items():
            sources = tables.get(name, [])
            own = [attribute for source in sources if source.attributes != "*" for attribute in source.attributes]
            columns[name] = tuple(dict.fromkeys([*spec.fields, *own]))
            called[name] = {column: canonical for source in sources for canonical, column in source.columns.items()}
        more = {name for name, sources in tables.items() if any(source.attributes == "*" for source in sources)}
        return cls(columns=columns, called=called, has_more=frozenset(more))

    def refuse_unknown(self, key: str, table: str, columns: Iterable[str]) -> None:
        """ValueError for a column that the table cannot have, with what may have been meant. key: of the org file."""
        for column in columns:
            known, called = self.columns[table], self.called[table].get(column)
            if column in known or (table in self.has_more and called is None):
                continue
            raise ValueError(
                f"{key}: table {table}: got column {column!r}, expected one of {', '.join(known)}"
                f"{self._hint(table, column)}"
            )

    def _hint(self, table: str, column: str) -> str:
        if called := self.called[table].get(column):
            return f"; {column} of the source is called {called!r} there"
        if near := did_you_mean(column, self.columns[table]):
            return near
        other = next((name for name, columns in self.columns.items() if column in columns), None)
        return f"; table {other} has one" if other else "; what else the source has goes under `attributes:`"
