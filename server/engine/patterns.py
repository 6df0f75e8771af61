"""Regular expressions that cannot be made to run for ever.

Python's ``re`` goes back and forth: a pattern such as ``(a+)+$``, typed by an admin, takes years on the wrong message,
while the job's row is locked. Here all ways through the pattern are followed at once (K. Thompson, "Regular expression
search algorithm", CACM 11, 1968), so that a search costs at most the pattern's length times the text's. What can't be
done so (back references, looking ahead or behind) is refused when the rule is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MOST_STATES = 2000
MOST_REPEATS = 100
_ANCHORS = frozenset("^$")
_CLASSES = frozenset("dDwWsS")
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_SET_OPERATIONS = ("[", "--", "&&", "||", "~~")


class PatternError(ValueError):
    """A pattern that cannot be used; the words say why and what to write."""


@dataclass(frozen=True)
class _Char:
    """One character; ``fragment`` is a pattern of one character for ``re``."""

    fragment: str


@dataclass(frozen=True)
class _Anchor:
    word: str


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...] = ()


@dataclass(frozen=True)
class _Choice:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _Char | _Anchor | _Sequence | _Choice | _Repeat


class _Parser:
    """Reads a pattern, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> _Node:
        found = self._choice()
        if self._at < len(self._text):
            raise PatternError(r"a ) without its (: write \) for the character")
        return found

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._next()
        self._at += 1
        return char

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _repeated(self, part: _Node) -> _Node:
        found = re.compile(r"[*+?]|\{\d*,?\d*\}").match(self._text, self._at)
        if found is None or found[0] in ("{}", "{,}"):
            return part
        if isinstance(part, _Anchor):
            raise PatternError(f"{part.word}{found[0]}: a place cannot be repeated")
        self._at = found.end()
        if self._next() in ("?", "+", "*"):
            raise PatternError(f"{found[0]}{self._next()}: write one sign of repetition only")
        least, most = _bounds(found[0])
        return _Repeat(part, least, most)

    def _atom(self) -> _Node:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return _Char(self._set())
        if char == "\\":
            return self._escape()
        if char in ("*", "+", "?"):
            raise PatternError(rf"{char} repeats nothing: write \{char} for the character")
        if char in _ANCHORS:
            return _Anchor(char)
        return _Char("." if char == "." else re.escape(char))

    def _group(self) -> _Node:
        if self._next() == "?":
            if not self._text.startswith("?:", self._at):
                raise PatternError("of the groups that begin with (? only (?:…) is known, and (?i) at the beginning")
            self._at += 2
        found = self._choice()
        if self._take() != ")":
            raise PatternError(r"a ( without its ): write \( for the character")
        return found

    def _escape(self) -> _Node:
        char = self._take()
        if char == "":
            raise PatternError(r"a \ at the end: write \\ for the character")
        if char in _CLASSES:
            return _Char(f"\\{char}")
        if char == "b":
            return _Anchor("b")
        if char in _CONTROLS:
            return _Char(re.escape(_CONTROLS[char]))
        if char.isalnum():
            raise PatternError(rf"\{char} is not known here; known: \d \D \w \W \s \S \b \t \n \r \f \v")
        return _Char(re.escape(char))

    def _set(self) -> str:
        found = re.compile(r"\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL).match(self._text, self._at)
        if found is None:
            raise PatternError(r"a [ without its ]: write \[ for the character")
        self._at = found.end()
        inside = found[0][:-1]
        bare = re.sub(r"\\.", "", inside)
        if any(sign in bare for sign in _SET_OPERATIONS):
            raise PatternError(rf"[{inside}]: write \ before [ - & | ~ inside a set")
        try:
            re.compile(f"[{inside}]")
        except re.error as error:
            raise PatternError(f"[{inside}]: {error}") from error
        return f"[{inside}]"


def _bounds(sign: str) -> tuple[int, int | None]:
    if sign in ("*", "+", "?"):
        return (1 if sign == "+" else 0), (1 if sign == "?" else None)
    least, comma, most = sign[1:-1].partition(",")
    low = int(least or 0)
    high = (int(most) if most else None) if comma else low
    if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
        raise PatternError(f"{sign}: write numbers up to {MOST_REPEATS}, the smaller one first")
    return low, high


@dataclass
class _State:
    """A place in the pattern: it is left by a character that ``accepts``, at an ``anchor``, or freely."""

    accepts: Callable[[str], object] | None = None
    anchor: str = ""
    nexts: list[int] = field(default_factory=list)


class Pattern:
    """A compiled pattern.

    Raises:
        PatternError: it cannot be used.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._flags = re.IGNORECASE if text.startswith("(?i)") else re.NOFLAG
        self._states: list[_State] = []
        self._built = 0
        end = self._add(_State())
        self._end = end
        self._start = self._build(_Parser(text.removeprefix("(?i)")).parse(), end)

    def _add(self, state: _State) -> int:
        if len(self._states) >= MOST_STATES:
            raise PatternError("the pattern is too large: repeat less")
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, node: _Node, after: int) -> int:
        """The state that begins ``node`` and goes on to ``after``."""
        self._built += 1
        if self._built > 2 * MOST_STATES:  # empty groups make no states, however often they are repeated
            raise PatternError("the pattern is too large: repeat less")
        if isinstance(node, _Char):
            return self._add(_State(accepts=re.compile(node.fragment, self._flags).match, nexts=[after]))
        if isinstance(node, _Anchor):
            return self._add(_State(anchor=node.word, nexts=[after]))
        if isinstance(node, _Choice):
            return self._add(_State(nexts=[self._build(part, after) for part in node.parts]))
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                after = self._build(part, after)
            return after
        if node.most is None:
            loop = self._add(_State())
            self._states[loop].nexts = [self._build(node.part, loop), after]
            after = loop
        else:
            last = after
            for _ in range(node.most - node.least):
                after = self._add(_State(nexts=[self._build(node.part, after), last]))
        for _ in range(node.least):
            after = self._build(node.part, after)
        return after

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in ``text``."""
        alive: set[int] = set()
        for at in range(len(text) + 1):
            alive = self._spread([*alive, self._start], text, at)
            if self._end in alive:
                return True
            if at == len(text):
                return False
            alive = self._step(alive, text[at])
        return False

    def _spread(self, states: Iterable[int], text: str, at: int) -> set[int]:
        """All states that can be reached without a character."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            each = waiting.pop()
            if each in found:
                continue
            found.add(each)
            state = self._states[each]
            if state.accepts is None and (not state.anchor or _holds(state.anchor, text, at)):
                waiting.extend(state.nexts)
        return found

    def _step(self, states: Iterable[int], char: str) -> set[int]:
        found: set[int] = set()
        for each in states:
            state = self._states[each]
            if state.accepts is not None and state.accepts(char):
                found.update(state.nexts)
        return found


def _holds(anchor: str, text: str, at: int) -> bool:
    if anchor == "^":
        return at == 0
    if anchor == "$":
        return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
    before = at > 0 and _is_word(text[at - 1])
    return before != (at < len(text) and _is_word(text[at]))


def _is_word(char: str) -> bool:
    return char == "_" or char.isalnum()
