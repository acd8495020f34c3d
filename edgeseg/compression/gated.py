"""INT8 through the accuracy gate: from a float body to the one that goes into the bundle."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.bundle import Manifest, head_to_files
from edgeseg.compression.calibration import Ranges
from edgeseg.compression.gate import Gate, Verdict
from edgeseg.compression.gate_data import KEPT_BYTES, Kept, pictures
from edgeseg.compression.gate_options import GateOptions
from edgeseg.compression.groups import Group, find_groups
from edgeseg.compression.int8_recovery import Recovered, RecoveryOptions, recover
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.compression.noise import equivalents, limit_from_noise, noise_ladder
from edgeseg.compression.quantize_onnx import QuantizedBody
from edgeseg.compression.search import SearchResult, search
from edgeseg.compression.sensitivity import GroupCost, Timer, analyse
from edgeseg.compression.timing import Run, medians_ms
from edgeseg.compression.workbench import Variant, Workbench, names_of
from edgeseg.errors import GateFailedError
from edgeseg.runtime.session import Session
from edgeseg.scoring.head import Head

__all__ = ["Gated", "Measured", "Outcome", "quantize_through_gate"]

# Levels of noise in the gate data's frames, whose cost the report sets beside INT8's.
NOISE_LEVELS: Final = (1, 2, 4)

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[str], None]
Clock = Callable[[Sequence[Session], UInt8], list[float]]


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
    recovery: Recovered | None = None
    """What training it gave, where it was trained."""


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
        trained = None
        if options.recovery is not None and not verdict.holds:
            trained = _trained(bench, gate, head, frames or chosen, options.recovery, (), progress)
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
        if trained is not None and trained.verdict.holds:
            found = SearchResult((), trained.verdict, 2)
        else:
            found = search(
                bench,
                gate,
                costs,
                verdict,
                budget_ms=budget,
                max_looks=options.max_looks,
                progress=progress,
            )
            trained = None
            if options.recovery is not None and not found.holds and found.keep:
                trained = _trained(
                    bench, gate, head, frames or chosen, options.recovery, found.keep, progress
                )
                found = SearchResult(found.keep, trained.verdict, found.looks + 1)
        if not found.holds:
            raise GateFailedError(_failure(verdict, found, len(costs), bench.compute_precision))
        progress("measuring what goes into the bundle")
        variant = bench.int8(found.keep) if trained is None else trained.variant
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
    recovery = None if trained is None else trained.result
    return Gated(variant.quantized, tuple(sorted(names)), precision, measured, recovery)


@dataclass(frozen=True, slots=True)
class _Trained:
    variant: Variant
    verdict: Verdict
    result: Recovered


def _trained(
    bench: Workbench,
    gate: Gate,
    head: Head,
    frames: Sequence[UInt8],
    options: RecoveryOptions,
    keep: Sequence[Group],
    progress: Progress,
) -> _Trained:
    """The INT8 body with ``keep`` in float, trained and judged."""
    progress(f"training the INT8 body for {options.steps} steps")
    variant = bench.int8(keep)
    assert variant.quantized is not None
    result = recover(bench.body, variant.quantized.model, head, frames, options, progress=progress)
    precision = variant.bundle.manifest.compute_precision
    variant = bench.put(replace(variant.quantized, model=result.model), precision)
    with bench.open(variant) as session:
        verdict = gate.judge(session)
    progress(f"worst: {verdict.worst}")
    return _Trained(variant, verdict, result)


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
