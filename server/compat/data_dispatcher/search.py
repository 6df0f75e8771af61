"""The query language of ``search_projects``, as far as our conditions go; no HTTP and no database in here.

A query is a list of alternatives (``or``), each a list of terms (``and``), in brackets or not. A term is

* ``name op constant`` with ``= == != < <= > >=``, on an attribute of the project, or on ``owner``, ``state``, ``id``
  and ``query`` (with ``=`` only),
* ``name in low:high`` with numbers, both ends included,
* ``name in (one, another)``.

Everything else that the language has (``!``, ``not``, ``~``, ``present``, ``len``, subscripts, ``created`` and ``ended``)
is refused in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.compat.data_dispatcher.words import HELD, PROJECT_STATES, QUERY
from server.engine.projects import MOST_CONDITIONS, MOST_TEXT, Condition, as_number

MOST_ALTERNATIVES = 20
MOST_CHARS = 10_000
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"[^"]*"|'[^']*')|(?P<op><=|>=|==|!=|!~\*?|~\*?|[<>=!(),:\[\]])|(?P<word>[A-Za-z0-9%$@_^.*?+/-]+))"""
)
_OPS = {"=": "=", "==": "=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OBJECT = ("owner", "state", "id", "created", "ended", "query")
_RESERVED = ("and", "or", "in", "not", "present", "like", "len")


class BadQuery(ValueError):
    """A query that is not understood; the words say what is."""


@dataclass(frozen=True)
class Alternative:
    """What a project must be, all of it; None: anything."""

    owner: str | None = None
    state: str | None = None
    id: int | None = None
    conditions: tuple[Condition, ...] = ()
    never: bool = False
    """It contradicts itself."""

    def both(self, other: Alternative) -> Alternative:
        """What is both."""
        clash = any(
            getattr(self, name) is not None
            and getattr(other, name) is not None
            and getattr(self, name) != getattr(other, name)
            for name in ("owner", "state", "id")
        )
        return Alternative(
            owner=self.owner if other.owner is None else other.owner,
            state=self.state if other.state is None else other.state,
            id=self.id if other.id is None else other.id,
            conditions=self.conditions + other.conditions,
            never=self.never or other.never or clash,
        )


@dataclass
class _Token:
    kind: str
    text: str


@dataclass
class _Parser:
    tokens: list[_Token]
    at: int = 0
    depth: int = 0

    def peek(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "the end")

    def take(self) -> _Token:
        token = self.peek()
        self.at += 1
        return token

    def takes(self, text: str) -> bool:
        """Whether this comes next; then it is taken."""
        token = self.peek()
        found = token.kind in ("op", "word") and token.text == text
        self.at += found
        return found

    def alternatives(self) -> list[Alternative]:
        found = self.together()
        while self.takes("or"):
            found += self.together()
            _bounded(found)
        return found

    def together(self) -> list[Alternative]:
        found = self.term()
        while self.takes("and"):
            more = self.term()
            found = _bounded([one.both(other) for one in found for other in more])
        return found

    def term(self) -> list[Alternative]:
        if self.takes("("):
            self.depth += 1
            if self.depth > MOST_ALTERNATIVES:
                raise BadQuery(f"at most {MOST_ALTERNATIVES} brackets may be in one another")
            found = self.alternatives()
            if not self.takes(")"):
                raise BadQuery(f"a bracket is not closed before {self.peek().text}")
            self.depth -= 1
            return found
        name = self.take()
        if name.kind != "word" or name.text in _RESERVED:
            raise BadQuery(f"{name.text!r} is not understood here: begin with the name of an attribute, or a bracket")
        if self.takes("in"):
            return self.membership(name.text)
        op = self.take()
        if op.text not in _OPS or op.kind != "op":
            words = "write name = constant, with one of = != < <= > >=, or name in low:high, or name in (one, another)"
            raise BadQuery(f"{name.text} {op.text}: {words}")
        return [_compared(name.text, _OPS[op.text], self.constant())]

    def membership(self, name: str) -> list[Alternative]:
        if self.takes("("):
            found = [_compared(name, "=", self.constant())]
            while self.takes(","):
                found.append(_compared(name, "=", self.constant()))
            if not self.takes(")"):
                raise BadQuery(f"the list after {name} in is not closed")
            return _bounded(found)
        low = self.constant()
        if not self.takes(":"):
            raise BadQuery(f"{name} in: write low:high, or a list in brackets")
        return [_compared(name, ">=", low).both(_compared(name, "<=", self.constant()))]

    def constant(self) -> str:
        token = self.take()
        if token.kind == "string":
            return token.text[1:-1]
        if token.kind != "word" or token.text in _RESERVED:
            raise BadQuery(f"{token.text!r} is no constant")
        return token.text


def parse(query: str) -> list[Alternative]:
    """The alternatives of a query, any of which a project may be.

    Raises:
        BadQuery: it is not understood.
    """
    if len(query) > MOST_CHARS:
        raise BadQuery(f"a query has at most {MOST_CHARS} characters")
    parser = _Parser(_tokens(query))
    found = parser.alternatives()
    if parser.peek().kind != "end":
        raise BadQuery(f"{parser.peek().text!r} is not understood here: join terms by and, or")
    return found


def _tokens(query: str) -> list[_Token]:
    found, at, end = [], 0, len(query.rstrip())
    while at < end:
        match = _TOKEN.match(query, at, end)
        if match is None or match.lastgroup is None:
            raise BadQuery(f"{query[at:].strip()[:20]!r} is not understood")
        found.append(_Token(match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _bounded(found: list[Alternative]) -> list[Alternative]:
    if len(found) > MOST_ALTERNATIVES or any(len(each.conditions) > MOST_CONDITIONS for each in found):
        raise BadQuery(f"at most {MOST_ALTERNATIVES} alternatives of {MOST_CONDITIONS} conditions each are looked for")
    return found


def _compared(name: str, operator: str, text: str) -> Alternative:
    if len(name) > MOST_TEXT or len(text) > MOST_TEXT:
        raise BadQuery(f"names and constants have at most {MOST_TEXT} characters")
    if name not in _OBJECT:
        return _condition(name, operator, text)
    if name in ("created", "ended"):
        raise BadQuery(f"projects are not looked for by {name}: list them, and look at their moments")
    if operator != "=":
        raise BadQuery(f"{name} {operator}: only {name} = constant can be looked for")
    if name == "query":
        return _condition(QUERY, operator, text)
    if name == "owner":
        return Alternative(owner=text)
    if name == "state":
        if text not in PROJECT_STATES:
            raise BadQuery(f"there is no state {text!r}; there are {', '.join(PROJECT_STATES)}")
        return Alternative(state=text, never=text == HELD)
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadQuery(f"{text!r} is no number of a project")
    return Alternative(id=int(text))


def _condition(name: str, operator: str, text: str) -> Alternative:
    lowered = text.lower() if text.lower() in ("true", "false") else text
    number = as_number(text)
    if operator not in ("=", "!=") and number is None:
        raise BadQuery(f"{name} {operator} {text}: this compares numbers, and {text!r} is none")
    return Alternative(conditions=(Condition(name, operator, lowered, number),))


def narrowed(found: list[Alternative], owner: str | None, state: str | None) -> list[Alternative]:
    """The same, of this owner and in this state only."""
    mine = Alternative(owner=owner, state=state, never=state == HELD)
    return [each for each in (one.both(mine) for one in found) if not each.never]
