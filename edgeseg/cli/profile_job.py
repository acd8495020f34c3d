"""What ``edgeseg profile`` does between its options and its tables."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.cli.profile_targets import (
    bundle_of,
    is_bundle,
    open_subject,
    shipped_networks,
    subjects_to_estimate,
)
from edgeseg.cli.progress import frame_progress
from edgeseg.errors import MissingDependencyError, UsageError
from edgeseg.profiling.counts import as_documents, layer_rows
from edgeseg.profiling.detection import resolve
from edgeseg.profiling.devices import Device
from edgeseg.profiling.latency import Effort, Runner, measure
from edgeseg.profiling.reference import is_reference, reference_name, reference_ratios
from edgeseg.profiling.roofline import estimate
from edgeseg.profiling.rows import estimated_row, measured_row
from edgeseg.profiling.subjects import Subject, from_table

__all__ = [
    "Request",
    "budget_of",
    "layer_entries",
    "ratio_entry",
    "run_profile",
    "say",
    "subject_to_measure",
]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The options; ``None`` stands for their defaults."""

    targets: list[str] = field(default_factory=list)
    weights: Path | None = None
    device: str = "cpu"
    mode: str | None = None
    scorer: str | None = None
    threads: int | None = None
    backend: str = "auto"
    size: tuple[int, int] | None = None
    precision: str | None = None
    estimate: bool = False
    seconds: float = 3.0
    layers: bool = False
    budget_ms: float | None = None
    compare: bool = False
    """Whether to measure the ratio to the reference bundle too."""


def run_profile(request: Request) -> dict[str, Any]:
    """The document that ``--json`` prints.

    Raises:
        EdgesegError: something could not be opened, measured or estimated.
    """
    device, here, note = resolve(request.device)
    device = device.in_mode(request.mode)
    measured = here and not request.estimate
    if note and not measured:
        say(note)
    rows = _measured(request, device) if measured else _estimated(request, device)
    document = document_of(device, rows, measured=measured)
    if not measured:
        document["estimate_only"] = device.estimate_only
        document["software_note"] = device.software.note
    if request.compare and measured:
        document["reference"] = reference_name()
    return document


def document_of(device: Device, rows: list[Row], *, measured: bool) -> dict[str, Any]:
    """What every document of ``edgeseg profile`` has: the device in its present mode, and rows."""
    # What a roofline is drawn from.
    peaks = ("bandwidth_gbs", "float32_tflops", "float16_tflops", "int8_tops")
    return {
        "schema": "edgeseg.profile/1",
        "device": device.name,
        "title": device.title,
        "mode": device.default_mode,
        "kind": "measured" if measured else "estimated",
        "unconfirmed": [] if measured else list(device.unconfirmed),
        "peaks": {name: getattr(device.hardware, name) for name in peaks},
        "results": rows,
    }


def _estimated(request: Request, device: Device) -> list[Row]:
    subjects = subjects_to_estimate(
        request.targets, request.weights, request.precision, request.size, device.precisions
    )
    return [_estimate_row(subject, request, device) for subject in subjects]


def _estimate_row(subject: Subject, request: Request, device: Device) -> Row:
    scorer = subject.choose_scorer(request.scorer)
    guess = estimate(subject.graph, subject.head, device, scorer)
    row = estimated_row(subject, scorer, device, guess, budget_of(request, device, subject))
    if request.layers:
        row["layers"] = layer_entries(subject, scorer)
        for entry, time in zip(row["layers"], guess.layers, strict=False):
            entry |= {"estimated_ms": round(time.ms, 4), "bound": time.bound}
    return row


def _measured(request: Request, device: Device) -> list[Row]:
    rows = []
    if request.weights is not None and request.weights.is_dir():
        from edgeseg.cli.profile_fx import open_fx

        (name,) = request.targets
        subject, runner = open_fx(
            name, request.weights, request.size, request.scorer, request.threads
        )
        row = _measure(subject, runner, request, device)
        counts = row["counts"]
        moved = counts["macs_integer"] - runner.macs_integer
        counts["macs_integer"] -= moved
        counts["integer_operations"] -= 2 * moved
        counts["macs_float"] += moved
        counts["flops"] += 2 * moved
        return [row]
    for target in request.targets or shipped_networks():
        try:
            subject = subject_to_measure(target, request)
        except MissingDependencyError as error:
            # Named ones must be measured; of all that are shipped, some may be without torch.
            if request.targets:
                raise
            say(f"{error}; {target} is estimated")
            guessed = from_table(target).at(request.precision or "int8", request.size)
            rows.append(_estimate_row(guessed, request, device))
            continue
        rows.append(_measure_row(subject, request, device))
    return rows


def subject_to_measure(target: str, request: Request) -> Subject:
    """The bundle that an argument names, or one of the network that it names.

    Raises:
        UsageError: a bundle of another size or precision than the one asked for.
        MissingDependencyError: a network would have to be exported, without torch.
        EdgesegError: it cannot be opened or made.
    """
    if not is_bundle(target):
        return bundle_of(target, request.weights, request.precision, request.size)
    subject = open_subject(target)
    if request.size not in (None, subject.graph.size):
        raise UsageError(
            f"bundle '{subject.label}' is made for {subject.size}; to measure another size export "
            "it again with --size, or estimate it with --estimate"
        )
    if request.precision not in (None, subject.precision):
        raise UsageError(
            f"bundle '{subject.label}' is {subject.precision}; name the network to have it "
            f"exported in {request.precision}"
        )
    return subject


def _measure_row(subject: Subject, request: Request, device: Device) -> Row:
    from edgeseg.runtime.session import Session

    assert subject.bundle is not None
    scorer = subject.choose_scorer(request.scorer)
    backend = request.backend
    if backend == "auto" and device.device != "cpu":
        backend = device.backends[0]
    with Session(subject.bundle, backend, request.threads, scorer) as session:
        for text in session.notes:
            say(text)
        return _measure(subject, session, request, device)


def _measure(subject: Subject, runner: Runner, request: Request, device: Device) -> Row:
    label = f"{subject.network} {subject.precision}"
    with frame_progress(label) as bar:
        found = measure(runner, Effort(seconds=request.seconds), progress=bar or _silent)
    row = measured_row(subject, runner, found, budget_of(request, device, subject))
    if request.compare and subject.bundle is not None and not is_reference(subject.bundle):
        with frame_progress(f"{label} / reference") as bar:
            row["ratio"] = ratio_entry(reference_ratios(runner, bar or _silent).tolist())
    if request.layers:
        row["layers"] = layer_entries(subject, runner.scorer)
    return row


def ratio_entry(samples: Sequence[float]) -> dict[str, Any]:
    """Of a row: the ratio to the ready bundle."""
    return {
        "reference": reference_name(),
        "median": float(f"{np.median(samples):.6g}"),
        "samples": [float(f"{s:.6g}") for s in samples],
    }


def budget_of(request: Request, device: Device, subject: Subject) -> float:
    """Milliseconds of p99: what was asked for, else what the device's profile allows."""
    if request.budget_ms is not None:
        return request.budget_ms
    return device.budget(subject.network, subject.precision, subject.size)


def layer_entries(subject: Subject, scorer: str) -> list[Row]:
    """Of a row: its layers."""
    return as_documents(layer_rows(subject.graph, subject.head, scorer))


def say(text: str) -> None:
    """A remark beside the document."""
    print(f"edgeseg: {text}", file=sys.stderr, flush=True)


_silent: Callable[[int, int], None] = lambda _done, _total: None  # noqa: E731
