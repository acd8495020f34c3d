"""INT8 through the accuracy gate: from a float body to the one that goes into the bundle."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.bundle import Manifest, head_to_files
from edgeseg.compression.calibration import Ranges
from edgeseg.compression.gate import Gate, Verdict
from edgeseg.compression.gate_data import KEPT_BYTES, Kept, pictures
from edgeseg.compression.groups import Granularity, Group, find_groups
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.compression.noise import equivalents, limit_from_noise, noise_ladder
from edgeseg.compression.quantize_onnx import QuantizedBody
from edgeseg.compression.search import MAX_LOOKS, SearchResult, search
from edgeseg.compression.sensitivity import GroupCost, Timer, analyse
from edgeseg.compression.timing import Run, medians_ms
from edgeseg.compression.workbench import Workbench, names_of
from edgeseg.data import Dataset
from edgeseg.errors import GateFailedError, UsageError
from edgeseg.runtime.session import Session
from edgeseg.scoring.head import Head

__all__ = ["GateOptions", "Gated", "Measured", "Outcome", "quantize_through_gate"]

# Levels of noise in the gate data's frames, whose cost the report sets beside INT8's.
NOISE_LEVELS: Final = (1, 2, 4)

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[str], None]
Clock = Callable[[Sequence[Session], UInt8], list[float]]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What the gate asks for, and how it looks."""

    max_drop: float
    """Points that AuPRC, FPR95 and mIoU may lose, each."""
    data: Sequence[Dataset]
    """Labelled sets that decide."""
    held_out: Sequence[Dataset] = ()
    """Labelled sets that are reported only."""
    every: int | None = None
    """Take every n-th frame of each set; ``None``: at most a hundred of each, evenly spread."""
    max_noise: float | None = 2.0
    """Scores may change, by the measure without labels, as much as they do in the float network by
    uniform input noise of so many grey levels; ``None``: no limit. Two are what a camera adds by
    itself: with 40 dB between signal and noise, 1% of full scale is 2.5.
    """
    max_give_back: float = 100.0
    """How much of INT8's gain in time may be given back, percent, by the groups' own times; from
    100 on there is no limit, but something stays integer.
    """
    granularity: Granularity = "block"
    backend: str = "auto"
    threads: int | None = None
    compute_precision: str = "auto"
    """Of groups left in float: ``f32``, ``bf16`` or ``auto``."""
    frames: int = 8
    """Frames for the measure without labels, at most."""
    max_looks: int = MAX_LOOKS

    def check(self) -> None:
        """UsageError where a value cannot be."""
        if not self.data:
            raise UsageError("the accuracy gate needs labelled data; give --gate-data")
        for name, value, low in (
            ("--max-drop", self.max_drop, 0),
            ("--max-noise", self.max_noise or 0, 0),
            ("--max-give-back", self.max_give_back, 0),
        ):
            if not (np.isfinite(value) and value >= low):
                raise UsageError(f"{name} {value} is not a number from {low} on")
        if self.compute_precision not in ("auto", "f32", "bf16"):
            raise UsageError(
                f"--compute-precision '{self.compute_precision}' is unknown; choose auto, f32 or "
                "bf16"
            )
        if self.every is not None and self.every < 1:
            raise UsageError(f"--gate-every {self.every} selects nothing; give 1 or more")
        for dataset in self.held_out:
            if any(d.name == dataset.name and _same_folder(d, dataset) for d in self.data):
                raise UsageError(f"'{dataset.name}' both decides and is held out; name it once")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out on some sets."""

    frames: dict[str, int]
    """By set."""
    whole: Verdict
    """INT8 throughout."""
    final: Verdict
    """What goes into the bundle."""
    noise_drops: dict[int, dict[tuple[str, str | None, str], float]]
    """Points that input noise costs the float network, by level and figure."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the report is made of."""

    options: GateOptions
    engine: dict[str, Any]
    judged: Outcome
    """On the sets that decide."""
    held_out: Outcome | None
    costs: list[GroupCost]
    keep: tuple[Group, ...]
    compute_precision: str
    looks: int
    times_ms: tuple[float, float, float]
    """float32, INT8 throughout, what goes into the bundle."""
    ladder: dict[int, ScoreChange]
    """Change of scores by input noise of so many grey levels."""
    bias: tuple[ScoreChange, ScoreChange]
    """INT8 throughout without and with bias correction."""
    label_free_frames: int

    @property
    def given_back_percent(self) -> float | None:
        """Of INT8's gain; ``None`` where it gained nothing."""
        floating, whole, final = self.times_ms
        return 100 * (final - whole) / (floating - whole) if floating > whole else None

    def noise_equivalents(self, change: ScoreChange) -> dict[str, float | None]:
        """Of a change, grey levels."""
        return equivalents(self.ladder, change)


@dataclass(frozen=True, slots=True)
class Gated:
    """What came through the gate."""

    quantized: QuantizedBody
    keep_float: tuple[str, ...]
    compute_precision: str
    measured: Measured


def quantize_through_gate(
    body: onnx.ModelProto,
    head: Head,
    manifest: Manifest,
    ranges: Ranges,
    frames: Sequence[UInt8],
    options: GateOptions,
    *,
    correct_bias: bool = True,
    progress: Progress = lambda _: None,
    timer: Timer | None = None,
    clock: Clock | None = None,
) -> Gated:
    """Quantize a body and leave in float what it takes for the gate to hold.

    Args:
        body: float body.
        head: of the network.
        manifest: of the bundle to be; precision and files do not matter.
        ranges: to quantize with.
        frames: for the measure without labels; where there is none, frames of the gate data serve.
        options: what is asked for.
        correct_bias: see :func:`~edgeseg.compression.quantize_onnx.quantize_body`.
        progress: is told what is being done.
        timer: of a group, by default measured.
        clock: of whole bodies, by default measured.

    Raises:
        GateFailedError: no body that was tried holds.
    """
    options.check()
    size = (manifest.height, manifest.width)
    chosen = _spread(frames, options.frames) or pictures(options.data, options.frames, size)
    room = KEPT_BYTES // len(options.data)
    with ExitStack() as stack:
        progress("opening the float and the INT8 body")
        bench = stack.enter_context(
            Workbench(
                body,
                head_to_files(head)[1],
                manifest,
                ranges,
                backend=options.backend,
                threads=options.threads,
                compute_precision=options.compute_precision,
                correct_bias=correct_bias,
            )
        )
        floating = stack.enter_context(bench.open(bench.float32()))
        whole = stack.enter_context(bench.open(bench.int8()))
        probe = stack.enter_context(ScoreProbe(head, *size, floating.threads))
        progress(f"comparing scores on {len(chosen)} frames")
        reference = Reference(probe, chosen, floating.features)
        change = reference.change(whole.features)
        bias = _bias_changes(bench, reference, change)
        ladder = noise_ladder(reference, floating.features, bias, options.max_noise or 1)
        limit = None if options.max_noise is None else limit_from_noise(ladder, options.max_noise)
        kept = [Kept(d, options.every, size, room) for d in options.data]
        gate = Gate(floating, kept, reference, options.max_drop, limit, progress)
        progress("measuring INT8")
        verdict = gate.judge(whole)
        progress("measuring input noise")
        drops = _noise_drops(gate, floating)
        costs = analyse(
            bench,
            find_groups(body, options.granularity),
            gate,
            timer=timer,
            progress=progress,
        )
        time_of = clock or _clock
        float_ms, whole_ms = time_of([floating, whole], chosen[0])
        gain = float_ms - whole_ms
        # Where INT8 gains nothing there is nothing to give back. Times of groups are uncertain, so
        # without a limit their sum limits nothing either.
        limited = gain > 0 and options.max_give_back < 100
        budget = gain * options.max_give_back / 100 if limited else np.inf
        found = search(
            bench,
            gate,
            costs,
            verdict,
            budget_ms=budget,
            max_looks=options.max_looks,
            progress=progress,
        )
        if not found.holds:
            raise GateFailedError(_failure(verdict, found, len(costs), bench.compute_precision))
        progress("measuring what goes into the bundle")
        variant = bench.int8(found.keep)
        assert variant.quantized is not None
        with bench.open(variant) as final:
            times = time_of([floating, whole, final], chosen[0])
            held_out = _held_out(options, floating, (whole, final), reference, size, progress)
            engine = final.describe()
        names = names_of(found.keep)
        precision = bench.compute_precision if names else "f32"
        measured = Measured(
            options=options,
            engine=engine,
            judged=Outcome(gate.frames, verdict, found.verdict, drops),
            held_out=held_out,
            costs=costs,
            keep=found.keep,
            compute_precision=precision,
            looks=found.looks,
            times_ms=(times[0], times[1], times[2]),
            ladder=ladder,
            bias=bias,
            label_free_frames=len(chosen),
        )
    return Gated(variant.quantized, tuple(sorted(names)), precision, measured)


def _spread(frames: Sequence[UInt8], count: int) -> list[UInt8]:
    return list(frames[:: max(1, -(-len(frames) // count))])


def _clock(sessions: Sequence[Session], frame: UInt8) -> list[float]:
    runs: list[Run] = [s.features for s in sessions]
    return medians_ms(runs, frame)


def _bias_changes(
    bench: Workbench, reference: Reference, change: ScoreChange
) -> tuple[ScoreChange, ScoreChange]:
    with bench.open(bench.int8(correct_bias=not bench.correct_bias)) as session:
        other = reference.change(session.features)
    return (other, change) if bench.correct_bias else (change, other)


def _noise_drops(
    gate: Gate, floating: Session
) -> dict[int, dict[tuple[str, str | None, str], float]]:
    return {
        level: {(f.dataset, f.scorer, f.name): f.drop for f in figures}
        for level, figures in gate.noise_drops(floating, NOISE_LEVELS).items()
    }


def _held_out(
    options: GateOptions,
    floating: Session,
    sessions: tuple[Session, Session],
    reference: Reference,
    size: tuple[int, int],
    progress: Progress,
) -> Outcome | None:
    if not options.held_out:
        return None
    kept = [Kept(d, options.every, size, budget=0) for d in options.held_out]
    gate = Gate(floating, kept, reference, options.max_drop, None, progress)
    progress("measuring what is held out")
    whole, final = (gate.judge(session) for session in sessions)
    return Outcome(gate.frames, whole, final, _noise_drops(gate, floating))


def _same_folder(one: Dataset, other: Dataset) -> bool:
    return one.folder.resolve() == other.folder.resolve()


def _failure(whole: Verdict, found: SearchResult, groups: int, precision: str) -> str:
    tried = ""
    if found.keep:
        tried = (
            f", and with {len(found.keep)} of {groups} groups in {precision} still: "
            f"{found.verdict.worst}"
        )
    return (
        f"the accuracy gate does not hold: in INT8 throughout {whole.worst}{tried}; nothing was "
        "written; raise --max-drop, --max-noise or --max-give-back, or calibrate with other frames"
    )
