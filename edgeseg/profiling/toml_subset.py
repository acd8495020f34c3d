"""Device profiles as TOML, also on Python 3.10, which has no ``tomllib`` and runs on JetPack 6."""

import ast
import re
from typing import Any

__all__ = ["parse_toml"]

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TABLE = re.compile(r"(\[\[?)([A-Za-z0-9_.-]+)(\]\]?)")


def parse_toml(text: str) -> dict[str, Any]:
    """The document; ``tomllib`` reads it where there is one.

    Raises:
        ValueError: not TOML, or more of it than profiles use.
    """
    try:
        import tomllib
    except ImportError:
        return parse_subset(text)
    return tomllib.loads(text)


def parse_subset(text: str) -> dict[str, Any]:
    """Tables, arrays of tables, and on one line each: strings, numbers, booleans, flat arrays.

    Raises:
        ValueError: anything else.
    """
    root: dict[str, Any] = {}
    table = root
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw).strip()
        if not line:
            continue
        heading = _TABLE.fullmatch(line)
        if heading and len(heading[1]) == len(heading[3]):
            table = _open_table(root, heading[2].split("."), many=len(heading[1]) == 2)
            continue
        key, separator, value = line.partition("=")
        if not separator or not _KEY.fullmatch(key.strip()) or key.strip() in table:
            raise ValueError(f"line {number} is not read: {line}")
        table[key.strip()] = _value(value.strip(), number)
    return root


def _without_comment(line: str) -> str:
    quoted = False
    for i, character in enumerate(line):
        if character == '"' and (i == 0 or line[i - 1] != "\\"):
            quoted = not quoted
        elif character == "#" and not quoted:
            return line[:i]
    return line


def _open_table(root: dict[str, Any], path: list[str], *, many: bool) -> dict[str, Any]:
    table = root
    for part in path[:-1]:
        table = table.setdefault(part, {})
    new: dict[str, Any] = {}
    if many:
        table.setdefault(path[-1], []).append(new)
        return new
    found: dict[str, Any] = table.setdefault(path[-1], new)
    return found


def _value(text: str, number: int) -> Any:
    if text in ("true", "false"):
        return text == "true"
    # Strings without escapes, numbers and flat arrays are written as Python writes them.
    if (
        not re.fullmatch(r'[\[\]\s,"0-9A-Za-z_.:;/()+\-%&=?#\'<>~@*]*', text)
        or "\\" in text
        or '"""' in text
    ):
        raise ValueError(f"line {number} holds a value that is not read: {text}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"line {number} holds a value that is not read: {text}") from None
    plain = (str, int, float)
    if isinstance(value, list) and all(isinstance(v, plain) for v in value):
        return value
    if isinstance(value, plain):
        return value
    raise ValueError(f"line {number} holds a value that is not read: {text}")
