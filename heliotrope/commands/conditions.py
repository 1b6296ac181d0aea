"""The conditions that select runs: `test/accuracy>0.9 and (mode=federated or seed=7)`.

::

    condition  = all, {"or", all}
    all        = single, {"and", single}
    single     = "(", condition, ")" | name, operator, value
    operator   = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="

A value is a number, a word, or a text in quotes; of a comparison by size, a number. Nothing of it
is ever executed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from heliotrope.errors import ConfigError
from heliotrope.runs.changed_keys import as_typed
from heliotrope.runs.config_values import MISSING

__all__ = ["Condition", "parse_condition"]

_Values = Callable[[str], Any]
_Test = Callable[[_Values], bool]

_TOKEN = re.compile(r"\s*(==|!=|<=|>=|[=<>()]|'[^']*'|\"[^\"]*\"|[^\s=!<>()'\"]+)")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BY_SIZE = ("<", "<=", ">", ">=")
_MOST_TOKENS = 200


@dataclass(frozen=True)
class Condition:
    """What was parsed: the names that it asks for, and whether it holds for their values.

    A comparison with a name that has no value, or of a text by size, does not hold.
    """

    names: frozenset[str]
    holds: _Test


def parse_condition(text: str) -> Condition:
    """Return the condition that `text` is; `ConfigError` says where it is none."""
    return _Parser(text).condition()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        self._names: set[str] = set()
        position = 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if found is None:
                self._refuse(f"'{text[position:].strip()[:20]}' is no part of a condition")
            self._tokens.append(found[1])
            position = found.end()
        if len(self._tokens) > _MOST_TOKENS:
            self._refuse(f"it has more than {_MOST_TOKENS} words")
        self._tokens.reverse()

    def condition(self) -> Condition:
        test = self._any()
        if self._tokens:
            self._refuse(f"'{self._tokens[-1]}' is one too many")
        return Condition(frozenset(self._names), test)

    def _any(self) -> _Test:
        tests = [self._all()]
        while self._next_is("or"):
            tests.append(self._all())
        return lambda values: any(test(values) for test in tests)

    def _all(self) -> _Test:
        tests = [self._single()]
        while self._next_is("and"):
            tests.append(self._single())
        return lambda values: all(test(values) for test in tests)

    def _single(self) -> _Test:
        if self._next_is("("):
            test = self._any()
            if not self._next_is(")"):
                self._refuse("a ) is missing")
            return test
        name, sign, value = (self._take(what) for what in ("a name", "an operator", "a value"))
        if sign not in _COMPARISONS:
            self._refuse(f"'{sign}' after '{name}' is no operator")
        if any(word in _COMPARISONS or word in "()" for word in (name, value)):
            self._refuse(f"'{name} {sign} {value}' compares no name with a value")
        if sign in _BY_SIZE and _number(value) is None:
            self._refuse(f"'{value}' after '{name} {sign}' is no number (an age is in seconds)")
        self._names.add(name)
        compare = _comparison(sign, value)
        return lambda values: compare(values(name))

    def _next_is(self, token: str) -> bool:
        if self._tokens and self._tokens[-1] == token:
            self._tokens.pop()
            return True
        return False

    def _take(self, what: str) -> str:
        if not self._tokens:
            self._refuse(f"it ends where {what} is missing")
        return self._tokens.pop()

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError(
            f"where={self._text} is no condition: {why}. Write such as "
            "where='test/accuracy>0.9 and mode=federated'."
        )


def _comparison(sign: str, written: str) -> Callable[[Any], bool]:
    quoted = written[0] in "'\""
    text = written[1:-1] if quoted else written
    number = None if quoted else _number(text)

    def holds(value: Any) -> bool:
        if value is MISSING:
            return False
        if number is not None and isinstance(value, int | float) and not isinstance(value, bool):
            return _COMPARISONS[sign](value, number)
        return sign in ("=", "==", "!=") and _COMPARISONS[sign](as_typed(value), text)

    return holds


def _number(text: str) -> float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None
