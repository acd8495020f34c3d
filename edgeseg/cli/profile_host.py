"""``edgeseg profile --host``: bundles are made here, measured there, and reported here."""

from contextlib import ExitStack
from typing import Any, cast

from edgeseg.cli.profile_job import (
    Request,
    budget_of,
    document_of,
    layer_entries,
    ratio_entry,
    say,
    subject_to_measure,
)
from edgeseg.cli.profile_targets import shipped_networks
from edgeseg.cli.progress import Report, frame_progress
from edgeseg.errors import MissingDependencyError, UsageError
from edgeseg.profiling.devices import ALIASES, load_device
from edgeseg.profiling.latency import Runner
from edgeseg.profiling.reference import reference_name
from edgeseg.profiling.remote.host import Host
from edgeseg.profiling.remote.libraries import NUMPY
from edgeseg.profiling.remote.measuring import Found, Order, measure_there
from edgeseg.profiling.rows import measured_row
from edgeseg.profiling.subjects import Subject

__all__ = ["profile_on_host"]


def profile_on_host(request: Request, host: Host, device: str | None) -> dict[str, Any]:
    """The document of :func:`edgeseg.cli.profile_job.run_profile`, measured on a host.

    Args:
        request: as there, but for its device.
        host: where to measure.
        device: the profile with the budgets; ``None``: that of what the host is.

    Raises:
        EdgesegError: something could not be opened or made here, copied, or measured there.
    """
    if request.estimate:
        raise UsageError("--estimate needs no --host: name the device with --device")
    if request.weights is not None and request.weights.is_dir():
        raise UsageError(
            f"'{request.weights}' is a folder: torch FX weights run in torch, which is not copied "
            "to a host; measure them here"
        )
    if device is not None and device not in ALIASES:
        load_device(device).in_mode(request.mode)
    subjects = _subjects(request)
    scorers = [subject.choose_scorer(request.scorer) for subject in subjects]
    order = Order(
        bundles=[subject.bundle for subject in subjects if subject.bundle is not None],
        labels=[subject.label for subject in subjects],
        scorers=scorers,
        device=device,
        backend=request.backend,
        threads=request.threads,
        seconds=request.seconds,
        compare=request.compare,
    )
    reference = reference_name() if request.compare else None
    with _Bars(host.name, subjects) as bars:
        found = measure_there(host, order, bars.copied, bars.measured)
    document = _document(request, host, subjects, found)
    if reference is not None:
        document["reference"] = reference
    return document


def _subjects(request: Request) -> list[Subject]:
    subjects = []
    for target in request.targets or shipped_networks():
        try:
            subjects.append(subject_to_measure(target, request))
        except MissingDependencyError as error:
            # Named ones must be measured; of all that are shipped, some may be without torch.
            if request.targets:
                raise
            say(f"{error}; {target} is left out")
    if not subjects:
        raise MissingDependencyError(
            "no network can be exported here; name a bundle that was exported elsewhere"
        )
    return subjects


def _document(
    request: Request, host: Host, subjects: list[Subject], found: Found
) -> dict[str, Any]:
    reply, facts = found.reply, found.facts
    device = reply.device.in_mode(request.mode)
    rows = []
    for subject, told in zip(subjects, reply.rows, strict=True):
        # A row asks only what ran, not for it to run again.
        runner = cast(Runner, told)
        row = measured_row(subject, runner, told.found, budget_of(request, device, subject))
        row["host"] = host.name
        if told.ratios is not None:
            row["ratio"] = ratio_entry(told.ratios)
        if request.layers:
            row["layers"] = layer_entries(subject, told.scorer)
        rows.append(row)
        for text in told.notes:
            say(f"on {host.name}: {text}")
    if reply.note:
        say(f"on {host.name}: {reply.note}")
    if not reply.here:
        say(f"{host.name} is no '{device.name}': only the budgets are of that device")
    if reply.kernels == NUMPY:
        say(
            f"neither do compiled kernels fit {host.name} ({facts.machine}) nor could they be "
            "built there, so numpy did their work, many times slower; install a C compiler there "
            "and run edgeseg from a checkout"
        )
    if found.left_behind:
        say(f"{host.name} could not remove edgeseg's folder from among its temporary files")
    document = document_of(device, rows, measured=True)
    document["host"] = {
        "name": host.name,
        "machine": facts.machine,
        "processor": reply.processor,
        "python": facts.python,
        "kernels": reply.kernels,
    }
    return document


class _Bars:
    """Progress on a terminal: of copying, then of every bundle, and of its ratio."""

    def __init__(self, host: str, subjects: list[Subject]) -> None:
        self._host, self._subjects = host, subjects
        self._stack = ExitStack()
        self._shown: object = None
        self._report: Report | None = None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def copied(self, done: int, size: int) -> None:
        """Bytes sent."""
        self._show("copy", f"copying to {self._host}, kB", done // 1000, size // 1000)

    def measured(self, number: int, done: int, expected: int) -> None:
        """Frames of a bundle."""
        subject = self._subjects[number]
        label = f"{subject.network} {subject.precision} on {self._host}"
        self._show(number, label, done, expected)

    def _show(self, key: object, label: str, done: int, expected: int) -> None:
        if key != self._shown:
            self._stack.close()
            self._report = self._stack.enter_context(frame_progress(label))
            self._shown = key
        if self._report is not None:
            self._report(done, expected)
