"""Reads of job descriptions in xRSL what the server needs: the name, the files that go with the job, where it writes.

The grammar is that of ARC's *extended resource specification language*: ``&(name=value value …)(name=(value value)…)``.
A value is a bare word, a text in single or double quotes (the quote itself is written twice), or texts joined by ``#``;
names are compared without case, blanks and underscores. Comments stand between ``(*`` and ``*)``. A description of several
jobs (``+``), alternatives (``|``) and variables are refused: aCT takes one job at a time. The text itself goes to the
computing element as it is; this parser only reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_DEPTH = 20
MOST_TOKENS = 200_000
_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>\(\*.*?\*\))
  | (?P<quoted>"(?:[^"]|"")*"|'(?:[^']|'')*')
  | (?P<mark>!=|<=|>=|[&|+()=<>\#$])
  | (?P<word>[^\s&|+()=<>"'\#$!]+)
    """,
    re.VERBOSE | re.DOTALL,
)

Value = str | list["Value"]


class BadDescription(Exception):
    """A text that is no description of one job; the words say why, and where."""


@dataclass(frozen=True)
class Description:
    """A description: the values of each attribute, by its plain name."""

    attributes: dict[str, list[Value]] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The one text that an attribute has; None if it isn't there. Raises BadDescription."""
        values = self.attributes.get(name)
        if values is None:
            return None
        if len(values) != 1 or not isinstance(values[0], str):
            raise BadDescription(f"{name} must have one value")
        return values[0]

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """The lists that an attribute has, the first two texts of each. Raises BadDescription."""
        found = []
        for value in self.attributes.get(name, []):
            texts = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
            if not texts or len(texts) != len(value):
                raise BadDescription(f"{name} must be a list of pairs of texts")
            found.append((texts[0], texts[1] if len(texts) > 1 else ""))
        return found


def parse(text: str) -> Description:
    """The description of one job. Raises BadDescription."""
    tokens = _Tokens(text)
    tokens.skip("&")
    description = Description()
    while tokens.kind is not None:
        name, values = _relation(tokens)
        if name in description.attributes:
            raise BadDescription(f"{name} is there twice")
        description.attributes[name] = values
    if not description.attributes:
        raise BadDescription("there is nothing in it")
    return description


def plain(name: str) -> str:
    """An attribute's name as it is compared."""
    return name.lower().replace("_", "")


class _Tokens:
    """The tokens of a text; ``kind`` and ``value`` are of the present one, None at the end."""

    def __init__(self, text: str) -> None:
        self._stream = self._read(text)
        self.kind: str | None = None
        self.value = ""
        self.position = 0
        self._count = 0
        self.next()

    @staticmethod
    def _read(text: str) -> Iterator[tuple[str, str, int]]:
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise BadDescription(f"{text[position : position + 20]!r} at character {position} cannot be read")
            position = found.end()
            if found.lastgroup not in ("space", "comment"):
                yield str(found.lastgroup), found[0], found.start()

    def next(self) -> None:
        """Go on to the next token."""
        self._count += 1
        if self._count > MOST_TOKENS:
            raise BadDescription("it is too long")
        self.kind, self.value, self.position = next(self._stream, (None, "", self.position))

    def skip(self, mark: str) -> bool:
        """Go on if the present token is this mark."""
        if self.kind == "mark" and self.value == mark:
            self.next()
            return True
        return False

    def expect(self, mark: str) -> None:
        """The present token must be this mark."""
        if not self.skip(mark):
            raise BadDescription(
                f"{mark!r} expected at character {self.position}, there is {self.value or 'the end'!r}"
            )


def _relation(tokens: _Tokens) -> tuple[str, list[Value]]:
    """``(name=values)``."""
    tokens.expect("(")
    if tokens.kind == "mark" and tokens.value in "&|+":
        raise BadDescription("it describes several jobs, or alternatives: give one job")
    if tokens.kind not in ("word", "quoted"):
        raise BadDescription(f"the name of an attribute expected at character {tokens.position}")
    name = plain(_text(tokens))
    if tokens.kind == "mark" and tokens.value in ("!=", "<", ">", "<=", ">="):
        tokens.next()
    else:
        tokens.expect("=")
    values = _values(tokens, 0)
    tokens.expect(")")
    return name, values


def _values(tokens: _Tokens, depth: int) -> list[Value]:
    if depth > MOST_DEPTH:
        raise BadDescription("its lists are nested too deeply")
    found: list[Value] = []
    while True:
        if tokens.kind in ("word", "quoted"):
            found.append(_joined(tokens))
        elif tokens.skip("("):
            found.append(_values(tokens, depth + 1))
            tokens.expect(")")
        elif tokens.kind == "mark" and tokens.value == "=" and found and isinstance(found[-1], str):
            # Bare words of URLs hold equal signs.
            tokens.next()
            found[-1] += "=" + (_text(tokens) if tokens.kind in ("word", "quoted") else "")
        elif tokens.kind == "mark" and tokens.value == "$":
            raise BadDescription("variables are not known here: write what they stand for")
        else:
            return found


def _joined(tokens: _Tokens) -> str:
    text = _text(tokens)
    while tokens.skip("#"):
        if tokens.kind not in ("word", "quoted"):
            raise BadDescription(f"a text expected at character {tokens.position}")
        text += _text(tokens)
    return text


def _text(tokens: _Tokens) -> str:
    value = tokens.value
    if tokens.kind == "quoted":
        value = value[1:-1].replace(value[0] * 2, value[0])
    tokens.next()
    return value
