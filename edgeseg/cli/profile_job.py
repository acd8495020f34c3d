"""What ``edgeseg profile`` does between its options and its tables."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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
from edgeseg.profiling.latency import Effort, Runner, measure, ratios
from edgeseg.profiling.roofline import estimate
from edgeseg.profiling.rows import estimated_row, measured_row
from edgeseg.profiling.subjects import Subject, from_table

__all__ = ["Request", "run_profile"]

_ROUNDS: Final = 12

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
        _say(note)
    rows = _measured(request, device) if measured else _estimated(request, device)
    document: dict[str, Any] = {
        "schema": "edgeseg.profile/1",
        "device": device.name,
        "title": device.title,
        "mode": device.default_mode,
        "kind": "measured" if measured else "estimated",
        "unconfirmed": [] if measured else list(device.unconfirmed),
        "results": rows,
    }
    if not measured:
        document["estimate_only"] = device.estimate_only
        document["software_note"] = device.software.note
    if request.compare and measured:
        document["reference"] = _reference_name()
    return document


def _estimated(request: Request, device: Device) -> list[Row]:
    subjects = subjects_to_estimate(
        request.targets, request.weights, request.precision, request.size, device.precisions
    )
    return [_estimate_row(subject, request, device) for subject in subjects]


def _estimate_row(subject: Subject, request: Request, device: Device) -> Row:
    scorer = subject.choose_scorer(request.scorer)
    guess = estimate(subject.graph, subject.head, device, scorer)
    row = estimated_row(subject, scorer, device, guess, _budget(request, device, subject))
    if request.layers:
        row["layers"] = _layers(subject, scorer)
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
        if is_bundle(target):
            subject = open_subject(target)
        else:
            try:
                subject = bundle_of(target, request.weights, request.precision, request.size)
            except MissingDependencyError as error:
                # Named ones must be measured; of all that are shipped, some may be without torch.
                if request.targets:
                    raise
                _say(f"{error}; {target} is estimated")
                guessed = from_table(target).at(request.precision or "int8", request.size)
                rows.append(_estimate_row(guessed, request, device))
                continue
        rows.append(_measure_row(subject, request, device))
    return rows


def _measure_row(subject: Subject, request: Request, device: Device) -> Row:
    from edgeseg.runtime.session import Session

    assert subject.bundle is not None
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
    scorer = subject.choose_scorer(request.scorer)
    backend = request.backend
    if backend == "auto" and device.device != "cpu":
        backend = device.backends[0]
    with Session(subject.bundle, backend, request.threads, scorer) as session:
        for text in session.notes:
            _say(text)
        return _measure(subject, session, request, device)


def _measure(subject: Subject, runner: Runner, request: Request, device: Device) -> Row:
    label = f"{subject.network} {subject.precision}"
    with frame_progress(label) as bar:
        found = measure(runner, Effort(seconds=request.seconds), progress=bar or _silent)
    row = measured_row(subject, runner, found, _budget(request, device, subject))
    compared = request.compare and subject.bundle is not None
    if compared and not _is_reference(subject):
        row["ratio"] = _ratio(runner, label)
    if request.layers:
        row["layers"] = _layers(subject, runner.scorer)
    return row


def _ratio(session: Runner, label: str) -> dict[str, Any]:
    """Beside the ready bundle, on the same engine, in turn."""
    import numpy as np

    from edgeseg.runtime.ready import ready_bundle
    from edgeseg.runtime.session import Session

    with (
        Session(ready_bundle(), session.backend_name, session.threads) as reference,
        frame_progress(f"{label} / reference") as bar,
    ):
        samples = ratios(session, reference, _ROUNDS, progress=bar or _silent)
    return {
        "reference": _reference_name(),
        "median": float(f"{np.median(samples):.6g}"),
        "samples": [float(f"{s:.6g}") for s in samples],
    }


def _is_reference(subject: Subject) -> bool:
    """Beside itself it would show noise alone."""
    from edgeseg.bundle import Bundle
    from edgeseg.runtime.ready import ready_bundle

    assert subject.bundle is not None
    return subject.bundle.body_sha256 == Bundle.open(ready_bundle()).body_sha256


def _reference_name() -> str:
    """The ready bundle, by network and the hash of its body."""
    from edgeseg.bundle import Bundle
    from edgeseg.runtime.ready import ready_bundle

    bundle = Bundle.open(ready_bundle())
    manifest = bundle.manifest
    return f"{manifest.network}-{manifest.precision}-{bundle.body_sha256[:12]}"


def _budget(request: Request, device: Device, subject: Subject) -> float:
    if request.budget_ms is not None:
        return request.budget_ms
    return device.budget(subject.network, subject.precision, subject.size)


def _layers(subject: Subject, scorer: str) -> list[Row]:
    return as_documents(layer_rows(subject.graph, subject.head, scorer))


def _say(text: str) -> None:
    print(f"edgeseg: {text}", file=sys.stderr, flush=True)


_silent: Callable[[int, int], None] = lambda _done, _total: None  # noqa: E731
