"""Break the run in every way that a vehicle does, and tabulate what the supervisor made of it.

    python tools/soak.py [--bundle DIR] [--frames 10000] [--only NAME ...] [--json FILE]

Every fault is put into a running pipeline with a camera and an engine that can be told to fail.
A row says after how many milliseconds the first line or event told of it, which state was taken,
and whether results came again once the fault was gone; a row is as expected only where every frame
taken has its line and no late result was called good. Exits 1 where a row is not as expected.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_machine import describe_machine
from edgeseg.bundle import Bundle
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.ready import ready_bundle
from soak_bench import PERIOD_S
from soak_faults import cases
from soak_table import table


def raise_priority(priority: int | None) -> None:
    """Give the process and all that it starts a SCHED_FIFO priority; ``None``: take it back."""
    policy = os.SCHED_OTHER if priority is None else os.SCHED_FIFO
    os.sched_setscheduler(0, policy, os.sched_param(priority or 0))


def describe_run(bundle: Path, deadline: Deadline, priority: int | None) -> dict[str, Any]:
    manifest = Bundle.open(bundle).manifest
    return {
        "network": manifest.network,
        "precision": manifest.precision,
        "size": f"{manifest.height}x{manifest.width}",
        "backend": "onnxruntime",
        "camera_fps": round(1 / PERIOD_S, 1),
        "deadline_ms": deadline.ms,
        "max_misses": deadline.max_misses,
        "recover_after": deadline.recover_after,
        "scheduling": "Normal scheduling" if priority is None else f"SCHED_FIFO {priority}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="folder; default: the ready bundle")
    parser.add_argument("--frames", type=int, default=10_000, help="of the memory row")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--deadline-ms", type=float, default=150.0)
    parser.add_argument(
        "--realtime-priority",
        type=int,
        help="SCHED_FIFO, all rows but memory: for figures from a machine that does other work",
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    bundle = options.bundle or ready_bundle()
    deadline = Deadline(options.deadline_ms, "safe", max_misses=2, recover_after=3)
    every = cases(bundle, options.frames, deadline)
    unknown = set(options.only or ()) - set(every)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    machine = {**describe_machine(), "load": os.getloadavg()[0]}
    rows = []
    for name, make in every.items():
        if not options.only or name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            if options.realtime_priority is not None:
                raise_priority(None if name == "memory" else options.realtime_priority)
            rows.append(make())
    print(table(rows))
    if options.json:
        run = describe_run(bundle, deadline, options.realtime_priority)
        document = {"machine": machine, "run": run, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(row.as_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
