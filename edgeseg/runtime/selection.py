"""``--backend auto``: the engine that runs this body quicker on this machine."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edgeseg.errors import ArtefactError, EdgesegError, MissingDependencyError
from edgeseg.runtime import cache
from edgeseg.runtime.backends import (
    BACKENDS,
    Backend,
    BodySpec,
    available_backends,
    engine_version,
    open_backend,
)
from edgeseg.runtime.machine import cpu_flags, cpu_model

__all__ = ["open_quickest"]

_WARMUP: Final = 3
_ROUNDS: Final = 9

Opener = Callable[[str, BodySpec, int], Backend]


def open_quickest(body: BodySpec, threads: int, *, opener: Opener = open_backend) -> Backend:
    """Open every installed engine, keep the one with the smallest median time.

    The choice is remembered per machine, thread count, engine versions and body. An engine that
    refuses the graph is passed over as long as another takes it.

    Raises:
        MissingDependencyError: no engine is installed.
        ArtefactError: every installed engine refuses the graph.
    """
    names = available_backends()
    if not names:
        raise MissingDependencyError(
            "no inference engine is installed; run 'pip install onnxruntime' or, on x86-64, "
            "'pip install openvino'"
        )
    question: dict[str, Any] = {
        "body": body.sha256,
        "precision": body.compute_precision,
        "threads": threads,
        "cpu": cpu_model(),
        "flags": len(cpu_flags()),
        "engines": {name: engine_version(name) for name in names},
    }
    if len(names) == 1:
        return opener(names[0], body, threads)
    remembered = cache.recall("quickest", question)
    if isinstance(remembered, dict) and remembered.get("backend") in names:
        # Whatever made it fail this time, the others deserve their chance.
        with contextlib.suppress(EdgesegError):
            return opener(remembered["backend"], body, threads)
    opened, refusals = _open_all(names, body, threads, opener)
    if not opened:
        first = refusals[0]
        if len(refusals) == 1 or not isinstance(first, ArtefactError):
            raise first
        raise ArtefactError(f"no engine can run the bundle: {'; '.join(map(str, refusals))}")
    if len(opened) == 1:
        return opened[0]
    medians = _measure(opened, body)
    best = min(opened, key=lambda backend: medians[backend.name])
    for backend in opened:
        if backend is not best:
            backend.close()
    cache.remember("quickest", question, {"backend": best.name, "median_ms": medians})
    return best


def _open_all(
    names: list[str], body: BodySpec, threads: int, opener: Opener
) -> tuple[list[Backend], list[EdgesegError]]:
    opened: list[Backend] = []
    refusals: list[EdgesegError] = []
    for name in BACKENDS:
        if name not in names:
            continue
        try:
            opened.append(opener(name, body, threads))
        except EdgesegError as error:
            refusals.append(error)
    return opened, refusals


def _measure(opened: list[Backend], body: BodySpec) -> dict[str, float]:
    # Noise rather than zeros: multiplications by zero and denormals have times of their own.
    frame = np.random.default_rng(0).integers(
        0, 256, (1, body.height, body.width, 3), dtype=np.uint8
    )
    times: dict[str, list[float]] = {backend.name: [] for backend in opened}
    for backend in opened:
        for _ in range(_WARMUP):
            backend.infer(frame)
    # Interleaved, so that a change of clock or a neighbour's burst hits all alike.
    for _ in range(_ROUNDS):
        for backend in opened:
            start = time.perf_counter_ns()
            backend.infer(frame)
            times[backend.name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}
