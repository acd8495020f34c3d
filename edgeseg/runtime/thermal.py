"""Temperature and clock of this machine, and whether they spoil the latency."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["MachineState", "ThermalWatch", "read_machine"]

_HOT_C: Final = 90.0
_COOLER_C: Final = 5.0
_SLOW: Final = 0.5
_PLAUSIBLE_C: Final = (-40.0, 150.0)


@dataclass(frozen=True, slots=True)
class MachineState:
    """``None`` where the machine does not tell."""

    temperature_c: float | None
    """Of the hottest zone."""
    clock_mhz: int | None
    """Of the fastest core: idle ones are slow by right."""
    max_clock_mhz: int | None


def read_machine(root: Path = Path("/sys")) -> MachineState:
    """What the kernel says below ``root``."""
    zones = [
        *root.glob("class/thermal/thermal_zone*/temp"),
        *root.glob("class/hwmon/hwmon*/temp*_input"),
    ]
    low, high = _PLAUSIBLE_C
    # Zones that are switched off read as absurd values.
    degrees = [c for c in (_number(zone, 1000) for zone in zones) if c is not None]
    degrees = [c for c in degrees if low < c < high]
    cores = list(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq"))
    clocks = [c for c in (_number(core / "scaling_cur_freq", 1000) for core in cores) if c]
    tops = [c for c in (_number(core / "cpuinfo_max_freq", 1000) for core in cores) if c]
    return MachineState(
        temperature_c=round(max(degrees), 1) if degrees else None,
        clock_mhz=round(max(clocks)) if clocks else None,
        max_clock_mhz=round(max(tops)) if tops else None,
    )


class ThermalWatch:
    """Notices when the machine becomes hot or slow, and when that is over.

    Args:
        root: where ``sysfs`` is mounted.
        hot_c: temperature of the hottest zone from which the machine counts as hot.
        slow: share of the largest clock below which even the fastest core must stay to count as
            slow.
    """

    def __init__(
        self, root: Path = Path("/sys"), hot_c: float = _HOT_C, slow: float = _SLOW
    ) -> None:
        self._root = root
        self._hot_c = hot_c
        self._slow_share = slow
        self._hot = False
        self._slow = 0

    def look(self) -> tuple[MachineState, list[tuple[str, str]]]:
        """The state, and the events (name, sentence) that it means."""
        state = read_machine(self._root)
        return state, [*self._heat(state), *self._speed(state)]

    def _heat(self, state: MachineState) -> list[tuple[str, str]]:
        degrees = state.temperature_c
        if degrees is None:
            return []
        if not self._hot and degrees >= self._hot_c:
            self._hot = True
            return [("machine_hot", f"the hottest zone is at {degrees:g} degrees Celsius")]
        # A gap between the two limits, so that a temperature at the limit is told once.
        if self._hot and degrees < self._hot_c - _COOLER_C:
            self._hot = False
            return [("machine_cooler", f"the hottest zone is at {degrees:g} degrees Celsius")]
        return []

    def _speed(self, state: MachineState) -> list[tuple[str, str]]:
        if state.clock_mhz is None or state.max_clock_mhz is None:
            return []
        text = f"the fastest core runs at {state.clock_mhz} of {state.max_clock_mhz} MHz"
        if state.clock_mhz < self._slow_share * state.max_clock_mhz:
            self._slow += 1
            # Between two frames all cores may be idle: it has to last.
            return [("clock_low", text)] if self._slow == 3 else []
        was, self._slow = self._slow, 0
        return [("clock_back", text)] if was >= 3 else []


def _number(path: Path, divisor: float) -> float | None:
    try:
        return int(path.read_text()) / divisor
    except (OSError, ValueError):
        return None
