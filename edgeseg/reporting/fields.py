"""Fields of JSON that anybody may have written: nothing of it is used that is not looked at.

A field of the wrong type, a number that is not finite or a text of a megabyte must neither stop the
report nor get into it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["Fields", "MalformedError", "printable"]

_MAX_TEXT: Final = 120
_MAX_NUMBER: Final = 1e18
_MAX_ENTRIES: Final = 500


class MalformedError(ValueError):
    """A document that lacks a field, or holds something else in it."""


class Fields:
    """The fields of a JSON object; what is of another kind than asked for is a MalformedError."""

    def __init__(self, values: Any, where: str = "the document") -> None:
        if not isinstance(values, Mapping):
            raise MalformedError(f"{where} is no object")
        self.values, self.where = values, where

    def text(self, key: str, default: str | None = None) -> str:
        """Printable, at most 120 characters."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise MalformedError(f"{self.where} has no text '{key}'")
        return printable(value)

    def number(self, key: str) -> float:
        """Finite."""
        value = self.optional(key)
        if value is None:
            raise MalformedError(f"{self.where} has no number '{key}'")
        return value

    def optional(self, key: str) -> float | None:
        """A number, or ``None`` where it is missing or null."""
        return _number(self.values.get(key), f"'{key}' of {self.where}")

    def flag(self, key: str) -> bool | None:
        """A truth value, or ``None`` where it is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise MalformedError(f"'{key}' of {self.where} is neither true nor false")
        return value

    def numbers(self, key: str, limit: int = _MAX_ENTRIES) -> list[float | None]:
        """A list of numbers and nulls; empty where it is missing."""
        return [_number(v, f"'{key}' of {self.where}") for v in self._list(key, limit)]

    def texts(self, key: str, limit: int = 50) -> list[str]:
        """A list of texts; empty where it is missing."""
        return [printable(v) for v in self._list(key, limit) if isinstance(v, str)]

    def object(self, key: str) -> "Fields | None":
        """An object, or ``None`` where it is missing or null."""
        value = self.values.get(key)
        return None if value is None else Fields(value, f"'{key}' of {self.where}")

    def objects(self, key: str, limit: int = _MAX_ENTRIES) -> list["Fields"]:
        """A list of objects; empty where it is missing."""
        return [Fields(v, f"an entry of '{key}'") for v in self._list(key, limit)]

    def names(self, limit: int = _MAX_ENTRIES) -> list[str]:
        """Its keys that can be shown as they are."""
        return [k for k in list(self.values)[:limit] if isinstance(k, str) and k == printable(k)]

    def entries(self, key: str, limit: int = _MAX_ENTRIES) -> "list[tuple[str, Fields]]":
        """The objects in an object, by name."""
        inner = self.object(key)
        if inner is None:
            return []
        pairs = list(inner.values.items())[:limit]
        return [(printable(str(k)), Fields(v, f"'{printable(str(k))}'")) for k, v in pairs]

    def figures(self, key: str, limit: int = _MAX_ENTRIES) -> dict[str, float]:
        """The numbers in an object, by name; empty where it is missing."""
        inner = self.object(key)
        found: dict[str, float] = {}
        for name, value in list(inner.values.items())[:limit] if inner else ():
            checked = _number(value, f"'{key}' of {self.where}")
            if checked is not None:
                found[printable(str(name))] = checked
        return found

    def _list(self, key: str, limit: int) -> Sequence[Any]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise MalformedError(f"'{key}' of {self.where} is no list")
        return value[:limit]


def printable(text: str) -> str:
    """Without what cannot be seen, and cut where it is long."""
    text = "".join(c if c.isprintable() else "�" for c in text[: _MAX_TEXT + 1])
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    # A truth value is an int to Python, and a huge int cannot become a float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedError(f"{where} is no number")
    if not abs(value) < _MAX_NUMBER or not math.isfinite(value):
        raise MalformedError(f"{where} is not a number within 1e18")
    # What is this small is nothing, and its logarithm out of every scale.
    return float(value) if abs(value) > 1 / _MAX_NUMBER else 0.0
