"""Which Jetson a target means, and what the JetPacks that run there bring."""

from dataclasses import dataclass
from typing import Final

from edgeseg.errors import UsageError
from edgeseg.profiling.devices import Device, device_names, load_device

__all__ = ["Board", "JetPack", "board_of", "jetson_targets"]

_PREFIX: Final = "jetson-"
_SHORT: Final = {"orin-nano": "orin-nano-8", "orin-nx": "orin-nx-16", "agx-orin": "agx-orin-64"}
"""The developer kits, by the name that people say."""

_OLDEST_TENSORRT: Final = (8, 5)
_PYTHON: Final = {4: "3.6", 5: "3.8", 6: "3.10", 7: "3.12"}
_OLDEST_PYTHON: Final = (3, 10)
_GLIBC: Final = {"3.10": (2, 35), "3.12": (2, 39)}

# JetPack's cv2 is built against numpy 1 and cannot be imported beside numpy 2. CUDA's packages
# must not be newer than the CUDA of the oldest JetPack with that Python, and older ones work on
# newer drivers. pycuda has no wheels for aarch64.
_REQUIREMENTS: Final = {
    "3.10": ("numpy<2", "cuda-python==12.2.*"),
    "3.12": ("numpy<2", "cuda-bindings==13.2.*"),
}


@dataclass(frozen=True, slots=True)
class JetPack:
    """What one JetPack brings."""

    name: str
    """``6.1 to 6.2.2``: those that share the rest."""
    tensorrt: str
    python: str
    requirements: tuple[str, ...] = ()
    """For pip, beside edgeseg's own."""
    glibc: tuple[int, int] = (2, 35)

    @property
    def cache_version(self) -> int:
        """As :attr:`edgeseg.runtime.tensorrt.versions.Abilities.cache_version`."""
        major, minor, patch = _numbers(self.tensorrt)
        return major * (1000 if major < 10 else 10000) + minor * 100 + patch


@dataclass(frozen=True, slots=True)
class Board:
    """A Jetson on which edgeseg runs."""

    device: Device
    jetpacks: tuple[JetPack, ...]
    """Those whose Python and TensorRT edgeseg runs on, the oldest first; at least one."""

    @property
    def name(self) -> str:
        """Of the target, ``jetson-orin-nano-8``."""
        return f"{_PREFIX}{self.device.name}"


def jetson_targets() -> list[str]:
    """Targets of the shipped profiles on which edgeseg runs."""
    devices = [load_device(name) for name in device_names()]
    return [f"{_PREFIX}{d.name}" for d in devices if d.device == "jetson" and not d.estimate_only]


def board_of(target: str, precision: str | None = None) -> Board | None:
    """The Jetson that ``target`` names; ``None`` where it names none.

    Args:
        target: ``jetson-orin-nano-8``, the profile's name alone, or a developer kit's
            (``jetson-orin-nano``).
        precision: of the bundle, to refuse what the board is not fast at.

    Raises:
        UsageError: a board without fast INT8, or one whose JetPacks are all too old.
    """
    name = target.removeprefix(_PREFIX)
    name = _SHORT.get(name, name)
    if name not in device_names():
        return None
    device = load_device(name)
    if device.device != "jetson":
        return None
    if precision is not None and precision not in device.precisions:
        raise UsageError(
            f"--{precision} gains nothing on {device.title}: its GPU has no INT8 arithmetic; "
            f"{_estimates(device)}"
        )
    known = [
        JetPack(pack, tensorrt, _PYTHON[_numbers(pack)[0]])
        for pack, tensorrt in zip(device.software.jetpack, device.software.tensorrt, strict=True)
    ]
    recent = [pack for pack in known if _numbers(pack.tensorrt)[:2] >= _OLDEST_TENSORRT]
    if not recent:
        raise UsageError(
            f"{device.title} has TensorRT {known[-1].tensorrt} at most and engines need 8.5; "
            f"{_estimates(device)}"
        )
    usable = tuple(
        JetPack(p.name, p.tensorrt, p.python, _REQUIREMENTS[p.python], _GLIBC[p.python])
        for p in recent
        if _numbers(p.python) >= _OLDEST_PYTHON
    )
    if not usable:
        raise UsageError(
            f"{device.title} ends at JetPack {recent[-1].name} with Python {recent[-1].python} and "
            f"edgeseg needs 3.10, so only the C library could run there; {_estimates(device)}"
        )
    return Board(device, usable)


def _estimates(device: Device) -> str:
    return f"for estimates run 'edgeseg profile --device {device.name}'"


def _numbers(version: str) -> tuple[int, ...]:
    """Of the first version that stands in ``version``."""
    return tuple(int(part) for part in version.split()[0].split("."))
