"""Which device profile is that of the machine at hand."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgeseg.profiling.devices import ALIASES, Device, Hardware, device_names, load_device
from edgeseg.runtime.machine import available_cores, cpu_flags

__all__ = ["Found", "board_model", "gpu_name", "resolve", "this_processor"]

_TOOL_SECONDS: Final = 3.0
_ASSUMED_MHZ: Final = 2500.0

Found = tuple[Device, bool, str]
"""A profile, whether it is that of this machine, and a sentence where something was assumed."""


def resolve(
    name: str,
    *,
    board: Callable[[], str | None] | None = None,
    gpu: Callable[[], str | None] | None = None,
) -> Found:
    """The profile that ``--device`` names.

    ``jetson`` and ``desktop-gpu`` mean what is found here, else the default of their kind.

    Args:
        name: a profile, or an alias.
        board: tells the board's model; default: :func:`board_model`.
        gpu: tells the graphics card's name; default: :func:`gpu_name`.

    Raises:
        UsageError: there is no such profile.
    """
    if name == "cpu":
        return this_processor(load_device("cpu")), True, ""
    tell = {"jetson": board or board_model, "desktop-gpu": gpu or gpu_name}
    if name in ALIASES:
        told = tell[name]()
        if told is None:
            chosen = load_device(ALIASES[name])
            return chosen, False, f"no {name} found here; '{chosen.name}' stands for it"
        for device in _profiles_of(name):
            if _matches(device, told):
                return device, True, ""
        chosen = load_device(ALIASES[name])
        return chosen, False, f"no profile is known for '{told}'; '{chosen.name}' stands for it"
    device = load_device(name)
    told = tell.get(device.device, board or board_model)()
    return device, told is not None and _matches(device, told), ""


def this_processor(profile: Device) -> Device:
    """The generic processor's profile with the peaks that this machine's own report gives.

    Cores and clock are the machine's; operations per clock follow from its vector extensions.
    """
    flags = cpu_flags()
    cores, clock = available_cores(), _clock_mhz() * 1e-6
    # Per core and clock: lanes of float32, two for multiply and add, two units.
    lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    float_per_clock = lanes * 2 * 2
    # Integer dot products take four bytes a lane; without them 16-bit steps halve that.
    dotted = flags & {"avx512_vnni", "avx_vnni", "asimddp"}
    hardware = Hardware(
        bandwidth_gbs=profile.hardware.bandwidth_gbs,
        float32_tflops=cores * clock * float_per_clock,
        int8_tops=cores * clock * float_per_clock * (4 if dotted else 1.33),
        sms=cores,
    )
    return replace(profile, hardware=hardware)


def board_model() -> str | None:
    """Model that the device tree names, on a Jetson or another board."""
    try:
        text = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None
    return text or None


def gpu_name() -> str | None:
    """Name of the first NVIDIA card, as ``nvidia-smi`` tells it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _profiles_of(kind: str) -> list[Device]:
    devices = [load_device(name) for name in device_names()]
    # Longer names first: "orin nano" is part of "orin nano super".
    chosen = [d for d in devices if d.device == kind]
    return sorted(chosen, key=lambda d: -max((len(m) for m in d.match), default=0))


def _matches(device: Device, told: str) -> bool:
    return any(part in told.lower() for part in device.match)


def _clock_mhz() -> float:
    for name in ("cpuinfo_max_freq", "scaling_cur_freq"):
        try:
            path = Path("/sys/devices/system/cpu/cpu0/cpufreq") / name
            return int(path.read_text()) / 1000
        except (OSError, ValueError):
            continue
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("cpu MHz"):
                return float(line.partition(":")[2])
    except (OSError, ValueError):
        pass
    return _ASSUMED_MHZ
