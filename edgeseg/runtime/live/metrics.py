"""The run's figures in Prometheus' text format (exposition format 0.0.4)."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edgeseg.runtime.live.pictures import Gallery
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.thermal import MachineState

__all__ = ["Histogram", "render"]

_BOUNDS: Final = (0.005, 0.01, 0.02, 0.033, 0.05, 0.066, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Histogram:
    """Counts of seconds below fixed bounds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        at = next((i for i, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
        self._counts[at] += 1
        self._sum += seconds

    def lines(self) -> list[tuple[str, dict[str, str], float]]:
        """Suffix, labels and value of every sample."""
        out: list[tuple[str, dict[str, str], float]] = []
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            out.append(("_bucket", {"le": bound}, total))
        return [*out, ("_sum", {}, round(self._sum, 6)), ("_count", {}, total)]


def render(
    *,
    about: Mapping[str, Any],
    healthy: bool,
    states: Mapping[str, int],
    latency: list[tuple[str, dict[str, str], float]],
    age: list[tuple[str, dict[str, str], float]],
    pipeline: Pipeline | None,
    machine: MachineState | None,
    events: Mapping[str, int],
    events_lost: int,
    gallery: Gallery,
    uptime_s: float,
) -> str:
    """The whole document."""
    out: list[str] = []

    def put(
        name: str, kind: str, text: str, samples: Iterable[tuple[str, Mapping[str, str], float]]
    ) -> None:
        out.append(f"# HELP edgeseg_{name} {text}")
        out.append(f"# TYPE edgeseg_{name} {kind}")
        out.extend(f"edgeseg_{name}{suffix}{_labels(ls)} {_value(v)}" for suffix, ls, v in samples)

    def one(name: str, kind: str, text: str, value: float) -> None:
        put(name, kind, text, [("", {}, value)])

    told = ("network", "weights", "precision", "size", "scorer", "backend")
    labels = {key: str(about.get(key) or "") for key in told}
    put("info", "gauge", "What runs.", [("", labels, 1)])
    one("uptime_seconds", "gauge", "Since the live view began.", round(uptime_s, 3))
    one("healthy", "gauge", "1 while results come that may be trusted.", healthy)
    put(
        "frames_total",
        "counter",
        "Lines of the run by state.",
        [("", {"state": state}, count) for state, count in states.items()],
    )
    put("latency_seconds", "histogram", "Frame in memory to result in memory.", latency)
    put("age_seconds", "histogram", "Capture to result.", age)
    if pipeline is not None:
        guard, report = pipeline.supervisor, pipeline.report
        one("safe_state", "gauge", "1 in the safe state.", guard.safe)
        one("safe_entries_total", "counter", "Entries into the safe state.", guard.entries)
        one("missed_frames_total", "counter", "Frames without a result in time.", report.missed)
        one("corrupt_frames_total", "counter", "Frames not decoded.", report.corrupt)
        one("skipped_frames_total", "counter", "Frames a newer one replaced.", pipeline.skipped)
        one("unsaved_pictures_total", "counter", "Pictures not saved.", report.unsaved)
        put(
            "problems_total",
            "counter",
            "Misses by kind.",
            [("", {"kind": kind}, count) for kind, count in dict(guard.problems).items()],
        )
    put(
        "events_total",
        "counter",
        "Events by name.",
        [("", {"event": name}, count) for name, count in events.items()],
    )
    one("events_lost_total", "counter", "Events that the log did not take.", events_lost)
    one("viewers", "gauge", "Viewers of the stream.", gallery.viewers)
    one("viewers_refused_total", "counter", "Viewers for whom was no place.", gallery.refused)
    one("pictures_replaced_total", "counter", "Pictures never drawn.", gallery.replaced)
    if machine is not None and machine.temperature_c is not None:
        one("temperature_celsius", "gauge", "Of the hottest zone.", machine.temperature_c)
    if machine is not None and machine.clock_mhz is not None:
        one("clock_hertz", "gauge", "Of the fastest core.", machine.clock_mhz * 1e6)
    resident = _resident_bytes()
    if resident is not None:
        one("resident_memory_bytes", "gauge", "Memory of the process.", resident)
    return "\n".join(out) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = []
    for key, value in labels.items():
        escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        pairs.append(f'{key}="{escaped}"')
    return "{" + ",".join(pairs) + "}"


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _value(value: float) -> str:
    # %g would round counters from a million on.
    return str(int(value)) if float(value).is_integer() else repr(float(value))
