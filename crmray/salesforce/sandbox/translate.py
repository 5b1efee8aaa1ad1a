"""A parsed query as SQL over the store's tables: relationships become left joins, formulas their SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from crmray.salesforce.sandbox.conditions import FILTER, Conditions
from crmray.salesforce.sandbox.metadata import NUMBER_TYPES, TEXT_TYPES, Field, ObjectType
from crmray.salesforce.sandbox.paths import ADVICE, Source
from crmray.salesforce.sandbox.results import SoqlError
from crmray.salesforce.sandbox.soql import located
from crmray.salesforce.sandbox.tree import Both, Call, Compare, Condition, Item, Negation, Order, Path, Query

MAX_OFFSET = 2000
MAX_ALL_FIELDS = 200
"""rows of a query with FIELDS(…)"""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """SQL of a query."""

    sql: str
    """with ? for each of `params`"""
    params: list
    """values"""
    object: str
    """the object of FROM"""
    columns: list[str]
    """as in SELECT"""
    types: list[str]
    """Salesforce types of the columns"""
    aggregate: bool
    """whether the rows are groups"""
    count_only: bool
    """whether it is COUNT() alone"""


def translate(query: Query, objects: Mapping[str, ObjectType], now: datetime, *, all_rows: bool) -> Compiled:
    """SQL of a query over these objects; `now` (UTC, naive) is what date literals count from. SoqlError."""
    params: list = []
    return _Translation(query, objects, now, all_rows, params, [0]).compiled()


class _Translation:
    def __init__(
        self,
        query: Query,
        objects: Mapping[str, ObjectType],
        now: datetime,
        all_rows: bool,
        params: list,
        serial: list[int],
    ):
        self.query, self.objects, self.now, self.all_rows = query, objects, now, all_rows
        self.params, self.serial = params, serial
        root = {name.lower(): spec for name, spec in objects.items()}.get(query.object.lower())
        if root is None:
            message = (f"sObject type '{query.object}' is not supported. If you are attempting to use a custom object, "
                       f"be sure to append the '__c' after the entity name. {ADVICE}")  # fmt: skip
            raise SoqlError("INVALID_TYPE", located(query.text, query.object_position, message))
        names = {query.object.lower(), *([query.alias.lower()] if query.alias else [])}
        self.source = Source(objects, root, names, query.text, serial)
        self.conditions = Conditions(query.text, now, params)
        self.grouped = bool(query.group_by) or any(isinstance(item.operand, Call) for item in query.items)

    def compiled(self) -> Compiled:
        query = self.query
        if query.offset > MAX_OFFSET:
            raise SoqlError("NUMBER_OUTSIDE_VALID_RANGE", f"Maximum SOQL offset allowed is {MAX_OFFSET}")
        items = self._items()
        counting = any(isinstance(item.operand, Call) and item.operand.path is None for item in items)
        if counting and (len(items) > 1 or query.group_by):
            raise self._error(items[0].position, "Grouped queries cannot use COUNT() with other fields")
        groups = [self._group(path) for path in query.group_by]
        made = [self._select(item, groups) for item in items]
        names, types = self._names(items, [spelled for _, _, spelled in made]), [type_ for _, type_, _ in made]
        where = self._where()
        having = f" HAVING {self._having(query.having, groups)}" if query.having else ""
        order = [self._order(one, groups) for one in query.order_by]
        selected = ", ".join(f'{sql} AS "{name}"' for (sql, _, _), name in zip(made, names, strict=True))
        sql = f"SELECT {selected} {self.source.sql()} WHERE {where}"
        sql += f" GROUP BY {', '.join(groups)}" if groups else ""
        sql += having
        sql += f" ORDER BY {', '.join(order)}" if order else ""
        sql += f" LIMIT {query.limit}" if query.limit is not None and not counting else ""
        sql += f" OFFSET {query.offset}" if query.offset and not counting else ""
        return Compiled(sql=sql, params=self.params, object=self.source.root.name, columns=names, types=types,
                        aggregate=self.grouped and not counting, count_only=counting)  # fmt: skip

    def ids(self) -> str:
        """SQL of a semi-join's subquery: the values of its one field."""
        query = self.query
        if query.group_by or query.having or query.order_by or query.limit is not None or query.offset:
            message = "Semi join sub-selects cannot use GROUP BY, HAVING, ORDER BY, LIMIT or OFFSET"
            raise self._error(query.object_position, message)
        if len(query.items) != 1 or not isinstance(query.items[0].operand, Path):
            raise self._error(query.items[0].position, "Semi join sub-selects must select exactly one field")
        sql, spec, _ = self.source.resolve(query.items[0].operand)
        if spec.type not in ("id", "reference"):
            message = f"The selected field '{spec.name}' in the semi join sub-select must be an ID or reference field"
            raise self._error(query.items[0].position, message)
        where = self._where()
        return f"SELECT {sql} {self.source.sql()} WHERE {where}"

    def _error(self, position: int, message: str) -> SoqlError:
        return SoqlError("MALFORMED_QUERY", located(self.query.text, position, message))

    def _items(self) -> list[Item]:
        """What is selected, FIELDS(…) spelled out."""
        found = []
        for item in self.query.items:
            if item.fields is None:
                found.append(item)
                continue
            if self.query.limit is None or self.query.limit > MAX_ALL_FIELDS:
                message = f"The SOQL FIELDS function must have a LIMIT of at most {MAX_ALL_FIELDS}"
                raise self._error(item.position, message)
            wanted = {"ALL": (False, True), "STANDARD": (False,), "CUSTOM": (True,)}[item.fields]
            names = [one.name for one in self.source.root.fields if one.custom in wanted]
            found += [Item(Path((name,), item.position), position=item.position) for name in names]
        return found

    def _select(self, item: Item, groups: list[str]) -> tuple[str, str, str]:
        """SQL, Salesforce type and name of something selected."""
        assert item.operand is not None
        if isinstance(item.operand, Call):
            sql, spec = self._call(item.operand)
            return sql, spec.type, item.alias or ""
        sql, spec, spelled = self.source.resolve(item.operand)
        if not self.grouped:
            return sql, spec.type, spelled
        if _key(sql, spec) not in groups:
            raise self._error(item.position, f"Field must be grouped or aggregated: {spec.name}")
        return (f"min({sql})" if spec.type in TEXT_TYPES else sql), spec.type, item.alias or spec.name

    def _names(self, items: list[Item], spelled: list[str]) -> list[str]:
        """Names of the columns: expr0, expr1, … for aggregates without an alias; none may come twice."""
        names: list[str] = []
        serial = 0
        for item, name in zip(items, spelled, strict=True):
            if not name:
                name = f"expr{serial}"
                serial += 1
            if name.lower() in (other.lower() for other in names):
                message = f"duplicate {'alias' if self.grouped else 'field selected'}: {name}"
                code = "MALFORMED_QUERY" if self.grouped else "INVALID_FIELD"
                raise SoqlError(code, located(self.query.text, item.position, message))
            names.append(name)
        return names

    def _group(self, path: Path) -> str:
        sql, spec, _ = self.source.resolve(path)
        self._filterable(spec, path, "grouped")
        return _key(sql, spec)

    def _call(self, call: Call) -> tuple[str, Field]:
        """SQL of an aggregate and a field of its type."""
        number = Field(name="expr", type="int")
        if call.path is None:
            return "count(*)", number
        sql, spec, _ = self.source.resolve(call.path)
        self._filterable(spec, call, "aggregated")
        if call.function in ("SUM", "AVG"):
            if spec.type not in NUMBER_TYPES:
                raise self._error(
                    call.position, f"field {spec.name} does not support aggregate operator {call.function}"
                )
            return f"{call.function.lower()}({sql})::DOUBLE", Field(name="expr", type="double", scale=spec.scale)
        if call.function in ("MIN", "MAX"):
            if spec.type == "boolean":
                raise self._error(
                    call.position, f"field {spec.name} does not support aggregate operator {call.function}"
                )
            return f"{call.function.lower()}({sql})", spec
        return (f"count({sql})" if call.function == "COUNT" else f"count(DISTINCT {_key(sql, spec)})"), number

    def _order(self, order: Order, groups: list[str]) -> str:
        if isinstance(order.operand, Call):
            if not self.grouped:
                raise self._error(order.operand.position, "Ordered field must be grouped or aggregated")
            key = self._call(order.operand)[0]
        else:
            sql, spec, _ = self.source.resolve(order.operand)
            self._filterable(spec, order.operand, "sorted")
            key = _key(sql, spec)
            if self.grouped and key not in groups:
                raise self._error(order.operand.position, f"Field must be grouped or aggregated: {spec.name}")
        return f"{key} {'DESC' if order.descending else 'ASC'} NULLS {'LAST' if order.nulls_last else 'FIRST'}"

    def _having(self, condition: Condition, groups: list[str]) -> str:
        """SQL of HAVING, whose fields are aggregated or grouped by."""
        for one in _compared(condition):
            if not self.grouped:
                raise self._error(one.position, "Having clause is only allowed in aggregate queries")
            if isinstance(one.operand, Path):
                sql, spec, _ = self.source.resolve(one.operand)
                if _key(sql, spec) not in groups:
                    raise self._error(one.position, f"Field must be grouped or aggregated: {spec.name}")
        return self._condition(condition)

    def _where(self) -> str:
        deletable = self.source.root.get("IsDeleted") is not None
        alive = [f'NOT {self.source.alias}."IsDeleted"'] if deletable and not self.all_rows else []
        for one in _compared(self.query.where) if self.query.where else ():
            if isinstance(one.operand, Call):
                raise self._error(one.position, "Aggregate expressions are not allowed in a where clause, use HAVING")
        wanted = [self._condition(self.query.where)] if self.query.where else []
        return " AND ".join(alive + wanted) or "true"

    def _condition(self, condition: Condition) -> str:
        """SQL that is true exactly where the condition holds; elsewhere false or null."""
        if isinstance(condition, Both):
            return "(" + f" {condition.word} ".join(self._condition(part) for part in condition.parts) + ")"
        if isinstance(condition, Negation):
            return f"NOT coalesce({self._condition(condition.part)}, false)"
        return self._compare(condition)

    def _compare(self, one: Compare) -> str:
        if isinstance(one.operand, Call):
            sql, spec = self._call(one.operand)
        else:
            sql, spec, _ = self.source.resolve(one.operand)
            self._filterable(spec, one.operand, "filtered")
        if one.operator in ("IN", "NOT IN"):
            found = self._among(sql, spec, one)
            return f"NOT coalesce({found}, false)" if one.operator == "NOT IN" else found
        assert not isinstance(one.value, tuple | Query)
        return self.conditions.compare(sql, spec, one.operator, one.value)

    def _among(self, sql: str, spec: Field, one: Compare) -> str:
        if isinstance(one.value, tuple):
            return self.conditions.among(sql, spec, one.value)
        assert isinstance(one.value, Query)
        if spec.type not in ("id", "reference"):
            message = (
                "The left operand field in the where expression for outer query should be an id field, "
                f"cannot use: '{spec.name}'"
            )
            raise SoqlError(FILTER, located(self.query.text, one.position, message))
        inner = _Translation(one.value, self.objects, self.now, self.all_rows, self.params, self.serial)
        return f"{sql} IN ({inner.ids()})"

    def _filterable(self, spec: Field, at: Path | Call, verb: str) -> None:
        if not spec.filterable:
            message = f"field '{spec.name}' can not be {verb} in a query call"
            raise SoqlError("INVALID_FIELD", located(self.query.text, at.position, message))


def _compared(condition: Condition) -> Iterator[Compare]:
    """The comparisons of a condition."""
    if isinstance(condition, Both):
        for part in condition.parts:
            yield from _compared(part)
    elif isinstance(condition, Negation):
        yield from _compared(condition.part)
    else:
        yield condition


def _key(sql: str, spec: Field) -> str:
    """What groups and sorts by a field: texts without regard to case."""
    return f"lower({sql})" if spec.type in TEXT_TYPES else sql
