"""Whether rows keep what was promised: budgets of the device, and a stored baseline.

On a machine that others use, a time alone says nothing. So counts and sizes are held to the
baseline exactly; a latency is held to its budget only where the measurement was undisturbed, or
where even the fastest frame misses it; and against a baseline only the ratio to a reference bundle
counts, measured frame by frame in turn with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.files import write_text
from edgeseg.profiling.rows import key_of, names_of
from edgeseg.profiling.state import COMPARABLE

__all__ = [
    "BASELINE_SCHEMA",
    "MISSING",
    "Finding",
    "check_distinct",
    "excess",
    "judge",
    "not_profiled",
    "read_baseline",
    "write_baseline",
]

BASELINE_SCHEMA: Final = "edgeseg.baseline/1"
HARD: Final = ("params", "macs", "file_bytes", "weight_bytes", "activation_peak_bytes")
FILE_SLACK: Final = 1.01
"""A manifest's text may grow a little."""
MISSING: Final = "not in the baseline"
LEAST_BAND: Final = 0.10
"""Smallest change of a ratio that is called one."""
PRECISIONS: Final = ("float32", "float16", "int8")
_SIGMAS: Final = 4.0
_MAX_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure beside its limit."""

    row: str
    figure: str
    value: float
    limit: float
    unit: str
    state: str
    """``ok``, ``exceeded``, :data:`MISSING`, or ``not judged`` with the reason behind it."""

    @property
    def exceeded(self) -> bool:
        """Whether it breaks the check."""
        return self.state in ("exceeded", MISSING)

    @property
    def excess_percent(self) -> float:
        """How much the value is above the limit; negative below."""
        return 100 * (self.value / self.limit - 1) if self.limit else 0.0

    @property
    def told(self) -> str:
        """The figure beside its limit in words, or what is to be done where there is none."""
        if self.state == MISSING:
            return f"{MISSING}; store it with --save-baseline"
        return (
            f"{self.figure} is {self.value:g} {self.unit}, limit {self.limit:g} "
            f"({self.excess_percent:+.1f}%)"
        )


def judge(rows: Sequence[dict[str, Any]], baseline: dict[str, Any] | None) -> list[Finding]:
    """Every figure that is held to something.

    A row that the baseline has in another precision only is held to that: who exports float32 by
    mistake where INT8 was stored is to be told what it costs. One that it has not at all breaks the
    check: nothing would ever hold it to anything.

    Args:
        rows: of the document, measured or estimated.
        baseline: as :func:`read_baseline` gave it.

    Raises:
        InputError: the baseline has none of the rows.
    """
    findings = []
    known = baseline["rows"] if baseline else {}
    keys = [key_of(row) for row in rows]
    stored = [_stored(row, known, keys) for row in rows]
    if baseline is not None and not any(stored):
        raise InputError(
            f"the baseline holds none of what was profiled ({keys[0]}); it has "
            f"{', '.join(sorted(known)[:5])}; save one with --save-baseline"
        )
    for row, name, before in zip(rows, names_of(rows), stored, strict=True):
        findings.append(_budget(row, name))
        if before is not None:
            findings += _hard(row, name, known[before])
            findings += _ratio(row, name, known[before], (baseline or {}).get("reference"))
        elif baseline is not None:
            findings.append(Finding(name, "rows in the baseline", 0, 1, "", MISSING))
    return findings


def excess(findings: Sequence[Finding]) -> str:
    """What breaks the check, in a sentence."""
    missing = [f for f in findings if f.state == MISSING]
    over = [f for f in findings if f.exceeded and f.state != MISSING]
    parts = []
    if over:
        worst = max(over, key=lambda f: f.excess_percent)
        parts.append(
            f"{len(over)} of {len(findings) - len(missing)} figures exceed their limit, the worst "
            f"{worst.figure} of {worst.row}: {worst.value:g} {worst.unit} where {worst.limit:g} "
            f"is allowed ({worst.excess_percent:+.0f}%)"
        )
    if missing:
        rows = ", ".join(f.row for f in missing)
        parts.append(f"the baseline does not hold {rows}; store it with --save-baseline")
    return "; ".join(parts)


def not_profiled(rows: Sequence[dict[str, Any]], baseline: dict[str, Any]) -> list[str]:
    """Keys of the baseline's rows that none of ``rows`` is held to."""
    keys = [key_of(row) for row in rows]
    held = {_stored(row, baseline["rows"], keys) for row in rows}
    return sorted(baseline["rows"].keys() - held)


def check_distinct(rows: Sequence[dict[str, Any]]) -> None:
    """Raise UsageError where two rows would be one row of a baseline."""
    keys = [key_of(row) for row in rows]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        bundles = [f"'{row.get('bundle') or row['network']}'" for row in rows]
        which = [name for name, key in zip(bundles, keys, strict=True) if key == twice]
        raise UsageError(
            f"{' and '.join(which)} are all '{twice}', and a baseline has one row of that; "
            "profile each in a call of its own, with a baseline of its own"
        )


def _stored(row: dict[str, Any], known: dict[str, Any], keys: Sequence[str]) -> str | None:
    """Key of what the baseline has of a row: in its precision, else in the one that it has, unless
    that is another row's (``keys``: of all rows).
    """
    if key_of(row) in known:
        return key_of(row)
    others = [key_of({**row, "precision": p}) for p in PRECISIONS]
    found = [key for key in others if key in known and key not in keys]
    return found[0] if len(found) == 1 else None


def _budget(row: dict[str, Any], key: str) -> Finding:
    p99, limit = row["latency_ms"]["p99"], row["budget_ms"]
    state = "ok" if p99 <= limit else "exceeded"
    if state == "exceeded" and row["kind"] == "measured" and row["verdict"] != COMPARABLE:
        certain = row.get("fastest_ms", p99) > limit
        state = "exceeded" if certain else f"not judged: {row['verdict'].split(':')[0]}"
    return Finding(key, "p99 latency", p99, limit, "ms", state)


def _hard(row: dict[str, Any], key: str, before: dict[str, Any]) -> list[Finding]:
    findings = []
    for name in HARD:
        value, limit = _hard_figures(row).get(name), before.get(name)
        if value is None or limit is None:
            continue
        allowed = limit * FILE_SLACK if name == "file_bytes" else limit
        unit = "bytes" if name.endswith("bytes") else ""
        state = "exceeded" if value > allowed else "ok"
        findings.append(Finding(key, name, value, limit, unit, state))
    return findings


def _ratio(
    row: dict[str, Any], key: str, before: dict[str, Any], reference: str | None
) -> list[Finding]:
    now, then = row.get("ratio"), before.get("ratio")
    if now is None or then is None:
        return []
    if reference is not None and now["reference"] != reference:
        return [
            Finding(
                key,
                "latency ratio",
                now["median"],
                then["median"],
                "x",
                "not judged: another reference bundle",
            )
        ]
    limit = then["median"] * (1 + band(then["samples"], now["samples"]))
    state = "exceeded" if now["median"] > limit else "ok"
    return [Finding(key, "latency ratio", now["median"], float(f"{limit:.6g}"), "x", state)]


def band(then: Sequence[float], now: Sequence[float]) -> float:
    """Relative change of a median ratio that noise alone may make.

    The standard error of a median is 1.25 sigma / sqrt(n); sigma is taken from the median absolute
    deviation, which single bad turns do not move.
    """
    errors = []
    for samples in (np.asarray(then, float), np.asarray(now, float)):
        median = float(np.median(samples))
        sigma = 1.4826 * float(np.median(np.abs(samples - median)))
        errors.append(1.25 * sigma / np.sqrt(len(samples)) / median)
    return max(LEAST_BAND, _SIGMAS * float(np.hypot(*errors)))


def _hard_figures(row: dict[str, Any]) -> dict[str, Any]:
    return {**row["counts"], "file_bytes": row["file_bytes"]}


def write_baseline(path: Path, rows: Sequence[dict[str, Any]], reference: str | None) -> None:
    """Store rows to compare later runs with, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    document = {
        "schema": BASELINE_SCHEMA,
        "reference": reference,
        "rows": {
            key_of(row): {
                **{name: _hard_figures(row).get(name) for name in HARD},
                "ratio": row.get("ratio"),
            }
            for row in rows
        },
    }
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_baseline(path: Path) -> dict[str, Any]:
    """What :func:`write_baseline` wrote.

    Raises:
        InputError: there is no such file.
        ArtefactError: it is something else.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        document = json.loads(path.read_bytes())
        if document["schema"] != BASELINE_SCHEMA:
            raise ValueError(f"schema {document['schema']!r}")
        for row in document["rows"].values():
            for name in HARD:
                if not isinstance(row[name], int | None):
                    raise ValueError(f"{name} is {row[name]!r}")
            ratio = row["ratio"]
            if ratio is not None:
                numbers = [float(s) for s in (*ratio["samples"], ratio["median"])]
                if not (ratio["samples"] and all(0 < n < np.inf for n in numbers)):
                    raise ValueError("a ratio that is not positive")
    except OSError as error:
        raise InputError(
            f"baseline '{path}' cannot be read ({error.strerror}); make one with --save-baseline"
        ) from None
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise ArtefactError(
            f"baseline '{path}' is not one ({type(error).__name__}: {error}); make one with "
            "--save-baseline"
        ) from None
    return document  # type: ignore[no-any-return]
