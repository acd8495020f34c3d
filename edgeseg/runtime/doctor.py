"""What this machine can run, and why not. Looks, and changes nothing."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeseg import __version__
from edgeseg.errors import EdgesegError, UsageError
from edgeseg.runtime import library
from edgeseg.runtime.backends import BACKENDS, engine_version, why_not
from edgeseg.runtime.machine import available_cores, cpu_flags, cpu_model
from edgeseg.runtime.opencv import opencv, opencv_has
from edgeseg.runtime.ready import ready_bundle
from edgeseg.scoring import kernels

__all__ = ["Diagnosis", "examine"]

_TELLING_FLAGS: Final = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
_TOOL_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found."""

    document: dict[str, Any]
    """As ``--json`` prints it, without the schema."""
    problems: tuple[str, ...]
    """Why ``edgeseg run`` cannot work here, a sentence each; empty where it can."""


def examine() -> Diagnosis:
    """Look at engines, processor, GPU, board, cameras and what this installation carries."""
    engines = {name: _engine(name) for name in BACKENDS}
    vision = _opencv()
    native = _kernels()
    bundle = _ready()
    problems = []
    if not any(engine["usable"] for engine in engines.values()):
        problems.append("no inference engine works: run 'pip install onnxruntime'")
    if not vision["usable"]:
        problems.append(str(vision["reason"]))
    document = {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "can_run": not problems,
        "problems": problems,
        "backends": engines,
        "opencv": vision,
        "kernels": native,
        "library": _library(),
        "torch": _version("torch"),
        "cpu": {
            "model": cpu_model(),
            "cores": available_cores(),
            "logical": os.cpu_count(),
            "flags": [flag for flag in _TELLING_FLAGS if flag in cpu_flags()],
            "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "clock_mhz": _clock_mhz(),
            "max_clock_mhz": _khz("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
        },
        "gpu": _gpu(),
        "jetson": _jetson(),
        "cameras": _cameras(),
        "ready_bundle": bundle,
    }
    return Diagnosis(document, tuple(problems))


def _engine(name: str) -> dict[str, Any]:
    reason = why_not(name)
    version = engine_version(name) or None
    entry: dict[str, Any] = {"usable": reason is None, "version": version, "reason": reason}
    if reason is None and name == "onnxruntime":
        providers = sys.modules["onnxruntime"].get_available_providers()
        entry["providers"] = [p.removesuffix("ExecutionProvider") for p in providers]
    return entry


def _opencv() -> dict[str, Any]:
    try:
        version = opencv().__version__
    except EdgesegError as error:
        return {"usable": False, "version": None, "reason": str(error)}
    return {
        "usable": True,
        "version": version,
        "reason": None,
        "gstreamer": opencv_has("GStreamer"),
        "ffmpeg": opencv_has("FFMPEG"),
    }


def _kernels() -> dict[str, Any]:
    if not kernels.available():
        return {
            "native": False,
            "isa": None,
            "reason": "the native library was not built, so numpy scores slowly: install a C "
            "compiler and reinstall edgeseg",
        }
    return {"native": True, "isa": kernels.isa(), "reason": None}


def _library() -> dict[str, Any]:
    """Which engines go through libedgeseg, and why others do not."""
    reasons = {name: library.why_not(name) for name in BACKENDS}
    return {
        "built": library.available(),
        "engines": {
            name: {"usable": reason is None, "reason": reason} for name, reason in reasons.items()
        },
    }


def _ready() -> str | None:
    try:
        return str(ready_bundle())
    except UsageError:
        return None


def _gpu() -> dict[str, Any]:
    """An NVIDIA GPU as ``nvidia-smi`` tells it."""
    answer = _ask(
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit",
        "--format=csv,noheader",
    )
    if answer is None:
        found = "nvidia-smi gives no answer" if shutil.which("nvidia-smi") else "no nvidia-smi"
        return {"present": False, "devices": [], "reason": found}
    keys = ("name", "driver", "memory", "sm_clock", "power_limit")
    devices = [
        dict(zip(keys, (part.strip() for part in line.split(",")), strict=False))
        for line in answer.splitlines()
        if line.strip()
    ]
    return {"present": bool(devices), "devices": devices, "reason": None}


def _jetson() -> dict[str, Any] | None:
    release = _first_line("/etc/nv_tegra_release")
    if release is None:
        return None
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    power = _ask("nvpmodel", "-q")
    mode = re.search(r"NV Power Mode:\s*(\S+)", power or "")
    return {
        "l4t": f"{match[1]}.{match[2]}" if match else release,
        "jetpack": _version_of_package("nvidia-jetpack"),
        "power_mode": mode[1] if mode else None,
        "board": _first_line("/proc/device-tree/model"),
        "temperature_c": _temperature(),
    }


def _cameras() -> list[dict[str, Any]]:
    found = []
    for device in sorted(Path("/dev").glob("video[0-9]*"), key=lambda p: (len(p.name), p.name)):
        name = _first_line(f"/sys/class/video4linux/{device.name}/name")
        found.append(
            {
                "device": str(device),
                "name": name,
                "readable": os.access(device, os.R_OK | os.W_OK),
            }
        )
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_of_package(name: str) -> str | None:
    answer = _ask("dpkg-query", "--show", "--showformat=${Version}", name)
    return answer.strip() or None if answer else None


def _ask(program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _first_line(path: str) -> str | None:
    try:
        with open(path, errors="replace") as handle:
            return handle.read(512).partition("\n")[0].strip("\0 ") or None
    except OSError:
        return None


def _khz(path: str) -> int | None:
    value = _first_line(path)
    return int(value) // 1000 if value is not None and value.isdecimal() else None


def _clock_mhz() -> int | None:
    now = _khz("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if now is not None:
        return now
    try:
        with open("/proc/cpuinfo", errors="replace") as handle:
            match = re.search(r"cpu MHz\s*:\s*(\d+)", handle.read(1 << 14))
    except OSError:
        return None
    return int(match[1]) if match else None


def _temperature() -> float | None:
    value = _first_line("/sys/class/thermal/thermal_zone0/temp")
    return int(value) / 1000 if value is not None and value.lstrip("-").isdecimal() else None
