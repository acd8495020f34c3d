"""Rows of the document that ``edgeseg profile --json`` prints."""

from collections.abc import Sequence
from os.path import abspath, basename
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.profiling.devices import Device
from edgeseg.profiling.latency import LEVELS, Measurement, Runner, percentiles
from edgeseg.profiling.roofline import Estimate
from edgeseg.profiling.subjects import Subject

__all__ = ["estimated_row", "key_of", "measured_row", "names_of"]

MAX_SAMPLES: Final = 300
"""Single latencies that a row keeps, for histograms."""

Row = dict[str, Any]


def measured_row(subject: Subject, session: Runner, found: Measurement, budget_ms: float) -> Row:
    """What was measured on this machine."""
    row = _common(subject, session.scorer, "measured", budget_ms)
    levels = percentiles(found.latency_ms)
    joule = found.energy_joule
    return row | {
        "backend": session.backend_name,
        "threads": session.threads,
        "engine": session.describe(),
        "latency_ms": levels,
        "fastest_ms": round(float(found.latency_ms.min()), 3),
        "samples_ms": [round(float(v), 3) for v in _thinned(found.latency_ms)],
        "jitter_ms": round(found.jitter_ms, 3),
        "frames": len(found.latency_ms),
        "stages_ms": {k: round(v, 3) for k, v in found.stages_ms.items()},
        "fps": round(found.fps, 3),
        "fps_pipelined": None if found.fps_pipelined is None else round(found.fps_pipelined, 3),
        "memory_bytes": found.memory_bytes,
        "energy_joule_per_frame": None if joule is None else round(joule, 4),
        "energy_source": found.energy_source,
        "within_budget": levels["p99"] <= budget_ms,
        "verdict": found.verdict,
        "reasons": found.reasons,
        "before": found.before.to_document() if found.before else None,
        "after": found.after.to_document() if found.after else None,
    }


def estimated_row(
    subject: Subject, scorer: str, device: Device, guess: Estimate, budget_ms: float
) -> Row:
    """What the roofline says. The tail is the upper end of the range: nothing is known of it."""
    row = _common(subject, scorer, "estimated", budget_ms)
    middle, high = round(guess.ms, 3), round(guess.high_ms, 3)
    backend = device.backends[0]
    return row | {
        "backend": backend,
        "threads": None,
        "mode": device.default_mode,
        "latency_ms": {name: middle if name == "p50" else high for name in LEVELS},
        "range_ms": [round(guess.low_ms, 3), high],
        "stages_ms": {k: round(v, 3) for k, v in guess.stages_ms.items()},
        "fps": round(1000 / guess.ms, 3),
        "within_budget": high <= budget_ms,
        "verdict": "estimated",
        "reasons": [],
    }


def key_of(row: Row) -> str:
    """What two rows must share to be compared."""
    parts = [row[k] for k in ("network", "precision", "size", "scorer", "backend")]
    parts += [f"{row['threads']} threads"] if row["threads"] else []
    return " ".join(map(str, parts))


def names_of(rows: Sequence[Row]) -> list[str]:
    """The key of every row; where it repeats, with the bundle's folder or else a number."""
    keys = [key_of(row) for row in rows]
    names = [
        f"{key} {basename(abspath(row['bundle']))}"
        if keys.count(key) > 1 and row.get("bundle")
        else key
        for row, key in zip(rows, keys, strict=True)
    ]
    return [
        f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _thinned(latency_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evenly spread frames, in order; all where there are few."""
    return latency_ms[:: -(-len(latency_ms) // MAX_SAMPLES)]


def _common(subject: Subject, scorer: str, kind: str, budget_ms: float) -> Row:
    counts = subject.counts(scorer)
    return {
        "network": subject.network,
        "precision": subject.precision,
        "size": subject.size,
        "scorer": scorer,
        "kind": kind,
        "bundle": str(subject.bundle.path) if subject.bundle else None,
        "artefact": subject.bundle.network_sha256 if subject.bundle else None,
        "params": counts.params,
        "macs": counts.macs,
        "macs_network": round(subject.macs_network * subject.graph.ratio),
        "file_bytes": counts.file_bytes or None,
        "counts": counts.to_document(),
        "budget_ms": budget_ms,
    }
