"""``edgeseg profile``: what a network costs, how long it takes, and whether that is allowed."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.run import BackendName, Scorer

__all__ = ["profile_command"]


class PrecisionName(str, Enum):
    """What weights and activations are stored as."""

    int8 = "int8"
    float16 = "float16"
    float32 = "float32"


def profile_command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE|NETWORK]...",
            help="Bundle folders and networks.",
            show_default="all shipped networks",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the one NETWORK.", show_default="the shipped ones"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, desktop-gpu, jetson, or a profile (--list-devices). What is not at hand is "
            "estimated.",
            show_default="cpu; with --host what that is",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            help="Measure there over ssh; needs Python 3.10 with numpy and an engine there, and "
            "leaves nothing behind.",
            show_default=False,
        ),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            "--ssh-config", metavar="FILE", help="Configuration of ssh.", show_default="yours"
        ),
    ] = None,
    remote_python: Annotated[
        str | None,
        typer.Option(
            "--remote-python", metavar="PROGRAM", help="Python there.", show_default="python3"
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="Power mode.", show_default="the device's default"),
    ] = None,
    scorer: Annotated[
        Scorer | None,
        typer.Option("--scorer", help="Anomaly score.", show_default="void, else msp"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=256, show_default="physical cores")
    ] = None,
    backend: Annotated[
        BackendName, typer.Option("--backend", help="Inference engine.")
    ] = BackendName.auto,
    size: Annotated[
        str | None,
        typer.Option(help="Frame size, HxW.", show_default="the bundle's, else 512x1024"),
    ] = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="Of a NETWORK; default: int8 where its activation ranges are shipped and the "
            "device is fast at it.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate even where it could be measured.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="How long to measure each.")
    ] = 3.0,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 6 where a budget or the baseline is exceeded."),
    ] = False,
    budget_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", min=0.001, help="Budget of p99.", show_default="the device profile's"
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with this baseline.")
    ] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a baseline.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was checked as JUnit XML.")
    ] = None,
    benchmark_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write figures for github-action-benchmark (customSmallerIsBetter).",
        ),
    ] = None,
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="List the device profiles and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Count, measure or estimate networks, and check them against budgets.

    On this machine and on a --host it measures; for any other device it estimates from the
    device's published peaks and says so in every row. Needs no torch, except to measure a NETWORK
    that no bundle is shipped of.
    """
    import json
    import math
    import sys
    from collections.abc import Callable
    from functools import partial

    from rich.console import Console

    from edgeseg.cli.outputs import check_output, check_separate, write_outputs
    from edgeseg.cli.profile_job import Request, run_profile, say
    from edgeseg.cli.profile_tables import (
        device_document,
        device_table,
        finding_tables,
        print_document,
    )
    from edgeseg.cli.profile_targets import is_bundle
    from edgeseg.cli.sizes import parse_size
    from edgeseg.errors import BudgetExceededError, UsageError
    from edgeseg.files import write_text
    from edgeseg.profiling.budgets import (
        check_distinct,
        excess,
        judge,
        not_profiled,
        read_baseline,
        write_baseline,
    )
    from edgeseg.profiling.ci_formats import benchmark_json as to_benchmark
    from edgeseg.profiling.ci_formats import junit_xml

    console = Console(stderr=as_json)
    if list_devices:
        if as_json:
            print(json.dumps(device_document(), allow_nan=False))
        else:
            console.print(device_table())
        return
    if budget_ms is not None and not math.isfinite(budget_ms):
        raise UsageError(f"--budget-ms {budget_ms} allows anything; give a number of milliseconds")
    outputs = {
        "--save-baseline": save_baseline,
        "--junit": junit,
        "--benchmark-json": benchmark_json,
    }
    for option, path in outputs.items():
        if path is not None:
            check_output(path, option)
    check_separate(outputs)
    names = list(targets or [])
    if weights is not None and (len(names) != 1 or is_bundle(names[0])):
        raise UsageError("--weights belongs to one NETWORK; name it, and no bundle")
    if host is None and (ssh_config is not None or remote_python is not None):
        raise UsageError("--ssh-config and --remote-python belong to --host; name one")
    stored = read_baseline(baseline) if baseline is not None else None
    request = Request(
        targets=names,
        weights=weights,
        device=device or "cpu",
        mode=mode,
        scorer=scorer.value if scorer else None,
        threads=threads,
        backend=backend.value,
        size=parse_size(size) if size else None,
        precision=precision.value if precision else None,
        estimate=estimate,
        seconds=seconds,
        layers=layers,
        budget_ms=budget_ms,
        compare=stored is not None or save_baseline is not None,
    )
    if host is None:
        document = run_profile(request)
    else:
        from edgeseg.cli.profile_host import profile_on_host
        from edgeseg.profiling.remote.host import Host

        there = Host(host, ssh_config, "python3" if remote_python is None else remote_python)
        document = profile_on_host(request, there, device)
    rows = document["results"]
    if stored is not None or save_baseline is not None:
        check_distinct(rows)
    findings = judge(rows, stored) if check or junit or stored is not None else []
    if findings:
        document["check"] = [
            {
                "row": f.row,
                "figure": f.figure,
                "value": f.value,
                "limit": f.limit,
                "unit": f.unit,
                "state": f.state,
            }
            for f in findings
        ]
    if stored is not None and (idle := not_profiled(rows, stored)):
        document["not_profiled"] = idle
        say(f"in the baseline, but not profiled: {', '.join(idle)}")
    writes: list[Callable[[], None]] = []
    if save_baseline is not None:
        writes.append(partial(write_baseline, save_baseline, rows, document.get("reference")))
    if junit is not None:
        where = document["device"] + (f" at {host}" if host else "")
        writes.append(partial(write_text, junit, junit_xml(findings, where)))
    if benchmark_json is not None:
        writes.append(partial(write_text, benchmark_json, to_benchmark(rows)))
    failed = write_outputs(*writes)
    if as_json:
        print(json.dumps(document, allow_nan=False))
    else:
        print_document(document, console)
    if findings and (check or stored is not None):
        for table in finding_tables(findings):
            console.print(table)
    if failed is not None:
        raise failed
    if check and any(f.exceeded for f in findings):
        sys.stdout.flush()
        raise BudgetExceededError(excess(findings))
