"""The table of faults, from what ``tools/soak.py --json`` kept."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "soak_table", "table"]


@dataclass
class Row:
    """A line of the table."""

    injected: str
    noticed_ms: float | None
    by: str
    state: str
    state_ms: float | None
    """Until the last of the states taken."""
    recovered: bool | None
    as_expected: bool
    note: str = ""


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| injected | noticed after ms | by | state taken | after ms | recovered | as expected | |",
        "|---|---:|---|---|---:|---|---|---|",
    ]
    for row in rows:
        noticed, reached = (
            "-" if ms is None else f"{ms:.1f}" for ms in (row.noticed_ms, row.state_ms)
        )
        recovered = {True: "yes", False: "no", None: "-"}[row.recovered]
        good = "yes" if row.as_expected else "NO"
        state = (row.state, reached, recovered)
        cells = (row.injected, noticed, row.by or "-", *state, good, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def soak_table(document: dict[str, Any]) -> str:
    """The rows of a document, and what they were measured on."""
    machine, run = document["machine"], document["run"]
    return "\n".join(
        (
            table([Row(**row) for row in document["rows"]]),
            "",
            f"{run['network']} {run['precision']} at {run['size']} on {run['backend']}, 1 thread; "
            f"camera of {run['camera_fps']:.0f} frames/s, deadline {run['deadline_ms']:g} ms, safe "
            f"after {run['max_misses']} misses, back after {run['recover_after']} good frames. "
            f"{run['scheduling']}. Machine: {machine['cpu']}; {machine['versions']}; load average "
            f"{machine['load']:.1f} at the start.",
        )
    )
