"""Latency: what a frame takes on this machine, stage by stage."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.errors import EdgesegError
from edgeseg.profiling.state import (
    EnergyMeter,
    MachineState,
    look,
    peak_memory_bytes,
    reset_peak_memory,
    verdict,
)
from edgeseg.runtime.opencv import opencv
from edgeseg.runtime.session import Result
from edgeseg.scoring.kernels import resize_bilinear

__all__ = [
    "LEVELS",
    "Effort",
    "Measurement",
    "Runner",
    "measure",
    "noise_frame",
    "percentiles",
    "ratios",
]

LEVELS: Final = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
CAMERA_SIZE: Final = (1080, 1920)
"""Of the JPEG that decoding and resizing are measured with."""
BURST: Final = 5
"""Frames in a row of each session when two take turns."""
_SETTLE: Final = 2
"""Frames at the head of a burst that are not counted: caches and threads change hands."""

UInt8 = npt.NDArray[np.uint8]
Clock = Callable[[], int]
Progress = Callable[[int, int], None]


class Runner(Protocol):
    """What can be measured: a :class:`edgeseg.runtime.session.Session`, or something like it."""

    scorer: str
    threads: int

    @property
    def backend_name(self) -> str:
        """Name of the engine."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its frames."""
        ...

    def run(self, frame: UInt8) -> Result:
        """Class map, score and timings of a frame."""
        ...

    def describe(self) -> dict[str, Any]:
        """For reports."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    warmup_seconds: float = 1.0
    seconds: float = 3.0
    min_frames: int = 30
    max_frames: int = 2000
    outer_frames: int = 20
    """For decoding, resizing and the overlapped rate."""


@dataclass(slots=True)
class Measurement:
    """What was measured; milliseconds."""

    latency_ms: npt.NDArray[np.float64]
    """Frame at network size in memory to class map and float16 score in memory, per frame."""
    stages_ms: dict[str, float] = field(default_factory=dict)
    """Medians."""
    fps_pipelined: float | None = None
    """Decoding and resizing of the next frame overlap with this one's inference."""
    memory_bytes: int | None = None
    """Largest resident set of this process; ``None`` where torch is loaded in it too."""
    energy_joule: float | None = None
    """Per frame."""
    energy_source: str | None = None
    before: MachineState | None = None
    after: MachineState | None = None
    verdict: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second, one after the other."""
        return 1000 / float(self.latency_ms.mean())

    @property
    def jitter_ms(self) -> float:
        """Standard deviation of the latency."""
        return float(self.latency_ms.std())


def percentiles(values: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """p50, p90, p95, p99 and max."""
    array = np.asarray(values)
    return {name: round(float(np.percentile(array, level)), 3) for name, level in LEVELS.items()}


def noise_frame(size: tuple[int, int], seed: int = 0) -> UInt8:
    """A frame with blocks, edges and noise: zeros and flat areas have times of their own.

    Args:
        size: height and width, pixels.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.integers(0, 192, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    blocks = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    noise: UInt8 = rng.integers(0, 64, (height, width, 3), dtype=np.uint8)
    return blocks + noise


def measure(
    session: Runner,
    effort: Effort | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda _done, _total: None,
) -> Measurement:
    """Measure one session on this machine.

    Args:
        session: opened.
        effort: how long.
        clock: nanoseconds.
        progress: is told frames done and expected.
    """
    effort = effort or Effort()
    frames = [noise_frame(session.size, seed) for seed in range(4)]
    memory_counts = reset_peak_memory()
    warm = _warm_up(session, frames, effort, clock)
    expected = max(effort.min_frames, min(effort.max_frames, int(effort.seconds * 1e3 / warm)))
    meter = EnergyMeter()
    source = meter.source
    before = look()
    meter.start()
    latency: list[float] = []
    parts: list[dict[str, float]] = []
    begin = clock()
    while len(latency) < effort.max_frames:
        elapsed, timings = _once(session, frames[len(latency) % len(frames)], clock)
        latency.append(elapsed)
        parts.append(timings)
        progress(len(latency), expected)
        if len(latency) >= effort.min_frames and clock() - begin >= effort.seconds * 1e9:
            break
    energy = meter.stop()
    after = look()
    result = Measurement(np.array(latency), before=before, after=after)
    quarter = max(1, len(latency) // 4)
    halves = float(np.median(latency[:quarter])), float(np.median(latency[-quarter:]))
    result.verdict, result.reasons = verdict(before, after, halves)
    if energy is not None:
        result.energy_joule, result.energy_source = energy / len(latency), source
    _outer_stages(session, result, effort, clock)
    for stage in parts[0]:
        result.stages_ms[stage] = float(np.median([p[stage] for p in parts]))
    # A process that has just exported the bundle holds torch, which a run does not.
    if memory_counts and "torch" not in sys.modules:
        result.memory_bytes = peak_memory_bytes()
    return result


def ratios(
    session: Runner,
    reference: Runner,
    rounds: int = 10,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda _done, _total: None,
) -> npt.NDArray[np.float64]:
    """Times of a session over those of a reference, taken in turns.

    What slows the machine down for longer than a turn slows both, so the quotient holds still
    where the times do not.

    Args:
        session: what is asked about.
        reference: opened on the same engine with the same threads.
        rounds: turns; each has five counted frames of both.
        clock: nanoseconds.
        progress: is told turns done and in all.

    Returns:
        one quotient per turn, of the fastest counted frames.
    """
    own, other = noise_frame(session.size), noise_frame(reference.size)
    result = []
    for done in range(rounds):
        pair = [_burst(reference, other, clock), _burst(session, own, clock)]
        result.append(pair[1] / pair[0])
        progress(done + 1, rounds)
    return np.array(result)


def _burst(session: Runner, frame: UInt8, clock: Clock) -> float:
    times = [_once(session, frame, clock)[0] for _ in range(_SETTLE + BURST)]
    # The fastest of a burst: what a neighbour adds to a frame is never negative.
    return float(np.min(times[_SETTLE:]))


def _once(session: Runner, frame: UInt8, clock: Clock) -> tuple[float, dict[str, float]]:
    start = clock()
    result = session.run(frame)
    return (clock() - start) / 1e6, result.timings


def _warm_up(session: Runner, frames: list[UInt8], effort: Effort, clock: Clock) -> float:
    """Run until clocks and caches have settled; milliseconds of the last frame."""
    begin, last = clock(), 1.0
    for count in range(effort.max_frames):
        last = _once(session, frames[count % len(frames)], clock)[0]
        if clock() - begin >= effort.warmup_seconds * 1e9:
            break
    return max(last, 1e-3)


def _outer_stages(session: Runner, result: Measurement, effort: Effort, clock: Clock) -> None:
    """Decoding, resizing and the whole way from a JPEG, one after the other and overlapped."""
    try:
        cv2 = opencv()
    except EdgesegError:
        return  # not installed: there is nothing to decode with
    height, width = session.size
    _, packed = cv2.imencode(".jpg", noise_frame(CAMERA_SIZE))
    buffer = np.zeros((height, width, 3), np.uint8)
    times: dict[str, list[float]] = {"decode": [], "resize": [], "end_to_end": []}
    for _ in range(effort.outer_frames):
        start = clock()
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        decoded = clock()
        resize_bilinear(image, height, width, threads=session.threads, out=buffer)
        resized = clock()
        session.run(buffer)
        end = clock()
        for stage, span in zip(
            times, (decoded - start, resized - decoded, end - start), strict=True
        ):
            times[stage].append(span / 1e6)
    result.stages_ms |= {stage: float(np.median(values)) for stage, values in times.items()}
    result.fps_pipelined = _overlapped(session, cv2, packed, effort.outer_frames, clock)


def _overlapped(session: Runner, cv2: Any, packed: Any, count: int, clock: Clock) -> float:
    height, width = session.size
    ready: queue.Queue[UInt8] = queue.Queue(maxsize=2)

    def produce() -> None:
        for _ in range(count):
            image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
            ready.put(resize_bilinear(image, height, width, threads=1))

    def frames() -> Iterator[UInt8]:
        for _ in range(count):
            yield ready.get()

    thread = threading.Thread(target=produce, daemon=True)
    start = clock()
    thread.start()
    for frame in frames():
        session.run(frame)
    seconds = (clock() - start) / 1e9
    thread.join()
    return count / seconds if seconds > 0 else 0.0
