"""What the machine did while it was measured: clocks, heat, other load, energy.

A number that was taken while the processor slowed down, or while others used it, says little about
the network; :func:`verdict` says so.
"""

import glob
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "BUSY",
    "COMPARABLE",
    "THROTTLED",
    "EnergyMeter",
    "MachineState",
    "look",
    "peak_memory_bytes",
    "reset_peak_memory",
    "verdict",
]

COMPARABLE: Final = "comparable"
THROTTLED: Final = "throttled: not comparable"
BUSY: Final = "machine busy: not comparable"

_CLOCK_LOSS: Final = 0.9
_DRIFT: Final = 1.15
_OTHERS: Final = 0.1
"""Share of the processor that others may use."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """At one moment; ``None`` where the machine does not tell."""

    governor: str | None
    clock_mhz: float | None
    temperature_c: float | None
    power_mode: str | None
    throttle_count: int | None
    """Since boot, of all cores."""
    idle_seconds: float | None
    """Of all processors since boot."""
    steal_seconds: float | None
    """What a hypervisor gave to others."""
    own_seconds: float
    """Processor time of this process."""
    wall_seconds: float

    def to_document(self) -> dict[str, Any]:
        """What a report shows of it."""
        keys = ("governor", "clock_mhz", "temperature_c", "power_mode", "throttle_count")
        return {k: v for k, v in asdict(self).items() if k in keys}


def look(root: Path = Path("/")) -> MachineState:
    """Read the state; files that are missing give ``None``."""
    idle, steal = _proc_stat(root)
    times = os.times()
    return MachineState(
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        clock_mhz=_clock(root),
        temperature_c=_temperature(root),
        power_mode=_power_mode(root),
        throttle_count=_throttle_count(root),
        idle_seconds=idle,
        steal_seconds=steal,
        own_seconds=times.user + times.system,
        wall_seconds=time.monotonic(),
    )


def verdict(
    before: MachineState,
    after: MachineState,
    quarters_ms: tuple[float, float],
    cpus: int | None = None,
) -> tuple[str, list[str]]:
    """Whether a measurement can be compared with others, and why not.

    Args:
        before: the state when it began.
        after: the state when it ended.
        quarters_ms: median latency of the first and of the last quarter of the frames.
        cpus: logical processors; default: this machine's.

    Returns:
        one of :data:`COMPARABLE`, :data:`THROTTLED`, :data:`BUSY`, and reasons.
    """
    heat = []
    if _grew(before.throttle_count, after.throttle_count):
        heat.append("the processor's throttle counter went up")
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < _CLOCK_LOSS * before.clock_mhz:
        heat.append(f"the clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    if before.power_mode != after.power_mode:
        heat.append(f"the power mode changed from {before.power_mode} to {after.power_mode}")
    others = _others(before, after, cpus or os.cpu_count() or 1)
    busy = []
    if others is not None and others > _OTHERS:
        busy.append(f"other processes used {others:.0%} of the processor")
    first, last = quarters_ms
    if first > 0 and last > _DRIFT * first:
        text = f"the last quarter took {last / first:.2f} times as long as the first"
        (busy if busy else heat).append(text)
    if heat:
        return THROTTLED, heat + busy
    return (BUSY, busy) if busy else (COMPARABLE, [])


def _others(before: MachineState, after: MachineState, cpus: int) -> float | None:
    """Share of the processor that was neither idle nor ours."""
    wall = after.wall_seconds - before.wall_seconds
    if before.idle_seconds is None or after.idle_seconds is None or wall <= 0:
        return None
    idle = after.idle_seconds - before.idle_seconds
    own = after.own_seconds - before.own_seconds
    return max(0.0, 1 - (idle + own) / (wall * cpus))


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def reset_peak_memory() -> bool:
    """Let :func:`peak_memory_bytes` start from what is in use now; False where it is refused."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int | None:
    """Largest resident set since :func:`reset_peak_memory`; ``None`` where it is not told.

    Where the kernel refused the reset, it is the largest since the process began, which says little
    of what came last.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


class EnergyMeter:
    """Energy between :meth:`start` and :meth:`stop`, by RAPL or by the board's INA3221 sensors.

    RAPL counts the processor's package; it is readable by root alone on most systems. The sensors
    of a Jetson are sampled 20 times a second; where a total (``VDD_IN``, ``POM_5V_IN``) is among
    them it is taken, else the sum.
    """

    _PERIOD: Final = 0.05

    def __init__(self, root: Path = Path("/")) -> None:
        self._rapl = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))
        self._sensors = _ina_channels(root)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watts: list[float] = []
        self._begin: list[int] | None = None
        self._since = 0.0

    @property
    def source(self) -> str | None:
        """Where the figures come from; ``None`` where the machine does not tell."""
        if self._read_rapl() is not None:
            return "rapl"
        return "ina3221" if self._sensors and self._power() is not None else None

    def start(self) -> None:
        """Begin to count."""
        self._begin = self._read_rapl()
        self._since = time.monotonic()
        if self._begin is None and self._sensors:
            self._stop.clear()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()

    def stop(self) -> float | None:
        """Joules since :meth:`start`, or ``None``."""
        seconds = time.monotonic() - self._since
        if self._begin is not None:
            now = self._read_rapl()
            if now is None:
                return None
            # The counters wrap around; a span that did is not told.
            parts = [b - a for a, b in zip(self._begin, now, strict=True)]
            return sum(parts) / 1e6 if min(parts) >= 0 else None
        if self._thread is None:
            return None
        self._stop.set()
        self._thread.join()
        self._thread = None
        return sum(self._watts) / len(self._watts) * seconds if self._watts else None

    def _read_rapl(self) -> list[int] | None:
        try:
            values = [int(path.read_text()) for path in self._rapl]
        except (OSError, ValueError):
            return None
        return values or None

    def _sample(self) -> None:
        while not self._stop.wait(self._PERIOD):
            power = self._power()
            if power is not None:
                self._watts.append(power)

    def _power(self) -> float | None:
        try:
            return sum(
                int(volts.read_text()) * int(amps.read_text()) / 1e6
                for volts, amps in self._sensors
            )
        except (OSError, ValueError):
            return None


def _ina_channels(root: Path) -> list[tuple[Path, Path]]:
    """Millivolt and milliampere files of the sensors' channels."""
    channels: dict[str, tuple[Path, Path]] = {}
    for name in sorted(root.glob("sys/class/hwmon/hwmon*/name")):
        if _text(name) != "ina3221":
            continue
        for volts in sorted(name.parent.glob("in[1-3]_input")):
            number = volts.name[2]
            amps = name.parent / f"curr{number}_input"
            label = _text(name.parent / f"in{number}_label") or f"{name.parent.name}/{number}"
            if amps.is_file():
                channels[label] = (volts, amps)
    for total in ("VDD_IN", "POM_5V_IN"):
        if total in channels:
            return [channels[total]]
    return list(channels.values())


def _proc_stat(root: Path) -> tuple[float | None, float | None]:
    first = _text(root / "proc/stat")
    parts = (first or "").split()
    if len(parts) < 9 or parts[0] != "cpu":
        return None, None
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(parts[4]) + int(parts[5])) / ticks, int(parts[8]) / ticks


def _clock(root: Path) -> float | None:
    """Mean over the processors of what cpufreq says."""
    pattern = str(root / "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [_number(Path(path)) for path in glob.glob(pattern)]
    known = [v for v in values if v]
    return round(sum(known) / len(known) / 1000, 1) if known else None


def _temperature(root: Path) -> float | None:
    """Of the hottest zone."""
    zones = sorted(root.glob("sys/class/thermal/thermal_zone*/temp"))
    known = [v for v in map(_number, zones) if v is not None]
    return max(known) / 1000 if known else None


def _throttle_count(root: Path) -> int | None:
    paths = root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    known = [int(v) for v in map(_number, paths) if v is not None]
    return sum(known) if known else None


def _power_mode(root: Path) -> str | None:
    """Jetson's ``nvpmodel`` mode, as its daemon last wrote it."""
    status = _text(root / "var/lib/nvpmodel/status")
    return status.removeprefix("pmode:") if status else None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        with path.open(errors="replace") as handle:
            return handle.readline().strip("\0\n ") or None
    except OSError:
        return None
