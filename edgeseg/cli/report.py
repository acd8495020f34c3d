"""``edgeseg report``: what the other commands wrote, on one page."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report_command"]


def report_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder with results, searched recursively.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Page to write; a report there is replaced."
        ),
    ] = Path("report.html"),
    max_frames: Annotated[
        int,
        typer.Option("--max-frames", metavar="N", min=0, max=100, help="Example frames to show."),
    ] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was used as one JSON document.")
    ] = False,
) -> None:
    """One HTML page, readable without a network, of the results in a folder.

    Takes what `profile --json`, `eval --json` (with --curves for ROC and precision-recall), `run
    --jsonl` and `run --save` wrote, gate.json and compression tables. Files are known by what they
    hold, not by their names; what is something else is listed at the end of the page.
    """
    import json
    import sys

    from edgeseg.cli.progress import frame_progress
    from edgeseg.errors import ArtefactError, InputError, UsageError
    from edgeseg.files import write_text
    from edgeseg.reporting.files import search
    from edgeseg.reporting.page import page

    def say(text: str) -> None:
        print(f"edgeseg: {text}", file=sys.stderr)

    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder; give one with results of other commands")
    _check_output(output)
    with frame_progress("files") as bar:
        material = search(folder, output, bar)
    for name, why in material.broken:
        say(f"'{folder / name}' is left out: {why}")
    if not material.files:
        raise InputError(
            f"'{folder}' holds no files; write results into it, such as 'edgeseg profile --json > "
            f"{folder}/profile.json'"
        )
    if not material.usable:
        raise ArtefactError(
            f"none of the {material.files} files in '{folder}' is a result that can be shown; see "
            "'edgeseg report --help' for those that can"
        )
    with frame_progress("pictures") as bar:
        text = page(material, folder.resolve().name, max_frames=max_frames, say=say, progress=bar)
    try:
        write_text(output, text)
    except InputError as error:
        raise UsageError(str(error)) from None
    size = len(text.encode())
    if not as_json:
        print(f"wrote {output}, {size / 1e6:.2f} MB")
        return
    used = {
        "profiles": len(material.profiles),
        "evaluations": len(material.evaluations),
        "runs": len(material.runs),
        "gates": len(material.gates),
        "compression_tables": len(material.compressions),
        "frames": len(material.frames),
    }
    document = {
        "schema": "edgeseg.report/1",
        "output": str(output),
        "bytes": size,
        "used": used,
        "ignored": [{"file": name, "why": why} for name, why in material.ignored],
        "left_out": [{"file": name, "why": why} for name, why in material.broken],
    }
    print(json.dumps(document))


def _check_output(output: Path) -> None:
    """Before any work: another's file is not overwritten."""
    from edgeseg.cli.outputs import check_output
    from edgeseg.errors import UsageError
    from edgeseg.reporting.page import MARK

    check_output(output, "--output")
    try:
        with output.open("rb") as handle:
            start = handle.read(1024)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(
            f"--output '{output}' cannot be replaced ({error.strerror}); name another file"
        ) from None
    if start and MARK.encode() not in start:
        raise UsageError(
            f"--output '{output}' exists and is no edgeseg report; name another file, or remove it"
        )
