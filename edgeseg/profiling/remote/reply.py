"""What a host says, believed only as far as it can be checked: types, ranges, lengths, characters.

Whoever runs the host decides what arrives here, and it goes to terminals, files and CI.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from edgeseg.errors import InputError
from edgeseg.profiling.devices import Device, device_names, load_device
from edgeseg.profiling.latency import Effort, Measurement
from edgeseg.profiling.remote.libraries import BUILT, COPIED, NUMPY
from edgeseg.profiling.state import BUSY, COMPARABLE, THROTTLED, MachineState

__all__ = [
    "Facts",
    "Reply",
    "Row",
    "plain",
    "read_facts",
    "read_json",
    "read_reply",
    "unbelievable",
]

_TEXT: Final = 300
_MOST: Final = 1e12
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,39}")


@dataclass(frozen=True, slots=True)
class Facts:
    """Before anything is sent."""

    python: str
    system: str
    machine: str
    numpy: bool
    engines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Of one bundle; what was asked is not repeated."""

    found: Measurement
    backend_name: str
    threads: int
    scorer: str
    engine: dict[str, Any]
    notes: tuple[str, ...]
    ratios: tuple[float, ...] | None

    def describe(self) -> dict[str, Any]:
        """As a session does."""
        return self.engine


@dataclass(frozen=True, slots=True)
class Reply:
    """Everything that was measured."""

    kernels: str
    processor: str
    device: Device
    here: bool
    """Whether the host is that device."""
    note: str
    rows: tuple[Row, ...]


def plain(text: object, limit: int = _TEXT) -> str:
    """``text`` on one line, with nothing that a terminal would obey."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit])
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def unbelievable(host: str, error: Exception) -> InputError:
    """The error for an answer that cannot be, of which ``error`` says why."""
    return InputError(
        f"'{host}' answered with {plain(error)}, so nothing of it is used; see that the host is "
        "the one you mean, and try again"
    )


def read_json(text: str) -> Any:
    """A JSON value without NaN and infinities; ValueError where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        _refuse("something that is no JSON")


def read_facts(value: Any) -> Facts:
    """What a host tells of itself; ValueError where it cannot be."""
    entry = _mapping(value)
    return Facts(
        python=_text(entry["python"]),
        system=_text(entry["system"]),
        machine=_text(entry["machine"]),
        numpy=_flag(entry["numpy"]),
        engines=tuple(_identifier(name) for name in _list(entry["engines"], 8)),
    )


def read_reply(value: Any, scorers: list[str]) -> Reply:
    """What a host measured.

    Args:
        value: JSON.
        scorers: what was asked to be measured with, a bundle each.

    Raises:
        ValueError: something is missing, of another type, or out of its range.
    """
    entry = _mapping(value)
    rows = _list(entry["rows"], len(scorers))
    if len(rows) != len(scorers):
        _refuse(f"{len(rows)} results for {len(scorers)} bundles")
    return Reply(
        kernels=_one_of(entry["kernels"], (COPIED, BUILT, NUMPY)),
        processor=_text(entry["processor"]),
        device=load_device(_one_of(entry["device"], tuple(device_names()))),
        here=_flag(entry["here"]),
        note=_text(entry["note"]),
        rows=tuple(_row(row, scorer) for row, scorer in zip(rows, scorers, strict=True)),
    )


def _row(value: Any, scorer: str) -> Row:
    entry = _mapping(value)
    latency = _numbers(entry["latency_ms"], Effort().max_frames)
    ratios = entry["ratios"]
    found = Measurement(
        latency_ms=np.array(latency),
        stages_ms={_identifier(k): _number(v) for k, v in _mapping(entry["stages_ms"], 16).items()},
        fps_pipelined=_optional(entry["fps_pipelined"]),
        memory_bytes=None if entry["memory_bytes"] is None else _integer(entry["memory_bytes"]),
        energy_joule=_optional(entry["energy_joule"]),
        energy_source=_optional_text(entry["energy_source"]),
        before=_state(entry["before"]),
        after=_state(entry["after"]),
        verdict=_one_of(entry["verdict"], (COMPARABLE, THROTTLED, BUSY)),
        reasons=[_text(reason) for reason in _list(entry["reasons"], 16)],
    )
    return Row(
        found=found,
        backend_name=_identifier(entry["backend"]),
        threads=_integer(entry["threads"]),
        scorer=scorer,
        engine={_identifier(k): _scalar(v) for k, v in _mapping(entry["engine"], 64).items()},
        notes=tuple(_text(note) for note in _list(entry["notes"], 16)),
        ratios=None if ratios is None else tuple(_numbers(ratios, 1000)),
    )


def _state(value: Any) -> MachineState | None:
    if value is None:
        return None
    entry = _mapping(value)
    count = entry["throttle_count"]
    return MachineState(
        governor=_optional_text(entry["governor"]),
        clock_mhz=_optional(entry["clock_mhz"]),
        temperature_c=_optional(entry["temperature_c"]),
        power_mode=_optional_text(entry["power_mode"]),
        throttle_count=None if count is None else _integer(count),
        idle_seconds=None,
        steal_seconds=None,
        own_seconds=0.0,
        wall_seconds=0.0,
    )


class _Entry(dict[str, Any]):
    """An object whose missing keys are the host's fault."""

    def __missing__(self, key: str) -> Any:
        _refuse(f"no '{key}'")


def _mapping(value: Any, limit: int = 64) -> _Entry:
    if not isinstance(value, dict) or len(value) > limit:
        _refuse("something that is not the object it should be")
    return _Entry(value)


def _list(value: Any, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        _refuse("something that is not the list it should be")
    return value


def _number(value: Any) -> float:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    if not kind or not abs(value) <= _MOST or not math.isfinite(value):
        _refuse("a number that is none, or out of range")
    return float(value)


def _numbers(value: Any, limit: int) -> list[float]:
    """Some numbers above zero."""
    numbers = [_number(n) for n in _list(value, limit)]
    if not numbers or min(numbers) <= 0:
        _refuse("a time that is not above zero")
    return numbers


def _integer(value: Any) -> int:
    number = _number(value)
    if number != int(number) or number < 0:
        _refuse("a count that is none")
    return int(number)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse("something that is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _refuse("something that is no text")
    return plain(value)


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        _refuse("a name that is none")
    return value


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        _refuse("an unknown word")
    return str(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    _number(value)
    return value


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
