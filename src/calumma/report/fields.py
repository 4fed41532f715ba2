"""Reading JSON objects that somebody else may have written: every value is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calumma.core.errors import InputError
from calumma.core.values import KnobValue

_LARGEST = 1e100
"""Beyond what any quantity here can be; the product of two is still a finite float."""


class Fields:
    """A JSON object. A value that is absent or null is None; one of the wrong type is an InputError."""

    def __init__(self, values: Any, where: str) -> None:
        """Take an object; `where` says in messages which one it is ("session 2026...: tasks[3]")."""
        self._where = where
        if not isinstance(values, Mapping):
            raise InputError(f"{where} is {_shown(values)}, expected a JSON object: the data is damaged")
        self._values = values

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self._values]

    def text(self, name: str) -> str | None:
        return self._checked(name, str, "text")

    def flag(self, name: str) -> bool | None:
        return self._checked(name, bool, "true or false")

    def count(self, name: str) -> int | None:
        """A whole number, 0 or more."""
        value = self._values.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= _LARGEST):
            raise self._wrong(name, "a whole number, 0 or more")
        return value

    def number(self, name: str) -> float | None:
        """A finite number, 0 or more."""
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 <= value <= _LARGEST:
            raise self._wrong(name, "a number, 0 or more")
        return float(value)

    def object(self, name: str) -> Fields:
        """An object; empty where it is absent."""
        value = self._values.get(name)
        return Fields({} if value is None else value, f"{self._where}: {name}")

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty where it is absent."""
        return [Fields(value, f"{self._where}: {name}[{i}]") for i, value in enumerate(self.items(name))]

    def items(self, name: str) -> list[Any]:
        """A list; empty where it is absent."""
        return self._checked(name, list, "a list") or []

    def numbers(self) -> dict[str, float]:
        """The object itself, as names with numbers."""
        return {name: self.required(name, self.number(name)) for name in self.names}

    def config(self, name: str) -> dict[str, KnobValue] | None:
        """A configuration: knob values by name."""
        value = self._checked(name, dict, "a configuration")
        if value is not None and not all(type(v) in (int, str, bool) for v in value.values()):
            raise self._wrong(name, "integers, texts and booleans by knob")
        return value

    def required(self, name: str, value: Any) -> Any:
        """Return `value`, read from field `name`, if it is there."""
        if value is None:
            raise InputError(f"{self._where}: {name} is missing: the data is damaged or from another version")
        return value

    def _checked(self, name: str, kind: type, expected: str) -> Any:
        value = self._values.get(name)
        if value is not None and type(value) is not kind:
            raise self._wrong(name, expected)
        return value

    def _wrong(self, name: str, expected: str) -> InputError:
        shown = _shown(self._values[name])
        return InputError(f"{self._where}: {name} is {shown}, expected {expected}: the data is damaged")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
