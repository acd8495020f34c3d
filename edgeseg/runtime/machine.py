"""What this machine is, as far as the choice of threads and engines goes. Standard library only."""

import math
import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["available_cores", "cpu_flags", "cpu_model", "has_native_bf16"]


@cache
def cpu_model() -> str:
    """Name of the processor; on boards whose kernel does not tell it, the board's name."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    try:
        # Jetson and most other arm64 boards.
        model = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        model = ""
    return model or platform.processor() or platform.machine() or "unknown"


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as the kernel spells them (``avx512_vnni``, ``asimddp`` ...)."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def available_cores() -> int:
    """Physical cores that this process may use: its affinity, without hyper-threads, and not
    more than a container's CPU quota. At least 1.
    """
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on every system
        cpus = set(range(os.cpu_count() or 1))
    # Two hyper-threads share one set of vector units: a second thread there costs more in
    # synchronisation than it brings.
    cores = {_siblings(cpu) for cpu in cpus}
    count = len(cores)
    quota = _cgroup_quota()
    if quota is not None:
        # With a thread more than it allows, the system would stop all of them for a part of
        # every period.
        count = min(count, max(1, math.floor(quota)))
    return max(1, count)


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip() or str(cpu)
    except OSError:
        return str(cpu)


def _cgroup_quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


@cache
def _cpuinfo() -> tuple[str, ...]:
    try:
        with open("/proc/cpuinfo", errors="replace") as handle:
            # The first processor's block is enough, and with 128 cores the file is long.
            head = handle.read(1 << 14)
    except OSError:
        return ()
    return tuple(head.splitlines())
