"""Device profiles: what a device can do, in which power modes, and what a frame may take there."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.profiling.toml_subset import parse_toml

__all__ = [
    "ALIASES",
    "SCHEMA",
    "Budget",
    "Device",
    "Hardware",
    "Mode",
    "Software",
    "device_names",
    "load_device",
    "parse_device",
]

SCHEMA: Final = "edgeseg.profile/1"
ALIASES: Final = {"jetson": "orin-nano-8", "desktop-gpu": "rtx-3080"}
"""Name of a class of devices, and which of them it means where none is found."""

_CLASSES: Final = ("cpu", "desktop-gpu", "jetson")
_PRECISIONS: Final = ("int8", "float16", "float32")


@dataclass(frozen=True)
class Mode:
    """A power mode; what it does not name is as in the hardware's own figures."""

    gpu_mhz: float
    sms: int | None = None
    bandwidth_gbs: float | None = None


@dataclass(frozen=True)
class Hardware:
    """Peaks, dense. Operations are two per multiply-accumulate."""

    bandwidth_gbs: float
    """GB/s of memory, 10^9."""
    float32_tflops: float
    compute_capability: str | None = None
    sms: int | None = None
    """Streaming multiprocessors; cores of a processor."""
    gpu_mhz: float | None = None
    """Clock that the peaks are of."""
    float16_tflops: float | None = None
    int8_tops: float | None = None
    """``None``: no integer units that are faster than float."""
    tensor_cores: bool = False
    memory_gb: float | None = None
    dla: int = 0
    link_gbs: float | None = None
    """GB/s to the host's memory; ``None``: the memory is shared."""


@dataclass(frozen=True)
class Software:
    """What runs there."""

    jetpack: tuple[str, ...] = ()
    tensorrt: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """Milliseconds that the 99th percentile may take."""

    network: str
    precision: str
    size: str
    ms: float


@dataclass(frozen=True)
class Device:
    """A profile. ``budget_ms`` holds where no entry of ``budgets`` does."""

    schema: str
    name: str
    title: str
    device: str
    """``cpu``, ``desktop-gpu`` or ``jetson``."""
    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    """That are worth running, the fastest first."""
    size: str
    budget_ms: float
    hardware: Hardware
    sources: dict[str, str]
    """Figure of ``hardware`` -> where it comes from."""
    unconfirmed: tuple[str, ...] = ()
    """Figures that no primary source confirms."""
    match: tuple[str, ...] = ()
    """Parts of the name that such a device gives itself, in lower case."""
    default_mode: str | None = None
    estimate_only: bool = False
    """edgeseg cannot run there."""
    software: Software = field(default_factory=Software)
    modes: dict[str, Mode] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()

    def in_mode(self, name: str | None) -> "Device":
        """With the peaks of a power mode.

        Raises:
            UsageError: the device has no such mode.
        """
        chosen = name or self.default_mode
        if chosen is None:
            return self
        if chosen not in self.modes:
            have = ", ".join(self.modes) or "none"
            raise UsageError(f"device '{self.name}' has no power mode '{chosen}'; it has {have}")
        mode, hardware = self.modes[chosen], self.hardware
        sms = mode.sms or hardware.sms
        factor = mode.gpu_mhz / (hardware.gpu_mhz or mode.gpu_mhz)
        if sms and hardware.sms:
            factor *= sms / hardware.sms
        return replace(
            self,
            default_mode=chosen,
            hardware=replace(
                hardware,
                sms=sms,
                gpu_mhz=mode.gpu_mhz,
                bandwidth_gbs=mode.bandwidth_gbs or hardware.bandwidth_gbs,
                float32_tflops=hardware.float32_tflops * factor,
                float16_tflops=_times(hardware.float16_tflops, factor),
                int8_tops=_times(hardware.int8_tops, factor),
            ),
        )

    def budget(self, network: str, precision: str, size: str) -> float:
        """Milliseconds that the 99th percentile of a frame may take."""
        for entry in self.budgets:
            if (entry.network, entry.precision, entry.size) == (network, precision, size):
                return entry.ms
        return self.budget_ms


def device_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(_profiles())


def load_device(name: str) -> Device:
    """A shipped profile by its name.

    Raises:
        UsageError: there is none.
    """
    path = _profiles().get(name)
    if path is None:
        have = ", ".join([*ALIASES, *device_names()])
        raise UsageError(f"device '{name}' is unknown; choose one of {have}")
    return parse_device(path.read_text(encoding="utf-8"), path.name)


def parse_device(text: str, label: str) -> Device:
    """A profile from its text; every key, type and range is checked.

    Raises:
        ArtefactError: it is not of the schema.
    """
    try:
        values = parse_toml(text)
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema {values.get('schema')!r}, not {SCHEMA!r}")
        device: Device = _build(Device, values, "")
        _check(device)
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"device profile '{label}' is wrong: {error}; correct it") from None
    return device


def _profiles() -> dict[str, Path]:
    package = Path(str(resources.files("edgeseg")))
    for folder in (package / "profiles", package.parent / "profiles"):
        if folder.is_dir():
            return {path.stem: path for path in folder.glob("*.toml")}
    return {}


def _check(device: Device) -> None:
    if device.device not in _CLASSES:
        raise ValueError(f"device is {device.device!r}, not one of {', '.join(_CLASSES)}")
    hardware = device.hardware
    for name in ("bandwidth_gbs", "float32_tflops", "float16_tflops", "int8_tops"):
        value = getattr(hardware, name)
        if value is not None and not 0 < value < 1e5:
            raise ValueError(f"hardware.{name} is {value}")
        if value is not None and name not in device.sources:
            raise ValueError(f"hardware.{name} has no source")
    capability = hardware.compute_capability
    if capability is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", capability):
        raise ValueError(f"hardware.compute_capability is {capability!r}, not such as '8.7'")
    unknown = set(device.precisions) - set(_PRECISIONS)
    if unknown or not device.precisions:
        raise ValueError(f"precisions {list(device.precisions)}")
    if "int8" in device.precisions and hardware.int8_tops is None:
        raise ValueError("int8 is listed without int8_tops")
    if device.default_mode is not None and device.default_mode not in device.modes:
        raise ValueError(f"default_mode {device.default_mode!r} is not among the modes")
    for label, mode in device.modes.items():
        if not 0 < mode.gpu_mhz < 1e5:
            raise ValueError(f"modes.{label}.gpu_mhz is {mode.gpu_mhz}")
    for entry in device.budgets:
        if entry.precision not in _PRECISIONS or entry.ms <= 0:
            raise ValueError(f"budget {entry}")
    if device.budget_ms <= 0:
        raise ValueError(f"budget_ms is {device.budget_ms}")


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise ValueError(f"there is no '{where}{key}'")
    for name, entry in known.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and name not in values:
            raise ValueError(f"'{where}{name}' is missing")
    return kind(**{key: _typed(hints[key], v, f"{where}{key}") for key, v in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _typed(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], v, where) for v in value)
    if origin is dict and isinstance(value, Mapping):
        return {k: _typed(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and hint in (Mode, Hardware, Software, Budget):
        if isinstance(value, Mapping):
            return _build(hint, value, f"{where}.")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and isfinite(value):
            return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"'{where}' is {value!r}, which is not of the right type")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
