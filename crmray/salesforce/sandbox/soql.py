"""SOQL, parsed: a tokenizer and a recursive-descent parser to a small tree, with Salesforce's wording where it refuses.

    query      := SELECT item {"," item} FROM name [[AS] alias] [WHERE condition] [GROUP BY path {"," path}]
                  [HAVING condition] [ORDER BY operand [ASC|DESC] [NULLS FIRST|LAST] {"," …}] [LIMIT n] [OFFSET n]
    item       := path | function "(" [path] ")" [alias] | FIELDS "(" ALL|STANDARD|CUSTOM ")"
    condition  := unary {AND unary} | unary {OR unary}          (mixing the two needs parentheses, as in Salesforce)
    unary      := NOT unary | "(" condition ")" | operand operator value
    value      := literal | "(" literal {"," literal} ")" | "(" query ")"

Source: "SOQL SELECT syntax", SOQL and SOSL Reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timezone

from crmray.salesforce.sandbox.results import SoqlError
from crmray.salesforce.sandbox.tree import Both, Call, Compare, Condition, Item, Literal, Negation, Order, Path, Query

MAX_CHARACTERS = 100_000
"""of a query"""
MAX_DEPTH = 60
"""of parentheses and NOTs"""
MAX_DIGITS = 9
"""of LIMIT, OFFSET and the n of LAST_N_DAYS:n"""
FUNCTIONS = ("COUNT", "COUNT_DISTINCT", "MIN", "MAX", "SUM", "AVG")
CLAUSES = {"WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "OFFSET", "FROM", "USING", "WITH", "FOR", "ALL"}
RESERVED = {"SELECT", "FROM", "WHERE", "AND", "OR", "NOT"}
"""words that name no field"""
OPERATORS = {"=", "!=", "<>", "<", "<=", ">", ">="}
TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>'(?:[^'\\]|\\.)*')
  | (?P<datetime>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d))
  | (?P<date>\d{4}-\d\d-\d\d)
  | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*)*)
  | (?P<symbol><=|>=|!=|<>|[=<>(),:])
  )""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "'": "'", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Token:
    """A piece of the query."""

    kind: str
    """name of the group of the lexer's pattern that it matched"""
    text: str
    """as it stands in the query"""
    position: int
    """of its first character"""


def parse(text: str) -> Query:
    """The tree of a query; SoqlError MALFORMED_QUERY."""
    if len(text) > MAX_CHARACTERS:
        raise SoqlError("MALFORMED_QUERY", f"SOQL statements cannot be longer than {MAX_CHARACTERS:,} characters.")
    parser = _Parser(text)
    query = parser.query()
    parser.expect_end()
    return query


def located(text: str, position: int, message: str) -> str:
    """The message under the place in the query where it arose, as Salesforce shows it."""
    row = text.count("\n", 0, position)
    start = text.rfind("\n", 0, position) + 1
    line = text[start:].split("\n", 1)[0]
    column = position - start
    low = max(0, column - 60)
    return (
        f"\n{line[low : column + 60]}\n{' ' * (column - low)}^\nERROR at Row:{row + 1}:Column:{column + 1}\n{message}"
    )


def unescape(raw: str, *, like: bool = False) -> str:
    r"""A string literal's characters; for LIKE, \% and \_ stay escaped and a backslash is doubled."""

    def one(match: re.Match[str]) -> str:
        mark = match[1]
        if mark[0] == "u" and len(mark) > 1:
            return chr(int(mark[1:], 16))
        if mark in "%_":
            return "\\" + mark if like else mark
        return "\\\\" if like and mark == "\\" else ESCAPES[mark]

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", one, raw, flags=re.DOTALL)


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = self._tokenize(text)
        self.at = 0
        self.depth = 0

    def _tokenize(self, text: str) -> list[Token]:
        tokens, end = [], 0
        while match := TOKEN.match(text, end):
            kind = match.lastgroup
            assert kind is not None
            tokens.append(Token(kind, match[kind], match.start(kind)))
            end = match.end()
        rest = text[end:].lstrip()
        if rest:
            self._refuse(Token("symbol", rest[0], len(text) - len(rest)))
        return [*tokens, Token("end", "<EOF>", len(text))]

    def _refuse(self, token: Token) -> None:
        message = f"unexpected token: '{token.text if token.kind != 'string' else token.text[1:-1]}'"
        raise SoqlError("MALFORMED_QUERY", located(self.text, token.position, message))

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def _next(self) -> Token:
        token = self.token
        self.at += 1
        return token

    def _is(self, *words: str) -> bool:
        """Whether the next tokens are these words or symbols."""
        following = self.tokens[self.at : self.at + len(words)]
        return [token.text.upper() for token in following if token.kind in ("name", "symbol")] == list(words)

    def _take(self, *words: str) -> bool:
        """Skip these words if they come next."""
        there = self._is(*words)
        self.at += len(words) if there else 0
        return there

    def _expect(self, kind: str, *words: str) -> Token:
        token = self.token
        if token.kind != kind or (words and token.text.upper() not in words):
            self._refuse(token)
        return self._next()

    def expect_end(self) -> None:
        if self.token.kind != "end":
            self._refuse(self.token)

    def query(self) -> Query:
        self._expect("name", "SELECT")
        items = self._list(self._item)
        self._expect("name", "FROM")
        source = self._expect("name")
        if "." in source.text:
            self._refuse(source)
        where = having = None
        self._take("AS")
        alias = None
        if self.token.kind == "name" and self.token.text.upper() not in CLAUSES and "." not in self.token.text:
            alias = self._next().text
        if self._take("WHERE"):
            where = self._condition()
        group_by = self._list(self._path) if self._take("GROUP", "BY") else ()
        if self._take("HAVING"):
            having = self._condition()
        order_by = self._list(self._order) if self._take("ORDER", "BY") else ()
        limit = self._whole() if self._take("LIMIT") else None
        offset = self._whole() if self._take("OFFSET") else 0
        return Query(
            self.text, items, source.text, source.position, alias, where, group_by, having, order_by, limit, offset
        )

    def _list(self, one):
        found = [one()]
        while self._take(","):
            found.append(one())
        return tuple(found)

    def _whole(self) -> int:
        token = self._expect("number")
        if not token.text.isdigit() or len(token.text) > MAX_DIGITS:
            self._refuse(token)
        return int(token.text)

    def _item(self) -> Item:
        position = self.token.position
        if self._is("("):
            message = "Only root queries with aggregate or field expressions are supported; nested queries are not."
            raise SoqlError("MALFORMED_QUERY", located(self.text, position, message))
        if self._is("FIELDS", "("):
            self.at += 2
            which = self._expect("name", "ALL", "STANDARD", "CUSTOM").text.upper()
            self._expect("symbol", ")")
            return Item(None, fields=which, position=position)
        operand = self._operand()
        alias = None
        if self.token.kind == "name" and self.token.text.upper() != "FROM":
            alias = self._next().text
        return Item(operand, alias, position=position)

    def _path(self) -> Path:
        token = self._expect("name")
        if token.text.upper() in RESERVED:
            self._refuse(token)
        return Path(tuple(part.strip() for part in token.text.split(".")), token.position)

    def _operand(self) -> Path | Call:
        path = self._path()
        if not self._take("("):
            return path
        function = path.names[0].upper()
        if len(path.names) > 1 or function not in FUNCTIONS:
            message = f"unsupported aggregate or function: {path.names[0]}"
            raise SoqlError("MALFORMED_QUERY", located(self.text, path.position, message))
        inner = None if function == "COUNT" and self._is(")") else self._path()
        self._expect("symbol", ")")
        return Call(function, inner, path.position)

    def _order(self) -> Order:
        operand = self._operand()
        descending = self._take("DESC")
        if not descending:
            self._take("ASC")
        nulls_last = False
        if self._take("NULLS"):
            nulls_last = self._expect("name", "FIRST", "LAST").text.upper() == "LAST"
        return Order(operand, descending, nulls_last)

    def _condition(self) -> Condition:
        parts = [self._unary()]
        word = next((word for word in ("AND", "OR") if self._is(word)), None)
        while word and self._take(word):
            parts.append(self._unary())
        if self._is("AND") or self._is("OR"):
            self._refuse(self.token)
        return Both(word, tuple(parts)) if word else parts[0]

    def _unary(self) -> Condition:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SoqlError("MALFORMED_QUERY", located(self.text, self.token.position, "Query is too complex"))
        made: Condition
        if self._take("NOT"):
            made = Negation(self._unary())
        elif self._take("("):
            made = self._condition()
            self._expect("symbol", ")")
        else:
            made = self._compare()
        self.depth -= 1
        return made

    def _compare(self) -> Compare:
        operand = self._operand()
        token = self._next()
        operator = token.text.upper()
        if operator == "NOT" and self._take("IN"):
            operator = "NOT IN"
        if operator in ("IN", "NOT IN"):
            return Compare(operand, operator, self._set(), operand.position)
        if operator not in OPERATORS and operator != "LIKE":
            self._refuse(token)
        return Compare(operand, "!=" if operator == "<>" else operator, self._literal(), operand.position)

    def _set(self) -> tuple[Literal, ...] | Query:
        self._expect("symbol", "(")
        found = self.query() if self._is("SELECT") else self._list(self._literal)
        self._expect("symbol", ")")
        return found

    def _literal(self) -> Literal:
        token = self._next()
        if token.kind == "string":
            return Literal("string", self._checked(token), token.position)
        if token.kind == "number":
            return Literal("number", float(token.text), token.position)
        if token.kind in ("date", "datetime"):
            return Literal(token.kind, self._time(token), token.position)
        word = token.text.upper()
        if token.kind == "name" and word in ("TRUE", "FALSE"):
            return Literal("boolean", word == "TRUE", token.position)
        if token.kind == "name" and word == "NULL":
            return Literal("null", None, token.position)
        if token.kind == "name" and "." not in word:
            count = self._whole() if self._take(":") else -1
            return Literal("range", (word, count), token.position)
        self._refuse(token)
        raise AssertionError("unreachable")

    def _checked(self, token: Token) -> str:
        raw = token.text[1:-1]
        for match in re.finditer(r"\\(u[0-9A-Fa-f]{4}|.)", raw, flags=re.DOTALL):
            known = match[1] in ESCAPES or match[1] in "%_" or len(match[1]) > 1
            if not known or re.match("u[dD][89a-fA-F]", match[1]):  # half of a surrogate pair is no character
                where = token.position + 1 + match.start()
                message = f"Illegal string literal. Invalid escape sequence: \\{match[1]}"
                raise SoqlError("MALFORMED_QUERY", located(self.text, where, message))
        return raw

    def _time(self, token: Token) -> date | datetime:
        try:
            if token.kind == "date":
                return date.fromisoformat(token.text)
            moment = datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", token.text))
            return moment.astimezone(timezone.utc).replace(tzinfo=None)
        except (ValueError, OverflowError):
            message = f"Invalid {'date' if token.kind == 'date' else 'dateTime'}: {token.text}"
            raise SoqlError("MALFORMED_QUERY", located(self.text, token.position, message)) from None
