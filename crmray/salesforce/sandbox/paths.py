"""Field paths of SOQL and of formulas: relationships become left joins, formulas their SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from crmray.salesforce.sandbox.metadata import Field, ObjectType
from crmray.salesforce.sandbox.results import SoqlError
from crmray.salesforce.sandbox.soql import located
from crmray.salesforce.sandbox.tree import Path

MAX_PARENTS = 5
"""relationships in one field path"""
PLACE = re.compile(r"\{([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)\}")
"""a field in a formula"""
ADVICE = "Please reference your WSDL or the describe call for the appropriate names."


@dataclass
class Source:
    """The tables that field paths of one FROM lead to."""

    objects: Mapping[str, ObjectType]
    """all objects of the org, by name"""
    root: ObjectType
    """the object of the FROM"""
    root_names: set[str]
    """lower-case names under which a path may begin with it: its own and its alias"""
    text: str
    """the query, for errors"""
    serial: list[int]
    """number of the newest alias, shared by a query and those within it"""
    alias: str = ""
    """SQL alias of the root"""
    joins: dict[tuple[str, ...], tuple[str, ObjectType]] = field(default_factory=dict)
    """relationships from the root on -> SQL alias and object at their end"""
    clauses: list[str] = field(default_factory=list)
    """SQL of the joins, in their order"""

    def __post_init__(self) -> None:
        self.alias = self._new_alias()
        self.joins[()] = (self.alias, self.root)

    def _new_alias(self) -> str:
        self.serial[0] += 1
        return f"t{self.serial[0]}"

    def resolve(self, path: Path) -> tuple[str, Field, str]:
        """SQL, field and the path in describe's spelling; SoqlError INVALID_FIELD."""
        names = path.names
        if len(names) > 1 and names[0].lower() in self.root_names and not self.root.parent(names[0]):
            names = names[1:]
        *parents, last = names
        if len(parents) > MAX_PARENTS:
            raise self._error(path, f"SOQL relationships cannot go more than {MAX_PARENTS} levels up.")
        prefix: tuple[str, ...] = ()
        for relationship in parents:
            prefix = self._join(prefix, relationship, path)
        alias, parent = self.joins[prefix]
        spec = parent.get(last)
        if spec is None:
            message = (f"No such column '{last}' on entity '{parent.name}'. If you are attempting to use a custom "
                       f"field, be sure to append the '__c' after the custom field name. {ADVICE}")  # fmt: skip
            raise self._error(path, message)
        return self._sql(prefix, alias, spec, path), spec, ".".join((*prefix, spec.name))

    def _sql(self, prefix: tuple[str, ...], alias: str, spec: Field, path: Path) -> str:
        if spec.formula is None:
            return f'{alias}."{spec.name}"'

        def place(match: re.Match[str]) -> str:
            return self.resolve(Path((*prefix, *match[1].split(".")), path.position))[0]

        return f"({PLACE.sub(place, spec.formula)})"

    def _join(self, prefix: tuple[str, ...], relationship: str, path: Path) -> tuple[str, ...]:
        alias, child = self.joins[prefix]
        link = child.parent(relationship)
        if link is None:
            raise self._error(path, f"Didn't understand relationship '{relationship}' in field path. If you are "
                              "attempting to use a custom relationship, be sure to append the '__r' after the custom "
                              f"relationship name. {ADVICE}")  # fmt: skip
        assert link.relationship_name is not None
        key = (*prefix, link.relationship_name)
        if key not in self.joins:
            own = self._new_alias()
            table, parent = self._parent(link)
            self.joins[key] = (own, parent)
            self.clauses.append(f'LEFT JOIN {table} AS {own} ON {alias}."{link.name}" = {own}."Id"')
        return key

    def _parent(self, link: Field) -> tuple[str, ObjectType]:
        """The table a reference leads to; for one to several objects the pseudo-object Name: Id, Name and Type."""
        known = [self.objects[name] for name in link.reference_to if name in self.objects]
        if len(link.reference_to) == 1:
            return f'"{known[0].name}"', known[0]
        selects = []
        for one in known:
            source = Source(self.objects, one, set(), self.text, self.serial)
            name, _, _ = source.resolve(Path((one.name_field.name,), 0))
            selects.append(
                f"""SELECT "Id", {name} AS "Name", '{one.name}' AS "Type" FROM "{one.name}" AS {source.alias}"""
            )
        fields = (Field(name="Id", type="id"), Field(name="Name", type="string"), Field(name="Type", type="picklist"))
        return f"({' UNION ALL '.join(selects)})", ObjectType(name="Name", prefix="000", fields=fields)

    def _error(self, path: Path, message: str) -> SoqlError:
        return SoqlError("INVALID_FIELD", located(self.text, path.position, message))

    def sql(self) -> str:
        """FROM and its joins."""
        return " ".join([f'FROM "{self.root.name}" AS {self.alias}', *self.clauses])


def check_formula(spec: ObjectType, expression: str, objects: Mapping[str, ObjectType]) -> None:
    """SoqlError if a formula of this object names a field that is not there, or leads back to itself."""
    source = Source(objects, spec, set(), expression, [0])
    try:
        for match in PLACE.finditer(expression):
            source.resolve(Path(tuple(match[1].split(".")), match.start()))
    except RecursionError:
        raise SoqlError("INVALID_FIELD", "Formula refers to itself, directly or through another field.") from None


def broken_formulas(spec: ObjectType, objects: Mapping[str, ObjectType]) -> list[str]:
    """Formula fields of this object that name a field that is not there."""
    broken = []
    for one in spec.fields:
        try:
            check_formula(spec, one.formula or "", objects)
        except SoqlError:
            broken.append(one.name)
    return broken
